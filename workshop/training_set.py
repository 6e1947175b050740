"""A training set on disk: folders of encoded grids, read as one list, and checked.

What this is: the index of a folder's shards, the mixture of several folders (section 3.1 mixes two
in post-training 2), and `data.py check FOLDER`. What this is not: the format of a shard
(workshop/shards.py), or packing (workshop/batches.py). Serves data.py and train.py.

    python data.py check grids/ft1
"""
import bisect
import hashlib
import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

import stream
from workshop import model_files, shards
from workshop.files import LoadError
from workshop.manifests import DataError, write_lines

SHARDS = "shard-*.safetensors"
LARGEST_IDS = (2**31 - 1, 2**15)  # more text ids and codes than any model has

# Each file is mapped once, and 64 at a time: far below a process's limit of open files.
open_shard = lru_cache(maxsize=64)(shards.Shard)


@dataclass(frozen=True)
class Source:
    """One folder of grids among several."""
    name: str         # of the folder, as it was given
    weight: float     # how often an epoch reads each of its grids
    grids: range      # its grids among all
    format: str       # "unknown" where the folder does not say
    draws: int        # encodings of each recording, as data.py encode made them
    fingerprint: str  # of its settings, of what it was made from, and of its shards and lengths


class Grids:
    """The grids of some sources, "FOLDER" or "FOLDER:WEIGHT"; grids[i] reads one from the disk.

    sources: list of Source; lengths: frames of each grid, int32. What is held of a grid is its
    length, 4 bytes, so that many fit in every process of a run: ten million grids and their
    sequences take 0.35 GB and, at the start of each epoch, 10 s. Raises DataError for a source
    without grids."""

    def __init__(self, sources):
        self.sources = []
        self._shards = []         # paths
        self._first_of = []       # of each shard: the number of its first grid among all
        lengths = []
        count = 0
        for source in map(str, sources):
            folder, weight = parse_source(source)
            index = read_index(folder)
            if not index or not weight:
                raise DataError(f"{source} holds no grids, or weighs nothing: make them with "
                                f"`python data.py encode MANIFEST {folder}`")
            first = count
            for name, (_, of_shard) in index.items():
                self._shards.append(folder / name)
                self._first_of.append(count)
                lengths.append(np.array(of_shard, np.int32))
                count += len(of_shard)
            about = read_about(folder)
            fingerprint = hashlib.sha1(json.dumps([about, index]).encode()).hexdigest()
            self.sources.append(Source(str(folder), weight, range(first, count),
                                       about.get("format", "unknown"), about.get("draws", 1),
                                       fingerprint))
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int32)

    @property
    def formats(self):
        """The format of each grid, a list."""
        return [source.format for source in self.sources for _ in source.grids]

    @property
    def frames(self):
        """Of all grids together."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def frames_an_epoch(self):
        """The same, each source as often as an epoch reads it."""
        frames = 0.0
        for source in self.sources:
            lengths = self.lengths[source.grids.start:source.grids.stop]
            frames += source.weight * int(lengths.sum(dtype=np.int64))
        return round(frames)

    def fingerprints(self):
        """{folder: what tells its grids from others}"""
        return {source.name: source.fingerprint for source in self.sources}

    def __len__(self):
        return len(self.lengths)

    def _place(self, i):
        """Grid i -> the path of its shard, its number there. Raises IndexError."""
        if not 0 <= i < len(self):
            raise IndexError(f"there is no grid {i} of {len(self)}")
        shard = bisect.bisect(self._first_of, i) - 1
        return self._shards[shard], int(i) - self._first_of[shard]

    def __getitem__(self, i):
        path, number = self._place(i)
        return open_shard(path)[number]

    def place(self, i):
        """Where grid i stands, for messages."""
        path, number = self._place(i)
        return f"{path}, grid {number}"

    def epoch(self, rng):
        """The numbers of one epoch's grids in random order, int32. rng: numpy's Generator.

        A source of weight 2.5 gives each of its grids twice, and a random half of them once more.
        Post-training 2 has weights 0.5 and 5 (section 3.1)."""
        numbers = [np.zeros(0, np.int32)]
        for source in self.sources:
            all_of_it = np.arange(source.grids.start, source.grids.stop, dtype=np.int32)
            whole = int(source.weight)
            rest = round((source.weight - whole) * len(all_of_it))
            numbers += [all_of_it] * whole
            numbers.append(rng.permutation(all_of_it)[:rest])
        return rng.permutation(np.concatenate(numbers))


def parse_source(source):
    """"FOLDER" or "FOLDER:WEIGHT" -> (path, weight); the weight is 1 where there is none."""
    folder, weight = re.fullmatch(r"(.*?)(?::(\d+\.?\d*|\.\d+))?", source).groups()
    return Path(folder), float(weight or 1)


def mean_draws(sources):
    """How often some sources hold each of their recordings, in the mean; 1 of none."""
    grids = 0.0
    recordings = 0.0
    for source in Grids(sources).sources:
        weighted = source.weight * len(source.grids)
        grids += weighted
        recordings += weighted / source.draws
    return grids / recordings if recordings else 1


def read_about(folder):
    """grids.json of a folder: how data.py encode made it; {} where there is none. Raises
    LoadError."""
    file = folder / "grids.json"
    if not file.exists():
        return {}
    return model_files.read_json(file)


def read_index(folder):
    """A folder -> {name of a shard: [its bytes, [frames of each of its grids]]}, in order.

    index.json keeps them, so that a shard is opened once and not at every start; it is written
    again where a shard is new, has another size or is gone, and where it is damaged itself. A
    damaged shard is named on stderr and left out."""
    folder = Path(folder)
    try:
        before = model_files.read_json(folder / "index.json")
    except LoadError:  # there is none, or it is damaged
        before = {}
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
