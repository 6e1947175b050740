"""One run of `data.py encode`: its options, its shards and grids.json.

What this is: which numbers the options take, which shards are missing, the bar on the screen, what
grids are made from (a stopped run goes on only with the same settings), and the command line. What
this is not: how a grid is made (data.py, which it serves).

    python data.py encode pairs.jsonl grids/tts --format tts --join 1 4
"""
import hashlib
import json
import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import stream
from workshop import codec_files, devices, model_files, sample_index, shards
from workshop.manifests import DataError, first_of, index_lines, recording_sizes, write_lines
from workshop.model_files import SHIPPED
from workshop.parallel import in_parallel
from workshop.sound_file import FOREIGN, READABLE
from workshop.training_set import SHARDS, read_about, read_index


# --- the numbers of the options ---

def check_settings(settings):
    """Raise DataError, one sentence, for a data.Settings with which nothing can be made."""
    if settings.format not in stream.FORMATS:
        formats = ", ".join(stream.FORMATS)
        raise DataError(f"there is no format {settings.format}, only {formats}")
    fewest, most = settings.join
    slowest, fastest = settings.speeds
    if not 1 <= fewest <= most or settings.draws < 1 or not 0.1 <= slowest <= fastest <= 10:
        raise DataError("--join takes FEWEST and MOST from 1 on, --draws 1 or more, "
                        "--speeds SLOWEST and FASTEST from 0.1 to 10")
    if settings.format == "reference-tts" and settings.speeds != (1, 1):
        raise DataError("--speeds would make another voice of a reference")
    if not 0 <= settings.reaction < 60:
        raise DataError(f"--reaction must be 0 .. 60 seconds, not {settings.reaction:g}")
    least = type(settings).longest_silence  # its default: that of the usual long silence
    if not least <= settings.longest_silence < 3600:
        raise DataError(f"--longest-silence must be {least:g} seconds or more, "
                        f"not {settings.longest_silence:g}")
    if not 0 <= settings.long_silences <= 1:
        raise DataError(f"--long-silences must be a share, 0 .. 1, not {settings.long_silences:g}")
    if settings.longest_sample is not None and settings.longest_sample < 1:
        raise DataError(f"--longest-sample must be 1 frame or more, not {settings.longest_sample}")
    for name in idle_options(settings.format):
        if getattr(settings, name) != getattr(type(settings), name):
            raise DataError(f"--{name} changes nothing in grids of the format {settings.format}: "
                            "leave it out")


def idle_options(format):
    """The names of the options that change nothing in grids of a format."""
    names = []
    if format not in stream.LISTENS:
        names += ["noise", "rooms", "speeds", "hearing", "leakage"]
    if format not in stream.SPEAKS:
        names.append("leakage")
    if format == "stereo":
        names.append("speeds")
    if format != "response-tts-free":
        names += ["backchannels", "reaction"]
    return names


def warn_of_single_turns(settings):
    """Say on stderr what samples of one manifest line lack, where interruptions are asked for."""
    if settings.format == "response-tts-free" and settings.join[1] == 1:
        print(f"note: with --join 1 1 each line of the manifest is a sample of its own, and a line "
              f"of one turn yields no interruption, which is what {settings.format} is for: take "
              "--join 1 4", file=sys.stderr)


def parse_part(part):
    """"I/N" -> (I, N). Raises DataError."""
    numbers = re.fullmatch(r"(\d+)/(\d+)", part)
    if numbers:
        number, parts = int(numbers[1]), int(numbers[2])
        if 1 <= number <= parts:
            return number, parts
    raise DataError(f"there is no part {part}: it is I/N, with I from 1 to N")


def fit(turns, silences, settings, ids):
    """Turns and the silences around them -> those with which a script of settings.format has at
    most settings.longest_sample frames.

    The last turns of a sample that is too long are left out. Where the first alone is too long, its
    silences are made shorter, the longest first. Raises DataError where the turn without silences
    is too long."""
    longest = settings.longest_sample
    length = len(stream.write(settings.format, turns, silences, ids))
    while length > longest and len(turns) > 1:
        turns = turns[:-1]
        silences = silences[:len(turns)] + silences[-1:]
        length = len(stream.write(settings.format, turns, silences, ids))
    if length - sum(silences) > longest:
        raise DataError(f"its first turn alone has {length - sum(silences)} frames, and "
                        f"--longest-sample is {longest}")
    silences = list(silences)
    while length > longest:
        i = silences.index(max(silences))
        shorter = min(silences[i], length - longest)
        silences[i] -= shorter
        length -= shorter
    return turns, silences


# --- a run ---

class Outcome(NamedTuple):
    """What became of some samples."""
    grids: list          # of Grid
    problems: dict       # position among the samples -> a sentence why this one was left out
    turns_left_out: int  # last turns of samples that would have been longer than was asked for


class ShardReport(NamedTuple):
    """What became of the samples of a shard."""
    samples: int
    hours: float         # of audio
    problems: dict       # number of a sample -> a sentence why it was left out
    turns_left_out: int


class RunReport(NamedTuple):
    """What a run says at its end."""
    samples: int         # that there are in its part
    left_out: int        # samples that were left out now
    turns_left_out: int  # last turns that were left out now
    longest: int         # frames of the longest sample in the folder

    def __str__(self):
        text = f"{self.samples} samples, {self.left_out} left out"
        if self.turns_left_out:
            text += f", {self.turns_left_out} turns left out for --longest-sample"
        if self.longest:
            seconds = self.longest / stream.FRAME_RATE
            text += (f"\nthe longest sample has {self.longest:,} frames ({seconds:.0f} s): training "
                     f"needs --length {self.longest + stream.ACOUSTIC_DELAY} or more")
        return text


@dataclass(frozen=True)
class Run:
    """One call of `data.py encode`. constants: all numbers that shape a sample, beside the
    settings; samples_per_shard: as many as a shard holds."""
    manifest: Path
    out: Path
    model: Path
    settings: object
    constants: dict
    samples_per_shard: int
    device: str = "cpu"
    workers: int = 1
    part: str = "1/1"

    def samples(self, join):
        """The samples of the run, whose index is written unless it is there -> Samples.

        join(number of lines, settings) -> (order, starts) of sample_index.write. Raises DataError
        for a manifest that cannot be used, and for a folder that holds other grids."""
        parse_part(self.part)
        devices.check_device(self.device)
        warn_of_single_turns(self.settings)
        about = about_grids(self)
        check_folder(self.out, about)
        note_foreign([*self.settings.noise, *self.settings.backchannels])
        index = self.out / "samples.index"
        about_index = json.dumps(about, sort_keys=True)
        if not sample_index.is_current(index, about_index):
            offsets = index_lines(self.manifest, self.settings.format)
            order, starts = join(len(offsets), self.settings)
            self.out.mkdir(parents=True, exist_ok=True)
            sample_index.write(index, offsets, order, starts, about_index)
        write_lines(self.out / "grids.json", [about])
        return sample_index.Samples(index, self.manifest, self.settings.format)

    def make_shards(self, samples, make_grids):
        """Make the shards of this part that are not there yet, with a bar on the screen.

        make_grids(numbers of samples) -> Outcome. Returns a RunReport. Raises DataError where
        nothing is left."""
        jobs = self.jobs(len(samples), make_grids)
        missing = [job for job in jobs if not job.path.exists()]
        total = sum(len(job.numbers) for job in jobs)
        count_before = total - sum(len(job.numbers) for job in missing)
        left_out = 0
        turns_left_out = 0
        hours = 0.0
        with tqdm(total=total, initial=count_before, desc=self.out.name, unit="sample") as bar:
            for report in in_parallel(make_shard, missing, self.workers):
                for sample, problem in report.problems.items():
                    tqdm.write(f"SKIPPED: the sample of {samples.place(sample)}: {problem}",
                               file=sys.stderr)
                left_out += len(report.problems)
                turns_left_out += report.turns_left_out
                hours += report.hours
                speed = hours / bar.format_dict["elapsed"] * 3600
                bar.set_postfix_str(f"{hours:.2f} h of audio, {speed:.0f} an hour")
                bar.update(report.samples)
        if jobs and not any(job.path.exists() for job in jobs):
            raise DataError(f"nothing was encoded: all {total} samples were left out")
        longest = 0
        for _, lengths in read_index(self.out).values():  # which writes the index, too
            longest = max(longest, *lengths)
        return RunReport(total - left_out, left_out, turns_left_out, longest)

    def jobs(self, samples, make_grids):
        """The shards of this part, of so many samples in all, as a list of Job."""
        number, parts = parse_part(self.part)
        jobs = []
        firsts = range(0, samples, self.samples_per_shard)
        for shard in range(number - 1, len(firsts), parts):
            last = min(firsts[shard] + self.samples_per_shard, samples)
            path = self.out / f"shard-{shard:05d}.safetensors"
            jobs.append(Job(path, range(firsts[shard], last), make_grids))
        return jobs


@dataclass(frozen=True)
class Job:
    """A shard to be made: its file, the numbers of its samples, and what makes their grids."""
    path: Path
    numbers: range
    make_grids: object


def make_shard(job):
    """Make one shard -> ShardReport. A shard of which no sample is left is not written."""
    grids, problems, turns_left_out = job.make_grids(job.numbers)
    if grids:
        shards.save(grids, job.path)
    hours = sum(len(grid) for grid in grids) / stream.FRAME_RATE / 3600
    problems = {job.numbers[i]: problem for i, problem in problems.items()}
    return ShardReport(len(job.numbers), hours, problems, turns_left_out)


# --- what grids are made from ---

def constants_of(*modules):
    """{name: value} of all numbers, and tuples of numbers, that stand in capitals in some modules,
    each as `vars` gives it."""
    constants = {}
    for module in modules:
        for name, value in module.items():
            if name.isupper() and isinstance(value, (int, float, tuple)):
                constants[f"{module['__file__'].rpartition('/')[2]} {name}"] = value
    return constants


def about_grids(run):
    """What grids.json says: the settings, a hash of the sizes of the manifest's recordings, and a
    hash of all else that goes into grids.

    Recordings count by their names, which the manifest has, and their sizes. One that is replaced
    by another of as many bytes is not noticed: encode into another folder then. Reading the sizes
    took 1.6 s for 100,000 lines on a local disk; each call does it."""
    about = asdict(run.settings)
    for name in ("noise", "backchannels", "leakage", "hearing"):
        del about[name]  # what they hold counts, and not where they are
    about["made_from"] = fingerprint(run)
    sizes = hashlib.sha1()
    for size in recording_sizes(run.manifest):
        sizes.update(f"{size} ".encode())
    about["recordings"] = sizes.hexdigest()
    return json.loads(json.dumps(about))


def fingerprint(run):
    """A hash of what goes into grids and is no plain setting: the manifest; configuration,
    tokenizer and codec of the model; the other codec; names and sizes of the recordings of noise
    and of back-channels; the constants."""
    settings = run.settings
    content = hashlib.sha1()
    hash_file(content, run.manifest)
    for name in ("config.json", "tokenizer.json"):
        hash_file(content, Path(run.model) / name)
    codecs = [run.model, settings.hearing] if settings.hearing else [run.model]
    for codec in codecs:
        weights, config = codec_file(codec)
        hash_file(content, weights)
        content.update(repr(config).encode())
    lists = []
    for folder in (*settings.noise, *settings.backchannels):
        for path in recordings([folder]):
            lists.append((str(Path(path).relative_to(folder)), Path(path).stat().st_size))
    content.update(repr((lists, settings.leaks, sorted(run.constants.items()))).encode())
    return content.hexdigest()


def codec_file(path):
    """A codec as codec_files.load takes it -> (its weights file, its configuration). Raises
    ValueError where there is none."""
    if Path(path).is_file():
        return Path(path), None
    return codec_files.files_in(model_files.resolve(path, codec_files.WANTED))


def hash_file(content, path):
    """Put the name and the bytes of a file into a hash, a block at a time; no such file is no
    error."""
    if not Path(path).is_file():
        return
    content.update(Path(path).name.encode())
    with open(path, "rb") as file:
        while block := file.read(2**20):
            content.update(block)


def check_folder(out, about):
    """Raise DataError where a folder holds grids that are made from something else, or of which
    nothing says what they are made from."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, and grids are written into a folder: choose another "
                        "name")
    before = read_about(out)
    if not before:
        if any(out.glob(SHARDS)):
            raise DataError(f"{out} holds grids, but no grids.json, which says what they are made "
                            "from: choose another folder, or remove it")
        return
    now = about["recordings"]
    if not isinstance(before, dict) or before | {"recordings": now} != about:
        raise DataError(f"{out} holds grids of another manifest, model or setting, or of another "
                        "version of data.py: choose another folder, or remove it")
    if before.get("recordings", now) != now:  # older versions did not look at them
        raise DataError(f"{out} holds grids of recordings that are no longer the same: some of "
                        "the manifest's are gone or have another size; choose another folder, or "
                        "remove it")


def recordings(folders):
    """The paths of all sound files below some folders that can be read, in order. Raises DataError
    where there are none."""
    paths = []
    for folder in folders:
        paths += files_of(folder, READABLE)
    if folders and not paths:
        raise DataError(f"{', '.join(map(str, folders))} holds no {', '.join(READABLE)}")
    return tuple(sorted(paths))


def files_of(folder, endings):
    """The paths of all files below a folder that have one of some endings."""
    return [str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in endings]


def note_foreign(folders):
    """Say in one sentence on stderr which recordings below some folders cannot be read, and what
    converts them -> how many they are."""
    names = []
    for folder in folders:
        names += files_of(folder, FOREIGN)
    if names:
        print(f"note: {len(names)} recordings are left out, because soundfile does not read their "
              f"kind: {first_of(sorted(names))}; convert them first, for example by `ffmpeg -i "
              "memo.m4a memo.flac`", file=sys.stderr)
    return len(names)


# --- command line ---

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
        return encode(args.manifest, args.out, args.model, settings, args.device, args.workers,
                      args.part)
    parser.set_defaults(run=run)


def add_sample_options(group, default):
    group.add_argument("--format", choices=stream.FORMATS, required=True,
                       help=f"{', '.join(sorted(stream.PAIRS))} take pairs, the others dialogs")
    group.add_argument("--model", default=SHIPPED, metavar="FOLDER",
                       help="with config.json, tokenizer.json, codec; or a Hub id (default: the "
                       "shipped model)")
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
                       "less than the sequences of training")
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
