"""Files of token grids and of codes: writing, reading, and finding damage.

What this is: a shard, which is one safetensors file of many grids with a digest of its bytes; the
check that a grid's ids exist in a model; clips of codes in .npy files. What this is not: what a
grid means (stream.py), or a folder of shards (training_set.py). Serves stream.py, whose grids it
stores, data.py and train.py.

    python stream.py --grid shard-00000.safetensors     # draws a grid of a shard
    python data.py check FOLDER                         # compares shards with their digests

Shapes: T frames, K = 8 codebooks.
"""
import hashlib
import itertools

import numpy as np
import torch

from stream import Grid, GridError, K, Loss
from workshop.files import replacing

CHANNELS = ("text", "speak", "listen", "loss")  # a tensor each: the frames of all grids in a row
COLUMNS = (*CHANNELS, "lengths")                # the tensors of a shard


# --- shards ---

def digest(tensors):
    """A hash of the tensors' bytes, as text: it tells a shard's payload from any other."""
    payload = hashlib.blake2b(digest_size=16)
    for name in COLUMNS:
        payload.update(tensors[name].contiguous().numpy().tobytes())
    return payload.hexdigest()


def save(grids, path):
    """Write grids to one shard. Raises GridError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    tensors = {
        "text": torch.cat([grid.text for grid in grids]).int(),
        "speak": torch.cat([grid.speak for grid in grids]).short(),
        "listen": torch.cat([grid.listen for grid in grids]).short(),
        "loss": torch.cat([grid.loss for grid in grids]),
        "lengths": torch.tensor([len(grid) for grid in grids]),
    }
    try:
        with replacing(path) as beside:
            save_file(tensors, beside, metadata={"digest": digest(tensors)})
    except (OSError, SafetensorError) as error:
        raise GridError(f"{path} cannot be written: {error}") from None


class Shard:
    """The grids of a file that `save` wrote, memory-mapped: shard[i] reads the frames of grid i and
    no others. lengths: frames of each grid.

    Raises GridError for a file that is missing, damaged or another thing."""

    def __init__(self, path):
        from safetensors import SafetensorError, safe_open
        self.path = path
        try:
            self.tensors = safe_open(path, "pt")
            self.lengths = self.tensors.get_tensor("lengths").tolist()
            self.channels = [self.tensors.get_slice(name) for name in CHANNELS]
            frames = {channel.get_shape()[0] for channel in self.channels}
            if frames != {sum(self.lengths)} or min(self.lengths) < 1:
                raise GridError("its lengths are not its frames'")
        except (OSError, ValueError, SafetensorError) as error:
            raise GridError(f"{path} is no file of token grids, or it is damaged: "
                            f"{error}") from None
        stops = itertools.accumulate(self.lengths)
        self.spans = [slice(stop - length, stop) for length, stop in zip(self.lengths, stops)]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        text, speak, listen, loss = (channel[self.spans[i]] for channel in self.channels)
        return Grid(text.long(), speak.long(), listen.long(), loss.clone())

    def verify(self):
        """Compare the payload with the file's digest -> True, or False for a file without one, as
        older versions wrote them. Raises GridError where a byte is not what was written."""
        expected = (self.tensors.metadata() or {}).get("digest")
        if expected is None:
            return False
        payload = {name: self.tensors.get_tensor(name) for name in COLUMNS}
        if digest(payload) != expected:
            raise GridError(f"{self.path} is damaged: its payload is not what was written")
        return True


# --- ids ---

def check_ids(grid, text_size, audio_size):
    """Raise GridError where a grid holds what no model of these vocabularies has: an id outside its
    vocabulary, or a loss class in a channel that cannot carry it. A flipped bit on disk would
    otherwise end in a failed look-up within the model."""
    check_range("text", grid.text, text_size)
    check_range("speak", grid.speak, audio_size)
    check_range("listen", grid.listen, audio_size)
    check_classes("a text id", grid.loss[:, 0], (Loss.NONE, Loss.MONOLOGUE, Loss.WAIT))
    check_classes("a semantic code", grid.loss[:, 1], (Loss.NONE, Loss.SEMANTIC))
    check_classes("an acoustic code", grid.loss[:, 2:], (Loss.NONE, Loss.ACOUSTIC))


def check_range(name, tokens, size):
    """Raise GridError where a token is outside 0 .. size - 1."""
    low, high = tokens.aminmax()
    if low < 0 or high >= size:
        wrong = int(low if low < 0 else high)
        raise GridError(f"{name} has the id {wrong}, outside 0 .. {size - 1}")


def check_classes(place, loss, allowed):
    """Raise GridError where a loss class is none of those allowed."""
    is_allowed = torch.zeros_like(loss, dtype=torch.bool)
    for kind in allowed:
        is_allowed |= loss == kind
    if not is_allowed.all():
        wrong = int(loss[~is_allowed][0])
        raise GridError(f"the loss class {wrong} cannot stand at {place}")


# --- codes ---

def read_codes(path, codebook_size=2**15):
    """Codes of a clip from a .npy file -> int64 [T, K]. Raises GridError, one sentence."""
    try:
        codes = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise GridError(f"{path} cannot be read as codes: {error}") from None
    is_array = isinstance(codes, np.ndarray)
    if not is_array or codes.ndim != 2 or codes.shape[1] != K or codes.dtype.kind not in "iu":
        raise GridError(f"{path} must hold whole numbers [frames, {K}]")
    if not len(codes) or codes.min() < 0 or codes.max() >= codebook_size:
        raise GridError(f"{path} holds no codes, or codes outside 0 .. {codebook_size - 1}")
    return torch.from_numpy(codes.astype(np.int64))
