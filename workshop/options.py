"""Which options of chat.py go together, and which numbers they take.

What this is: the refusals, in one sentence each, of options that would be taken and ignored. It
serves chat.py. What this is not: the options themselves (chat.py's `main`), or checks of files
(sound_file.py) and of sampling (chat.py's Sampling).

    python chat.py --replay both.wav --seed 3     # refused: the record has a seed of its own
"""
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


def way_of(args):
    """The way into a conversation that was asked for, a key of WAYS. Raises ValueError where there
    is more than one."""
    asked = {"file": args.source is not None, "replay": args.replay is not None,
             "serve": args.serve is not None, "bench": args.bench, "devices": args.list_devices}
    ways = [way for way, is_asked in asked.items() if is_asked]
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
            wanted = " or ".join(WAYS[one] for one in ways)
            raise ValueError(f"{option(name)} has no effect with {WAYS[way]}: "
                             f"it goes with {wanted}")
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
