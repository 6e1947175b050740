"""Recordings of two people -> dialogs, as turns one after the other or as whole channels.

What this is: the layouts `moshi-finetune` and `stereo` of `data.py import`, which read the same
files. What this is not: the other layouts (importers.py, which this serves).

    python data.py import moshi-finetune talks/set.jsonl dialogs.jsonl
    python data.py import stereo talks/set.jsonl stereo.jsonl

The files: JSONL of {"path": stereo file, the model left, the user right}, and beside each sound
file a JSON of words and their times in seconds. The label of the model's words is SPEAKER_MAIN; any
other label is the user's, whose words may be absent:

    {"alignments": [["Yes.", [1.0, 1.5], "SPEAKER_MAIN"], ["Really?", [2.1, 2.6], "SPEAKER_1"]]}

What cannot be used of a recording is reported as Skipped; the rest of the recording is used.
"""
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from workshop import speech
from workshop.manifests import DataError, Problem, Skipped, is_number, read_rows
from workshop.sound_file import loudness

# Decision: in a recorded conversation, a longer pause of the model ends its utterance.
UTTERANCE_GAP = 1.0    # seconds
PIECE = 300            # seconds of a conversation in one sample of the format stereo; 3,750 frames
LEFT, RIGHT = 0, 1     # channels of a conversation: the model, the user
SHORTEST = 0.08        # seconds: a frame; a shorter clip says nothing
# Decision: the channels are taken for swapped where the model's words lie in spans in which its
# channel is quieter than the user's by so much.
SWAPPED = 10           # dB
MODEL = "SPEAKER_MAIN"


@dataclass
class Conversation:
    """A recording of two people. audio: [N, 2], the model left, the user right; words and
    user_words: [(word, start, end)] of the model and of the user, in seconds; prefix: what the
    names of its clips begin with."""
    file: Path
    audio: np.ndarray
    rate: int
    words: list
    user_words: list
    prefix: str

    @property
    def seconds(self):
        return len(self.audio) / self.rate

    @cached_property
    def user_spans(self):
        """Where the user's channel sounds."""
        return speech.speech_spans(self.audio[:, RIGHT], self.rate)

    def user_speaks(self, start, end):
        """Whether the user's channel sounds between two seconds."""
        return any(first < end and last > start for first, last in self.user_spans)

    def write_clip(self, path, channel, start, end):
        """Write one channel from one second to another. Raises OSError."""
        import soundfile
        first = int(start * self.rate)
        last = int(end * self.rate)
        try:
            soundfile.write(path, self.audio[first:last + 1, channel], self.rate)
        except RuntimeError as error:  # soundfile's own
            raise OSError(f"{path} cannot be written: {error}") from None


# --- the two layouts ---

def moshi_finetune(source, clips):
    """Gives dialogs of turns, whose clips are written to `clips`.

    Decision: a turn is what was heard since the model last spoke, and what it says; speech at the
    same time is lost. The layout stereo keeps it."""
    yield from conversations(source, clips, turn_by_turn)


def stereo(source, clips):
    """Gives dialogs of one turn for the format stereo: both channels whole, with all that the two
    say at the same time."""
    yield from conversations(source, clips, whole_channels)


def conversations(source, clips, lines_of):
    """lines_of(Conversation, clips) of each recording that a JSONL file names."""
    clips.mkdir(parents=True, exist_ok=True)
    for number, row in read_rows(source):
        if isinstance(row, Problem):
            yield Skipped(f"{source}, line {number}: {row.detail}")
            continue
        path = row.get("path")
        if not isinstance(path, str) or not Path(path).name:
            yield Skipped(f"{source}, line {number}: there is no path")
            continue
        try:
            conversation, dropped_count = read_conversation(source.parent / path)
            if dropped_count:
                yield Skipped(f"{conversation.file}: {dropped_count} words without times, or with "
                              "times outside of the recording")
            yield from lines_of(conversation, clips)
        except DataError as error:
            yield Skipped(str(error))


# --- reading ---

def read_conversation(file):
    """A stereo recording and the words beside it -> (Conversation, how many words were left out
    because their times make no sense). Raises DataError."""
    import soundfile
    words, user_words, dropped_count = read_alignments(file.with_suffix(".json"))
    try:
        audio, rate = soundfile.read(file, dtype="float32", always_2d=True)  # [N, channels]
    except (OSError, RuntimeError, TypeError) as error:  # soundfile's own is a RuntimeError
        raise DataError(f"{file} cannot be read: {error}") from None
    if audio.shape[1] != 2:
        raise DataError(f"{file} has {audio.shape[1]} channels, and a conversation has two: "
                        "the model left, the user right")
    last = len(audio) / rate + SHORTEST
    inside = [word for word in words if word[2] <= last]
    user_inside = [word for word in user_words if word[2] <= last]
    dropped_count += len(words) + len(user_words) - len(inside) - len(user_inside)
    prefix = f"{file.stem}-{hashlib.sha1(str(file.resolve()).encode()).hexdigest()[:8]}"
    return Conversation(file, audio, rate, inside, user_inside, prefix), dropped_count


def read_alignments(file):
    """A JSON of alignments -> (the model's words, the user's, how many were left out because they
    have no times that make sense). Words are [(word, start, end)]. Raises DataError."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))["alignments"]
        entries = [(entry[0], entry[1], entry[2]) for entry in entries]
    except OSError:
        raise DataError(f"{file} is missing: the words of the model") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{file} holds no alignments: {error!r}") from None
    words = []
    user_words = []
    for word, span, speaker in entries:
        is_span = isinstance(span, list) and len(span) == 2 and all(map(is_number, span))
        if is_span and isinstance(word, str) and word.strip() and 0 <= span[0] <= span[1]:
            side = words if speaker == MODEL else user_words
            side.append((word.strip(), *span))
    dropped_count = len(entries) - len(words) - len(user_words)
    words.sort(key=lambda word: word[1])
    user_words.sort(key=lambda word: word[1])
    return words, user_words, dropped_count


def utterances(words):
    """[(word, start, end)] -> [(text, start, end)]: words with at most UTTERANCE_GAP between."""
    groups = []
    for word in words:
        if not groups or word[1] - groups[-1][-1][2] > UTTERANCE_GAP:
            groups.append([])
        groups[-1].append(word)
    texts = []
    for group in groups:
        texts.append((text_of(group), group[0][1], max(end for _, _, end in group)))
    return texts


def text_of(words):
    return " ".join(word for word, *_ in words)


# --- writing ---

def turn_by_turn(conversation, clips):
    """A conversation -> a line of its turns, and a Skipped for each part that is left out.

    Who speaks first does not matter. Where it is the model, its first turn hears the silence before
    it, and says so (`opens`). Decision: utterances of the model between which the user says nothing
    are one turn, with the pause in it."""
    file = conversation.file
    turns = []
    before = 0.0
    for text, start, end in answers(conversation):
        if end - start < SHORTEST or (turns and start - before < SHORTEST):
            yield Skipped(f"{file}: what the model says at {start:g} s, with nothing heard before "
                          "it or shorter than a frame")
        else:
            name = f"{conversation.prefix}-{len(turns) + 1}"
            turn = {"heard": clips / f"{name}-heard.wav", "spoken": clips / f"{name}-spoken.wav",
                    "response": text}
            question = [word for word in conversation.user_words if before <= word[1] < start]
            if question:
                turn["transcript"] = text_of(question)
            if not turns and not conversation.user_speaks(0, start):
                turn["opens"] = True
            conversation.write_clip(turn["heard"], RIGHT, before, max(start, before + SHORTEST))
            conversation.write_clip(turn["spoken"], LEFT, start, end)
            turns.append(turn)
        before = end
    if not turns:
        raise DataError(f"{file}: the model says nothing")
    yield with_suspicion({"turns": turns}, conversation)


def answers(conversation):
    """The utterances of the model, those together between which the user says nothing."""
    together = []
    for text, start, end in utterances(conversation.words):
        if together and not conversation.user_speaks(together[-1][2], start):
            text_before, first, _ = together.pop()
            text = f"{text_before} {text}"
            start = first
        together.append((text, start, end))
    return together


def whole_channels(conversation, clips):
    """A conversation -> a line for each piece of PIECE seconds in which somebody speaks. In some
    the model only listens.

    Decision: a piece ends wherever its time is over. What the model says belongs to the piece in
    which it begins, and its times count from the start of that piece."""
    if not conversation.words:
        raise DataError(f"{conversation.file}: the model says nothing")
    for piece in range(math.ceil(conversation.seconds / PIECE)):
        first = piece * PIECE
        last = min(first + PIECE, conversation.seconds)
        words = []
        for text, start, end in utterances(conversation.words):
            if first <= start < last:
                words.append((text, start - first, min(end, last) - first))
        if not words and not conversation.user_speaks(first, last):
            yield Skipped(f"{conversation.file}: {first} s to {last:g} s, where nobody speaks")
            continue
        name = f"{conversation.prefix}-{piece + 1}"
        turn = {"heard": clips / f"{name}-right.wav", "spoken": clips / f"{name}-left.wav",
                "words": words}
        if words:
            turn["response"] = text_of(words)
        conversation.write_clip(turn["heard"], RIGHT, first, last)
        conversation.write_clip(turn["spoken"], LEFT, first, last)
        yield with_suspicion({"turns": [turn]}, conversation)


def with_suspicion(line, conversation):
    """A line of the manifest, which says so where the model's words lie where its channel is quiet
    and the user's is loud."""
    rate = conversation.rate
    spans = []
    for _, start, end in conversation.words:
        spans.append(conversation.audio[int(start * rate):int(end * rate) + 1])
    together = np.concatenate(spans)
    if loudness(together[:, RIGHT]) - loudness(together[:, LEFT]) > SWAPPED:
        return line | {"suspicion": "channels swapped"}
    return line
