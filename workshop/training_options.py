"""The command line of train.py: its options, and checks of their values.

What this is: the options of `run`, `export`, `plot` and `bench`, each with its help, a check of a
run's settings, and errors as one sentence. It serves train.py. What this is not: the settings of
the method, which are train.Settings.

    python train.py run --help
"""
import argparse
import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import torch

import flm
from workshop import checkpoints, command, costs, lora, model_files, processes, starting
from workshop import tokenizer, training_log
from workshop.checkpoints import option_name
from workshop.files import error_line


class SettingError(ValueError):
    """A setting that makes no sense; the message is one sentence that names the option."""


# --- settings ---

@dataclass(frozen=True)
class Options:
    """What a run is told beside the method, which train.Settings adds."""
    grids: tuple = ()            # folders, or FOLDER:WEIGHT
    init: str | None = None      # folder, Hub id, preset or config.json
    out: str | None = None
    qwen: str | None = None      # folder, Hub id or GGUF file
    beside: str | None = None    # folder or Hub id
    # A part of the weights.
    lora: int | None = None      # rank of adapters
    lora_full_audio: bool = False
    freeze: tuple = ()           # names of parameters.PARTS
    # Validation.
    valid: tuple = ()            # folders
    hold_out: float = 0.0        # share of the samples
    valid_every: int | None = None  # steps
    speak: int | None = None     # held-out samples
    forget: float | None = None  # how far the loss of a source may rise
    patience: int | None = None  # validations in a row without a new lowest loss
    # The machine.
    micro: int | None = None     # sequences a forward pass; None: all that a process has
    device: str = "cpu"
    bfloat16: bool = False
    recompute: bool = False
    compile: bool = False
    # Checkpoints.
    save_every: int = 100        # steps
    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self):
        check(self)


# --keep-knowing. Decision: not the paper's. With these a finished model of the shipped one's size
# learns something new and keeps the rest, if what it knew is among the grids (tiny/LOG.md has the
# runs). A fiftieth of these rates teaches nothing, and without old dialogs any of them forgets.
KEEP_KNOWING = {
    "stage": "fine-tuning-2",
    "epochs": 6.0,
    "lr": (4e-4, 1e-5),
    "batch": 2,
    "wait_weight": 1.0,
    "depth_share": 0.3,
    "repeats": 0.2,
    "hide": 0.12,
    "hold_out": 0.05,
}

# The smallest and the largest value of each number.
LIMITS = {
    "epochs": (1e-9, 1e9),
    "lr": (0, 1e3),
    "batch": (1, math.inf),
    "length": (2, math.inf),
    "semantic_weight": (0, 1e6),
    "acoustic_weight": (0, 1e6),
    "monologue_weight": (0, 1e6),
    "wait_weight": (0, 1e6),
    "lora": (1, math.inf),
    "depth_share": (0, 1),
    "repeats": (0, 1),
    "hide": (0, 1),
    "hold_out": (0, 1),
    "valid_every": (1, math.inf),
    "speak": (1, math.inf),
    "forget": (0, math.inf),
    "patience": (1, math.inf),
    "seed": (0, 2**63 - 1),
    "micro": (1, math.inf),
    "save_every": (1, math.inf),
    "keep": (1, math.inf),
    # of `--plan` and `bench`
    "hours": (1e-3, 1e12),
    "gpus": (1, math.inf),
    "steps": (1, math.inf),
}

# What a plan is for where nothing is said.
GPU = "H100"
GPUS = 8


def check(settings):
    """Raise SettingError where a train.Settings lacks what it needs or has a number out of
    bounds."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        for number in numbers:
            if type(number) in (int, float):
                check_number(field.name, number)
    for name in ("init", "out"):
        if not getattr(settings, name):
            raise SettingError(f"{option_name(name)} must be given")
    init = Path(settings.init)
    if init.is_dir() and init.resolve() == Path(settings.out).resolve():
        raise SettingError(f"--out {settings.out} is the folder of --init, whose model would be "
                           "overwritten: choose another --out")
    check_out(Path(settings.out))
    if settings.lr and not any(settings.lr):
        raise SettingError("--lr 0 0 trains nothing")
    check_validation(settings)
    check_trained(settings)


def check_out(out):
    """Raise SettingError where the folder of a run holds a model that no run has written there."""
    is_run = (out / "checkpoints").exists() or (out / "log.jsonl").exists()
    if not is_run and ((out / "config.json").exists() or model_files.files_of_model(out)):
        raise SettingError(f"--out {out} holds another model, which would be written over: choose "
                           "another --out")


def check_validation(settings):
    """Raise SettingError where there is nothing to validate on, or too much."""
    if settings.valid and settings.hold_out:
        raise SettingError("--valid and --hold-out exclude each other: what is held out would be "
                           "neither trained on nor validated")
    if settings.valid or settings.hold_out:
        return
    for name in ("valid_every", "speak", "forget", "patience"):
        if getattr(settings, name) is not None:
            raise SettingError(f"{option_name(name)} needs something to validate on: --valid or "
                               "--hold-out")


def check_trained(settings):
    """Raise SettingError where adapters or frozen parts make no sense."""
    names = ", ".join(lora.PARTS)
    for part in settings.freeze:
        if part not in lora.PARTS:
            raise SettingError(f"--freeze takes {names}, not {part}")
    if set(settings.freeze) == set(lora.PARTS):
        raise SettingError("--freeze names all parts of the model, and nothing is left to train")
    if settings.lora_full_audio and not settings.lora:
        raise SettingError("--lora-full-audio has no effect without --lora RANK")


def check_number(name, number):
    """Raise SettingError where a number is not finite or outside LIMITS."""
    lowest, highest = LIMITS.get(name, (-math.inf, math.inf))
    if math.isfinite(number) and lowest <= number <= highest:
        return
    if highest < math.inf:
        bounds = f"from {lowest} to {highest:.4g}"
    elif lowest > -math.inf:
        bounds = f"{lowest} or more"
    else:
        bounds = "a finite number"
    raise SettingError(f"{option_name(name)} must be {bounds}, not {number}")


def check_plan(args):
    """Raise SettingError where the options of a plan are without effect or make no sense."""
    for name in ("hours", "gpu", "gpus"):
        value = getattr(args, name)
        if value is None:
            continue
        if not args.plan:
            raise SettingError(f"{option_name(name)} has no effect without --plan")
        if name != "gpu":
            check_number(name, value)
    if args.hours and args.grids:
        raise SettingError("--hours is for a plan without grids, and here their frames count: "
                           "leave one of them out")


# --- the command line ---

DEFAULT = " (default: %(default)s)"


def make_parser(defaults, stages, paper_length):
    """defaults: of train.Settings, a dict; stages: names; paper_length: frames of the paper's
    sequences -> ArgumentParser"""
    parser = argparse.ArgumentParser(
        description="Train FLM-Audio, one stage of Table 3 at a time. COMMAND --help says more.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="train one stage",
        description="Train one stage. The same command again goes on from the newest checkpoint.",
        epilog="Then: python chat.py --model OUT --in question.wav --out answer.wav. On many GPUs: "
               "torchrun --nproc-per-node 8 --shutdown-timeout 600 train.py run ... --device cuda "
               "--bfloat16 --recompute --compile")
    add_run_options(run, stages)
    of_a_run = defaults | {"valid": []}  # a list for each time that it is given
    run.set_defaults(**of_a_run)
    add_plan_options(run)

    export = commands.add_parser("export", help="a checkpoint as a model folder for chat.py")
    export.add_argument("checkpoint", help="a checkpoint; or a run's folder, for its best or "
                        "newest; or, with --base, what --adapters wrote")
    export.add_argument("folder", help="for the model, with tokenizer and codec beside")
    export.add_argument("--beside", help="folder with tokenizer and codec to lay beside (default: "
                        "those of the run)")
    export.add_argument("--adapters", action="store_true", help="write what a run with --lora or "
                        "--freeze has trained, and not the weights beside it")
    export.add_argument("--base", help="the model that such a run started from, folder or Hub id: "
                        "makes a whole model of both")
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
                        help="the release has bfloat16" + DEFAULT)

    export.add_argument("--overwrite", action="store_true",
                        help="write over another model in the folder")

    tokenizer.add_command(commands)

    plot = commands.add_parser("plot", help="a run's curves as curves.png; needs matplotlib")
    plot.add_argument("folder", help="of the run")

    bench = commands.add_parser(
        "bench", help="how fast this machine trains",
        epilog=f"On a GPU: python train.py bench 0.5b 1.5b --length {paper_length} --device cuda "
               "--bfloat16 --recompute --compile")
    bench.add_argument("presets", nargs="*", default=["tiny", "0.5b"], metavar="PRESET",
                       help="with random weights (default: tiny 0.5b)")
    bench.add_argument("--length", type=int, default=512, help="frames a step" + DEFAULT)
    bench.add_argument("--steps", type=int, default=3, help="steps that are timed" + DEFAULT)
    add_speed_options(bench)
    bench.set_defaults(**{name: defaults[name] for name in SPEED})
    return parser


def add_run_options(run, stages):
    """The options of a run, one for each field of train.Settings."""
    add = run.add_argument_group("what").add_argument
    add("grids", nargs="*",
        help="folders that data.py made; FOLDER:WEIGHT reads it WEIGHT times an epoch")
    add("--init", help="model folder or Hub id to start from; or for fresh weights a config.json, "
        "as a file or alone in a folder, or a preset: " + ", ".join(flm.PRESETS))
    add("--out", help="folder for checkpoints, log and trained model")
    add("--qwen", help="Qwen2.5, Qwen2.5-VL or a Llama without biases that fills the backbone of "
        "a model with fresh weights: folder, Hub id or GGUF file")
    add("--beside", help="folder with tokenizer and codec to lay beside the trained model; a "
        "preset takes its special ids too (default: that of --init or --qwen)")

    add("--keep-knowing", action="store_true",
        help="teach a finished small model something new: settings for that ("
        + ", ".join(option_name(name) for name in KEEP_KNOWING) + "), and --length as it was "
        "trained with; an option that is given counts. Old dialogs must be among the grids: "
        "tiny/replay:0.5 for the shipped model")

    add_method_options(run, stages)
    add_part_options(run)

    add = run.add_argument_group("validation").add_argument
    add("--valid", nargs="+", action="append", metavar="FOLDER",
        help="folders of grids for the validation loss, each for itself; may be given several "
        "times")
    add("--hold-out", type=float, help="or a share of the samples of each folder; a recording may "
        "be in others too" + DEFAULT)
    add("--valid-every", type=int, help="steps between validations (default: 200, or a tenth of "
        "a shorter run that may stop early)")
    add("--speak", type=int, metavar="N", help="at each validation have the model answer N "
        "held-out samples, as sound files in OUT/spoken")
    add("--forget", type=float, metavar="X", help="stop early when the loss of a source has risen "
        "by more than X, and take the best model before that")
    add("--patience", type=int, metavar="N", help="stop early when N validations in a row have "
        "brought no source to a new lowest loss, and take the best model")

    add = add_speed_options(run)
    add("--micro", type=int,
        help="sequences a forward pass; the rest of a batch accumulates (default: all)")

    add = run.add_argument_group("checkpoints").add_argument
    add("--save-every", type=int, help="steps between checkpoints" + DEFAULT)
    add("--keep", type=int, help="the newest so many stay" + DEFAULT)
    add("--tensorboard", action="store_true",
        help="write OUT/tensorboard too, which other viewers of runs read; needs the package")


def add_method_options(run, stages):
    """What train.Settings has beside Options."""
    add = run.add_argument_group("method").add_argument
    add("--stage", choices=stages, help="column of Table 3, which gives epochs and rates" + DEFAULT)
    add("--epochs", type=float, help="instead of the stage's")
    add("--lr", type=float, nargs=2, metavar=("START", "END"), help="instead of the stage's")
    add("--paper", action="store_true",
        help="the paper's sequences a step and frames a sequence, one sequence a forward pass")
    add("--batch", type=int,
        help="sequences a step, over all processes (default: what a laptop bears)")
    add("--length", type=int,
        help="frames a sequence, 12.5 a second (default: what a laptop bears)")
    add("--semantic-weight", type=float, help="alpha_1 of equation 3" + DEFAULT)
    add("--acoustic-weight", type=float, help="alpha_2 of equation 3" + DEFAULT)
    add("--monologue-weight", type=float, help="beta of equation 3" + DEFAULT)
    add("--wait-weight", type=float,
        help="gamma of equation 3; more makes the model slower to speak" + DEFAULT)
    add("--depth-share", type=float,
        help="share of the spoken frames that train the depth transformer" + DEFAULT)
    add("--repeats", type=float, help="factor on --depth-share for frames whose codes repeat those "
        "of the frame before" + DEFAULT)
    add("--hide", type=float, help="share of the codes heard that are hidden, so that few "
        "recordings look new in each draw" + DEFAULT)
    add("--seed", type=int, help="of every random choice" + DEFAULT)


def add_part_options(run):
    """What is trained, and what stays as it is; see lora.py."""
    add = run.add_argument_group("a part of the weights").add_argument
    add("--lora", type=int, metavar="RANK",
        help="train adapters of this rank beside the large matrices, which stay as they are, and "
        "the small audio parts whole; rates are about ten times the stage's")
    add("--lora-full-audio", action="store_true",
        help="with --lora, train the depth transformer whole (as with --qwen)")
    add("--freeze", nargs="+", metavar="PART", help="leave these as they are: "
        + ", ".join(lora.PARTS))


SPEED = ("device", "bfloat16", "recompute", "compile")


def add_speed_options(command):
    """What `run` and `bench` share -> the function that adds an option to the same group"""
    add = command.add_argument_group("machine").add_argument
    add("--device", choices=("cpu", "cuda"),
        help="torchrun starts a process for each GPU" + DEFAULT)
    add("--bfloat16", action="store_true",
        help="compute in bfloat16; weights and optimizer stay float32")
    add("--recompute", action="store_true",
        help="activation checkpointing: less memory, a third more work")
    add("--compile", action="store_true",
        help="torch.compile each block; on a CPU this needs a C++ compiler")
    return add


def add_plan_options(run):
    """What a run would cost."""
    add = run.add_argument_group("the cost of this run, without starting it").add_argument
    add("--plan", action="store_true",
        help="print parameters, memory, tokens and days of this run, and start nothing")
    add("--hours", type=float, help="of audio, where there are no grids yet")
    add("--gpu", choices=costs.GPUS, help=f"planned for (default: {GPU})")
    add("--gpus", type=int, help=f"how many of them (default: {GPUS})")


def parse(arguments, defaults, stages, paper_length):
    """A command line -> its options. With --keep-knowing it is read once more, with KEEP_KNOWING as
    defaults, so that what was given counts. Raises ValueError."""
    args = make_parser(defaults, stages, paper_length).parse_args(arguments)
    if not getattr(args, "keep_knowing", False):
        return args
    if not args.init:
        raise SettingError("--keep-knowing needs --init, the model that knows something")
    if starting.fresh_config(args.init):
        raise SettingError(f"--keep-knowing is for a model that knows something, and --init "
                           f"{args.init} has no weights: name a model folder, such as tiny/model")
    if args.paper:
        raise SettingError("--keep-knowing and --paper exclude each other: each sets --batch and "
                           "--length")
    before = model_files.read_config(model_files.resolve(args.init))
    if len(args.grids) == 1:
        print("note: with one folder of grids nothing repeats what the model knew, and it will "
              "forget it: add old dialogs (tiny/replay:0.5 for the shipped model)")
    if before.hidden_size > flm.PRESETS["tiny"].hidden_size:
        print("note: --keep-knowing was measured on the shipped model alone; a larger one wants "
              "lower rates (--lr), or --lora")
    changed = defaults | KEEP_KNOWING | {"length": before.trained_frames}
    if args.valid:
        changed["hold_out"] = 0.0
    return make_parser(changed, stages, paper_length).parse_args(arguments)


def export(args):
    """The command `export`."""
    dtype = getattr(torch, args.dtype)
    if args.adapters and (args.base or args.beside):
        raise SettingError("--adapters writes what was trained alone: --base and --beside are for "
                           "the whole model")
    if not args.overwrite:
        checkpoints.check_target(args.checkpoint, args.folder, args.adapters)
    if args.adapters:
        checkpoints.export_adapters(args.checkpoint, args.folder, dtype)
    elif args.base:
        checkpoints.export_merged(args.checkpoint, args.base, args.folder, dtype, args.beside)
    else:
        checkpoints.export(args.checkpoint, args.folder, dtype, args.beside)


def obey(args, settings_class, train, bench):
    """Do what the options of a command line ask for; see `main`. Raises ValueError, OSError or
    RuntimeError."""
    names = [field.name for field in fields(settings_class) if hasattr(args, field.name)]
    options = {name: getattr(args, name) for name in names}
    if args.command == "export":
        export(args)
        print(f"{args.checkpoint} -> {args.folder}")
    elif args.command == "tokenizer":
        tokenizer.run_command(args)
    elif args.command == "plot":
        curves = Path(args.folder) / "curves.png"
        training_log.plot(args.folder, curves)
        print(f"the curves of {args.folder} -> {curves}")
    elif args.command == "bench":
        check_number("steps", args.steps)
        del options["length"]
        for preset in args.presets:
            settings = settings_class(**options, init=preset, out="-")
            bench(preset, args.length, args.steps, settings)
    else:
        check_plan(args)
        options["valid"] = tuple(folder for some in args.valid for folder in some)
        if args.plan:
            options["out"] = args.out or "-"
            settings = settings_class(**options)
            print(costs.plan(settings, args.hours, args.gpu or GPU, args.gpus or GPUS))
        else:
            train(settings_class(**options))


def main(arguments, settings_class, stages, paper_length, train, bench):
    """Do what a command line asks for. settings_class, stages, train: of train.py; bench: a
    function of (preset, length, steps, settings). Ends the program with one sentence where that
    cannot be done."""
    defaults = {field.name: field.default for field in fields(settings_class)}
    try:
        args = parse(arguments, defaults, list(stages), paper_length)
        obey(args, settings_class, train, bench)
        processes.leave()
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except processes.Stopped as error:
        if processes.rank() == 0:  # all processes stop, and one says it
            print(f"train.py: {error}", file=sys.stderr)
        sys.exit(command.STOPPED)
    except processes.TrainError as error:
        if processes.rank() != 0:
            sys.exit(1)
        sys.exit(f"train.py: {error}")
    except (OSError, ValueError) as error:
        sys.exit(f"train.py: {error}")
    except (MemoryError, RuntimeError) as error:
        sentence = sentence_of(error)
        if not sentence:
            raise
        sys.exit(f"train.py: {sentence}")


def sentence_of(error):
    """An error of the machine -> what is wrong and what to do; None for one that is a fault."""
    from torch._dynamo.exc import BackendCompilerFailed  # takes a second to import
    if isinstance(error, BackendCompilerFailed):
        return (f"--compile does not work here ({error_line(error)}): it needs a C++ compiler, "
                "such as g++; without --compile the run does the same")
    if isinstance(error, torch.OutOfMemoryError):
        return ("the GPU's memory is full: take --recompute, a smaller --micro or --length, or "
                "more GPUs")
    if processes.is_full_memory(error):
        return ("this machine's memory is full: take --recompute, a smaller --micro or --length, "
                "or a smaller model")
    if processes.another_died(error):
        return ("another process of this run died or cannot be reached; the same command goes on "
                "from the last checkpoint")
    return None
