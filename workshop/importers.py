"""What people have -> manifests: the layouts of well-known data sets.

What this is: `data.py import`. One function a layout, which gives the lines of a manifest one after
the other. What cannot be used costs its own line alone: it is named, counted and left out. What
this is not: a check of the sound (check.py). Serves data.py.

    python data.py import librispeech LibriSpeech/train-clean-100 pairs.jsonl
    python data.py import table recordings.csv pairs.jsonl   # columns audio and text
"""
import csv
import hashlib
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from workshop.manifests import (DataError, Problem, is_number, not_utf8, open_text, problems_of,
                                read_rows, text_lines, write_lines)
from workshop.sound_file import loudness

# Decision: in a recorded conversation, a longer pause of the model ends its turn.
UTTERANCE_GAP = 1.0    # seconds
PIECE = 300            # seconds of a conversation in one sample of the format stereo; 3,750 frames
LEFT, RIGHT = 0, 1     # channels of a conversation: the model, the user
SHORTEST = 0.08        # seconds: a frame; a shorter clip says nothing
# Decision: the channels are taken for swapped where the model's words lie in spans in which its
# channel is quieter than the user's by so much.
SWAPPED = 10           # dB
SEPARATORS = (",", ";", "\t")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".m4a")


class Skipped(str):
    """Why a recording, or a row, is left out. Yielded by a layout in place of a line."""


# --- layouts of recordings with their texts ---

def librispeech(source, clips):
    """Folders with NAME.trans.txt: "NAME TEXT IN CAPITALS" a line, beside NAME.flac."""
    for file in sorted(source.rglob("*.trans.txt")):
        for number, line in text_lines(file):
            name, _, text = line.partition(" ")
            if not text.strip():
                yield Skipped(f"{file}, line {number}: no text")
                continue
            # Decision: nobody writes in capitals.
            yield {"audio": file.parent / f"{name}.flac", "text": text.lower()}


def ljspeech(source, clips):
    """metadata.csv: "NAME|text|normalised text" a line; wavs/NAME.wav."""
    for number, line in text_lines(source / "metadata.csv"):
        name, *texts = line.split("|")
        if not texts:
            yield Skipped(f"{source / 'metadata.csv'}, line {number}: no text")
            continue
        yield {"audio": source / "wavs" / f"{name}.wav", "text": texts[-1]}


def aishell_3(source, clips):
    """content.txt: "NAME.wav character pinyin character pinyin ..." a line;
    wav/SPEAKER/NAME.wav."""
    for file in sorted(source.rglob("content.txt")):
        for number, line in text_lines(file):
            words = line.split()
            if len(words) < 2:
                yield Skipped(f"{file}, line {number}: no text")
                continue
            name, characters = words[0], words[1::2]
            yield {"audio": file.parent / "wav" / name[:7] / name, "text": "".join(characters)}


def common_voice(source, clips):
    """validated.tsv with columns path and sentence; clips/."""
    file = source / "validated.tsv"
    for row in table_rows(file, ("path", "sentence"), separator="\t", quoting=csv.QUOTE_NONE):
        if isinstance(row, Skipped):
            yield row
        else:
            yield {"audio": source / "clips" / row["path"], "text": row["sentence"]}


def table(source, clips):
    """A .jsonl, .csv or .tsv file with columns audio, a path relative to the file, and text."""
    if source.suffix == ".jsonl":
        rows = jsonl_rows(source)
    else:
        rows = table_rows(source, ("audio", "text"))
    for row in rows:
        if isinstance(row, Skipped):
            yield row
        else:
            yield {**row, "audio": source.parent / row["audio"]}


def jsonl_rows(file):
    for number, row in read_rows(file):
        if isinstance(row, Problem):
            yield Skipped(f"{file}, line {number}: {row.detail}")
        elif not isinstance(row.get("audio"), str) or not isinstance(row.get("text"), str):
            yield Skipped(f"{file}, line {number}: audio and text are needed")
        else:
            yield row


# --- tables ---

def sniff(file, columns):
    """The separator of a table, by its first line: the one that gives the columns. Raises DataError
    that names those there are."""
    with open_text(file) as text:
        header = text.readline().rstrip("\r\n")
    most = []
    for separator in SEPARATORS:
        names = next(csv.reader([header], delimiter=separator), [])
        names = [name.strip() for name in names]
        if set(columns) <= set(names):
            return separator
        if len(names) > len(most):
            most = names
    there = ", ".join(most) or "none"
    raise DataError(f"{file} needs the columns {' and '.join(columns)} in its first line, "
                    f"and has: {there}")


def table_rows(file, columns, separator=None, quoting=csv.QUOTE_MINIMAL):
    """The rows of a table, as dicts of its columns; Skipped for a row that has too many cells, too
    few, or an empty one of `columns`. Texts are as they stand there, but a line break within
    quotation marks is a space.

    Raises DataError for a quotation mark that nothing closes: it would swallow the rows after
    it."""
    try:
        separator = separator or sniff(file, columns)
        with open_text(file) as text:
            reader = csv.reader(text, delimiter=separator, quoting=quoting, strict=True)
            names = [name.strip() for name in next(reader)]
            if not set(columns) <= set(names):
                raise DataError(f"{file} needs the columns {' and '.join(columns)}, "
                                f"and has: {', '.join(names)}")
            yield from checked_rows(file, reader, names, columns, separator)
    except UnicodeDecodeError as error:
        raise not_utf8(file, error) from None
    except csv.Error as error:
        raise DataError(f"{file}, before line {reader.line_num + 1}: the quotation marks do not "
                        f"match ({error}): a mark within a quoted text is written twice") from None


def checked_rows(file, reader, names, columns, separator):
    before = reader.line_num
    broken = 0
    for cells in reader:
        first = before + 1
        before = reader.line_num
        if not cells:
            continue
        for cell in cells:
            if swallows_rows(cell, names.index(columns[0]), separator):
                raise DataError(f"{file}, line {first}: a quotation mark opens here and the rows "
                                "after it are within it: remove it, or write it twice within a "
                                "quoted text")
        if len(cells) != len(names):
            yield Skipped(f"{file}, line {first}: {len(cells)} cells in a table of {len(names)} "
                          f"columns; a text that holds {separator!r} must be quoted")
            continue
        row = dict(zip(names, cells))
        row = {column: without_line_breaks(row[column]) for column in columns}
        broken += before > first
        empty = [column for column in columns if not row[column].strip()]
        if empty:
            yield Skipped(f"{file}, line {first}: no {' and no '.join(empty)}")
            continue
        yield row
    if broken:
        tqdm.write(f"note: {file}: in {broken} quoted texts a line break became a space",
                   file=sys.stderr)


def without_line_breaks(cell):
    """A quoted cell may hold line breaks, which are spaces in a text that is spoken."""
    return cell.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def swallows_rows(cell, path_column, separator):
    """Whether a quoted cell holds further rows: lines with the path of a recording where a row has
    it."""
    lines = cell.replace("\r\n", "\n").split("\n")
    for line in lines[1:]:
        cells = line.split(separator)
        if len(cells) <= path_column:
            continue
        name = cells[path_column].strip(' "').lower()
        if name.endswith(SOUND_SUFFIXES):
            return True
    return False


# --- conversations in stereo ---

@dataclass
class Conversation:
    """A recording of two people. audio: [N, 2], the model left, the user right; words: [(word,
    start, end)] of the model, in seconds; prefix: what the names of its clips begin with."""
    file: Path
    audio: np.ndarray
    rate: int
    words: list
    prefix: str

    @property
    def seconds(self):
        return len(self.audio) / self.rate

    def write_clip(self, path, channel, start, end):
        """Write one channel from one second to another."""
        import soundfile
        first = int(start * self.rate)
        last = int(end * self.rate)
        soundfile.write(path, self.audio[first:last + 1, channel], self.rate)


def moshi_finetune(source, clips):
    """JSONL of {"path": stereo file, the model left}; beside each file a JSON of the model's words:
    {"alignments": [[word, [start, end], "SPEAKER_MAIN"], ...]}. Gives dialogs whose clips are
    written to `clips`.

    Decision: a turn is what was heard since the model last spoke, and what it says; speech at the
    same time is lost. The layout stereo keeps it."""
    yield from conversations(source, clips, turn_by_turn)


def stereo(source, clips):
    """The same files. Gives dialogs of one turn for the format stereo: both channels whole, with
    all that the two say at the same time."""
    yield from conversations(source, clips, whole_channels)


def conversations(source, clips, lines_of):
    """lines_of(Conversation, clips) of each recording that a JSONL file names. A recording that
    cannot be used is Skipped."""
    clips.mkdir(parents=True, exist_ok=True)
    for number, row in read_rows(source):
        if isinstance(row, Problem) or not isinstance(row.get("path"), str):
            detail = row.detail if isinstance(row, Problem) else "there is no path"
            yield Skipped(f"{source}, line {number}: {detail}")
            continue
        try:
            conversation, dropped = read_conversation(source.parent / row["path"])
            if dropped:
                yield Skipped(f"{conversation.file}: {dropped} words without times, or with times "
                              "outside of the recording")
            yield from lines_of(conversation, clips)
        except DataError as error:
            yield Skipped(str(error))


def read_conversation(file):
    """A stereo recording and the words beside it -> (Conversation, how many words were left out
    because their times make no sense). Raises DataError."""
    import soundfile
    words, dropped = read_alignments(file.with_suffix(".json"))
    try:
        audio, rate = soundfile.read(file, dtype="float32", always_2d=True)  # [N, channels]
    except (OSError, RuntimeError) as error:  # soundfile's own is a RuntimeError
        raise DataError(f"{file} cannot be read: {error}") from None
    if audio.shape[1] != 2:
        raise DataError(f"{file} has {audio.shape[1]} channels, and a conversation has two: "
                        "the model left, the user right")
    seconds = len(audio) / rate
    inside = [word for word in words if word[2] <= seconds + SHORTEST]
    prefix = f"{file.stem}-{hashlib.sha1(str(file.resolve()).encode()).hexdigest()[:8]}"
    conversation = Conversation(file, audio, rate, inside, prefix)
    return conversation, dropped + len(words) - len(inside)


def read_alignments(file):
    """The model's words in a JSON of alignments -> [(word, start, end)], and how many were left out
    because they have no times that make sense. Raises DataError."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))["alignments"]
        entries = [(entry[0], entry[1]) for entry in entries if entry[2] == "SPEAKER_MAIN"]
    except OSError:
        raise DataError(f"{file} is missing: the words of the model") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{file} holds no alignments: {error!r}") from None
    words = []
    for word, span in entries:
        is_span = isinstance(span, list) and len(span) == 2 and all(map(is_number, span))
        if is_span and isinstance(word, str) and word.strip() and 0 <= span[0] <= span[1]:
            words.append((word.strip(), *span))
    return sorted(words, key=lambda word: word[1]), len(entries) - len(words)


def turn_by_turn(conversation, clips):
    """A conversation -> a line of its turns, and a Skipped for each part that is left out."""
    file = conversation.file
    turns = []
    before = 0.0
    for text, start, end in utterances(conversation.words):
        if start - before < SHORTEST or end - start < SHORTEST:
            yield Skipped(f"{file}: what the model says at {start:g} s, with nothing heard before "
                          "it or shorter than a frame")
        else:
            name = f"{conversation.prefix}-{len(turns) + 1}"
            turn = {"heard": clips / f"{name}-heard.wav", "spoken": clips / f"{name}-spoken.wav",
                    "response": text}
            conversation.write_clip(turn["heard"], RIGHT, before, start)
            conversation.write_clip(turn["spoken"], LEFT, start, end)
            turns.append(turn)
        before = end
    if not turns:
        raise DataError(f"{file}: no turn in which the user speaks and the model answers")
    yield with_suspicion({"turns": turns}, conversation)


def whole_channels(conversation, clips):
    """A conversation -> a line for each piece of PIECE seconds in which the model speaks.

    Decision: a piece ends wherever its time is over. What the model says belongs to the piece in
    which it begins, and its times count from the start of that piece."""
    file = conversation.file
    pieces = math.ceil(conversation.seconds / PIECE)
    spoken_pieces = 0
    for piece in range(pieces):
        first = piece * PIECE
        last = min(first + PIECE, conversation.seconds)
        words = []
        for text, start, end in utterances(conversation.words):
            if first <= start < last:
                words.append((text, start - first, min(end, last) - first))
        if not words:
            continue
        spoken_pieces += 1
        name = f"{conversation.prefix}-{piece + 1}"
        turn = {"heard": clips / f"{name}-right.wav", "spoken": clips / f"{name}-left.wav",
                "response": " ".join(text for text, *_ in words), "words": words}
        conversation.write_clip(turn["heard"], RIGHT, first, last)
        conversation.write_clip(turn["spoken"], LEFT, first, last)
        yield with_suspicion({"turns": [turn]}, conversation)
    if not spoken_pieces:
        raise DataError(f"{file}: the model says nothing")


def utterances(words):
    """[(word, start, end)] -> [(text, start, end)]: words with at most UTTERANCE_GAP between."""
    groups = []
    for word in words:
        if not groups or word[1] - groups[-1][-1][2] > UTTERANCE_GAP:
            groups.append([])
        groups[-1].append(word)
    texts = []
    for group in groups:
        text = " ".join(word for word, *_ in group)
        texts.append((text, group[0][1], max(end for _, _, end in group)))
    return texts


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


# --- the command ---

LAYOUTS = {
    "librispeech": librispeech,
    "ljspeech": ljspeech,
    "aishell-3": aishell_3,
    "common-voice": common_voice,
    "moshi-finetune": moshi_finetune,
    "stereo": stereo,
    "table": table,
}


def bring_in(layout, source, out):
    """Write the manifest `out` of a data set, line by line. Returns (lines written, reasons why
    something was left out, counted).

    Raises DataError, one sentence, where nothing is left or nothing is there; what stood at `out`
    is then kept."""
    if layout not in LAYOUTS:
        raise DataError(f"there is no layout {layout}, only {', '.join(LAYOUTS)}")
    source, out = Path(source).resolve(), Path(out)
    if not source.exists():
        raise DataError(f"{source} does not exist")
    counts = Counter()
    rows = LAYOUTS[layout](source, out.resolve().with_suffix(""))
    try:
        write_lines(out, usable(rows, counts, source, layout))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"{source} is not laid out as {layout}: {error}") from None
    return counts["lines"], counts["left out"]


def usable(rows, counts, source, layout):
    """The lines whose recordings are there; what is left out is named on the screen and counted.
    Raises DataError where no line is left."""
    for row in tqdm(rows, unit="line"):
        if not isinstance(row, Skipped):
            row = json.loads(json.dumps(row, default=str))  # as it will be read again
            problems = problems_of(row, source.parent)
            if not problems:
                counts["lines"] += 1
                yield row
                continue
            row = Skipped("; ".join(problem.detail for problem in problems))
        counts["left out"] += 1
        tqdm.write(f"SKIPPED: {row}", file=sys.stderr)
    if not counts["lines"]:
        raise DataError(f"{source} holds nothing that can be used as {layout}: "
                        f"{counts['left out']} things were left out")


def add_command(commands):
    """The command `import` of data.py."""
    about = "Write the manifest of a data set."
    parser = commands.add_parser("import", help=about, description=about)
    parser.add_argument("layout", help=f"{', '.join(LAYOUTS)} (JSONL or CSV with columns audio "
                        "and text)")
    parser.add_argument("source", help="the data set's folder, or the file of table, "
                        "moshi-finetune and stereo")
    parser.add_argument("out", help="manifest to write")

    def run(args):
        lines, left_out = bring_in(args.layout, args.source, args.out)
        return f"{lines} lines, {left_out} things left out"
    parser.set_defaults(run=run)
