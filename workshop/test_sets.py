"""Test sets as they are downloaded: what is asked, recognised or read aloud, and what is right.

What this is: the layouts of other people's test sets, each read into the same dicts. What this is
not: training data (importers.py, which also reads LibriSpeech and FLEURS for this file). Serves
eval.py.

    --dialogs  JSONL of dialogs, with any keys beside them            manifests.py
    --qa       CSV or JSONL with question, answer(s) and audio        LlamaQuestions and the like
    --asr      JSONL of pairs; LibriSpeech/test-clean, with its *.trans.txt;
               FLEURS/cmn_hans_cn, with test.tsv and the folder test (or audio/test)
    --tts      JSONL of pairs; meta.lst of Seed-TTS: id|text of the reference|reference|text
"""
import ast
import csv
from pathlib import Path

from workshop import importers
from workshop.manifests import (DataError, Skipped, open_text, read_lines, read_manifest,
                                text_lines)
from workshop.measures import spaced

GROUPS = ("unseen_words", "kind", "voice")  # keys of --dialogs whose values are counted apart
DEFAULT_MOST = 200  # lines of a JSONL, where --most does not say; of other test sets all are used
# How a list of questions may call its columns, in lower case.
QUESTION_KEYS = ("question", "questions", "query", "prompt")
ANSWER_KEYS = ("answers", "answer", "reference", "expected", "aliases")
AUDIO_KEYS = ("audio", "audio_filename", "audio_path", "path", "file", "wav")
AUDIO_FOLDERS = ("", "audio", "audios", "wav", "wavs")  # where the recordings may be


# --- dialogs ---

def dialogs(file, most):
    """At most so many lines, evenly spaced -> [dialog], each a list of (path of the recording,
    dict of question, expected and about). about: what the line says for GROUPS. Raises
    DataError."""
    turns_of_lines = read_manifest(file, "asr-response-tts")
    rows = [row for _, row in read_lines(file)]
    dialogs = []
    for turns, row in spaced(list(zip(turns_of_lines, rows)), most or DEFAULT_MOST):
        about = {key: row[key] for key in GROUPS if key in row}
        dialogs.append([(turn["heard"], dict(question=turn["transcript"],
                                             expected=turn["response"], about=about))
                        for turn in turns])
    return dialogs


# --- questions with accepted answers ---

def questions(file, most):
    """A list of spoken questions -> [(path of the recording, question, [accepted answers])]. Raises
    DataError."""
    rows = question_rows(Path(file))
    listed = []
    for number, row in rows:
        row = {str(key).strip().lower(): value for key, value in row.items()}
        question = first_of(row, QUESTION_KEYS)
        answers = answers_of(first_of(row, ANSWER_KEYS))
        audio = first_of(row, AUDIO_KEYS)
        if not audio or not answers:
            raise DataError(f"{file}, line {number}: a line needs an audio file and an answer, in "
                            f"columns called {AUDIO_KEYS[0]} and {ANSWER_KEYS[1]}")
        listed.append((find_audio(Path(file), str(audio), number), question or "", answers))
    if not listed:
        raise DataError(f"{file} has no questions")
    return spaced(listed, most or len(listed))


def question_rows(file):
    """(number, dict) of each line. Raises DataError."""
    if file.suffix == ".jsonl":
        yield from read_lines(file)
        return
    with open_text(file) as lines:
        dialect = "excel-tab" if file.suffix == ".tsv" else "excel"
        for number, row in enumerate(csv.DictReader(lines, dialect=dialect), 2):
            yield number, row


def first_of(row, keys):
    """The first value that is there under some keys, or None."""
    for key in keys:
        if row.get(key) not in (None, ""):
            return row[key]
    return None


def answers_of(value):
    """One answer, or a list of answers, also one that is written as JSON or Python writes it ->
    [text]."""
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            pass
    if not isinstance(value, list):
        value = [value]
    return [str(answer) for answer in value if str(answer).strip()]


def find_audio(file, name, number):
    """The path of a recording. Raises DataError."""
    for folder in AUDIO_FOLDERS:
        path = file.parent / folder / name
        if path.is_file():
            return path
    raise DataError(f"{file}, line {number}: {name} is not beside it, nor in a folder "
                    f"{AUDIO_FOLDERS[1]}")


# --- recordings and their texts ---

def utterances(source, most):
    """What --asr names -> [dict of heard, a path, and transcript]. Raises DataError."""
    source = Path(source)
    if source.is_file() and source.suffix == ".jsonl":
        return of_manifest(source, "asr", most)
    listed = list(whole(importers.librispeech(source, None)))
    for file in sorted(source.rglob("test.tsv")):
        listed += whole(importers.fleurs(file.parent, None, parts=("test",)))
    if not listed:
        raise DataError(f"{source} is no manifest (.jsonl), and holds neither *.trans.txt, as "
                        "LibriSpeech, nor test.tsv, as FLEURS")
    return spaced(listed, most or len(listed))


def of_manifest(source, format, most):
    turns = [turns[0] for turns in read_manifest(source, format)]
    return spaced(turns, most or DEFAULT_MOST)


def whole(rows):
    """Lines of importers.py -> dicts of heard and transcript. A test set that lacks a part is
    another test set, and so raises DataError where training data goes on without it."""
    for row in rows:
        if isinstance(row, Skipped):
            raise DataError(str(row))
        path = Path(row["audio"])
        if not path.is_file():
            raise DataError(f"{path} is not there: unpack the whole test set beside its texts")
        yield {"heard": path, "transcript": row["text"]}


# --- texts to read aloud ---

def texts(source, most, needs_references=False):
    """What --tts names -> [dict of response and, of Seed-TTS, reference, the path of the voice that
    SIM compares with]. Raises DataError."""
    source = Path(source)
    if source.suffix == ".jsonl":
        if needs_references:
            raise DataError(f"{source} has no references: --tts-format reference-tts needs a "
                            "meta.lst of Seed-TTS")
        return of_manifest(source, "tts", most)
    listed = []
    for number, line in text_lines(source):
        columns = line.split("|")
        if not line.strip():
            continue
        if len(columns) < 4:
            raise DataError(f"{source}, line {number}: a line of Seed-TTS is id|text of the "
                            "reference|reference|text")
        reference = source.parent / columns[2]
        if not reference.is_file():
            raise DataError(f"{source}, line {number}: {columns[2]} does not exist")
        listed.append({"response": columns[3].strip(), "reference": reference})
    if not listed:
        raise DataError(f"{source} is empty")
    return spaced(listed, most or len(listed))
