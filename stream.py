"""The token grid: what stands in every frame of every channel, and what of it the model is trained to write.

What this is: the formats of Figures 2 and 3 (sections 2.2, 3.1, 3.2.2), the delay between semantic and acoustic codes, the
loss class of every token, and a drawing of any of it. What this is not: audio (data.py), a model, or a batch (batch.py).

A sample is made in two steps. A format turns the lengths and words of some turns into a `Script`: the text of every
frame, and the spans of frames in which clips are heard and said. data.py then lays the recordings into those spans,
encodes them, and `Script.grid` sets text and codes side by side.

Unusual here:
- A grid is written in frames: text, 8 codes and 8 codes of the same moment. `delay` makes the rows that the model
  reads, in which acoustic codes come one row late; `undelay` takes them back. Row t is read; row t + 1 is predicted.
- Frame 0 is the row that the release's streaming loop starts from: text <wait>, nothing spoken, no loss.
- Pairs and turns of one grid see the ones before them, and nothing in a grid marks where one ends. Decision: section 3.1
  concatenates pairs and masks nothing, and a live session is one long stream too. Grids packed into a row are batch.py's.

    python stream.py                              # draw every format
    python stream.py --format tts --delayed       # one of them, as the model reads it
    python stream.py --grid shard-00000.safetensors --index 3

Shapes: T frames, K = 8 codebooks.
"""
import argparse
import hashlib
import itertools
import json
import shutil
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from workshop import command

if __name__ == "__main__":
    command.stop_while_loading("stream.py")

import numpy as np
import torch
import torch.nn.functional as F

from workshop.files import replacing

K = 8
SPEECH_DELAY = 2    # frames from a response's first word to its first sound, sections 3.1 and 3.2.2
ACOUSTIC_DELAY = 1  # frames from a semantic code to the acoustic codes beside it, section 3.2.2
FRAME_RATE = 12.5   # frames a second, section 2.1
REACTION_DELAY = 0.5  # seconds from an interruption's first sound to the model's silence, section 3.2.2
INTERRUPTION_PROBABILITY = 0.7  # section 3.2.2


class GridError(ValueError):
    """A grid or a file of grids that cannot be used; the message is one sentence."""


class Loss(IntEnum):
    """What equation 3 counts a token as."""
    NONE = 0
    SEMANTIC = 1
    ACOUSTIC = 2
    MONOLOGUE = 3
    WAIT = 4


@dataclass(frozen=True)
class Ids:
    """The special tokens of one model: three text ids, two audio ids (flm.Config has the same fields with `_token`)."""
    wait: int
    asr: int
    answer: int
    empty: int
    pad: int

    @classmethod
    def of(cls, config):
        """The ids of an flm.Config, which must have all of them."""
        if config.asr_token is None or config.answer_token is None:
            raise GridError("this model's config.json names no text_asr_token_id and text_answer_token_id")
        return cls(config.wait_token, config.asr_token, config.answer_token, config.empty_token, config.pad_token)

    @classmethod
    def read(cls, folder):
        """The ids in a model folder's config.json. Raises GridError where it is missing or lacks one."""
        file = Path(folder) / "config.json"
        try:
            ids = json.loads(file.read_text())["mm_token_info"]
            return cls(*(ids[name] for name in ("text_wait_token_id", "text_asr_token_id", "text_answer_token_id",
                                                "aud_emp_token_id", "aud_pad_token_id")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GridError(f"{file} gives no special ids: {error!r}") from None


@dataclass
class Grid:
    """One sample. text [T], speak [T, K], listen [T, K]: int64 ids; loss [T, 1 + K]: uint8 Loss classes of the text and
    of the 8 spoken codes. What is heard is never predicted."""
    text: torch.Tensor
    speak: torch.Tensor
    listen: torch.Tensor
    loss: torch.Tensor

    def __post_init__(self):
        T = len(self.text)
        for name, width in (("speak", K), ("listen", K), ("loss", 1 + K)):
            if getattr(self, name).shape != (T, width):
                raise GridError(f"{name} is {list(getattr(self, name).shape)} and should be {[T, width]}")

    def __len__(self):
        return len(self.text)


# --- formats: turns -> script ---

@dataclass
class Turn:
    """One exchange, or one pair of section 3.1. heard, spoken: frames of audio; transcript, response: text ids.
    A pair of TTS-style has nothing heard, one of ASR-style nothing spoken.

    words, for Moshi's stream alone: (frame where it sounds, ids) of each word of the response. For free user input alone, in
    frames: onset, the quiet before the first sound of what is heard; interrupts, where in the sound of the response before it
    begins (None: in the silence after), and reaction, the seconds from its first sound to the silence of that response; murmur,
    where in the sound of this response a back-channel begins, and its length."""
    heard: int = 0
    spoken: int = 0
    transcript: tuple = ()
    response: tuple = ()
    words: tuple = ()
    onset: int = 0
    interrupts: int | None = None
    reaction: float = REACTION_DELAY
    murmur: tuple | None = None


def draw_interruptions(turns, murmurs, rng):
    """Make the user of some turns free: sets interrupts and murmur. murmurs: frames of a back-channel for each turn, 0 for none.

    Decision: INTERRUPTION_PROBABILITY counts the responses that another turn follows; the next question begins in a frame
    drawn evenly from all in which the response sounds. A back-channel falls evenly too, and is over before an interruption."""
    for turn, after, murmur in zip(turns, [*turns[1:], None], murmurs):
        sounds = turn.spoken
        if after and sounds and rng.random() < INTERRUPTION_PROBABILITY:
            after.interrupts = sounds = rng.randrange(sounds)
        if 0 < murmur <= sounds:
            turn.murmur = rng.randint(0, sounds - murmur), murmur


class Script:
    """A sample before its audio: text (a list of ids, one a frame), hears and says (spans of frames, start and stop,
    one for each turn that has them). Below, what FORMATS makes of a turn."""

    def __init__(self, ids):
        self.ids, self.text, self.hears, self.says = ids, [ids.wait], [], []

    def __len__(self):
        return len(self.text)

    def wait(self, frames):
        """Nothing is written for so many frames."""
        self.text += [self.ids.wait] * frames

    def hear(self, turn):
        """Write nothing while the user speaks. What interrupts is heard within the response before it, whose words and sound
        both end a reaction behind the first sound.

        Decision: a cut monologue just turns into <wait>, with no token for the cut, and a cut clip into silence on a frame;
        what was never said leaves no trace, as when a person stops."""
        start = len(self)
        if turn.interrupts is not None:
            sounds, end = self.says[-1]
            start = sounds + turn.interrupts
            cut = start + turn.onset + round(turn.reaction * FRAME_RATE)  # 0.5 s are 6.25 frames; Decision: to the nearest
            self.says[-1] = sounds, min(end, cut)
            self.text = self.text[:cut]
        self.hears.append((start, start + turn.heard))
        self.wait(max(0, start + turn.heard - len(self)))

    def transcribe(self, turn):
        """The words of what was heard immediately after it, without gaps between them: a natural monologue (section 2.2)."""
        self.text += turn.transcript

    def quote(self, turn):
        """The same, between <asr> and <answer>."""
        self.text += [self.ids.asr, *turn.transcript, self.ids.answer]

    def respond(self, turn):
        """Words at once, without gaps (section 2.2), sound SPEECH_DELAY frames behind, <wait> until the longer of both is over;
        a back-channel changes none of it."""
        start = len(self) + SPEECH_DELAY
        self.text += turn.response
        self.says.append((start, start + turn.spoken))
        self.wait(max(0, start + turn.spoken - len(self)))
        if turn.murmur:
            at, frames = turn.murmur
            self.hears.append((start + at, start + at + frames))

    def align(self, turn):
        """Moshi's monologue: each word in the frame where it sounds, or after the word before, behind <end-of-pad> if there is room.

        Decision: Moshi's <pad> is <wait> and its <end-of-pad> is <answer>, each the token that says the same here (nothing is
        written now; words follow), so that a model for the comparison needs no ids of its own."""
        self.says.append((len(self), len(self) + turn.spoken))
        free = len(self)
        self.wait(turn.spoken)
        for start, tokens in turn.words:
            start = max(free, self.says[-1][0] + start)
            free = start + len(tokens)
            self.wait(max(0, free - len(self)))
            self.text[start:free] = tokens
            if start > 1 and self.text[start - 1] == self.ids.wait:
                self.text[start - 1] = self.ids.answer

    def grid(self, speak=None, listen=None):
        """Set codes [T, K] beside the text. None: a channel that stays empty, which carries no loss (section 3.1)."""
        T, ids = len(self), self.ids
        text, empty = torch.tensor(self.text), torch.full((T, K), ids.empty)
        loss = torch.zeros(T, 1 + K, dtype=torch.uint8)
        loss[1:, 0] = torch.where(text[1:] == ids.wait, Loss.WAIT, Loss.MONOLOGUE)
        loss[1:, 1], loss[:, 2:] = Loss.SEMANTIC, Loss.ACOUSTIC
        pads, speak = (K, empty.clone()) if speak is None else (1, speak.clone())
        loss[:, 1:][speak == ids.empty] = Loss.NONE
        speak[0, :pads] = ids.pad  # where the streaming loop starts; it samples the acoustic codes of frame 0 itself
        return Grid(text, speak, empty if listen is None else listen, loss)


FORMATS = {  # what is made of each turn, in this order
    "tts": [Script.respond],                      # section 3.1, Figure 3 left: nothing is heard
    "asr": [Script.hear, Script.transcribe],      # section 3.1, Figure 3 left: nothing is spoken
    "asr-response-tts": [Script.hear, Script.quote, Script.respond],  # section 3.2.2, Figure 3 middle
    "response-tts": [Script.hear, Script.respond],       # section 3.2.2, Figure 3 top right
    "response-tts-free": [Script.hear, Script.respond],  # and bottom right, of turns that `draw_interruptions` made free
    "word-aligned": [Script.align],               # Figure 2 left: Moshi's monologue over a pair, the baseline of RQ1 (section 4.4)
}
LISTENS = {name for name, parts in FORMATS.items() if Script.hear in parts}  # formats whose listening channel is not empty
SPEAKS = {name for name, parts in FORMATS.items() if {Script.respond, Script.align} & {*parts}}  # and whose speaking channel is not
PAIRS = FORMATS.keys() - (LISTENS & SPEAKS)  # formats of pairs: one channel is empty


def write(format, turns, silences, ids):
    """Turns in one format, with silences[i] frames before turn i and silences[-1] at the end -> Script."""
    if len(silences) != len(turns) + 1:
        raise GridError(f"{len(turns)} turns need {len(turns) + 1} silences, not {len(silences)}")
    script = Script(ids)
    for turn, silence in zip(turns, silences):
        script.wait(silence)
        for part in FORMATS[format]:
            part(script, turn)
    script.wait(silences[-1])
    return script


def place(spans, clips, filler, T):
    """Lay clips [frames, K] of codes into their spans of a channel that holds `filler` [K] elsewhere -> [T, K]"""
    channel = filler.expand(T, K).clone()
    for (start, stop), clip in zip(spans, clips, strict=True):
        if len(clip) != stop - start:
            raise GridError(f"a clip of {len(clip)} frames does not fit the span {start} .. {stop}")
        channel[start:stop] = clip
    return channel


# --- delays: frames <-> rows ---

def _shift(columns, late, hole):
    """[T, n] -> [T + 1, n]: column `late` and those after it come a row later; `hole` fills what opens. Codes, with late = 1:

        frame    0  1  2         row     0  1  2  3
        sem      a  b  c         sem     a  b  c  pad
        acoustic A  B  C         ac.   pad  A  B  C
    """
    return torch.cat([F.pad(columns[:, :late], (0, 0, 0, ACOUSTIC_DELAY), value=hole),
                      F.pad(columns[:, late:], (0, 0, ACOUSTIC_DELAY, 0), value=hole)], 1)


def delay(grid, ids):
    """T frames -> the T + 1 rows that the model reads. Loss classes move with their tokens."""
    return Grid(F.pad(grid.text, (0, ACOUSTIC_DELAY), value=ids.wait), _shift(grid.speak, 1, ids.pad),
                _shift(grid.listen, 1, ids.pad), _shift(grid.loss, 2, Loss.NONE))


def undelay(rows):
    """T + 1 rows -> T frames: undelay(delay(grid)) is grid."""
    def back(x, late):
        return torch.cat([x[:-ACOUSTIC_DELAY, :late], x[ACOUSTIC_DELAY:, late:]], 1)
    return Grid(rows.text[:-ACOUSTIC_DELAY], back(rows.speak, 1), back(rows.listen, 1), back(rows.loss, 2))


# --- files ---

COLUMNS = ("text", "speak", "listen", "loss", "lengths")  # the tensors of a file of grids


def digest(tensors):
    """What tells a file's payload from any other: a hash of its tensors' bytes, as text."""
    payload = hashlib.blake2b(digest_size=16)
    for name in COLUMNS:
        payload.update(tensors[name].contiguous().numpy().tobytes())
    return payload.hexdigest()


def save(grids, file):
    """Write many grids to one safetensors file: their frames one after the other, their lengths, and a digest of it all.
    Raises GridError."""
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
        with replacing(file) as beside:
            save_file(tensors, beside, metadata={"digest": digest(tensors)})
    except (OSError, SafetensorError) as error:
        raise GridError(f"{file} cannot be written: {error}") from None


class Shard:
    """The grids of a file that `save` wrote, memory-mapped: shard[i] reads the frames of grid i and no others.
    Raises GridError for a file that is missing, damaged or another thing."""

    def __init__(self, file):
        from safetensors import SafetensorError, safe_open
        self.file = file
        try:
            self.tensors = safe_open(file, "pt")
            self.lengths = self.tensors.get_tensor("lengths").tolist()
            self.columns = [self.tensors.get_slice(name) for name in ("text", "speak", "listen", "loss")]
            frames = {column.get_shape()[0] for column in self.columns}
            if frames != {sum(self.lengths)} or min(self.lengths) < 1:
                raise GridError("its lengths are not its frames'")
        except (OSError, ValueError, SafetensorError) as error:
            raise GridError(f"{file} is no file of token grids, or it is damaged: {error}") from None
        stops = itertools.accumulate(self.lengths)
        self.spans = [slice(stop - length, stop) for length, stop in zip(self.lengths, stops)]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        text, speak, listen, loss = (column[self.spans[i]] for column in self.columns)
        return Grid(text.long(), speak.long(), listen.long(), loss.clone())

    def verify(self):
        """Compare the payload with the file's digest. Returns False for a file that has none, as those of older versions.
        Raises GridError where a byte is not what was written."""
        written = (self.tensors.metadata() or {}).get("digest")
        if written is None:
            return False
        if digest({name: self.tensors.get_tensor(name) for name in COLUMNS}) != written:
            raise GridError(f"{self.file} is damaged: its payload is not what was written")
        return True


def read_codes(file, codebook_size=2**15):
    """Codes of a clip from a .npy file -> int64 [T, K]. Raises GridError, one sentence."""
    try:
        codes = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise GridError(f"{file} cannot be read as codes: {error}") from None
    if not isinstance(codes, np.ndarray) or codes.ndim != 2 or codes.shape[1] != K or codes.dtype.kind not in "iu":
        raise GridError(f"{file} must hold whole numbers [frames, {K}]")
    if not len(codes) or codes.min() < 0 or codes.max() >= codebook_size:
        raise GridError(f"{file} holds no codes, or codes outside 0 .. {codebook_size - 1}")
    return torch.from_numpy(codes.astype(np.int64))


def check_ids(grid, text_size, audio_size):
    """Raise GridError where a grid holds what no model of these vocabularies has: an id outside its vocabulary, or a loss class
    in a channel that cannot carry it. A flipped bit on disk would otherwise end in a failed look-up within the model."""
    for name, column, size in (("text", grid.text, text_size), ("speak", grid.speak, audio_size),
                               ("listen", grid.listen, audio_size)):
        low, high = column.aminmax()
        if low < 0 or high >= size:
            wrong = int(low if low < 0 else high)
            raise GridError(f"{name} has the id {wrong}, outside 0 .. {size - 1}")
    for name, column, classes in (("a text id", grid.loss[:, 0], (Loss.MONOLOGUE, Loss.WAIT)),
                                  ("a semantic code", grid.loss[:, 1], (Loss.SEMANTIC,)),
                                  ("an acoustic code", grid.loss[:, 2:], (Loss.ACOUSTIC,))):
        known = column == Loss.NONE
        for kind in classes:
            known |= column == kind
        if not known.all():
            raise GridError(f"the loss class {int(column[~known][0])} cannot stand at {name}")


# --- drawing ---

def draw(grid, ids, names=str, width=None):
    """The grid as text, a column a frame and a row a channel, wrapped at `width` characters.

    names: text id -> its spelling. `.` is empty, `#` is pad, `~` is <wait>. Below the channels stand the loss classes of
    text, semantic and acoustic codes, by their first letters."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    special = {ids.wait: "~", ids.asr: "<asr>", ids.answer: "<answer>"}
    unsaid = {ids.pad: "#", ids.empty: "."}  # one id may be both
    rows = [("frame", [str(t) for t in range(len(grid))]),
            ("text", [special.get(x) or names(x).strip().replace("\n", " ") for x in grid.text.tolist()])]
    for name, codes in (("speak", grid.speak), ("listen", grid.listen)):
        rows += [(f"{name} {c}", [unsaid.get(x, str(x)) for x in codes[:, c].tolist()]) for c in range(K)]
    for name, classes in zip(("loss text", "  semantic", "  acoustic"), grid.loss.T.tolist()):
        rows.append((name, [Loss(x).name[0] if x else "" for x in classes]))
    widths = [1 + max(len(cells[t]) for _, cells in rows) for t in range(len(grid))]
    lines, start, margin = [], 0, 10
    while start < len(grid):
        stop = start + max(1, sum(used <= width - margin for used in itertools.accumulate(widths[start:])))
        for name, cells in rows:
            lines.append(f"{name:<{margin}}" + "".join(f"{cells[t]:>{widths[t]}}" for t in range(start, stop)))
        lines.append("")
        start = stop
    return "\n".join(line.rstrip() for line in lines)


def example(format):
    """Made-up turns in one format -> (Grid, Ids, names): the code of a clip's frame i is i + 1, silence is 0."""
    words = ["~", "<asr>", "<answer>", "What's", "up?", "All", "is", "fine."]
    ids = Ids(wait=0, asr=1, answer=2, empty=98, pad=99)
    turns = [Turn(heard=4, spoken=5, transcript=(3, 4), response=(5, 6, 7), words=((0, [5]), (1, [6]), (4, [7])))]
    if format == "response-tts-free":
        turns = [Turn(heard=2, spoken=12, response=(5, 6, 7), murmur=(1, 1)), Turn(heard=7, spoken=3, response=(7,), interrupts=3)]
    script, silence = write(format, turns, [1] * (len(turns) + 1), ids), torch.zeros(K, dtype=torch.int64)

    def channel(spans):
        clips = [torch.arange(1, stop - start + 1)[:, None].expand(-1, K) for start, stop in spans]
        return place(spans, clips, silence, len(script))
    grid = script.grid(channel(script.says) if format in SPEAKS else None, channel(script.hears) if format in LISTENS else None)
    return grid, ids, words.__getitem__


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Draw token grids: made-up examples of the formats, or real ones from a file.",
                                     epilog=". empty   # pad   ~ <wait>   loss: S semantic, A acoustic, M monologue, W wait")
    parser.add_argument("--format", choices=FORMATS, help="draw this format only")
    parser.add_argument("--delayed", action="store_true", help="as the model reads it: acoustic codes a row late")
    parser.add_argument("--grid", metavar="FILE", help="draw a grid of this file, made by data.py")
    parser.add_argument("--index", type=int, default=0, help="which of the file's grids (default: the first)")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "tiny" / "model",
                        help="model folder that the file was made for: its special ids and tokenizer (default: the shipped one)")
    args = parser.parse_args(arguments)
    try:
        if args.grid:
            from tokenizers import Tokenizer
            grids = Shard(args.grid)
            if not -len(grids) <= args.index < len(grids):
                raise GridError(f"{args.grid} holds {len(grids)} grids, and there is no number {args.index}")
            tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
            drawn = [("", grids[args.index], Ids.read(args.model), lambda i: tokenizer.decode([i]))]
        else:
            drawn = [(name, *example(name)) for name in ([args.format] if args.format else FORMATS)]
    except Exception as error:  # the tokenizers library raises no narrower class
        sys.exit(f"stream.py: {error}")
    for name, grid, ids, names in drawn:
        print(f"{name}\n{draw(delay(grid, ids) if args.delayed else grid, ids, names)}")


if __name__ == "__main__":
    command.run("stream.py", main)
