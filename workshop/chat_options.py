"""The command line of chat.py: its options, which of them go together, and what can be refused
before a model is loaded.

What this is: argparse and the refusals, in one sentence each: options that would be taken and
ignored, numbers out of range, files that cannot be written. It serves chat.py. What this is not:
the ways into a conversation (chat.py), or a look into sound files (sound_file.py).

    python chat.py --help
    python chat.py --replay both.wav --seed 3     # refused: the record has a seed of its own
"""
import argparse
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch

import flm
from stream import FRAME_RATE
from workshop import devices, files, sound_card, sound_file
from workshop.answer_end import HESITATION, LONGEST_ANSWER
from workshop.record import read_replay
from workshop.sounds import SAMPLE_RATE

# The ways into a conversation, and how an error calls them.
WAYS = {"file": "--in", "replay": "--replay", "serve": "--serve", "bench": "--bench",
        "devices": "--list-devices", "microphone": "a microphone"}
# Options that have an effect in these ways only. Those that are not here have one in every way that
# loads a model.
TALKS = ("file", "microphone", "serve")
EFFECT = {"tail": ("file",), "stereo": ("file",),
          "overwrite": ("file", "microphone"), "record": ("file", "microphone"),
          "input_device": ("microphone",), "output_device": ("microphone",),
          "host": ("serve",), "ssl": ("serve",), "token": ("serve",), "origin": ("serve",),
          "sessions": ("serve",), "longest": ("serve",),
          "random_weights": ("bench",), "frames": ("bench",),
          "seed": TALKS, "context": (*TALKS, "bench")}
# Least and most of a number.
NUMBERS = {"tail": (0, 3600), "sessions": (1, 10**9), "context": (2, 10**9),
           "frames": (1, 10**6), "seed": (0, 10**18)}


def read(arguments, sampling_class, model, context):
    """The command line -> args, checked.

    sampling_class: chat.Sampling, whose fields are options; model and context: the defaults that
    the help names. Beside the options, args has what follows from them: `way`, a key of WAYS;
    `sampling`; `dtype` of the weights; `question`, the samples of --in; `again`, the Replay of
    --replay; `door` of --serve; and `shape`, how many conversations of how many frames, compiled or
    not.

    Raises OSError or ValueError, one sentence."""
    parser = command_line(sampling_class, model, context)
    args = parser.parse_args(arguments)
    check_options(parser, args, [field.name for field in fields(sampling_class)])
    args.way = way_of(args)
    if args.way == "devices":
        return args
    if args.codec_bits == 16 and not args.device.startswith("cpu"):
        raise ValueError(f"--codec-bits 16 has no effect with --device {args.device}: it goes with "
                         "cpu")
    devices.check_device(args.device)
    changed = changed_sampling(args, sampling_class)
    if args.way == "microphone":
        sound_card.check_devices(args.input_device, args.output_device)
    if args.way == "serve":
        args.door = server_module().door.open_door(args)
    check_targets(args)
    if args.way == "file":
        args.question = sound_file.read_question(args.source)
        check_room(args)
    if args.way == "replay":
        args.again = read_replay(args.replay, sampling_class, check_number)
    args.sampling = sampling_of(args, sampling_class, changed)
    args.dtype = torch.bfloat16 if args.bfloat16 or args.bits < 16 else torch.float32
    args.shape = {"context": args.again.context if args.way == "replay" else args.context,
                  "batch": args.sessions if args.way == "serve" else 1,
                  "fast": args.device.startswith("cuda") and not args.eager}
    return args


@contextmanager
def errors_in_one_sentence():
    """End the program with the sentence of an error that its user can cause."""
    try:
        yield
    except torch.OutOfMemoryError:
        sys.exit("chat.py: the GPU's memory is full: take --bfloat16, --bits 8 or 4, or a smaller "
                 "--context")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        sys.exit("chat.py: the memory is full: take fewer --sessions, or a smaller --context")
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError) as error:
        if sys.stdout.isatty():
            print()  # below the status line
        sys.exit(f"chat.py: {error}")


# --- the options ---

def command_line(sampling_class, model, context):
    """The options, in groups by way in."""
    parser = argparse.ArgumentParser(
        description="Talk with the model: by microphone, in a browser or a Moshi client (--serve), "
                    "or by a sound file (--in, --out).")
    add_file_options(parser.add_argument_group("conversation with a file"))
    add_sound_options(parser.add_argument_group(
        "microphone (what happens when no other way in is asked for)"))
    add_server_options(parser.add_argument_group("browser and Moshi clients"))
    add_model_options(parser.add_argument_group("model"), model, context)
    add_speed_options(parser.add_argument_group("speed"))
    add_sampling_options(parser.add_argument_group("sampling"), sampling_class)
    return parser


def add_file_options(group):
    add = group.add_argument
    add("--in", dest="source", type=Path, metavar="FILE",
        help="what is said to the model: any format and rate that soundfile reads")
    add("--out", dest="target", type=Path, metavar="FILE",
        help="what it answers, of the same start and length")
    add("--tail", type=float, metavar="SECONDS",
        help="silence heard after the file ends, 0 for none "
             f"(default: until the answer is over, {LONGEST_ANSWER} at most)")
    add("--stereo", action="store_true",
        help="write both voices: the question left, the answer right")
    add("--overwrite", action="store_true", help="replace an answer or a record that exists")
    add("--record", type=Path, metavar="FILE.wav",
        help="keep both voices, exactly; with a microphone too")
    add("--replay", type=Path, metavar="FILE.wav",
        help="hold a recorded conversation again, and compare the answer")


def add_sound_options(group):
    group.add_argument("--list-devices", action="store_true", help="number the sound devices")
    for way in ("input", "output"):
        group.add_argument(f"--{way}-device", type=int, metavar="N",
                           help="a number of --list-devices (default: the system's)")


def add_server_options(group):
    add = group.add_argument
    add("--serve", type=int, nargs="?", const=8990, metavar="PORT",
        help="a page, and /api/chat (port %(const)s)")
    add("--host", default="localhost",
        help="address to listen on; 0.0.0.0 is every one (default: %(default)s)")
    add("--ssl", type=Path, nargs=2, metavar=("CERT", "KEY"),
        help="serve https: without it, browsers of other machines give no microphone")
    add("--token", metavar="SECRET",
        help="what visitors must have in their link or in an Authorization header")
    add("--origin", action="append", default=[], metavar="ORIGIN",
        help="let pages of another origin connect, written https://HOST or https://HOST:PORT; "
             "behind a proxy, its own; may be repeated")
    add("--sessions", type=int, default=1, metavar="N",
        help="conversations at once (default: %(default)s)")
    add("--longest", type=float, metavar="MINUTES",
        help="end a conversation after so long (default: never)")


def add_model_options(group, model, context):
    add = group.add_argument
    add("--model", default=model,
        help="folder or Hub id, such as CofeAI/FLM-Audio (default: the small model shipped here)")
    add("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    add("--bfloat16", action="store_true",
        help="weights in 16 bits: half the memory, for GPUs")
    add("--bits", type=int, choices=(4, 8, 16), default=16,
        help="bits of a weight; 4 and 8 compute in bfloat16")
    add("--codec-bits", type=int, choices=(16, 32), default=32,
        help="16 rounds the codec's weights: the released codec is faster by it on a CPU, and 1 in "
             "100 codes is another one (default: %(default)s, as they are)")
    add("--context", type=int, metavar="FRAMES",
        help="what is remembered (default: as many as the sequences of its training had, "
             f"else {context})")
    add("--eager", action="store_true", help="neither compile nor capture the step on a GPU")


def add_speed_options(group):
    add = group.add_argument
    add("--bench", action="store_true",
        help="time a frame, beside memory bandwidth and the straightforward loop")
    add("--random-weights", choices=flm.PRESETS, metavar="PRESET",
        help=f"a shape alone: {', '.join(flm.PRESETS)}")
    add("--frames", type=int, default=50, metavar="N", help="frames timed (default: %(default)s)")


def add_sampling_options(group, sampling_class):
    for field in fields(sampling_class):
        group.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, metavar="X",
                           help=f"(default: the model's sampling.json, else {field.default})")
    group.add_argument("--seed", type=int, default=0,
                       help="the same seed gives the same answer (default: %(default)s)")


# --- which go together ---

def way_of(args):
    """The way into a conversation that was asked for, a key of WAYS. Raises ValueError where there
    is more than one."""
    ways_in = {"file": args.source is not None, "replay": args.replay is not None,
             "serve": args.serve is not None, "bench": args.bench, "devices": args.list_devices}
    ways = [way for way, is_asked in ways_in.items() if is_asked]
    if len(ways) > 1:
        both = " and ".join(WAYS[way] for way in ways)
        raise ValueError(f"{both} are different ways in: choose one")
    return ways[0] if ways else "microphone"


def check_options(parser, args, sampling):
    """Raise ValueError, one sentence, for options that have no effect together, and for numbers out
    of range.

    sampling: names of the options that say how tokens are drawn."""
    if (args.source is None) != (args.target is None):
        raise ValueError("--in and --out go together")
    way = way_of(args)
    effects = EFFECT | {name: (*TALKS, "bench") for name in sampling}
    for name, value in vars(args).items():
        if value == parser.get_default(name):
            continue
        ways = effects.get(name, WAYS)
        if way not in ways:
            choices = " or ".join(WAYS[one] for one in ways)
            raise ValueError(f"{option(name)} has no effect with {WAYS[way]}: "
                             f"it goes with {choices}")
        if name in NUMBERS:
            check_number(name, value)
    if args.overwrite and way == "microphone" and not args.record:
        raise ValueError("--overwrite has no effect without --out or --record")
    if args.random_weights and args.model != parser.get_default("model"):
        raise ValueError("--random-weights and --model are different models: choose one")


def check_number(name, value):
    """Raise ValueError, one sentence, where an option's number is out of its range, or no
    number."""
    low, high = NUMBERS[name]
    kinds = (int, float) if name == "tail" else (int,)
    if type(value) not in kinds or not low <= value <= high:
        raise ValueError(f"{option(name)} must be {low} .. {high}, not {value}")


def option(name):
    """A name of argparse's as it is typed."""
    return f"--{name.replace('_', '-')}"


def changed_sampling(args, sampling_class):
    """{field of Sampling: value} of the options that were named. Raises ValueError that names the
    option."""
    changed = {}
    for field in fields(sampling_class):
        value = getattr(args, field.name)
        if value is None:
            continue
        try:
            sampling_class(**{field.name: value})
        except ValueError as error:
            sentence = str(error).replace(field.name, option(field.name))
            raise ValueError(sentence) from None
        changed[field.name] = value
    return changed


def sampling_of(args, sampling_class, changed):
    """How tokens are drawn: as the record says, as the model folder says, or the release's."""
    if args.way == "replay":
        return args.again.sampling
    if args.way == "bench":
        return sampling_class(**changed)
    return sampling_class.of(args.model, **changed)


# --- what they name ---

def check_targets(args):
    """Raise ValueError, one sentence, where --out and --record must not or cannot be written."""
    if args.record and args.target and files.same_file(args.record, args.target):
        raise ValueError(f"--record and --out are one file, {args.target}: "
                         "give the record a file of its own")
    if args.record and args.record.suffix.lower() != ".wav":
        raise ValueError(f"--record {args.record}: a record is a .wav")
    sources = [args.source] if args.source else []
    for target in (args.target, args.record):
        if target:
            sound_file.check_target(target, args.overwrite, sources)


def check_room(args):
    """Raise ValueError, one sentence, where a disk has no room for a conversation about
    args.question. An answer's length is not known beforehand; what is known is how long it is
    waited for."""
    seconds = HESITATION if args.tail is None else args.tail
    samples = len(args.question) + round(seconds * SAMPLE_RATE)
    sizes = {args.target: samples * 2 * (2 if args.stereo else 1)}  # two bytes a sample
    if args.record:
        sizes[args.record] = samples * 4 * 2
    sound_file.check_space(sizes)


def warn_of_context(config, context):
    """Say so where more is to be remembered than the model was trained to."""
    if config.trained_frames and context and context > config.trained_frames:
        seconds = config.trained_frames / FRAME_RATE
        frames = config.trained_frames
        print(f"chat.py: note: this model was trained on sequences of {frames} frames "
              f"({seconds:.0f} s); with --context {context} it may fall silent after that time",
              file=sys.stderr)


def server_module():
    """workshop/server.py, which needs a package that nothing else here needs."""
    try:
        from workshop import server
        return server
    except ModuleNotFoundError as error:
        raise ValueError(f"--serve needs the {error.name} package: "
                         f"pip install {error.name}") from None
