"""The paper's questions (section 4), asked of a world so small that each arm trains in minutes on one CPU core.

What this is: arms that differ from another arm in one setting alone, trained on the same data for the same steps with
several seeds through data.encode and train.train, measured by judge.py, and the tables and plots of RESULTS.md. What
this is not: the shipped model (make.py), or the paper's scale, at which the answers may be others.

    python tiny/questions.py                               # every arm and seed not done yet, then results.json, plots, RESULTS.md
    python tiny/questions.py --only word-aligned --seeds 1
    python tiny/questions.py --report                      # tables and plots again, from results.json

Recordings and codec are make.py's, in tiny/work. Arms share what they have in common: a stage is trained once for all
whose settings are the same up to its end.
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
from workshop import model_files  # noqa: E402
from moshi import align  # noqa: E402
from workshop.batches import Batches  # noqa: E402
from workshop.manifests import write_lines  # noqa: E402

# --- the world: some kinds of questions, asked by few voices; whole recordings are kept for the test ---
KINDS, USERS, TESTED = ("capital", "opposite", "color", "sound", "self", "greeting"), ("joe",), 240
CONFIG = replace(flm.PRESETS["tiny"], hidden_size=192, intermediate_size=512, num_hidden_layers=4, head_dim=None, depth_layers=1,
                 depth_heads=2, depth_dim=64)
GRIDS = {  # manifest, format, lines joined to a sample (fewest, most)
    "tts": ("train-tts", "tts", 1, 4), "asr": ("train-asr", "asr", 1, 4), "asr-response-tts": ("train", "asr-response-tts", 1, 3),
    "response-tts": ("train", "response-tts", 1, 4), "response-tts-free": ("train", "response-tts-free", 2, 4),
    "test-asr": ("test-asr", "asr", 1, 1), "test-response-tts": ("test", "response-tts", 1, 1),
}
ALIGNED = GRIDS.keys() - {"response-tts-free"}  # which are made with Moshi's monologue too


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


ALL_ARMS = dict(batch=4, length=320, epochs=1, repeats=0.2, depth_share=0.3, compile=True, save_every=200, keep=1)
BASE = {
    "post-training-1": Stage(("tts", "asr"), 400, (1.5e-3, 1e-3)),
    "post-training-2": Stage(("tts", "asr"), 100, (1e-3, 8e-4)),
    "fine-tuning-1": Stage(("asr-response-tts",), 200, (1e-3, 8e-4)),
    "fine-tuning-2": Stage(("response-tts", "response-tts-free"), 300, (1e-3, 2e-5), wait_weight=1.0),
}
POST, LAST = ("post-training-1", "post-training-2"), "fine-tuning-2"
ARMS = {
    "base": None,
    "no interruptions": Arm("base", "grids", {LAST: ("response-tts",)}),
    "word-aligned": Arm("no interruptions", "grids", {
        **dict.fromkeys(POST, ("tts-aligned", "asr-aligned")), "fine-tuning-1": ("asr-response-tts-aligned",), LAST: ("response-tts-aligned",)}),
    "γ 0.5 throughout": Arm("no interruptions", "wait_weight", dict.fromkeys(BASE, 0.5)),
    "word-aligned, γ 0.5 throughout": Arm("word-aligned", "wait_weight", dict.fromkeys(BASE, 0.5)),
    "no fine-tuning-1": Arm("base", "grids", {"fine-tuning-1": ("response-tts", "response-tts-free")}),
    "γ 0.01": Arm("base", "wait_weight", {LAST: 0.01}),
    "α₁ 100": Arm("base", "semantic_weight", {LAST: 100.0}),
    "ASR only": Arm("base", "grids", dict.fromkeys(POST, ("asr",))),
    "TTS only": Arm("base", "grids", dict.fromkeys(POST, ("tts",))),
    "γ 0.5": Arm("base", "wait_weight", {LAST: 0.5}),
}


def stages(arm):
    """The Stages of an arm by name, in order."""
    if ARMS[arm] is None:
        return BASE
    before, change = stages(ARMS[arm].like), ARMS[arm]
    return {name: replace(stage, **{change.field: change.values[name]}) if name in change.values else stage for name, stage in before.items()}


def folder(work, arm, name, seed):
    """Where a stage of an arm is trained: a name made of all that went before it, which arms that share it share."""
    course = [vars(stages(arm)[n]) for n in list(BASE)[:list(BASE).index(name) + 1]]
    return work / "runs" / f"{name}-{hashlib.sha1(json.dumps(course).encode()).hexdigest()[:8]}-{seed}"


# --- data ---

def write_manifests(work, source, split):
    """Dialogs of make.py's manifests, {name: rows} -> NAME.jsonl, and their two sides as pairs, NAME-tts.jsonl and NAME-asr.jsonl."""
    work.mkdir(parents=True, exist_ok=True)
    for name, rows in split.items():
        turns = [turn | {key: str((source / turn[key]).resolve()) for key in ("heard", "spoken")} for row in rows for turn in row["turns"]]
        write_lines(work / f"{name}.jsonl", [row | {"turns": [turn]} for row, turn in zip(rows, turns)])
        for pair, audio, text in (("tts", "spoken", "response"), ("asr", "heard", "transcript")):
            write_lines(work / f"{name}-{pair}.jsonl", [{"audio": turn[audio], "text": turn[text]} for turn in turns])


def split(source):
    """The small world: {"train": rows, "test": rows}. What differs in pitch alone, and stands side by side, stays together."""
    rows = [json.loads(line) for name in ("train", *(f"more-{user}" for user in USERS)) for line in open(source / f"{name}.jsonl")]
    rows = [row for row in rows if row["kind"] in KINDS and row["voice"].split(":")[0] in USERS]
    takes = [rows[i:i + 2] for i in range(0, len(rows), 2)]
    random.Random(0).shuffle(takes)
    rows = sum(takes, [])
    return {"test": rows[:TESTED], "train": rows[TESTED:]}


def encode(source, work, names):
    """Some of GRIDS, and those of ALIGNED once more with Moshi's monologue beside the same sounds."""
    for name in names:
        manifest, format, *joined = GRIDS[name]
        backchannels = ()
        if format == "response-tts-free":
            backchannels = (source / "backchannels",)
        # Decision: in minutes nobody learns to bear ten quiet seconds, and without them the frames
        # are a fifth fewer. The test's grids stand in the order of its manifest, for judge.py.
        settings = data.Settings(format, join=tuple(joined), backchannels=backchannels, long_silences=0,
                                 shuffled=not name.startswith("test"))
        data.encode(work / f"{manifest}.jsonl", work / "grids" / name, source / "start", settings)
        if name in ALIGNED:
            align(source, work / "grids" / name, format)


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
            chosen = {key: value for key, value in vars(stage).items() if key not in ("grids", "steps")}
            settings = train.Settings(tuple(work / "grids" / grids for grids in stage.grids), init, out, stage=name, seed=seed,
                                      bfloat16=computes_bfloat16("cpu"), **chosen, **ALL_ARMS)
            train.train(replace(settings, epochs=(stage.steps - 0.5) / Batches(settings, CONFIG).steps_per_epoch))
            shutil.rmtree(out / "checkpoints")
            (out / ".done").touch()
        init = out


# --- measuring ---

def measure_all(source, work, seeds):
    """{arm: {stage: {number: a list, one for each seed}}} of what is trained and in a table; and the four stages that make.py
    trained, asked the questions of its test.jsonl (where they are gone, what is known of them stays)."""
    results, shipped = {}, work / "shipped"
    shown = {(arm, stage) for arms, columns in TABLES.values() for arm in arms for _, stage, _ in columns}
    for arm in ARMS:
        for name, stage in ((name, stage) for name, stage in stages(arm).items() if (arm, name) in shown):
            outs = [folder(work, arm, name, seed) for seed in range(seeds)]
            aligned = "-aligned" * any("aligned" in grids for grids in stage.grids)
            found = [measure(out, name, work, out / "measured.json", aligned, arm in TABLES["rq3"][0]) for out in outs if (out / ".done").exists()]
            results.setdefault(arm, {})[name] = {key: [f[key] for f in found] for key in (found or [{}])[0]}
    if not all((source / name).exists() for name in BASE):
        return results | {"shipped": json.loads((HERE / "results" / "results.json").read_text())["shipped"]}
    write_manifests(shipped, source, {"test": [json.loads(line) for line in open(source / "test.jsonl")]})
    encode(source, shipped, ("test-asr", "test-response-tts"))
    found = {name: measure(source / name, name, shipped, shipped / f"{name}.json") for name in BASE}
    return results | {"shipped": {name: {key: [value] for key, value in numbers.items()} for name, numbers in found.items()}}


# --- tables and plots ---

PT1, PT2, FT1, FT2 = BASE
RECOGNITION, READING = ("WER after post-training-2", PT2, "wer"), ("nats a token, ASR-style", PT2, "loss")
RIGHT, ANSWER = ("answers right", FT2, "right"), ("nats a token, answers", FT2, "loss")
EARLY, THINKS = ("wrote into the question", FT2, "early"), ("first word, s", FT2, "thinks")
TABLES = {  # name of the table and the plot -> arms, columns (title, stage, number)
    "rq1": (("no interruptions", "word-aligned", "γ 0.5 throughout", "word-aligned, γ 0.5 throughout"), (RECOGNITION, READING, RIGHT, ANSWER)),
    "rq2": (("base", "TTS only", "ASR only", "no fine-tuning-1"), (RECOGNITION, RIGHT, ANSWER)),
    "rq3": (("base", "no interruptions"), (("first word, s: fine-tuning-1", FT1, "thinks"), THINKS, ("quiet in 1 s: fine-tuning-1", FT1, "stopped"),
            ("quiet in 1 s", FT2, "stopped"), ("if not interrupted", FT2, "alone"), ("interruption answered", FT2, "right_after"))),
    "table4": (("base", "shipped"), (("WER after post-training-1", PT1, "wer"), ("wrote into the question", PT1, "early"), RECOGNITION,
               ("wrote into the question", PT2, "early"), ("WER after fine-tuning-1", FT1, "transcripts"), RIGHT)),
    "weights": (("base", "γ 0.5", "γ 0.5 throughout", "γ 0.01", "α₁ 100"), (RIGHT, ANSWER, EARLY, THINKS)),
}


def table(results, arms, columns):
    """Markdown: a line for each seed's number, with its 95 % interval and count."""
    def short(x):
        return "-" if x["value"] is None else f"{x['value']:.2f} ({x['low']:.2f} .. {x['high']:.2f}, n {x['n']})"
    lines = ["| | " + " | ".join(title for title, *_ in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for arm in arms:
        cells = [results.get(arm, {}).get(stage, {}).get(key, []) for _, stage, key in columns]
        lines.append(f"| {arm} | " + " | ".join("<br>".join(map(short, cell)) or "-" for cell in cells) + " |")
    return "\n".join(lines)


def plot(results, arms, columns, file):
    """A panel a column, a row an arm, a dot with its interval for each seed."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, len(columns), figsize=(2.6 * len(columns), 0.8 + 0.4 * len(arms)), sharey=True, squeeze=False)
    for panel, (title, stage, key) in zip(panels[0], columns):
        for row, arm in enumerate(arms[::-1]):
            for seed, x in enumerate(results.get(arm, {}).get(stage, {}).get(key, [])):
                if x["value"] is not None:
                    panel.plot([x["low"], x["value"], x["high"]], [row - 0.15 * seed] * 3, ".-", color="0.6", markevery=[1], mec="k", mfc="k")
        panel.set_title(title, fontsize=8)
        panel.set_yticks(range(len(arms)), arms[::-1])
        panel.set(xlim=(0, None), ylim=(-0.6, len(arms) - 0.6))
        panel.locator_params(axis="x", nbins=4)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def report():
    """results.json -> the plots, and the tables of RESULTS.md, each between two comments."""
    results, page = json.loads((HERE / "results" / "results.json").read_text()), HERE / "RESULTS.md"
    text = page.read_text()
    for name, (arms, columns) in TABLES.items():
        before, rest = text.split(f"<!-- {name} -->")
        after = rest.split("<!-- end -->", 1)[1]
        text = f"{before}<!-- {name} -->\n{table(results, arms, columns)}\n\n![{name}](results/{name}.png)\n<!-- end -->{after}"
        plot(results, arms, columns, HERE / "results" / f"{name}.png")
    page.write_text(text)


def main():
    torch.set_num_threads(1)  # models of this size gain nothing from a second core
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=HERE / "work", help="make.py's work folder (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "questions", help="folder for grids and runs (default: %(default)s)")
    parser.add_argument("--only", choices=ARMS, help="train this arm alone")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="train and measure nothing: tables and plots from results.json")
    args = parser.parse_args()
    try:
        if not args.report:
            write_manifests(args.work, args.source, split(args.source))
            encode(args.source, args.work, GRIDS)
            for seed in range(args.seeds):
                for arm in [args.only] if args.only else ARMS:
                    run(arm, seed, args.source, args.work)
            (HERE / "results" / "results.json").write_text(json.dumps(measure_all(args.source, args.work, args.seeds), indent=1) + "\n")
        report()
    except (OSError, ValueError) as error:
        sys.exit(f"questions.py: {error}")
    except KeyboardInterrupt:
        sys.exit("questions.py: stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
