"""What a step of training reads: grids on disk, packed into sequences of one length.

What this is: packing (section 3.1 pads to a uniform length), the batches of each step and the share
of each process, what is held out, and the choice of frames that train the depth transformer. It
serves train.py, which has the command. What this is not: the files (data.py), the loss (train.py).

    sequence    | sample 7 ........ | sample 2 .... | sample 31 ....... | pads, without loss |

Unusual here:
- Every random choice follows from the seed, the epoch or step, and the sequence. So a run that goes
  on from a checkpoint reads what it would have read without the stop, with any number of processes.

Decision: attention is plainly causal over a sequence, so that a later sample sees the earlier ones.
A live session is one long stream of turns too, and the paper concatenates pairs and names no mask.
Decision: samples of different formats share a sequence. Section 3.1 concatenates pairs up to 8192
frames and does not say whether TTS-style and ASR-style pairs meet in one sequence. Here all samples
of a step's sources are shuffled and packed together, so that a gradient always sees both formats.

Shapes: B sequences of T frames, K = 8 codebooks.
"""
import math
import random
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import stream
from stream import K, Ids, Loss
from workshop import shards
from workshop.training_set import Grids
from workshop.validation import may_stop_early

VALID_SEQUENCES = 64  # of each source, at most so many are read for a validation loss
VALID_EVERY = 200     # steps
# So many wait for a shorter sample; when one more opens, the fullest closes.
OPEN_SEQUENCES = 16
PACKED_AT_ONCE = 100_000  # samples converted to Python numbers at once; these need much memory


class BatchError(ValueError):
    """Grids that a run cannot use; the message is one sentence."""


class Batch(NamedTuple):
    """Rows that the model reads in one forward pass."""
    text: torch.Tensor    # [B, T] int64
    speak: torch.Tensor   # [B, T, K] int64
    listen: torch.Tensor  # [B, T, K] int64
    loss: torch.Tensor    # [B, T, 1 + K] uint8, classes of stream.Loss: of the text, of 8 codes

    def to(self, device):
        return Batch(*(tensor.to(device) for tensor in self))


# --- packing ---

def pack(order, lengths, length):
    """Put each sample into the first open sequence of `length` frames that has room for it.

    order: numbers of samples; lengths: frames of each sample -> an int32 array of numbers for each
    sequence, a list. Raises BatchError for a sample that is longer than a sequence."""
    order = np.asarray(order, np.int32)
    frames_in_order = np.asarray(lengths)[order]
    longest = frames_in_order.max(initial=0)
    if longest > length:
        raise BatchError(f"a sample of {longest} frames does not fit sequences of {length}: raise "
                         "--length")
    full_sequences = []
    open_sequences = []  # lists of samples
    rooms = []           # frames that each open sequence has left
    for start in range(0, len(order), PACKED_AT_ONCE):
        some = slice(start, start + PACKED_AT_ONCE)
        for sample, frames in zip(order[some].tolist(), frames_in_order[some].tolist()):
            place = first_with_room(rooms, frames)
            if place == len(rooms):
                open_sequences.append([])
                rooms.append(length)
                if len(rooms) > OPEN_SEQUENCES:
                    fullest = rooms.index(min(rooms))
                    full_sequences.append(np.array(open_sequences.pop(fullest), np.int32))
                    rooms.pop(fullest)
                    place = len(rooms) - 1
            open_sequences[place].append(sample)
            rooms[place] -= frames
    return full_sequences + [np.array(sequence, np.int32) for sequence in open_sequences]


def first_with_room(rooms, frames):
    """The place of the first number in `rooms` that is not below `frames`, or len(rooms)."""
    for place, room in enumerate(rooms):
        if room >= frames:
            return place
    return len(rooms)


def fill_sequence(grids, length, ids):
    """Delayed grids, one after the other -> one sequence: a Batch without its first dimension. Pads
    that carry no loss fill the rest of its `length` frames."""
    text = torch.full((length,), ids.wait)
    speak = torch.full((length, K), ids.pad)
    listen = torch.full((length, K), ids.pad)
    loss = torch.full((length, 1 + K), int(Loss.NONE), dtype=torch.uint8)
    start = 0
    for grid in grids:
        stop = start + len(grid)
        text[start:stop] = grid.text
        speak[start:stop] = grid.speak
        listen[start:stop] = grid.listen
        loss[start:stop] = grid.loss
        start = stop
    return Batch(text, speak, listen, loss)


def stack(sequences):
    """Sequences as `fill_sequence` makes them -> Batch"""
    return Batch(*(torch.stack(column) for column in zip(*sequences)))


def collate(sequences, length, ids):
    """Lists of delayed grids, a list for each sequence -> Batch"""
    return stack([fill_sequence(grids, length, ids) for grids in sequences])


# --- random choices within a sequence ---

def draw(shape, seed):
    """Numbers from 0 to 1 that follow from a seed, which is any text -> float32 of this shape"""
    number = random.Random(seed).getrandbits(63)
    return torch.rand(shape, generator=torch.Generator().manual_seed(number))


def thin(speak, loss, depth_share, repeats, seed):
    """Take the loss off all codes of random frames.

    speak [T, K], loss [T, 1 + K] -> loss [T, 1 + K], a new tensor.
    The depth transformer is half of a small model's work, and most frames are silence, which
    repeats the frame before. A frame keeps its loss with the chance `depth_share`, one that repeats
    with that chance times `repeats`. The text's loss stays."""
    repeats_last = (speak[1:] == speak[:-1]).all(-1)    # [T - 1]
    repeats_last = F.pad(repeats_last, (1, 0))          # [T]: the first frame repeats nothing
    chance = depth_share * torch.where(repeats_last, repeats, 1.0)
    without_loss = draw(len(speak), seed) >= chance
    loss = loss.clone()
    loss[without_loss, 1:] = Loss.NONE
    return loss


def hide(listen, share, empty, seed):
    """Replace a random share of the codes heard by the empty id. listen [T, K] -> listen [T, K]

    Decision: the paper's recordings are seen about once. A small set is read many times; what is
    hidden differs each time, so that a recording never looks quite the same. The paper does not do
    this: the default share is 0."""
    return torch.where(draw(listen.shape, seed) < share, empty, listen)


# --- the training set ---

class Batches:
    """The training set as packed sequences: what each step of a run reads, which follows from the
    step alone.

    settings: train.Settings without None; config: flm.Config; rank, world: this process of so many.
    steps_per_epoch, steps: whole numbers. Raises BatchError or DataError."""

    def __init__(self, settings, config, rank=0, world=1):
        if settings.length > config.max_position_embeddings:
            raise BatchError(f"--length {settings.length} is more than the model's "
                             f"{config.max_position_embeddings} positions")
        self.settings = settings
        self.config = config
        self.ids = Ids.of(config)
        self.rank = rank
        self.world = world
        self.grids = Grids(settings.grids)
        self._check_lengths(self.grids)
        self.is_held_out = self._draw_held_out()
        self.epoch = 0
        self.sequences = self._sequences_of_epoch(0)
        if not self.sequences:
            of_valid = ""
            if settings.valid:
                of_valid = f"; --valid took {', '.join(map(str, settings.valid))}"
            raise BatchError("no samples are left to train on: name folders of grids, and hold out "
                             f"fewer{of_valid}")
        self.steps_per_epoch = math.ceil(len(self.sequences) / settings.batch)
        self.steps = math.ceil(settings.epochs * self.steps_per_epoch)
        self.valid_every = settings.valid_every or VALID_EVERY
        if may_stop_early(settings) and not settings.valid_every:
            self.valid_every = max(1, min(VALID_EVERY, self.steps // 10))
        self.valid_grids = self.grids
        if settings.valid:
            self.valid_grids = Grids(settings.valid)
            self._check_lengths(self.valid_grids, "--valid ")
        self.valid = self._sequences_for_validation()  # {folder and format: sequences}

    def _check_lengths(self, grids, option=""):
        """Raise BatchError where a sample is longer than a sequence. option: that names the
        grids."""
        if not len(grids):
            return
        longest = int(grids.lengths.argmax())
        frames = grids.lengths[longest] + stream.ACOUSTIC_DELAY
        if frames > self.settings.length:
            raise BatchError(f"{option}{grids.place(longest)}: this sample of {frames} frames does "
                             f"not fit sequences of {self.settings.length}: raise --length")

    def _draw_held_out(self):
        """The samples kept for validation -> bool, of each sample

        Each source gives the same share, so that a small one is seen too. One sample of it at least
        is trained on, unless everything is held out."""
        rng = random.Random(f"{self.settings.seed} hold out")
        share = self.settings.hold_out
        is_held_out = np.zeros(len(self.grids), bool)
        for source in self.grids.sources:
            count = math.ceil(share * len(source.grids))
            if share < 1:
                count = min(count, len(source.grids) - 1)
            is_held_out[rng.sample(source.grids, count)] = True
        return is_held_out

    def _sequences_of_epoch(self, epoch):
        """All samples of an epoch, shuffled and packed -> a list of numbers for each sequence."""
        rng = np.random.default_rng([self.settings.seed, epoch])
        order = self.grids.epoch(rng)
        order = order[~self.is_held_out[order]]
        sequences = self._pack(self.grids, order)
        return [sequences[i] for i in rng.permutation(len(sequences))]

    def _sequences_for_validation(self):
        """{folder and format: sequences} of what is held out, or of the folders of `valid`."""
        grids = self.valid_grids
        sequences_of = {}
        for source in grids.sources:
            numbers = np.arange(source.grids.start, source.grids.stop)
            if not self.settings.valid:
                numbers = numbers[self.is_held_out[numbers]]
            sequences = self._pack(grids, numbers)
            if sequences:
                sequences_of[f"{source.name} ({source.format})"] = sequences[:VALID_SEQUENCES]
        return sequences_of

    def _pack(self, grids, order):
        return pack(order, grids.lengths + stream.ACOUSTIC_DELAY, self.settings.length)

    def step(self, step):
        """The micro-batches that this process reads at a step -> list of Batch"""
        epoch, number = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.sequences = self._sequences_of_epoch(epoch)
            self.epoch = epoch
        sequences = self._sequences_of_step(number)
        return self.micro_batches(self.grids, sequences, f"{self.settings.seed} {step}")

    def _sequences_of_step(self, number):
        """Those of a step of this epoch. A later epoch may pack into more sequences than the first,
        and its steps then have some more; or into fewer, and its last steps begin at the first
        sequence again."""
        steps = self.steps_per_epoch
        places = max(steps * self.settings.batch, len(self.sequences))
        start = number * places // steps
        stop = (number + 1) * places // steps
        again = start // len(self.sequences) * len(self.sequences)
        return self.sequences[start - again:stop - again]

    def upcoming(self, step):
        """The micro-batches of each step from this one on. The next are read in the background, by
        one thread: it reads 0.45 million frames a second in samples of 146 frames, and 2.6 million
        in samples of 1,384, more than a GPU trains on."""
        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(self.step, step)
            while step < self.steps:
                micro_batches = reading.result()
                step += 1
                if step < self.steps:
                    reading = reader.submit(self.step, step)
                yield micro_batches

    def micro_batches(self, grids, sequences, seed=None):
        """This process's share of some sequences, `settings.micro` in each Batch. All processes get
        equally many, perhaps some of pads alone, since they meet in every forward pass. seed: of
        the random choices within a sequence; without one, sequences are read as they are."""
        share = math.ceil(len(sequences) / self.world)
        # Memory is that of a usual step also where sequences are more.
        size = self.settings.micro or math.ceil(self.settings.batch / self.world)
        mine = range(len(sequences))[self.rank::self.world]
        micro_batches = []
        for start in range(0, share, size):
            numbers = mine[start:start + size]
            batch = [self._read_sequence(grids, sequences[number], number, seed)
                     for number in numbers]
            pads_alone = fill_sequence([], self.settings.length, self.ids)
            micro_batches.append(stack(batch or [pads_alone]))
        return micro_batches

    def _read_sequence(self, grids, samples, number, seed):
        settings = self.settings
        delayed = [stream.delay(grids[i], self.ids) for i in samples]
        sequence = fill_sequence(delayed, settings.length, self.ids)
        self._check(sequence, delayed, grids, samples)
        if seed is None:
            return sequence
        listen = hide(sequence.listen, settings.hide, self.ids.empty, f"hide {seed} {number}")
        loss = thin(sequence.speak, sequence.loss, settings.depth_share, settings.repeats,
                    f"{seed} {number}")
        return Batch(sequence.text, sequence.speak, listen, loss)

    def _check(self, sequence, delayed, grids, samples):
        """Raise BatchError where the model cannot read one of a sequence's samples. All of them are
        checked at once: those of a few seconds are then read 1.8 times as fast."""
        sizes = self.config.vocab_size, self.config.aud_vocab_size
        try:
            shards.check_ids(sequence, *sizes)
            is_good = all(grid.text[0] == self.ids.wait for grid in delayed)
        except stream.GridError:
            is_good = False
        if not is_good:
            for i in samples:
                self._check_alone(grids, i)

    def _check_alone(self, grids, i):
        """Raise BatchError where the model cannot read grid i."""
        grid = grids[i]
        text_size = self.config.vocab_size
        audio_size = self.config.aud_vocab_size
        try:
            shards.check_ids(grid, text_size, audio_size)
            if grid.text[0] != self.ids.wait:
                raise stream.GridError(f"its first text id is {int(grid.text[0])} and should be "
                                       f"<wait>, {self.ids.wait}")
        except stream.GridError as error:
            raise BatchError(
                f"{grids.place(i)}: {error}. Either the file is damaged (python data.py check "
                "FOLDER says so), or it was made for another tokenizer or codec than this model's, "
                f"which has {text_size} text ids and {audio_size} audio ids: encode the recordings "
                "again with data.py and this model, or, where --init is a preset, name the folder "
                "that they were encoded with as --beside") from None
