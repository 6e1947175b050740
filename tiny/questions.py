"""The paper's questions (section 4), asked of a world so small that each arm trains in minutes on
one CPU core.

What this is: arms that differ from another arm in one setting alone. They are trained on the same
data for the same steps with several seeds through data.encode and train.train, and measured by
judge.py. This file also makes the tables and plots of RESULTS.md. What this is not: the shipped
model (make.py), or the paper's scale, at which the answers may be others.

    python tiny/questions.py             # every arm and seed not done yet, then tables and plots
    python tiny/questions.py --only word-aligned --seeds 1
    python tiny/questions.py --report    # tables and plots again, from results.json

Recordings and codec are make.py's, in tiny/work. Arms share what they have in common: a stage is
trained once for all whose settings are the same up to its end.
"""
import argparse
import hashlib
import json
import random
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import data  # noqa: E402
import flm  # noqa: E402
import train  # noqa: E402
from judge import measure  # noqa: E402
from make import computes_bfloat16  # noqa: E402
from moshi import align  # noqa: E402
from workshop import model_files  # noqa: E402
from workshop.batches import Batches  # noqa: E402
from workshop.manifests import write_lines  # noqa: E402

# --- the world: some kinds of questions, asked by few voices; whole recordings make the test ---

KINDS = ("capital", "opposite", "color", "sound", "self", "greeting")
USERS = ("joe",)
TESTED = 240
CONFIG = replace(flm.PRESETS["tiny"], hidden_size=192, intermediate_size=512, num_hidden_layers=4,
                 head_dim=None, depth_layers=1, depth_heads=2, depth_dim=64)


@dataclass(frozen=True)
class Grids:
    """A folder of grids: manifest, format, and the lines that are joined to a sample."""
    manifest: str
    format: str
    join: tuple  # fewest and most


GRIDS = {
    "tts": Grids("train-tts", "tts", (1, 4)),
    "asr": Grids("train-asr", "asr", (1, 4)),
    "asr-response-tts": Grids("train", "asr-response-tts", (1, 3)),
    "response-tts": Grids("train", "response-tts", (1, 4)),
    "response-tts-free": Grids("train", "response-tts-free", (2, 4)),
    "test-asr": Grids("test-asr", "asr", (1, 1)),
    "test-response-tts": Grids("test", "response-tts", (1, 1)),
}
ALIGNED = GRIDS.keys() - {"response-tts-free"}  # these are made with Moshi's monologue too


# --- the arms ---

@dataclass(frozen=True)
class Stage:
    """What train.Settings is given, and the steps that it gets instead of epochs."""
    grids: tuple
    steps: int
    lr: tuple
    wait_weight: float = 0.01
    semantic_weight: float = 1.0


@dataclass(frozen=True)
class Arm:
    """The arm `like` with one field of Stage changed in some stages: {stage: value}."""
    like: str
    field: str
    values: dict


ALL_ARMS = dict(batch=4, length=320, epochs=1, repeats=0.2, depth_share=0.3, compile=True,
                save_every=200, keep=1)
PT1 = "post-training-1"
PT2 = "post-training-2"
FT1 = "fine-tuning-1"
FT2 = "fine-tuning-2"
POST = (PT1, PT2)
BASE = {
    PT1: Stage(("tts", "asr"), 400, (1.5e-3, 1e-3)),
    PT2: Stage(("tts", "asr"), 100, (1e-3, 8e-4)),
    FT1: Stage(("asr-response-tts",), 200, (1e-3, 8e-4)),
    FT2: Stage(("response-tts", "response-tts-free"), 300, (1e-3, 2e-5), wait_weight=1.0),
}
ALIGNED_GRIDS = {
    PT1: ("tts-aligned", "asr-aligned"),
    PT2: ("tts-aligned", "asr-aligned"),
    FT1: ("asr-response-tts-aligned",),
    FT2: ("response-tts-aligned",),
}
ARMS = {
    "base": None,
    "no interruptions": Arm("base", "grids", {FT2: ("response-tts",)}),
    "word-aligned": Arm("no interruptions", "grids", ALIGNED_GRIDS),
    "γ 0.5 throughout": Arm("no interruptions", "wait_weight", dict.fromkeys(BASE, 0.5)),
    "word-aligned, γ 0.5 throughout": Arm("word-aligned", "wait_weight",
                                          dict.fromkeys(BASE, 0.5)),
    "no fine-tuning-1": Arm("base", "grids", {FT1: ("response-tts", "response-tts-free")}),
    "γ 0.01": Arm("base", "wait_weight", {FT2: 0.01}),
    "α₁ 100": Arm("base", "semantic_weight", {FT2: 100.0}),
    "ASR only": Arm("base", "grids", dict.fromkeys(POST, ("asr",))),
    "TTS only": Arm("base", "grids", dict.fromkeys(POST, ("tts",))),
    "γ 0.5": Arm("base", "wait_weight", {FT2: 0.5}),
}


def stages(arm):
    """The Stages of an arm by name, in order."""
    change = ARMS[arm]
    if change is None:
        return BASE
    result = {}
    for name, stage in stages(change.like).items():
        if name in change.values:
            stage = replace(stage, **{change.field: change.values[name]})
        result[name] = stage
    return result


def folder(work, arm, name, seed):
    """Where a stage of an arm is trained. Its name is made of all settings up to its end, so that
    arms share a stage where these are the same."""
    names = list(BASE)
    names = names[:names.index(name) + 1]
    course = [vars(stages(arm)[earlier]) for earlier in names]
    digest = hashlib.sha1(json.dumps(course).encode()).hexdigest()[:8]
    return work / "runs" / f"{name}-{digest}-{seed}"


# --- data ---

def write_manifests(work, source, split):
    """Dialogs of make.py's manifests, {name: rows} -> NAME.jsonl, and their two sides as pairs,
    NAME-tts.jsonl and NAME-asr.jsonl."""
    work.mkdir(parents=True, exist_ok=True)
    for name, rows in split.items():
        turns = []
        dialogs = []
        for row in rows:
            for turn in row["turns"]:
                paths = {key: str((source / turn[key]).resolve()) for key in ("heard", "spoken")}
                turns.append(turn | paths)
        for row, turn in zip(rows, turns):
            dialogs.append(row | {"turns": [turn]})
        write_lines(work / f"{name}.jsonl", dialogs)
        write_lines(work / f"{name}-tts.jsonl",
                    [{"audio": turn["spoken"], "text": turn["response"]} for turn in turns])
        write_lines(work / f"{name}-asr.jsonl",
                    [{"audio": turn["heard"], "text": turn["transcript"]} for turn in turns])


def read_rows(path):
    return [json.loads(line) for line in open(path)]


def split(source):
    """The small world: {"train": rows, "test": rows}. Recordings that differ in pitch alone stand
    side by side, and stay together."""
    rows = []
    for name in ("train", *(f"more-{user}" for user in USERS)):
        for row in read_rows(source / f"{name}.jsonl"):
            if row["kind"] in KINDS and row["voice"].split(":")[0] in USERS:
                rows.append(row)
    takes = [rows[i:i + 2] for i in range(0, len(rows), 2)]
    random.Random(0).shuffle(takes)
    rows = sum(takes, [])
    return {"test": rows[:TESTED], "train": rows[TESTED:]}


def encode(source, work, names):
    """Some of GRIDS, and those of ALIGNED once more with Moshi's monologue beside the same
    sounds."""
    for name in names:
        grids = GRIDS[name]
        backchannels = ()
        if grids.format == "response-tts-free":
            backchannels = (source / "backchannels",)
        # Decision: in minutes nobody learns to bear ten quiet seconds, and without them the frames
        # are a fifth fewer. The test's grids stand in the order of its manifest, for judge.py.
        settings = data.Settings(grids.format, join=grids.join, backchannels=backchannels,
                                 long_silences=0, shuffled=not name.startswith("test"))
        out = work / "grids" / name
        data.encode(work / f"{grids.manifest}.jsonl", out, source / "start", settings)
        if name in ALIGNED:
            align(source, out, grids.format)


# --- training ---

def run(arm, seed, source, work):
    """Train the stages of an arm that are not there yet."""
    init = work / "runs" / f"start-{seed}"
    if not (init / "config.json").exists():
        torch.manual_seed(seed)
        model_files.save(flm.init_weights(flm.FLM(CONFIG)), init)
        shutil.copy(source / "start" / "tokenizer.json", init)
    for name, stage in stages(arm).items():
        out = folder(work, arm, name, seed)
        if not (out / ".done").exists():
            print(f"--- {arm}, {name}, seed {seed}", flush=True)
            train_stage(name, stage, seed, work, init, out)
        init = out


def train_stage(name, stage, seed, work, init, out):
    """Train one Stage from the folder `init` to the folder `out`."""
    settings = train.Settings(
        tuple(work / "grids" / grids for grids in stage.grids), init, out, stage=name, seed=seed,
        bfloat16=computes_bfloat16("cpu"), lr=stage.lr, wait_weight=stage.wait_weight,
        semantic_weight=stage.semantic_weight, **ALL_ARMS)
    epochs = (stage.steps - 0.5) / Batches(settings, CONFIG).steps_per_epoch
    train.train(replace(settings, epochs=epochs))
    shutil.rmtree(out / "checkpoints")
    (out / ".done").touch()


# --- measuring ---

def measure_all(source, work, seeds):
    """{arm: {stage: {number: a list, one for each seed}}} of what is trained and in a table. The
    arm "shipped" is the four stages that make.py trained, asked the questions of its test.jsonl;
    where these are gone, its old numbers stay."""
    results = {}
    in_a_table = set()
    for arms, columns in TABLES.values():
        for arm in arms:
            in_a_table |= {(arm, column.stage) for column in columns}
    for arm in ARMS:
        for name, stage in stages(arm).items():
            if (arm, name) in in_a_table:
                numbers = measure_stage(arm, name, stage, work, seeds)
                results.setdefault(arm, {})[name] = numbers
    results["shipped"] = measure_shipped(source, work / "shipped")
    return results


def measure_stage(arm, name, stage, work, seeds):
    """The numbers of one stage of an arm, by name a list with one of each seed."""
    aligned = ""
    if any("aligned" in grids for grids in stage.grids):
        aligned = "-aligned"
    interrupted = arm in TABLES["rq3"][0]
    of_seeds = []
    for seed in range(seeds):
        out = folder(work, arm, name, seed)
        if (out / ".done").exists():
            of_seeds.append(measure(out, name, work, out / "measured.json", aligned, interrupted))
    if not of_seeds:
        return {}
    return {key: [numbers[key] for numbers in of_seeds] for key in of_seeds[0]}


def measure_shipped(source, work):
    """The numbers of make.py's four stages, {stage: {number: [value]}}."""
    if not all((source / name).exists() for name in BASE):
        return json.loads((HERE / "results" / "results.json").read_text())["shipped"]
    write_manifests(work, source, {"test": read_rows(source / "test.jsonl")})
    encode(source, work, ("test-asr", "test-response-tts"))
    results = {}
    for name in BASE:
        numbers = measure(source / name, name, work, work / f"{name}.json")
        results[name] = {key: [value] for key, value in numbers.items()}
    return results


# --- tables and plots ---

@dataclass(frozen=True)
class Column:
    """A column of a table: a number of judge.py, after a stage."""
    title: str
    stage: str
    number: str


RECOGNITION = Column("WER after post-training-2", PT2, "wer")
READING = Column("nats a token, ASR-style", PT2, "loss")
RIGHT = Column("answers right", FT2, "right")
ANSWER = Column("nats a token, answers", FT2, "loss")
EARLY = Column("wrote into the question", FT2, "early")
THINKS = Column("first word, s", FT2, "thinks")
TABLES = {  # name of the table and the plot -> arms, columns
    "rq1": (
        ("no interruptions", "word-aligned", "γ 0.5 throughout", "word-aligned, γ 0.5 throughout"),
        (RECOGNITION, READING, RIGHT, ANSWER)),
    "rq2": (
        ("base", "TTS only", "ASR only", "no fine-tuning-1"),
        (RECOGNITION, RIGHT, ANSWER)),
    "rq3": (
        ("base", "no interruptions"),
        (Column("first word, s: fine-tuning-1", FT1, "thinks"), THINKS,
         Column("quiet in 1 s: fine-tuning-1", FT1, "stopped"),
         Column("quiet in 1 s", FT2, "stopped"),
         Column("if not interrupted", FT2, "alone"),
         Column("interruption answered", FT2, "right_after"))),
    "table4": (
        ("base", "shipped"),
        (Column("WER after post-training-1", PT1, "wer"),
         Column("wrote into the question", PT1, "early"), RECOGNITION,
         Column("wrote into the question", PT2, "early"),
         Column("WER after fine-tuning-1", FT1, "transcripts"), RIGHT)),
    "weights": (
        ("base", "γ 0.5", "γ 0.5 throughout", "γ 0.01", "α₁ 100"),
        (RIGHT, ANSWER, EARLY, THINKS)),
}


def numbers_in(results, arm, column):
    """The numbers of an arm in a column, one for each seed."""
    return results.get(arm, {}).get(column.stage, {}).get(column.number, [])


def brief(number):
    if number["value"] is None:
        return "-"
    return (f"{number['value']:.2f} ({number['low']:.2f} .. {number['high']:.2f}, "
            f"n {number['n']})")


def table(results, arms, columns):
    """Markdown: a line for each seed's number, with its 95 % interval and count."""
    titles = " | ".join(column.title for column in columns)
    lines = [f"| | {titles} |", "| --- |" + " --- |" * len(columns)]
    for arm in arms:
        cells = []
        for column in columns:
            numbers = [brief(number) for number in numbers_in(results, arm, column)]
            cells.append("<br>".join(numbers) or "-")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results, arms, columns, file):
    """A panel for each column, a row for each arm, a dot with its interval for each seed."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    size = (2.6 * len(columns), 0.8 + 0.4 * len(arms))
    figure, panels = pyplot.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
    upwards = arms[::-1]
    for panel, column in zip(panels[0], columns):
        for row, arm in enumerate(upwards):
            for seed, number in enumerate(numbers_in(results, arm, column)):
                if number["value"] is None:
                    continue
                interval = [number["low"], number["value"], number["high"]]
                height = row - 0.15 * seed
                panel.plot(interval, [height] * 3, ".-", color="0.6", markevery=[1], mec="k",
                           mfc="k")
        panel.set_title(column.title, fontsize=8)
        panel.set_yticks(range(len(arms)), upwards)
        panel.set(xlim=(0, None), ylim=(-0.6, len(arms) - 0.6))
        panel.locator_params(axis="x", nbins=4)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def report():
    """results.json -> the plots of RESULTS.md and, folded behind each, its table, between two
    comments."""
    results = json.loads((HERE / "results" / "results.json").read_text())
    page = HERE / "RESULTS.md"
    text = page.read_text()
    for name, (arms, columns) in TABLES.items():
        mark = f"<!-- {name} -->"
        before, rest = text.split(mark)
        _, after = rest.split("<!-- end -->", 1)
        block = (f"![{name}](results/{name}.png)\n\n<details>\n<summary>The numbers</summary>\n\n"
                 f"{table(results, arms, columns)}\n\n</details>")
        text = f"{before}{mark}\n{block}\n<!-- end -->{after}"
        plot(results, arms, columns, HERE / "results" / f"{name}.png")
    page.write_text(text)


def train_and_measure(args):
    """Every arm and seed that is not done yet, then results.json."""
    write_manifests(args.work, args.source, split(args.source))
    encode(args.source, args.work, GRIDS)
    arms = [args.only] if args.only else ARMS
    for seed in range(args.seeds):
        for arm in arms:
            run(arm, seed, args.source, args.work)
    results = measure_all(args.source, args.work, args.seeds)
    (HERE / "results" / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def main():
    torch.set_num_threads(1)  # models of this size gain nothing from a second core
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=HERE / "work",
                        help="make.py's work folder (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "questions",
                        help="folder for grids and runs (default: %(default)s)")
    parser.add_argument("--only", choices=ARMS, help="train this arm alone")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--report", action="store_true",
                        help="train and measure nothing: tables and plots from results.json")
    args = parser.parse_args()
    try:
        if not args.report:
            train_and_measure(args)
        report()
    except (OSError, ValueError) as error:
        sys.exit(f"questions.py: {error}")
    except KeyboardInterrupt:
        sys.exit("questions.py: stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
