"""Manifests: lists of recordings and of what is said in them.

What this is: what a line of a manifest may hold, how a manifest is read and written, and every
reason why a line cannot be used. `data.py check` and `data.py encode` ask the same function, so
that encode takes every line that check calls good. What this is not: where manifests come from
(importers.py, synthesis.py), or what is wrong with the sound (check.py). Serves data.py and
eval.py.

A manifest is JSONL in UTF-8. Its paths are relative to its folder. A line is one of two kinds:

    a pair, for the formats tts, asr and word-aligned
        {"audio": "a.wav", "text": "It rains."}
        {"audio": "a.wav", "text": "It rains.",
         "words": [["It", 0.1, 0.2], ["rains.", 0.2, 0.7]]}  # each with its start and end, seconds

    a dialog, for all other formats
        {"turns": [{"heard": "q.wav", "transcript": "Who are you?",
                    "spoken": "a.wav", "response": "I am Joe.",
                    "patience": 0.3}]}     # seconds of silence before the response

word-aligned alone needs `words`, asr-response-tts alone `transcript`, and no format `patience`.
`spoken` may be a .npy file of codes [T, K]. For the format stereo a dialog is one turn: `heard`
and `spoken` are the two channels of a conversation, and `words` the utterances of the model with
their times; `response` may be absent.

A line may use a part of a recording, in seconds from the beginning of its file:

    {"audio": "lecture.flac", "start": 62.5, "end": 68.1, "text": "It rains."}

In a turn `heard_start` and `heard_end` are those of `heard`, `spoken_start` and `spoken_end` those
of `spoken`; `start` and `end` hold for both, as in two channels of one conversation. The times of
`words` count from the start of the part. Two keys are read by `check` alone: `confidence` (0 .. 1,
of a recogniser in the text) and `opens` (true: the model speaks first, so that nothing need sound
in `heard`).

Decision: other keys (a voice, a kind) may stand in a line; nobody reads them, and `check` and
`encode` name them in one sentence, because one of them may be a slip of the pen.
"""
import json
import os
import sys
from array import array
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

import stream
from workshop.files import replacing
from workshop.sound_file import Part

LONGEST_PATIENCE = 60  # seconds
LONGEST_TIME = 1e9     # seconds; what is beyond, or not a number, is no time
WORD_TOLERANCE = 0.1   # seconds that the last word may end after its recording
SHOWN = 5              # offending lines that a message lists
IDEOGRAPH = "[\u3040-\u9fff]"  # Japanese kana and Chinese characters, as a regular expression
PAIR_KEYS = {"audio", "text", "words", "start", "end", "confidence", "suspicion"}
TURN_KEYS = {"heard", "transcript", "spoken", "response", "patience", "opens", "confidence",
             "start", "end", "heard_start", "heard_end", "spoken_start", "spoken_end"}
# The key of a recording -> the key of its words.
TEXTS = {"audio": "text", "heard": "transcript", "spoken": "response"}
# The key of a recording -> the keys by which a part of it is named, the ones that count first.
STARTS = {"audio": ("start",), "heard": ("heard_start", "start"),
          "spoken": ("spoken_start", "start")}
ENDS = {"audio": ("end",), "heard": ("heard_end", "end"),
        "spoken": ("spoken_end", "end")}
TIMES = {*STARTS["audio"], *STARTS["heard"], *STARTS["spoken"],
         *ENDS["audio"], *ENDS["heard"], *ENDS["spoken"]}


class DataError(ValueError):
    """Something that cannot be read, made or used; the message is one sentence."""


@dataclass(frozen=True)
class Problem:
    """Why a line cannot be used: a kind by which problems are counted, and a sentence."""
    kind: str
    detail: str


class Skipped(str):
    """Why a recording, or a row, is left out. An importer yields it in place of a line."""


# --- reading and writing ---

def open_text(file):
    """Open a text file in UTF-8, with or without a byte-order mark, its line ends as they are.

    Raises DataError."""
    try:
        with open(file, "rb") as raw:
            check_encoding(file, raw.read(4))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    return open(file, encoding="utf-8-sig", newline="")


def check_encoding(file, start):
    """Raise DataError where a file starts with the byte-order mark of UTF-16."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{file} is in UTF-16, and must be in UTF-8: "
                        "save it again in that encoding")


def not_utf8(file, error, offset=0):
    """The DataError for a file whose bytes are in another encoding. offset: the byte at which the
    part starts that could not be read."""
    byte = error.object[error.start:error.start + 1].hex()
    return DataError(f"{file} is not in UTF-8 (byte {offset + error.start}: {byte}): "
                     "save it again in that encoding")


def text_lines(file):
    """(number, line) of a text file, one at a time, without their ends. A line ends at a line feed,
    and nowhere else: U+2028 and its like are text. Raises DataError."""
    for number, _, line in placed_lines(file):
        yield number, line


def placed_lines(file):
    """(number, the byte at which it starts, line) of a text file, as `text_lines` gives them."""
    try:
        with open(file, "rb") as lines:
            check_encoding(file, lines.peek(4))
            offset = 0
            for number, raw in enumerate(lines, 1):
                encoding = "utf-8" if offset else "utf-8-sig"
                yield number, offset, raw.decode(encoding).rstrip("\r\n")
                offset += len(raw)
    except UnicodeDecodeError as error:
        raise not_utf8(file, error, offset) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None


def parse_row(line):
    """A line of a JSONL file -> its JSON object, or a Problem."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Problem("malformed", f"no JSON: {error}")
    if not isinstance(row, dict):
        return Problem("malformed", f"a line is a JSON object, not {brief(row)}")
    # Only an escape can bring half of a character into a line of UTF-8.
    if "\\u" in line and not is_writable(row):
        return Problem("broken text", "the line holds half of a character (a lone surrogate)")
    return row


def empty_manifest(file):
    """The DataError for a manifest without a line."""
    return DataError(f"{file} is empty: it needs a line of JSON for each pair or dialog")


def is_writable(row):
    """Whether all texts of a line, also those that nobody reads, can be written again."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_rows(file):
    """(number, row) of each line of a JSONL file that is not empty.

    A row that is no JSON object is a Problem. Raises DataError for a file that cannot be read."""
    for number, line in text_lines(file):
        if line.strip():
            yield number, parse_row(line)


def read_line(lines, offset):
    """The row of a JSONL file, open as bytes, that starts at a byte. Raises DataError."""
    lines.seek(offset)
    row = parse_row(lines.readline().decode("utf-8-sig"))
    if isinstance(row, Problem):
        raise DataError(f"{lines.name}, byte {offset}: {row.detail}")
    return row


def read_lines(file):
    """(number, dict) of each line of a JSONL file, one at a time. Raises DataError that names the
    first line that is none."""
    for number, row in read_rows(file):
        if isinstance(row, Problem):
            raise DataError(f"{file} cannot be read, line {number}: {row.detail}")
        yield number, row


def write_lines(file, rows):
    """JSON objects, one a line; beside and then renamed. Several processes may do so at once."""
    with replacing(file, shared=True) as beside, open(beside, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


# --- what a line may hold ---

def first_of(sentences, count=None):
    """The first SHOWN of some sentences, and how many more there are. count: how many there are in
    all, where `sentences` are the first of them."""
    count = count or len(sentences)
    excerpt = list(sentences[:SHOWN])
    if count > SHOWN:
        excerpt.append(f"and {count - SHOWN} more")
    return "; ".join(excerpt)


def brief(value):
    """A value as a message shows it: not all of a long one."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_number(value):
    """Whether a value of a JSON file is a number of seconds: finite, and not too large."""
    return type(value) in (int, float) and -LONGEST_TIME < value < LONGEST_TIME


def text_problem(name, value):
    """None, or what is wrong with a text."""
    if not isinstance(value, str):
        return Problem("wrong kind", f"{name} must be a text, not {brief(value)}")
    if not value.strip():
        return Problem("empty text", f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        excerpt = ascii(value)[:60]
        return Problem("broken text",
                       f"{name} holds half of a character (a lone surrogate): {excerpt}")
    return None


def path_problem(name, value, folder):
    """None, or what is wrong with the path of a recording."""
    if not isinstance(value, str) or not value or "\0" in value:
        return Problem("wrong kind", f"{name} must be the path of a recording, not {brief(value)}")
    try:
        if os.path.isfile(os.path.join(folder, value)):  # half the time of a Path, in every line
            return None
    except (OSError, ValueError):  # a name that no file system takes
        pass
    return Problem("missing recording", f"{name}: {value} does not exist")


def recording_of(entry, key, folder):
    """The recording of a key of a pair or turn: its path, or a sound_file.Part of it where the
    entry names one."""
    path = Path(folder) / entry[key]
    start = first_value(entry, STARTS[key])
    end = first_value(entry, ENDS[key])
    if start is None and end is None:
        return path
    return Part(path, start or 0.0, end)


def first_value(entry, keys):
    """The value of the first of some keys that an entry has, or None."""
    for key in keys:
        if entry.get(key) is not None:
            return entry[key]
    return None


def part_problem(entry, key, folder, where):
    """None, or what is wrong with the part of a recording that an entry names. Called where the
    recording is there."""
    for name in (*STARTS[key], *ENDS[key]):
        value = entry.get(name)
        if value is not None and not (is_number(value) and value >= 0):
            return Problem("part", f"{where}{name} must be seconds from the start of the file, "
                           f"not {brief(value)}")
    part = recording_of(entry, key, folder)
    if not isinstance(part, Part):
        return None
    name = f"{where}{key}"
    if part.path.suffix == ".npy":
        return Problem("part", f"{name}: a file of codes is used whole, without start and end")
    if part.end is not None and part.end <= part.start:
        return Problem("part", f"{name} ends at {part.end:g} s, and starts at {part.start:g} s")
    seconds = seconds_of(part.path)
    if seconds is None:
        return None  # what cannot be read is another problem
    last = part.start if part.end is None else part.end
    if last > seconds + WORD_TOLERANCE or part.start >= seconds:
        return Problem("part", f"{name} is used up to {last:g} s, and has {seconds:.1f} s")
    return None


def seconds_of(path):
    """The length of a file by its header, or None where it cannot be read."""
    import soundfile
    try:
        return soundfile.info(path).duration
    except (OSError, RuntimeError):  # soundfile's own is a RuntimeError
        return None


def words_problem(words):
    """None, or what is wrong with the words of a pair and their times."""
    if not isinstance(words, list):
        return word_times(f"words must be a list of [word, start, end], not {brief(words)}")
    before = 0.0
    for entry in words:
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
            return word_times(f"words must be a list of [word, start, end], not of {brief(entry)}")
        word, start, end = entry
        if not is_number(start) or not is_number(end):
            return word_times(f"the times of {brief(word)} must be seconds, not {brief(entry[1:])}")
        if not 0 <= start <= end:
            return word_times(f"{brief(word)} ends at {end:g} s, before it starts at {start:g} s")
        if start < before:
            return word_times(f"{brief(word)} starts at {start:g} s, before the word that stands "
                              "before it")
        before = start
    return None


def word_times(detail):
    return Problem("word times", detail)


def late_word_problem(words, recording):
    """None, or that the last word ends after its recording, or after the part that is used. A
    recording that cannot be read is another problem."""
    part = recording if isinstance(recording, Part) else Part(recording)
    seconds = seconds_of(part.path)
    if seconds is None:
        return None
    seconds = (seconds if part.end is None else part.end) - part.start
    end = max(end for _, _, end in words)
    if end <= seconds + WORD_TOLERANCE:
        return None
    return word_times(f"a word ends at {end:g} s, and its recording at {seconds:.1f} s")


def patience_problem(value):
    if value is None or (is_number(value) and 0 <= value < LONGEST_PATIENCE):
        return None
    return Problem("patience", f"patience is seconds of silence, 0 .. {LONGEST_PATIENCE}, "
                   f"not {brief(value)}")


def needed_keys(format, is_dialog):
    """What a pair, or a turn of a dialog, must have for a format (None: for any of its kind that
    needs least)."""
    if is_dialog:
        keys = ["heard", "spoken", "response"]
        if format == "asr-response-tts":
            keys.insert(1, "transcript")
        if format == "stereo":
            keys.append("words")
            keys.remove("response")
        return keys
    keys = ["audio", "text"]
    if format == "word-aligned":
        keys.append("words")
    return keys


def entry_problems(entry, required, folder, where=""):
    """What is wrong with a pair, or with a turn of a dialog; `where` says which turn."""
    if not isinstance(entry, dict):
        return [Problem("malformed", f"{where}an object is needed, not {brief(entry)}")]
    problems = []
    for key in required:
        if key not in entry:
            problems.append(Problem("missing key", f"{where}there is no {key}"))
    names_part = not TIMES.isdisjoint(entry)
    for audio, text in TEXTS.items():
        if audio in entry:
            problem = path_problem(where + audio, entry[audio], folder)
            if names_part and not problem:
                problem = part_problem(entry, audio, folder, where)
            problems.append(problem)
        # What nobody reads for this format may be empty, as a transcript in a dialog.
        if text in entry and (text in required or entry[text] not in ("", None)):
            problems.append(text_problem(where + text, entry[text]))
    if "words" in entry and (entry["words"] is not None or "words" in required):
        problems.append(words_problem(entry["words"]))
        # The recording that is timed: a pair's only one, or what the model says in a turn.
        key = "audio" if "audio" in entry else "spoken"
        if entry["words"] and key in entry and not any(problems):
            recording = recording_of(entry, key, folder)
            problems.append(late_word_problem(entry["words"], recording))
    if "patience" in entry:
        problems.append(patience_problem(entry["patience"]))
    return [problem for problem in problems if problem]


def problems_of(row, folder, format=None):
    """Every reason why a line of a manifest cannot be used for a format, as a list of Problem.
    Without a format: for the formats of its kind that need least. `folder`: what its paths are
    relative to."""
    if isinstance(row, Problem):
        return [row]
    is_dialog = "turns" in row
    if format is not None and is_dialog == (format in stream.PAIRS):
        kind = "a pair (audio, text)" if format in stream.PAIRS else "a dialog (turns)"
        return [Problem("wrong kind", f"format {format} needs {kind}")]
    required = needed_keys(format, is_dialog)
    if not is_dialog:
        return entry_problems(row, required, folder)
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        return [Problem("empty dialog", "a dialog needs at least one turn")]
    problems = []
    for number, turn in enumerate(turns, 1):
        where = f"turn {number}, " if len(turns) > 1 else ""
        is_channels = format is None and isinstance(turn, dict) and "words" in turn
        needed_here = needed_keys("stereo", True) if is_channels else required
        problems += entry_problems(turn, needed_here, folder, where)
    return problems


def unknown_keys(row, format=None):
    """The keys of a line that nobody reads. `words` of a turn are for the format stereo alone;
    without a format, a turn that has them counts as one of that format."""
    if isinstance(row, Problem):
        return set()
    if "turns" not in row:
        return row.keys() - PAIR_KEYS
    turn_keys = TURN_KEYS | {"words"} if format in (None, "stereo") else TURN_KEYS
    unknown = row.keys() - {"turns", "suspicion"}
    for turn in entries_of(row):
        unknown |= turn.keys() - turn_keys
    return unknown


def entries_of(row):
    """The pair of a line, or its turns, as far as they are objects."""
    if "turns" not in row:
        return [row]
    if not isinstance(row["turns"], list):
        return []
    return [turn for turn in row["turns"] if isinstance(turn, dict)]


def recording_sizes(file):
    """A manifest -> the bytes of each of its recordings, in order; None for one that is not there.
    Lines that cannot be read are left out. Raises DataError for a file that cannot be read."""
    folder = Path(file).parent
    size_of = lru_cache(maxsize=64)(file_size)  # many lines may use parts of one file
    for _, row in tqdm(read_rows(file), desc=f"recordings of {Path(file).name}", unit="line",
                       leave=False, delay=1):
        if isinstance(row, Problem):
            continue
        for entry in entries_of(row):
            for key in TEXTS:
                if key in entry:
                    yield size_of(os.path.join(folder, str(entry[key])))


def file_size(path):
    """The bytes of a file; None where there is none."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # a name that no file system takes
        return None


def note_unknown_keys(file, counts):
    """Say in one sentence on stderr which keys nobody reads. counts: a Counter of them."""
    if counts:
        keys = ", ".join(f"{key} ({count})" for key, count in counts.most_common())
        print(f"note: {file} has keys that nobody reads: {keys}", file=sys.stderr)


# --- what data.py reads ---

def turns_of(row, folder, format):
    """A line without problems -> its turns as data.GridMaker takes them. A pair is one turn.

    A turn is a dict of what the format has of heard, transcript, spoken, response, words and
    patience; a recording is a path, or a Part."""
    if format == "asr":
        return [{"heard": recording_of(row, "audio", folder), "transcript": row["text"]}]
    if format in stream.PAIRS:
        turn = {"spoken": recording_of(row, "audio", folder), "response": row["text"]}
        if format == "word-aligned":
            turn["words"] = row["words"]
        return [turn]
    turns = []
    for entry in row["turns"]:
        turn = {"heard": recording_of(entry, "heard", folder),
                "transcript": entry.get("transcript") or "",
                "spoken": recording_of(entry, "spoken", folder),
                "response": entry.get("response") or "",
                "patience": entry.get("patience")}
        if format == "stereo":
            turn["words"] = entry["words"]
        turns.append(turn)
    return turns


def usable_rows(file, format):
    """(the byte at which it starts, row) of each line of a manifest that is not empty.

    Decision: one line that cannot be used stops the command, and all such lines are counted.
    Whoever encodes for hours wants to know beforehand. Raises DataError, after the last line."""
    folder = Path(file).parent
    offenders = []  # the first ones
    count = 0       # of all
    is_empty = True
    for number, offset, line in placed_lines(file):
        if not line.strip():
            continue
        is_empty = False
        row = parse_row(line)
        problems = problems_of(row, folder, format)
        if not problems:
            yield offset, row
            continue
        count += 1
        if len(offenders) < SHOWN:
            offenders.append(f"line {number}: {problems[0].detail}")
    if count:
        raise DataError(f"{file}: {count} lines cannot be used for format {format}: "
                        f"{first_of(offenders, count)}. `python data.py check {file} --format "
                        f"{format}` writes a manifest without them, if that leaves any")
    if is_empty:
        raise empty_manifest(file)


def read_manifest(file, format):
    """A manifest -> a list of dialogs, each a list of turns (`turns_of`). Raises DataError."""
    folder = Path(file).parent
    return [turns_of(row, folder, format) for _, row in usable_rows(file, format)]


def index_lines(file, format):
    """A manifest -> the byte at which each of its lines starts, an array of whole numbers. Raises
    DataError where a line cannot be used."""
    offsets = array("Q")
    unknown = Counter()
    rows = usable_rows(file, format)
    for offset, row in tqdm(rows, desc=f"lines of {Path(file).name}", unit="line", leave=False,
                            delay=1):
        offsets.append(offset)
        unknown.update(unknown_keys(row, format))
    note_unknown_keys(file, unknown)
    return offsets
