"""What is wrong with a data set, said before anybody trains on it.

What this is: `data.py check`: every line of a manifest against the schema (manifests.py), and every
recording against what can be heard in it. What this is not: a repair. Serves data.py.

    python data.py check pairs.jsonl     # a table; pairs.offenders.jsonl; pairs.clean.jsonl
"""
import hashlib
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

import stream
from workshop import shards
from workshop.manifests import (TEXTS, DataError, Problem, problems_of, read_rows, unknown_keys,
                                write_lines)
from workshop.parallel import in_parallel
from workshop.sound_file import loudness, read_audio
from workshop.training_set import check_grids

SAMPLE_RATE = 24_000     # Hz
# Decision: what is clipped, silent, and no text of its recording. English and Chinese have about as
# many bytes a second.
CLIPPED = 0.001          # share of samples at full scale
SILENT = -60             # dB
BYTES_A_SECOND = (2, 40)  # least and most


def length_of(path):
    """Seconds of a recording, and its loudness and share of samples at full scale (None for codes).
    Raises ValueError."""
    if Path(path).suffix == ".npy":
        return len(shards.read_codes(path)) / stream.FRAME_RATE, None, None
    audio = read_audio(path).numpy()
    clipped = float(np.mean(np.abs(audio) > 0.999))
    return len(audio) / SAMPLE_RATE, loudness(audio), clipped


def recording_problems(name, path, text, longest):
    """What is wrong with one recording and its text, as a list of Problem."""
    try:
        seconds, level, clipped = length_of(path)
    except ValueError as error:
        return [Problem("unreadable", str(error))]
    problems = []
    if clipped is not None and clipped > CLIPPED:
        problems.append(Problem("clipped", f"{name}: full scale"))
    if level is not None and level < SILENT:
        problems.append(Problem("silent", f"{name}: {level:.0f} dB"))
    if seconds > longest:
        problems.append(Problem("too long", f"{name}: {seconds:.1f} s"))
    size = len(text.encode())
    least, most = BYTES_A_SECOND
    if text and not least < size / seconds < most:
        problems.append(Problem("text", f"{name}: {size} bytes in {seconds:.1f} s"))
    return problems


def examine(row, folder, longest, format=None):
    """A line -> (list of Problem, a digest of its recordings and texts, by which duplicates are
    known)."""
    problems = problems_of(row, folder, format)
    if problems:
        return problems, None
    if "suspicion" in row:
        problems.append(Problem(str(row["suspicion"]), "said when it was imported"))
    digest = hashlib.sha1()
    for entry in row.get("turns", [row]):
        for audio, text in TEXTS.items():
            if audio not in entry:
                continue
            path = folder / entry[audio]
            words = entry.get(text) or ""
            if format == "stereo":
                words = ""  # most of a channel is silence: its length is not that of its words
            problems += recording_problems(entry[audio], path, words, longest)
            digest.update(path.read_bytes() + str(entry.get(text)).encode())
    return problems, digest.hexdigest()


def of_one_kind(lines):
    """(number, row) of a manifest -> the same, with a Problem for each row that is not of the usual
    kind: no format reads pairs and dialogs together."""
    kinds = Counter("turns" in row for _, row in lines if isinstance(row, dict))
    if len(kinds) < 2:
        return lines
    usual = kinds.most_common(1)[0][0]
    names = {True: "a dialog", False: "a pair"}
    checked = []
    for number, row in lines:
        if isinstance(row, dict) and ("turns" in row) != usual:
            row = Problem("wrong kind", f"{names[not usual]}, where most lines are {names[usual]}")
        checked.append((number, row))
    return checked


def check(manifest, longest, workers=1, format=None):
    """Write what is wrong with a manifest beside it (.offenders.jsonl), and what is left of it
    (.clean.jsonl). Returns a Counter of lines by problem, "none" among them. Raises DataError where
    no line is left."""
    manifest = Path(manifest)
    lines = of_one_kind(list(read_rows(manifest)))
    look = partial(examine, folder=manifest.parent, longest=longest, format=format)
    results = in_parallel(look, [row for _, row in lines], workers)
    first_line = {}  # digest -> the line that had it first
    counts, unread = Counter(), Counter()
    offenders, clean = [], []
    results = tqdm(results, total=len(lines), unit="line")
    for (problems, digest), (number, row) in zip(results, lines):
        if not problems and first_line.setdefault(digest, number) != number:
            problems.append(Problem("duplicate", f"of line {first_line[digest]}"))
        unread.update(unknown_keys(row, format))
        counts.update({problem.kind for problem in problems} or ["none"])
        for problem in problems:
            offenders.append({"line": number, "problem": problem.kind, "detail": problem.detail})
        if not problems:
            clean.append(row)
    write_lines(manifest.with_suffix(".offenders.jsonl"), offenders)
    write_lines(manifest.with_suffix(".clean.jsonl"), clean)
    if unread:
        keys = ", ".join(f"{key} ({count})" for key, count in unread.most_common())
        print(f"note: nobody reads these keys: {keys}", file=sys.stderr)
    if not clean:
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
        reasons = manifest.with_suffix(".offenders.jsonl").name
        raise DataError(f"{manifest}: no line can be used ({kinds or 'it is empty'}); "
                        f"{reasons} says why")
    return counts


def add_command(commands):
    """The command `check` of data.py."""
    about = "Say what is wrong with a data set, or with encoded grids."
    parser = commands.add_parser("check", help=about, description=about)
    parser.add_argument("manifest", help="JSONL; see the top of workshop/manifests.py; or a folder "
                        "of grids")
    parser.add_argument("--longest", type=float, default=60, metavar="SECONDS",
                        help="longer recordings are reported (default: %(default)s)")
    parser.add_argument("--format", choices=stream.FORMATS,
                        help="that the lines shall be used for (default: the one of their kind "
                        "that needs least)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")

    def run(args):
        if Path(args.manifest).is_dir():
            return check_grids(args.manifest)
        counts = check(args.manifest, args.longest, args.workers, args.format)
        return "\n".join(f"{count:>9} {problem}" for problem, count in counts.most_common())
    parser.set_defaults(run=run)
