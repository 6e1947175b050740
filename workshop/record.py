"""The record of a conversation: both voices, exactly, and what it takes to hold the conversation
again.

What this is: the file of `chat.py --record`, a stereo .wav of float samples, the user left, the
model right, whose comment holds settings as JSON. It serves chat.py. What this is not: an answer
for listening to (sound_file.py writes that), or the conversation itself.

    python chat.py --in question.wav --out answer.wav --record both.wav
    python chat.py --replay both.wav

A record that fails, as on a full disk, ends with a sentence, and the conversation goes on without
it. What was written until then is kept.
"""
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile
import torch

from workshop.sound_file import part_of


class Record:
    """A record that is being written: `write` takes a frame of both voices. It gets its name when
    it is closed.

    trouble: the sentence that says why it ends early, or None."""

    def __init__(self, path, sample_rate, settings):
        self.path = Path(path)
        self.part = part_of(path)
        self.sample_rate = sample_rate
        self.trouble = None
        self.frames = 0
        try:
            self.file = soundfile.SoundFile(self.part, "w", sample_rate, 2, "FLOAT", format="WAV")
            self.file.comment = json.dumps(settings)
        except (OSError, soundfile.SoundFileError) as error:
            raise OSError(f"{path} cannot be written: {error}") from None

    def write(self, user_audio, model_audio):
        """A frame of each voice, [N] samples."""
        if self.trouble:
            return
        both = torch.stack([user_audio, model_audio], 1).numpy()
        try:
            self.file.write(both)
            self.frames += len(both)
        # soundfile raises AssertionError where fewer samples were taken.
        except (OSError, AssertionError, soundfile.SoundFileError) as error:
            self._end_early(error)

    def close(self):
        """The record under its name. It is not lost when its disk is full."""
        try:
            self.file.close()
        except (OSError, soundfile.SoundFileError) as error:
            self._end_early(error)
        try:
            os.replace(self.part, self.path.resolve())
        except OSError as error:
            self._end_early(error)

    def _end_early(self, error):
        if self.trouble:
            return
        seconds = self.frames / self.sample_rate
        self.trouble = (f"the record {self.path} ends after {seconds:.1f} s, is its disk full? "
                        f"{str(error).rstrip('.')}")
        print(f"\nchat.py: {self.trouble}; the conversation goes on", file=sys.stderr)


@contextmanager
def recording(args, partner):
    """--record: a Record that says how to hold the conversation again, or None. What failed is
    raised when all else is done."""
    if not args.record:
        yield None
        return
    settings = {"seed": args.seed, "sampling": asdict(partner.duplex.sampling),
                "context": partner.duplex.cache.length}
    record = Record(args.record, partner.codec.config.sample_rate, settings)
    try:
        yield record
    finally:
        record.close()
    if record.trouble:
        raise OSError(record.trouble)


@dataclass
class Replay:
    """A recorded conversation: both voices, [N] samples each, and what it takes to hold it
    again."""
    path: Path
    user_audio: torch.Tensor
    model_audio: torch.Tensor
    sampling: object     # a chat.Sampling
    seed: int
    context: int | None  # frames; None: as many as the model was trained on

    def compare(self, model_audio, sample_rate):
        """Print where an answer [N] differs from the recorded one."""
        differ = (model_audio != self.model_audio[:len(model_audio)]).nonzero()
        if len(differ):
            moment = differ[0].item() / sample_rate
            print(f"{self.path}: the answer differs from {moment:.2f} s on")
        else:
            seconds = len(model_audio) / sample_rate
            print(f"{self.path}: the answer is the same, sample for sample, for {seconds:.2f} s")


def read_replay(path, sampling_class, check_number):
    """A file of --record -> Replay. Raises ValueError, one sentence.

    check_number(name, value) raises ValueError for a seed or a context that is none."""
    user_audio, model_audio, settings = read_record(path)
    try:
        sampling = sampling_class(**settings["sampling"])
        seed = settings["seed"]
        check_number("seed", seed)
        context = settings.get("context")
        if context is not None:
            check_number("context", context)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is no conversation that --record kept") from None
    return Replay(path, user_audio, model_audio, sampling, seed, context)


def read_record(path):
    """-> (user_audio [N], model_audio [N], settings, a dict). Raises ValueError, one sentence."""
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist")
    try:
        with soundfile.SoundFile(path) as file:
            both = torch.from_numpy(file.read(dtype="float32", always_2d=True))  # [N, 2]
            settings = json.loads(file.comment)
    except (OSError, TypeError, ValueError, RecursionError, soundfile.SoundFileError):
        raise ValueError(f"{path} is no conversation that --record kept") from None
    if both.shape[1] != 2 or not len(both) or not isinstance(settings, dict):
        raise ValueError(f"{path} is no conversation that --record kept")
    return both[:, 0], both[:, 1], settings
