"""Tests import the rooms of the house by name, from wherever pytest is started."""
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import chat  # noqa: E402
import flm  # noqa: E402
import mimi  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="hours of conversation, and 10,000 messages from strangers")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A model folder of the shipped shape with random weights: it babbles, but its bytes and times are right."""
    from tokenizers import Tokenizer, decoders, models
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    model = flm.init_weights(flm.FLM(flm.PRESETS["tiny"]))
    flm.save(model, folder)
    mimi.save(mimi.Mimi(mimi.PRESETS["tiny"]), folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(model.config.vocab_size)}, unk_token="w0"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def shipped():
    """The shipped model's folder; tests that need what it has learned skip where it is not there."""
    if not (chat.SHIPPED / "model.safetensors").exists():
        pytest.skip("tiny/model has no weights")
    return chat.SHIPPED
