"""Recordings without texts -> a manifest of pairs, by a speech recogniser.

What this is: `data.py transcribe`: each recording of a folder is cut where it is silent, and
faster-whisper (an optional package) writes the text of each piece. What this is not: the recogniser
(recogniser.py), or a check of its texts (`data.py check --confidence`). Serves data.py.

    python data.py transcribe lectures pairs.jsonl --whisper small --words
    python data.py check pairs.jsonl --confidence 0.6

A line names a part of a recording, and says how sure the recogniser was:

    {"audio": "/lectures/1.flac", "start": 62.5, "end": 68.1, "text": "It rains.",
     "confidence": 0.87}

A stopped run goes on: what is finished stands in a hidden file beside OUT until all is.
"""
import json
import os
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from workshop import recogniser, speech
from workshop.encoding import note_foreign, recordings
from workshop.files import check_place
from workshop.manifests import DataError, Problem, read_rows, write_lines
from workshop.paraformer import is_paraformer
from workshop.sound_file import SAMPLE_RATE, read_audio


def transcribe(folder, out, listen, about, silence=0.6, longest=25.0, overwrite=False):
    """Write the manifest `out` of all recordings below a folder -> Counter of lines, pieces without
    words, recordings that cannot be read or are of another kind.

    listen(audio [N], rate) -> a dict of text, confidence and perhaps words. about: what else the
    texts depend on, as text; a run that was begun with another does not go on. silence: seconds
    that end a piece; longest: seconds of a piece at most; overwrite: a file at `out` is replaced.
    Raises ValueError."""
    check_places(folder, out, overwrite)
    folder = Path(folder).resolve()
    out = Path(out)
    foreign = note_foreign([folder])
    paths = recordings([folder])
    progress = Progress(out, {"folder": str(folder), "about": about, "silence": silence,
                              "longest": longest})
    counts = Counter()
    with progress, tqdm(paths, unit="recording") as bar:
        for path in bar:
            if path not in progress.results:
                progress.add(path, transcribe_one(path, listen, silence, longest))
            counts.update(progress.results[path]["counts"])
            bar.set_postfix_str(f"{counts['lines']} lines")
    if not counts["lines"]:
        raise DataError(f"{folder}: no words were understood in {len(paths)} recordings")
    write_lines(out, (row for path in paths for row in progress.results[path]["rows"]))
    progress.remove()
    counts["recordings of a kind that is not read"] = foreign
    return counts


def check_places(folder, out, overwrite):
    """Raise ValueError where there is no folder to read, or where `out` must not be written."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is no folder of recordings")
    check_place(Path(out), overwrite)


def transcribe_one(path, listen, silence, longest):
    """A recording -> {"rows": its lines of the manifest, "counts": what they are}."""
    try:
        audio = read_audio(path).numpy()
    except ValueError as error:
        tqdm.write(f"SKIPPED: {error}", file=sys.stderr)
        return {"rows": [], "counts": {"recordings that cannot be read": 1}}
    rows = []
    wordless_count = 0
    for start, end in speech.pieces(audio, silence, longest):
        piece = audio[round(start * SAMPLE_RATE):round(end * SAMPLE_RATE)]
        result = listen(piece, SAMPLE_RATE)
        if "words" in result:
            result["words"] = words_within(result["words"], end - start)
        if result["text"].strip():
            times = {"start": round(start, 3), "end": round(end, 3)}
            rows.append({"audio": path, **times, **result})
        else:
            wordless_count += 1
    return {"rows": rows, "counts": {"lines": len(rows), "pieces without words": wordless_count}}


def words_within(words, seconds):
    """[[word, start, end]] as a manifest has them. A recogniser's times may lie a little behind the
    end of the piece, or before those of the word before."""
    within = []
    before = 0.0
    for word, start, end in words:
        start = min(max(start, before), seconds)
        end = min(max(end, start), seconds)
        within.append([word, round(start, 3), round(end, 3)])
        before = start
    return within


class Progress:
    """What is finished of a run, in a hidden file beside its manifest: a line that says what the
    run is, then a line for each recording. results: {path: what `transcribe_one` gave}."""

    def __init__(self, out, about):
        """Raises DataError where the file was begun by another run."""
        self.path = out.with_name(f".{out.name}.progress")
        self.results = {}
        if self.path.exists():
            cut_to_whole_lines(self.path)
            rows = [row for _, row in read_rows(self.path) if not isinstance(row, Problem)]
            if rows and rows[0] != about:
                raise DataError(f"{out} was begun from other recordings or with other settings: "
                                f"take those again, or remove {self.path}")
            self.results = {row["path"]: row["result"] for row in rows[1:]}
        self.file = open(self.path, "ab")
        if not self.path.stat().st_size:
            self._write(about)

    def add(self, path, result):
        self.results[path] = result
        self._write({"path": path, "result": result})

    def remove(self):
        self.path.unlink()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def _write(self, row):
        self.file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def cut_to_whole_lines(path):
    """Take off what a kill left of a last line, which may end within a character."""
    whole = path.read_bytes().rfind(b"\n") + 1  # bytes of whole lines
    os.truncate(path, whole)


def add_command(commands):
    """The command `transcribe` of data.py."""
    about = "Write the texts of recordings, by faster-whisper. A stopped run goes on."
    parser = commands.add_parser("transcribe", help=about, description=about,
                                 epilog="Then: python data.py check OUT --confidence 0.6")
    parser.add_argument("folder", help="recordings, also in folders below")
    parser.add_argument("out", help="manifest to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a manifest that exists")
    parser.add_argument("--whisper", default="small", metavar="MODEL",
                        help="folder, size or Hub id of a faster-whisper model; '' for the "
                        "packaged Whisper tiny (default: %(default)s)")
    parser.add_argument("--language", default="en", help="en, zh, ... (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--words", action="store_true",
                        help="with the times of words, as the format word-aligned needs them")
    parser.add_argument("--silence", type=float, default=0.6, metavar="SECONDS",
                        help="that end a piece (default: %(default)s)")
    parser.add_argument("--longest", type=float, default=25.0, metavar="SECONDS",
                        help="of a piece, 2 to 30 (default: %(default)s)")

    def run(args):
        if not 2 <= args.longest <= 30 or not 0 < args.silence <= 10:
            raise DataError("--longest must be 2 to 30 seconds, --silence more than 0 and at most "
                            "10")
        if is_paraformer(args.whisper):
            raise DataError(f"--whisper {args.whisper} does not say how sure it is, which a "
                            "manifest needs: take a model of faster-whisper")
        check_places(args.folder, args.out, args.overwrite)  # before a model is loaded
        recogniser.check_packages(args.whisper)
        whisper = recogniser.Recogniser(args.whisper, args.device, args.language)

        def listen(audio, rate):
            return whisper.listen(audio, rate, args.words)
        settings = f"{args.whisper} {args.language} {args.words}"
        counts = transcribe(args.folder, args.out, listen, settings, args.silence, args.longest,
                            args.overwrite)
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    parser.set_defaults(run=run)
