"""Files of token grids: what is written is read, and damage is one sentence."""
import random

import pytest

from conftest import assert_same
from stream import GridError
from test_stream import IDS, random_grid
from workshop import shards


def test_files_give_the_grids_back(tmp_path):
    """Catches ids that do not fit the stored types, and frames that come back in the wrong grid."""
    rng = random.Random(2)
    grids = [random_grid(rng) for _ in range(5)]
    grids[0].text[0] = 152_063
    shards.save(grids, tmp_path / "x.safetensors")
    shard = shards.Shard(tmp_path / "x.safetensors")
    assert len(shard) == 5
    assert shard.verify()
    for loaded, grid in zip(shard, grids):
        assert_same(loaded, grid, IDS)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_bad_files_are_one_sentence(tmp_path, content):
    """Catches a traceback for a missing or damaged file of grids."""
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GridError, match="bad.safetensors is no file of token grids"):
        shards.Shard(path)


@pytest.mark.parametrize("channel, place, value, message", [
    ("text", 3, 10, r"text has the id 10, outside 0 \.\. 9"),
    ("listen", (2, 5), -1, r"listen has the id -1, outside 0 \.\. 99"),
    ("loss", (1, 0), 1, "the loss class 1 cannot stand at a text id"),
    ("loss", (1, 1), 4, "the loss class 4 cannot stand at a semantic code"),
    ("loss", (1, 8), 1, "the loss class 1 cannot stand at an acoustic code"),
])
def test_ids_that_no_model_has(channel, place, value, message):
    """Catches a flipped bit that ends in a failed look-up within the model, or in a wrong loss."""
    grid = random_grid(random.Random(4))
    shards.check_ids(grid, 10, 100)
    getattr(grid, channel)[place] = value
    with pytest.raises(GridError, match=message):
        shards.check_ids(grid, 10, 100)
