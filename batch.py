"""What a step of training reads: grids on disk, packed into rows of equal length, a share of them for each process.

What this is: packing (section 3.1 pads to a uniform length), batches as a function of the step alone, the held-out
share, and the choice of frames that train the depth transformer. What this is not: the files (data.py) or the loss.

    row of L frames   | sample 7 ........ | sample 2 .... | sample 31 ....... | pads, without loss |

Decision: attention is plainly causal over a row, so that a later sample sees the earlier ones. A live session is one long
stream of turns too, and the paper concatenates pairs.

Shapes: B rows, L frames of a row, K = 8 codebooks.
"""
import math
import random

import torch
import torch.nn.functional as F

import data
import stream
from stream import K, Ids, Loss

VALID_ROWS = 64  # at most so many rows of each format are read for a validation loss


class BatchError(ValueError):
    """Grids that a run cannot use; the message is one sentence."""


def pack(order, lengths, length):
    """Indices of samples, each into the first open row of `length` frames that has room -> lists of indices, one a row."""
    packed, open_rows = [], []  # an open row: [frames left, indices]
    for i in order:
        if lengths[i] > length:
            raise BatchError(f"a sample of {lengths[i]} frames does not fit rows of {length}: raise --length")
        row = next((r for r in open_rows if r[0] >= lengths[i]), None)
        if row is None:
            row = [length, []]
            open_rows.append(row)
            if len(open_rows) > 16:  # the fullest closes
                fullest = min(range(len(open_rows)), key=lambda r: open_rows[r][0])
                packed.append(open_rows.pop(fullest)[1])
        row[0] -= lengths[i]
        row[1].append(i)
    return packed + [indices for _, indices in open_rows]


def collate(rows, length, ids):
    """Lists of delayed grids, one a row -> text [B, L], speak and listen [B, L, K], loss [B, L, 1 + K]; rows are filled up
    with pads that carry no loss."""
    text = torch.full((len(rows), length), ids.wait)
    speak, listen = torch.full((2, len(rows), length, K), ids.pad)
    loss = torch.zeros(len(rows), length, 1 + K, dtype=torch.uint8)
    for b, grids in enumerate(rows):
        start = 0
        for grid in grids:
            span = slice(start, start + len(grid))
            text[b, span], speak[b, span], listen[b, span], loss[b, span] = grid.text, grid.speak, grid.listen, grid.loss
            start = span.stop
    return text, speak, listen, loss


def thin(speak, loss, depth_share, repeats, seed):
    """Take the loss off the codes of random frames of a row, in place: speak [L, K], loss [L, 1 + K]. The depth transformer
    is half of a small model's work, and most frames are silence, which repeats itself."""
    repeated = F.pad((speak[1:] == speak[:-1]).all(-1), (1, 0))
    drawn = torch.rand(len(speak), generator=torch.Generator().manual_seed(random.Random(seed).getrandbits(63)))
    loss[:, 1:][drawn >= depth_share * torch.where(repeated, repeats, 1.0)] = Loss.NONE


def hide(listen, share, empty, seed):
    """Blank a random share of what is heard, code by code, in place: listen [L, K].

    Decision: the paper's recordings are seen once; a small set is seen often, and what is hidden differs each time."""
    drawn = torch.rand(listen.shape, generator=torch.Generator().manual_seed(random.Random(seed).getrandbits(63)))
    listen[drawn < share] = empty


class Batches:
    """The training set as packed rows: what each step of a run reads, a function of the step alone."""

    def __init__(self, settings, config, rank=0, world=1):
        self.settings, self.config, self.ids, self.rank, self.world = settings, config, Ids.of(config), rank, world
        if settings.length > config.max_position_embeddings:
            raise BatchError(f"--length {settings.length} is more than the model's {config.max_position_embeddings} positions")
        self.grids = data.Grids(settings.grids)
        rng, self.held_out = random.Random(f"{settings.seed} hold out"), set()
        for name in sorted(set(self.grids.formats)):  # of each format its share
            indices = [i for i, format in enumerate(self.grids.formats) if format == name]
            self.held_out |= set(rng.sample(indices, math.ceil(settings.hold_out * len(indices))))
        self.epoch, self.rows = 0, self._packed(0)
        if not self.rows:
            raise BatchError("no samples are left to train on: name folders of grids, and hold out fewer")
        self.valid_grids, self.valid = data.Grids(settings.valid) if settings.valid else self.grids, {}  # rows of each format
        for name in sorted(set(self.valid_grids.formats)):
            order = range(len(self.valid_grids)) if settings.valid else sorted(self.held_out)
            if rows := self.fill(self.valid_grids, [i for i in order if self.valid_grids.formats[i] == name]):
                self.valid[name] = rows[:VALID_ROWS]
        self.steps_per_epoch = math.ceil(len(self.rows) / settings.batch)
        self.steps = math.ceil(settings.epochs * self.steps_per_epoch)

    def _packed(self, epoch):
        rng = random.Random(f"{self.settings.seed} {epoch}")
        rows = self.fill(self.grids, [i for i in self.grids.epoch(rng) if i not in self.held_out])
        rng.shuffle(rows)
        return rows

    def fill(self, grids, order):
        return pack(order, [n + stream.ACOUSTIC_DELAY for n in grids.lengths], self.settings.length)

    def _read(self, grids, i):
        """The rows of grid i. Raises BatchError for one that this model cannot read."""
        grid = grids[i]
        text_size, audio_size = self.config.vocab_size, self.config.aud_vocab_size
        try:
            stream.check_ids(grid, text_size, audio_size)
            if grid.text[0] != self.ids.wait:
                raise stream.GridError(f"its first text id is {int(grid.text[0])} and should be <wait>, {self.ids.wait}")
        except stream.GridError as error:
            raise BatchError(f"{grids.place(i)}: {error}. Either the file is damaged (python data.py check FOLDER says so), or it was made for "
                             f"another tokenizer or codec than this model's, which has {text_size} text ids and {audio_size} audio ids: "
                             "encode the recordings again with data.py and this model") from None
        return stream.delay(grid, self.ids)

    def micro(self, grids, rows, thinning=None):
        """This process's share of some rows, in micro-batches; all processes get equally many, some perhaps of pads alone,
        since they must meet in every forward pass. thinning: what seeds the random choice of frames, if any."""
        s, made, share = self.settings, [], -(-len(rows) // self.world)
        size, mine = s.micro or max(1, share), range(len(rows))[self.rank::self.world]
        for start in range(0, share, size):
            numbers = mine[start:start + size]
            made.append(collate([[self._read(grids, i) for i in rows[b]] for b in numbers] or [[]], s.length, self.ids))
            for number, _, speak, listen, loss in zip(numbers, *made[-1]) if thinning else ():
                hide(listen, s.hide, self.ids.empty, f"hide {thinning} {number}")
                thin(speak, loss, s.depth_share, s.repeats, f"{thinning} {number}")
        return made

    def step(self, step):
        """The micro-batches of this process at a step."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch, self.rows = epoch, self._packed(epoch)
        at = at * self.settings.batch % len(self.rows)  # packings of later epochs may be a row shorter
        return self.micro(self.grids, self.rows[at:at + self.settings.batch], f"{self.settings.seed} {step}")
