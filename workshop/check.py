"""What is wrong with a data set, said before anybody trains on it.

What this is: `data.py check`: every line of a manifest against the schema (manifests.py), every
recording against what can be heard in it, and texts against speech. What this is not: a repair.
Serves data.py.

    python data.py check pairs.jsonl     # a table; pairs.offenders.jsonl; pairs.clean.jsonl
    python data.py check pairs.jsonl --whisper     # what a recogniser understands, too
"""
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

import stream
from workshop import measures, quality, recogniser, shards, speech
from workshop.conversations import PIECE
from workshop.files import replacing
from workshop.manifests import (IDEOGRAPH, TEXTS, DataError, Problem, empty_manifest, is_number,
                                note_unknown_keys, problems_of, read_rows, recording_of,
                                unknown_keys)
from workshop.parallel import in_parallel
from workshop.sound_file import SAMPLE_RATE, Part, loudness, read_audio
from workshop.training_set import check_grids

LONGEST = 60             # seconds of a recording
LONGEST_CHANNEL = PIECE + 1  # seconds of a channel of a conversation, which `import` cuts
MOST_ERRORS = 0.5        # share of the words
# Decision: these limits say what counts as clipped, as silent, and as a text that does not fit its
# recording. A second of speech, pauses not counted, has about 15 characters in English and 5 in
# Chinese.
CLIPPED = 0.001          # share of samples at full scale
SILENT = -60             # dB
LETTERS_A_SECOND = (2, 40)  # least and most, of speech
LETTERS_OF_AN_IDEOGRAPH = 3


@dataclass(frozen=True)
class Limits:
    """Beyond which numbers a recording is reported. None: not looked at."""
    longest: float = LONGEST           # seconds of a recording
    longest_channel: float = LONGEST_CHANNEL  # seconds of a channel of a conversation
    least_confidence: float | None = None  # of the recogniser that wrote the text, 0 .. 1
    most_errors: float | None = None   # share of words that a recogniser understands otherwise
    least_mos: float | None = None     # DNSMOS, 1 .. 5
    whisper: str = ""                  # the recogniser's model; "" for the packaged one
    language: str = "en"


# --- one line ---

@lru_cache(maxsize=1)
def recogniser_of(name, language):
    """The one recogniser of a process."""
    return recogniser.load(name, "cpu", language)


def letters(text):
    """How long a text is, in letters: an ideograph is as long as LETTERS_OF_AN_IDEOGRAPH."""
    ideographs = len(re.findall(IDEOGRAPH, text))
    return len(text) + (LETTERS_OF_AN_IDEOGRAPH - 1) * ideographs


def recording_problems(name, recording, text, limits, is_silence_allowed):
    """What is wrong with one recording and its text ("" for a text that is not compared), as a list
    of Problem."""
    is_codes = not isinstance(recording, Part) and recording.suffix == ".npy"
    try:
        if is_codes:
            seconds = len(shards.read_codes(recording)) / stream.FRAME_RATE
            return long_problems(name, seconds, limits) + text_problems(name, text, seconds)
        audio = read_audio(recording).numpy()
    except ValueError as error:
        return [Problem("unreadable", str(error))]
    problems = long_problems(name, len(audio) / SAMPLE_RATE, limits)
    if np.mean(np.abs(audio) > 0.999) > CLIPPED:
        problems.append(Problem("clipped", f"{name}: full scale"))
    level = loudness(audio)
    if level < SILENT:
        if not is_silence_allowed:
            problems.append(Problem("silent", f"{name}: {level:.0f} dB"))
        return problems
    if text:
        seconds = sum(end - start for start, end in speech.speech_spans(audio))
        problems += text_problems(name, text, seconds)
        problems += recogniser_problems(name, audio, text, limits)
    if limits.least_mos is not None:
        mos = quality.score(audio, SAMPLE_RATE)
        if mos < limits.least_mos:
            problems.append(Problem("poor sound", f"{name}: DNSMOS {mos:.2f}"))
    return problems


def long_problems(name, seconds, limits):
    if seconds > limits.longest:
        return [Problem("too long", f"{name}: {seconds:.1f} s")]
    return []


def text_problems(name, text, seconds):
    """A list with the Problem of a text that is too long or too short for its speech, or an empty
    one. seconds: of speech."""
    least, most = LETTERS_A_SECOND
    count = letters(text)
    if not text or least * seconds < count < most * seconds:
        return []
    return [Problem("text", f"{name}: {count} letters in {seconds:.1f} s of speech")]


def recogniser_problems(name, audio, text, limits):
    """A list with the Problem of a text that is not what a recogniser understands, or an empty
    one."""
    if limits.most_errors is None:
        return []
    guess = recogniser_of(limits.whisper, limits.language).transcribe(audio, SAMPLE_RATE)
    truth = measures.words(text, limits.language)
    errors = measures.word_errors(measures.words(guess, limits.language), truth)
    if errors <= limits.most_errors * len(truth):
        return []
    return [Problem("other words", f"{name}: understood as {guess!r}")]


def examine(row, folder, limits, format=None):
    """A line -> (list of Problem, a digest of its recordings and texts, by which duplicates are
    known)."""
    problems = problems_of(row, folder, format)
    if problems:
        return problems, None
    if "suspicion" in row:
        problems.append(Problem(str(row["suspicion"]), "said when it was imported"))
    digest = hashlib.blake2b(digest_size=12)
    for entry in row.get("turns", [row]):
        problems += confidence_problems(entry, limits)
        # Most of a channel is silence, and all of it may be: its length is not that of its words.
        is_channel = format == "stereo" or ("turns" in row and "words" in entry)
        limits_here = limits
        if is_channel:
            limits_here = replace(limits, longest=limits.longest_channel)
        for audio, text in TEXTS.items():
            if audio not in entry:
                continue
            recording = recording_of(entry, audio, folder)
            words = "" if is_channel else entry.get(text) or ""
            problems += recording_problems(entry[audio], recording, words, limits_here,
                                           may_be_silent(entry, audio, is_channel))
            digest.update(content_of(recording) + str(entry.get(text)).encode())
    return problems, digest.digest()


def may_be_silent(entry, key, is_channel):
    """Whether nothing need sound in a recording of a turn: what is heard before the model opens a
    conversation, and the channel of somebody who only listens."""
    if key == "heard":
        return is_channel or entry.get("opens") is True
    return is_channel and not entry.get("words")


def confidence_problems(entry, limits):
    """A list with the Problem of a text whose recogniser was not sure of it, or an empty one."""
    confidence = entry.get("confidence")
    if limits.least_confidence is None or not is_number(confidence):
        return []
    if confidence >= limits.least_confidence:
        return []
    return [Problem("low confidence", f"{confidence:.2f}")]


def content_of(recording):
    """Bytes that tell a recording, or its part, from any other."""
    if isinstance(recording, Part):
        return hash_of(recording.path) + f"{recording.start} {recording.end}".encode()
    return hash_of(recording)


@lru_cache(maxsize=64)  # many lines may use parts of one file
def hash_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").digest()


# --- a manifest ---

def usual_kind(manifest):
    """Whether most lines of a manifest are dialogs. No format reads pairs and dialogs together."""
    kinds = Counter("turns" in row for _, row in read_rows(manifest) if isinstance(row, dict))
    return bool(kinds) and kinds.most_common(1)[0][0]


def rows_of_one_kind(manifest):
    """The rows of a manifest, with a Problem for each that is not of the usual kind."""
    is_dialog = usual_kind(manifest)
    names = {True: "a dialog", False: "a pair"}
    for _, row in read_rows(manifest):
        if isinstance(row, dict) and ("turns" in row) != is_dialog:
            detail = f"{names[not is_dialog]}, where most lines are {names[is_dialog]}"
            row = Problem("wrong kind", detail)
        yield row


def check(manifest, limits=None, workers=1, format=None):
    """Write what is wrong with a manifest beside it (.offenders.jsonl), and what is left of it
    (.clean.jsonl). Returns a Counter of lines by problem, "none" among them. Raises DataError where
    no line is left. No more of a manifest than its digests is held in memory."""
    manifest = Path(manifest)
    look = partial(examine, folder=manifest.parent, limits=limits or Limits(), format=format)
    total = sum(1 for _ in read_rows(manifest))
    results = in_parallel(look, rows_of_one_kind(manifest), workers)
    first_line = {}  # digest -> the line that had it first
    counts = Counter()
    unknown = Counter()
    reasons = manifest.with_suffix(".offenders.jsonl")
    clean = manifest.with_suffix(".clean.jsonl")
    with (replacing(reasons) as reasons_part, replacing(clean) as clean_part,
          open(reasons_part, "w", encoding="utf-8") as reasons_file,
          open(clean_part, "w", encoding="utf-8") as clean_file):
        results = tqdm(results, total=total, unit="line")
        for (problems, digest), (number, row) in zip(results, read_rows(manifest)):
            if not problems and first_line.setdefault(digest, number) != number:
                problems.append(Problem("duplicate", f"of line {first_line[digest]}"))
            unknown.update(unknown_keys(row, format))
            counts.update({problem.kind for problem in problems} or ["none"])
            for problem in problems:
                offence = {"line": number, "problem": problem.kind, "detail": problem.detail}
                reasons_file.write(json.dumps(offence, ensure_ascii=False) + "\n")
            if not problems:
                clean_file.write(json.dumps(row, ensure_ascii=False) + "\n")
    note_unknown_keys(manifest, unknown)
    if not total:
        raise empty_manifest(manifest)
    if not counts["none"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
        raise DataError(f"{manifest}: no line can be used ({kinds}); {reasons.name} says why")
    return counts


# --- the command ---

def add_command(commands):
    """The command `check` of data.py."""
    about = "Say what is wrong with a data set, or with encoded grids."
    parser = commands.add_parser("check", help=about, description=about)
    parser.add_argument("manifest", help="JSONL; see the top of workshop/manifests.py; or a folder "
                        "of grids, whose bytes, ids and loss classes are looked at")
    parser.add_argument("--longest", type=float, metavar="SECONDS",
                        help=f"longer recordings are reported (default: {LONGEST}; for channels "
                        f"of a conversation {LONGEST_CHANNEL})")
    parser.add_argument("--format", choices=stream.FORMATS,
                        help="that the lines shall be used for (default: the one of their kind "
                        "that needs least)")
    parser.add_argument("--confidence", type=float, metavar="LEAST",
                        help="texts of which a recogniser was less sure are reported, 0 to 1")
    parser.add_argument("--whisper", nargs="?", const="", metavar="MODEL",
                        help="report texts that a recogniser understands otherwise: a folder or id "
                        "of faster-whisper, or paraformer-zh (without: the packaged Whisper tiny)")
    parser.add_argument("--most-errors", type=float, metavar="SHARE",
                        help=f"of the words, for --whisper (default: {MOST_ERRORS})")
    parser.add_argument("--language", help="for --whisper: en, zh, ... (default: en)")
    parser.add_argument("--dnsmos", type=float, metavar="LEAST",
                        help="report recordings of a lower DNSMOS, 1 to 5; needs the package "
                        "speechmos")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")

    def run(args):
        if Path(args.manifest).is_dir():
            refuse_options(args, parser)
            return check_grids(args.manifest)
        limits = limits_of(args)
        counts = check(args.manifest, limits, args.workers, args.format)
        return table_of(counts, Path(args.manifest))
    parser.set_defaults(run=run)


def refuse_options(args, parser):
    """Raise DataError for an option beside a folder of grids, which is looked at as a whole."""
    for name, value in vars(args).items():
        if name not in ("command", "manifest", "run") and value != parser.get_default(name):
            raise DataError(f"--{name.replace('_', '-')} is for manifests, and {args.manifest} is "
                            "a folder: leave it out")


def table_of(counts, manifest):
    """What a check says at its end: lines by problem, and where they stand now."""
    lines = ["    lines problem"]
    lines += [f"{count:>9} {problem}" for problem, count in counts.most_common()]
    lines.append(f"{manifest.with_suffix('.clean.jsonl')} has the lines without a problem, "
                 f"{manifest.with_suffix('.offenders.jsonl')} names the others")
    return "\n".join(lines)


def limits_of(args):
    """Limits from the command line. What needs a package is tried before a line is read. Raises
    ValueError."""
    limits = Limits(least_confidence=args.confidence, least_mos=args.dnsmos)
    if args.longest is not None:
        limits = replace(limits, longest=args.longest, longest_channel=args.longest)
    if args.dnsmos is not None:
        quality.check_packages("--dnsmos")
    if args.whisper is None:
        for name in ("most_errors", "language"):
            if getattr(args, name) is not None:
                raise DataError(f"--{name.replace('_', '-')} is for --whisper, which is not asked "
                                "for: add it, or leave the option out")
        return limits
    language = args.language or "en"
    most_errors = MOST_ERRORS if args.most_errors is None else args.most_errors
    recogniser.check_packages(args.whisper)
    recogniser_of(args.whisper, language)
    return replace(limits, most_errors=most_errors, whisper=args.whisper, language=language)
