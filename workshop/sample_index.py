"""Which lines of a manifest each sample joins, in a file that all processes map.

What this is: the index of a run of `data.py encode`: where each line of the manifest starts, the
order of the lines, and where each sample starts in that order. It takes 12 bytes a line and 8 a
sample. Each process maps the file and reads only what it needs. What this is not: how lines are
joined (data.join), or what a line may hold (manifests.py). Serves data.py.
"""
import functools
from pathlib import Path

import numpy as np

from workshop.files import replacing
from workshop.manifests import DataError, read_line, turns_of


def write(path, offsets, order, starts, about):
    """Write an index. offsets [lines]: the byte at which each line starts; order: numbers of lines,
    sample by sample; starts [samples + 1]: where each sample starts in `order`; about: what all of
    it depends on, as text, by which `is_current` knows it. Several processes may do so at once.
    Raises DataError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file
    tensors = {"offsets": np.asarray(offsets, np.uint64), "order": np.asarray(order, np.uint32),
               "starts": np.asarray(starts, np.uint64)}
    try:
        with replacing(path, shared=True) as beside:
            save_file(tensors, beside, metadata={"about": about})
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be written: {error}") from None


def is_current(path, about):
    """Whether a file is an index, and was made from what `about` says."""
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, "np") as file:
            return (file.metadata() or {}).get("about") == about
    except (OSError, SafetensorError):
        return False


class Samples:
    """The samples of an index: samples[i] is a list of turns as data.GridMaker takes them.

    Each process opens the files for itself."""

    def __init__(self, path, manifest, format):
        self.path = Path(path)
        self.manifest = Path(manifest)
        self.format = format

    def __reduce__(self):
        return Samples, (self.path, self.manifest, self.format)

    @functools.cached_property
    def _columns(self):
        """{name: a column of the index, of which slices are read}."""
        from safetensors import safe_open
        file = safe_open(self.path, "np")
        return {name: file.get_slice(name) for name in ("offsets", "order", "starts")}

    @functools.cached_property
    def _lines(self):
        return open(self.manifest, "rb")

    def place(self, i):
        """The lines of sample i, as a message names them."""
        start, stop = self._columns["starts"][i:i + 2].tolist()
        numbers = [number + 1 for number in self._columns["order"][start:stop].tolist()]
        word = "line" if len(numbers) == 1 else "lines"
        return (f"{word} {', '.join(map(str, numbers))} of {self.manifest.name} (empty lines not "
                "counted)")

    def __len__(self):
        return self._columns["starts"].get_shape()[0] - 1

    def __getitem__(self, i):
        """Raises DataError where the manifest was changed under the run."""
        start, stop = self._columns["starts"][i:i + 2].tolist()
        turns = []
        for number in self._columns["order"][start:stop].tolist():
            offset = self._columns["offsets"][number:number + 1].tolist()[0]
            row = read_line(self._lines, offset)
            try:
                turns += turns_of(row, self.manifest.parent, self.format)
            except (LookupError, TypeError):
                raise DataError(f"{self.manifest} was changed while it was encoded") from None
        return turns
