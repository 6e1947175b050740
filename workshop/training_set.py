"""A training set on disk: folders of encoded grids, read as one list, and checked.

What this is: the index of a folder's shards, the mixture of several folders (section 3.1 mixes two
in post-training 2), and `data.py check FOLDER`. What this is not: the format of a shard
(workshop/shards.py), or packing (workshop/batches.py). Serves data.py and train.py.

    python data.py check grids/ft1
"""
import json
import os
import re
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

import stream
from workshop import shards
from workshop.manifests import DataError, write_lines

SHARDS = "shard-*.safetensors"
LARGEST_IDS = (2**31 - 1, 2**15)  # more text ids and codes than any model has

# Each file is mapped once, and 64 at a time: far below a process's limit of open files.
open_shard = lru_cache(maxsize=64)(shards.Shard)


class Grids:
    """The grids of some sources, "FOLDER" or "FOLDER:WEIGHT"; grids[i] reads one from the disk.

    lengths: frames of each. formats: the format of each, "unknown" where its folder does not say.
    Raises DataError for a source without grids."""

    def __init__(self, sources):
        self.lengths = []
        self.formats = []
        self._places = []    # of each grid: its shard's path, its number there
        self._weighted = []  # of each source: the range of its grids, its weight
        for source in sources:
            self._add(str(source))

    def _add(self, source):
        """Append the grids of one source."""
        folder, weight = parse_source(source)
        index = read_index(folder)
        if not index or not weight:
            raise DataError(f"{source} holds no grids, or weighs nothing: make them with "
                            f"`python data.py encode MANIFEST {folder}`")
        first = len(self)
        for name, (_, lengths) in index.items():
            self.lengths += lengths
            self._places += [(folder / name, number) for number in range(len(lengths))]
        added = len(self) - first
        self.formats += [format_of(folder)] * added
        self._weighted.append((range(first, len(self)), weight))

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        path, number = self._places[i]
        return open_shard(path)[number]

    def place(self, i):
        """Where grid i stands, for messages."""
        path, number = self._places[i]
        return f"{path}, grid {number}"

    def epoch(self, rng):
        """The indices of one epoch, in random order.

        A source of weight 2.5 gives each of its grids twice, and a random half of them once more.
        Post-training 2 has weights 0.5 and 5 (section 3.1)."""
        indices = []
        for source, weight in self._weighted:
            whole = int(weight)
            rest = round((weight - whole) * len(source))
            for _ in range(whole):
                indices += source
            indices += rng.sample(source, rest)
        return rng.sample(indices, len(indices))


def parse_source(source):
    """"FOLDER" or "FOLDER:WEIGHT" -> (path, weight); the weight is 1 where there is none."""
    folder, weight = re.fullmatch(r"(.*?)(?::(\d+\.?\d*|\.\d+))?", source).groups()
    return Path(folder), float(weight or 1)


def read_json(path):
    """A JSON file's object; {} where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def format_of(folder):
    """The format that a folder of grids says it has, or "unknown"."""
    return read_json(folder / "grids.json").get("format", "unknown")


def read_index(folder):
    """A folder -> {name of a shard: [its bytes, [frames of each of its grids]]}, in order.

    index.json keeps them, so that a shard is opened once and not at every start; it is written
    again where a shard is new, has another size or is gone. A damaged shard is named on stderr and
    left out."""
    folder = Path(folder)
    before = read_json(folder / "index.json")
    index = {}
    for path in sorted(folder.glob(SHARDS)):
        size = path.stat().st_size
        if path.name in before and before[path.name][0] == size:
            index[path.name] = before[path.name]
            continue
        try:
            index[path.name] = [size, shards.Shard(path).lengths]
        except stream.GridError as error:
            tqdm.write(f"SKIPPED: {error}; remove it, and data.py encode makes it again",
                       file=sys.stderr)
    if index != before and os.access(folder, os.W_OK):
        write_lines(folder / "index.json", [index])
    return index


def check_grids(folder):
    """Compare every shard of a folder with its digest, and look at every id and loss class -> a
    table: how many are whole, and how many have no digest (those of an older version). Raises
    DataError where one is damaged, or none is there.

    Whether the ids exist in a model is known where it is trained, and checked there."""
    counts = Counter()
    damaged = []
    paths = sorted(Path(folder).glob(SHARDS))
    for path in tqdm(paths, desc=Path(folder).name, unit="shard"):
        try:
            shard = shards.Shard(path)
            has_digest = shard.verify()
            for grid in shard:
                shards.check_ids(grid, *LARGEST_IDS)
        except stream.GridError as error:
            damaged.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        counts["whole" if has_digest else "without a digest"] += 1
    if not paths:
        raise DataError(f"{folder} holds no grids ({SHARDS})")
    if damaged:
        damaged.append(f"{len(damaged)} of {len(paths)} shards are damaged: remove them, and "
                       "data.py encode makes them again")
        raise DataError("\n".join(damaged))
    lines = [f"{count:>9} {kind}" for kind, count in counts.items()]
    return "\n".join([*lines, "Looked at: bytes, ids below any model's, loss classes. Whether the "
                      "ids are your model's is checked in training."])
