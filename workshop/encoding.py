"""What a run of `data.py encode` is, beside the grids: its options, its shards, and what they are
made from.

What this is: which shards are missing, the bar on the screen, grids.json, by which a run that was
stopped goes on with the same settings or not at all, and the command line. What this is not: how a
grid is made (data.py, which it serves).

    python data.py encode pairs.jsonl grids/tts --format tts --join 1 4
"""
import hashlib
import json
import re
import sys
from dataclasses import asdict, fields
from pathlib import Path

from tqdm import tqdm

import stream
from workshop.manifests import DataError, write_lines
from workshop.parallel import in_parallel

SHIPPED = Path(__file__).parent.parent / "tiny" / "model"
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


# --- shards ---

def make_shards(work, jobs, workers, name):
    """Do the jobs whose shards are not there yet, with a bar on the screen -> how many samples were
    left out."""
    missing = [job for job in jobs if not job.path.exists()]
    total = sum(len(job.samples) for job in jobs)
    there = total - sum(len(job.samples) for job in missing)
    hours = 0.0
    left_out = 0
    with tqdm(total=total, initial=there, desc=name, unit="sample") as bar:
        for count, more_hours, problems in in_parallel(work, missing, workers):
            for problem in problems:
                tqdm.write(f"SKIPPED: a sample, for {problem}", file=sys.stderr)
            left_out += len(problems)
            hours += more_hours
            speed = hours / bar.format_dict["elapsed"] * 3600
            bar.set_postfix_str(f"{hours:.2f} h of audio, {speed:.0f} an hour")
            bar.update(count)
    return left_out


def write_about(out, manifest, model, settings, version):
    """Write grids.json, which says what the shards of a folder are made from.

    Raises DataError where the folder has shards that are made from something else."""
    about = asdict(settings)
    for name in ("noise", "backchannels", "leakage", "hearing"):
        del about[name]  # what they hold counts, and not where they are
    about["made_from"] = fingerprint(manifest, model, settings, version)
    about = json.loads(json.dumps(about))
    path = out / "grids.json"
    if path.exists() and json.loads(path.read_text()) != about:
        raise DataError(f"{out} holds grids of another manifest, model or setting, or of another "
                        "version of data.py: choose another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    write_lines(path, [about])


def fingerprint(manifest, model, settings, version):
    """A hash of all that goes into grids and is no plain setting: manifest, tokenizer, codecs, the
    lists of recordings, the version."""
    paths = [Path(manifest), Path(model) / "tokenizer.json", Path(model) / "mimi.safetensors"]
    if settings.hearing:
        paths.append(Path(settings.hearing) / "mimi.safetensors")
    content = hashlib.sha1()
    for path in paths:
        if path.exists():
            content.update(path.read_bytes())
    noise = recordings(settings.noise)
    backchannels = recordings(settings.backchannels)
    content.update(repr((noise, backchannels, settings.leaks, version)).encode())
    return content.hexdigest()


def recordings(folders):
    """The paths of all sound files below some folders, in order. Raises DataError where there are
    none."""
    paths = []
    for folder in folders:
        for path in Path(folder).rglob("*"):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                paths.append(str(path))
    if folders and not paths:
        raise DataError(f"{', '.join(map(str, folders))} holds no {', '.join(AUDIO_SUFFIXES)}")
    return tuple(sorted(paths))


# --- command line ---

def parse_part(part):
    """"I/N" -> (I, N). Raises DataError."""
    numbers = re.fullmatch(r"(\d+)/(\d+)", part)
    if numbers:
        number, parts = int(numbers[1]), int(numbers[2])
        if 1 <= number <= parts:
            return number, parts
    raise DataError(f"there is no part {part}: it is I/N, with I from 1 to N")


def add_command(commands, settings_class, encode):
    """The command `encode`: its options become a `settings_class`, with which it calls `encode`."""
    parser = commands.add_parser(
        "encode", help="Encode a manifest into token grids. A stopped run goes on.",
        description="Encode a manifest into token grids. A stopped run goes on.",
        epilog="Then: python stream.py --grid OUT/shard-00000.safetensors")
    parser.add_argument("manifest", help="JSONL; see the top of workshop/manifests.py")
    parser.add_argument("out", help="folder for the shards")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--part", default="1/1", metavar="I/N",
                        help="every N-th shard only, from the I-th on: one job of N")
    add_sample_options(parser.add_argument_group("samples"), settings_class)
    add_hearing_options(parser.add_argument_group("what is heard"), settings_class)

    def run(args):
        options = {}
        for field in fields(settings_class):
            value = getattr(args, field.name)
            options[field.name] = tuple(value) if isinstance(value, list) else value
        settings = settings_class(**options)
        count, left_out = encode(args.manifest, args.out, args.model, settings,
                                 args.device, args.workers, args.part)
        return f"{count} samples, {left_out} left out"
    parser.set_defaults(run=run)


def add_sample_options(group, default):
    group.add_argument("--format", choices=stream.FORMATS, required=True,
                       help=f"{', '.join(sorted(stream.PAIRS))} take pairs, the others dialogs")
    group.add_argument("--model", default=SHIPPED, metavar="FOLDER",
                       help="with config.json, tokenizer.json, codec (default: the shipped model)")
    group.add_argument("--join", type=int, nargs=2, default=default.join,
                       metavar=("FEWEST", "MOST"),
                       help="manifest lines in a sample (default: 1 1)")
    group.add_argument("--draws", type=int, default=default.draws,
                       help="encodings of each line, with fresh silence, level and noise; each "
                       "costs the disk and the time of one. Train one epoch on as many as you "
                       "want epochs (default: %(default)s)")
    group.add_argument("--seed", type=int, default=default.seed,
                       help="of all random numbers (default: %(default)s)")
    group.add_argument("--in-order", dest="shuffled", action="store_false",
                       help="samples in the order of the manifest, as a test set wants them")
    group.add_argument("--longest-sample", type=int, metavar="FRAMES",
                       help="leave out the last turns of a sample that would be longer: one frame "
                       "less than the rows of training")
    group.add_argument("--longest-silence", type=float, default=default.longest_silence,
                       metavar="SECONDS", help="between two turns (default: %(default)s)")
    group.add_argument("--long-silences", type=float, default=default.long_silences,
                       metavar="SHARE",
                       help="of silences of 2 to 10 seconds (default: %(default)s)")


def add_hearing_options(group, default):
    group.add_argument("--noise", nargs="+", default=(), metavar="FOLDER",
                       help="recordings of noise, and of others' speech (default: synthetic noise)")
    group.add_argument("--backchannels", nargs="+", default=(), metavar="FOLDER",
                       help="recordings of uh-huh and the like, for response-tts-free: of the "
                       "manifest's own users, since a stranger's voice gives a back-channel away")
    group.add_argument("--leakage", action="store_true",
                       help="the microphone may hear the model, as in response-tts-free always")
    group.add_argument("--rooms", action="store_true",
                       help="some of what is heard gets a room's echo, a microphone, a pause, or "
                       "louder noise")
    group.add_argument("--hearing", metavar="FOLDER",
                       help="another codec for it, whose encoder was trained further "
                       "(default: the one of --model)")
    group.add_argument("--reaction", type=float, default=default.reaction, metavar="SECONDS",
                       help="from an interruption's first sound to the model's silence; in a "
                       "longer one it hears more of a back-channel first (default: %(default)s)")
    group.add_argument("--speeds", type=float, nargs=2, default=default.speeds,
                       metavar=("SLOWEST", "FASTEST"),
                       help="play what is heard at a random speed (default: 1 1)")
