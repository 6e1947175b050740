"""Tests import the rooms of the house by name, from wherever pytest is started."""
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import chat  # noqa: E402
import flm  # noqa: E402
import mimi  # noqa: E402
import stream  # noqa: E402


def greedy_sampling(penalty_text=1.0, penalty_audio=1.0):
    """Sampling that takes the likeliest token always."""
    return chat.Sampling(temperature_text=0, temperature_audio=0, penalty_text=penalty_text, penalty_audio=penalty_audio)


def assert_same(found, expected, ids):
    """Raise AssertionError with both drawings where two grids differ."""
    same = all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("text", "speak", "listen", "loss"))
    assert same, f"the grid is\n{stream.draw(found, ids)}\nand should be\n{stream.draw(expected, ids)}"


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


@pytest.fixture
def sound_card(monkeypatch):
    """sound_card(frames): a made-up sounddevice whose card gives these frames, as fast as they are taken, and is then
    unplugged. Returns the list of what it plays. native: a rate that it insists on."""
    def plug(frames, native=24_000):
        played = []

        class Stream:
            def __init__(self, samplerate, blocksize, channels, dtype, device, callback):
                assert (samplerate, blocksize, channels, dtype) == (native, native * 2 // 25, 1, "float32")
                self.callback, self.card = callback, callback.__self__

            def run(self):
                for frame in frames:
                    out = frame[:, None] * 0
                    self.callback(frame[:, None], out, len(frame), None, None)
                    played.append(out)
                    while self.card.heard.qsize() > 1:
                        time.sleep(0.001)

            def __enter__(self):
                self.thread = threading.Thread(target=self.run)
                self.thread.start()

            def __exit__(self, *_):
                self.thread.join()

        def check(device, channels, dtype, samplerate):
            if samplerate != native:
                raise OSError("invalid sample rate")
        monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(
            Stream=Stream, PortAudioError=OSError, check_input_settings=check, check_output_settings=check,
            query_devices=lambda *_: {"default_samplerate": float(native)}))
        monkeypatch.setattr(chat, "PATIENCE", 0.5)
        return played
    return plug
