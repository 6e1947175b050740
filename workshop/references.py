"""Pairs -> dialogs in which another recording of the same voice is heard before each text.

What this is: the manifest that the format reference-tts needs (stream.py; SIM of Table 5). What
this is not: a recogniser of voices: recordings in one folder count as one voice's, as in
LibriSpeech, AISHELL-3 and MagicData. Serves data.py.

    python data.py import librispeech LibriSpeech/train-clean-100 pairs.jsonl
    python data.py references pairs.jsonl references.jsonl
    python data.py encode references.jsonl grids/references --format reference-tts
"""
import random
from pathlib import Path

from workshop.files import check_place
from workshop.manifests import DataError, read_manifest, write_lines
from workshop.sound_file import Part


def dialogs_of(pairs, rng):
    """[(recording, text)] -> [dict of a line], without those whose folder has no other recording.
    A recording is a path or a Part."""
    by_folder = {}
    for recording, text in pairs:
        by_folder.setdefault(folder_of(recording), []).append((recording, text))
    lines = []
    for recording, text in pairs:
        others = [one for one, _ in by_folder[folder_of(recording)] if one != recording]
        if others:
            reference = rng.choice(others)
            turn = {**keys_of("heard", reference), **keys_of("spoken", recording),
                    "transcript": "", "response": text}
            lines.append({"turns": [turn]})
    return lines


def folder_of(recording):
    path = recording.path if isinstance(recording, Part) else recording
    return Path(path).parent


def keys_of(key, recording):
    """A recording as the keys of a turn."""
    if not isinstance(recording, Part):
        return {key: str(Path(recording).resolve())}
    keys = {key: str(Path(recording.path).resolve()), f"{key}_start": recording.start}
    if recording.end is not None:
        keys[f"{key}_end"] = recording.end
    return keys


def write(manifest, out, seed=0, overwrite=False):
    """Pairs -> the manifest `out`. Returns (lines, pairs that were left out). overwrite: a file at
    `out` is replaced. Raises ValueError, also where no folder has two recordings."""
    check_place(out, overwrite, [manifest])
    pairs = [(turn["spoken"], turn["response"]) for turn, in read_manifest(manifest, "tts")]
    lines = dialogs_of(pairs, random.Random(seed))
    if not lines:
        raise DataError(f"{manifest}: no two recordings are in one folder, and a folder is taken "
                        "for a voice")
    write_lines(out, lines)
    return len(lines), len(pairs) - len(lines)


def add_command(commands):
    """The command `references` of data.py."""
    about = "Put a reference of the same voice before each pair, for --format reference-tts."
    parser = commands.add_parser("references", help=about, description=about)
    parser.add_argument("manifest", help="JSONL of pairs; recordings in one folder are one voice's")
    parser.add_argument("out", help="manifest to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a manifest that exists")
    parser.add_argument("--seed", type=int, default=0,
                        help="of the choice of references (default: %(default)s)")

    def run(args):
        lines, left_out = write(args.manifest, args.out, args.seed, args.overwrite)
        return f"{lines} lines, {left_out} pairs left out"
    parser.set_defaults(run=run)
