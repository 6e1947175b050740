"""Make a model like the small one that ships with this repository, from nothing: one command,
resumable, for 2 CPU cores.

What this is: the order of the steps and their sizes. Text comes from world.py, speech from
voices.py, the codec from codec.py. Everything else comes from the files of the book, called as a
user would call them. What this is not: needed in order to chat.

    pip install -r requirements.txt -r tiny/requirements.txt
    apt install espeak-ng flite g++ python3-dev festival festvox-kdlpc16k festvox-us-slt-hts
    python tiny/make.py                      # every step that is not done; files go to tiny/work/
    python tiny/make.py --only fine-tuning-2 # one step; it goes on from its checkpoint
    python tiny/make.py --share 0.01 --work /tmp/rehearsal   # all in small, to try this machine

At the end tiny/work/model is a model folder: `python chat.py --model tiny/work/model --in ...`. To
ship it, copy it to tiny/model, copy tiny/work/examples to examples, and hold the README's
conversation again.
"""
import argparse
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import data  # noqa: E402
import eval as evaluate  # noqa: E402
import flm  # noqa: E402
import train  # noqa: E402
import voices  # noqa: E402
import world  # noqa: E402
from workshop import gguf_files, model_files  # noqa: E402
from workshop.manifests import write_lines  # noqa: E402

# --- sizes ---

# How many questions each engine records, and at how many pitches each recording is kept. On the
# first helping the codec and the stages up to the last learn. The second is for the last stage. It
# has more lists of words: LISTS of them, and several users ask each.
RECORDINGS = {"espeak": (8000, 1), "flite": (1200, 1), "joe": (1600, 2), "kokoro": (500, 4)}
MORE_RECORDINGS = {
    "espeak": (70_000, 1), "flite": (7500, 1), "festival": (2000, 2), "pico": (2000, 2),
    "joe": (3800, 2), "kokoro": (7000, 4),
}
LIST_RECORDINGS = {
    "espeak": (20_000, 1), "flite": (3000, 1), "pico": (800, 2), "joe": (800, 2),
    "kokoro": (1500, 4),
}
LISTS = 9000
HELD_OUT_PER_VOICE = 30
# Seconds of silence before the answer, a frame more than data.py's: a list may go on (LOG.md).
PATIENCE = {"repeat": 0.24}
# What examples/ holds: questions of a voice that is never trained on. The second file has pauses
# for the answers.
QUESTION = ("espeak:en-us+m3", "What is the capital of France?")
CONVERSATION = ("espeak:en-us+m3", [
    "Good morning.", "What is the capital of Japan?", "How much is seven plus eight?",
    "Repeat after me: dragon, river, candle.", "Tell me the opposite of happy.", "Who are you?",
])
PAUSE = 3.6             # seconds
# No "mm hm": most engines spell it, "em em aitch em".
BACKCHANNELS = ["Uh huh.", "Sure.", "Okay.", "Right.", "Yeah.", "I see."]
MORE_BACKCHANNELS = ["Yes.", "Oh.", "Aha.", "Got it.", "Really?"]  # said in training alone
BACKCHANNEL_CLIPS = {
    "espeak": (5000, 1), "flite": (1200, 1), "festival": (300, 1), "pico": (500, 2),
    "joe": (600, 1), "kokoro": (1100, 4),
}
MORE_ANSWERS = 6000     # drawn, of the model's voice alone, for its speech
CODEC_STEPS = 4500
POLISHING_STEPS = 3000
HEARING_STEPS = 4200
# Seconds; two frames more than the paper's: the model hears more of a back-channel (LOG.md).
REACTION = 0.64
# The last training, on rows of 2,048 frames: this many questions of each engine, answered in the
# model's own codes (replay.py); then the weights go so much of the way from before it.
REPLAYED = 10_000
REPLAY_SHARES = {
    "espeak": 0.6, "flite": 0.14, "kokoro": 0.1, "pico": 0.08, "joe": 0.06, "festival": 0.02,
}
LONG_ROW = 2048         # frames
LONG_SHARE = 0.85


@dataclass(frozen=True)
class Grids:
    """A folder of grids. `more` are other fields of data.Settings, in which folders are named
    relative to the work folder."""
    manifest: str
    format: str
    join: tuple     # fewest and most lines of the manifest in a sample
    draws: int = 1
    more: dict = field(default_factory=dict)


FIRST_GRIDS = {
    "tts": Grids("joe.jsonl", "tts", (1, 4)),
    "asr": Grids("users.jsonl", "asr", (1, 4), 1, dict(speeds=(0.9, 1.1))),
    "asr-response-tts": Grids("train.jsonl", "asr-response-tts", (1, 3), 1,
                              dict(speeds=(0.9, 1.1))),
    "response-tts": Grids("train.jsonl", "response-tts", (1, 3), 2, dict(speeds=(0.88, 1.13))),
    "response-tts-free": Grids("train.jsonl", "response-tts-free", (2, 4), 1,
                               dict(speeds=(0.88, 1.13), backchannels="backchannels")),
}


def grids_of_engines(engines):
    """The grids of the second helping: of each engine's dialogs, with and without interruptions. A
    user murmurs as the engine that asks. Where only strangers murmured, the model told a murmur
    from a question by the voice alone (LOG.md)."""
    table = {}
    for engine in engines:
        manifest = f"more-{engine}.jsonl"
        more = dict(speeds=(0.88, 1.13), rooms=True, hearing="hearing")
        free = dict(more, backchannels=f"backchannels/{engine}", reaction=REACTION)
        table[f"response-tts-{engine}"] = Grids(manifest, "response-tts", (1, 3), 1, more)
        table[f"response-tts-free-{engine}"] = Grids(manifest, "response-tts-free", (2, 4), 1, free)
    return table


def long_grids_of_engines(engines):
    """The grids of the last training: conversations that fill a row of LONG_ROW frames, with
    silences of up to 100 s, and short ones."""
    table = {}
    for engine in engines:
        manifest = f"replay/dialogs-{engine}.jsonl"
        more = dict(speeds=(0.88, 1.13), rooms=True, hearing="hearing",
                    longest_sample=LONG_ROW - 1)
        free = dict(more, backchannels=f"backchannels/{engine}", reaction=REACTION)
        table[f"long-free-{engine}"] = Grids(manifest, "response-tts-free", (6, 26), 1,
                                             dict(free, longest_silence=100))
        table[f"short-free-{engine}"] = Grids(manifest, "response-tts-free", (1, 4), 1, free)
        table[f"long-{engine}"] = Grids(manifest, "response-tts", (6, 26), 1,
                                        dict(more, longest_silence=100))
    return table


MORE_GRIDS = grids_of_engines(MORE_RECORDINGS)
LONG_GRIDS = long_grids_of_engines(REPLAY_SHARES)


@dataclass(frozen=True)
class Stage:
    """A stage, or a part of the last one. more: other fields of train.Settings."""
    grids: tuple
    epochs: float
    lr: tuple      # learning rate at the start and at the end
    more: dict = field(default_factory=dict)


# Decision: the rates of Table 3 are those of models with billions of parameters. A model this
# small, trained from nothing, wants more. In the last stage speech is learned already and hearing
# is not, and a <wait> weighs as much as a word: see LOG.md.
ALL_STAGES = dict(batch=4, length=640, repeats=0.2, compile=True)
STAGES = {
    "post-training-1": Stage(("tts", "asr"), 2, (1e-3, 4e-4)),
    "post-training-2": Stage(("tts", "asr"), 1, (4e-4, 3e-4)),
    "fine-tuning-1": Stage(("asr-response-tts",), 2, (6e-4, 3e-4)),
    "fine-tuning-2": Stage(("response-tts", "response-tts-free"), 3.6, (6e-4, 2e-5),
                           dict(depth_share=0.3, wait_weight=1.0)),
    "fine-tuning-2-more": Stage(tuple(MORE_GRIDS), 2.4, (6e-4, 2e-5),
                                dict(depth_share=0.3, wait_weight=1.0, hide=0.12)),
    "fine-tuning-2-last": Stage(tuple(MORE_GRIDS), 0.3, (4e-4, 1e-5),
                                dict(depth_share=0.5, wait_weight=1.0, hide=0.12)),
    "fine-tuning-2-long": Stage(tuple(LONG_GRIDS), 3, (4e-4, 1e-5),
                                dict(depth_share=0.3, wait_weight=1.0, hide=0.12, batch=3,
                                     length=LONG_ROW)),
}


def _part(count, share):
    """--share of a count, and one at least."""
    return max(1, round(count * share))


# --- text and speech ---

def plan_speech(recordings, seed, share, pool=()):
    """The questions to record, drawn from a pool or from the world: dicts with text, answer, kind,
    voice, speed, pitch. The same list in every run."""
    rng = random.Random(seed)
    jobs = []
    for engine, (count, pitches) in recordings.items():
        count = _part(count, share)
        if pool:
            questions = rng.choices(pool, k=count)
        else:
            questions = world.sample(count, rng.random(), held_out=False)
        for pair in questions:
            voice, speed, _ = voices.draw_user(rng, engine)
            for _ in range(pitches):
                _, _, pitch = voices.draw_user(rng, engine)
                jobs.append(dict(text=pair.question, answer=pair.answer, kind=pair.kind,
                                 voice=voice, speed=round(speed, 2), pitch=round(pitch, 3)))
    return jobs


def plan_test(share):
    """The same of the questions that are kept for evaluation."""
    jobs = []
    each = _part(HELD_OUT_PER_VOICE, share)
    for i, voice in enumerate(voices.HELD_OUT):
        unseen = world.sample(each // 2, 1000 + i, held_out=True)
        for pair in unseen + world.sample(each - len(unseen), 2000 + i, held_out=False):
            jobs.append(dict(text=pair.question, answer=pair.answer, kind=pair.kind, voice=voice,
                             speed=1.0, pitch=1.0, unseen_words=pair.held_out))
    return jobs


def clip_name(*parts):
    return hashlib.sha1(" ".join(map(str, parts)).encode()).hexdigest()[:16] + ".wav"


def _record(job):
    path, *how = job  # text, voice, speed, pitch
    if os.path.exists(path):
        return
    audio = voices.say(*how)
    file = io.BytesIO()  # soundfile would wait for the disk after each of many thousand files
    soundfile.write(file, audio, voices.SAMPLE_RATE, format="WAV", subtype="PCM_16")
    Path(path + ".part").write_bytes(file.getvalue())
    os.replace(path + ".part", path)


def record_all(jobs, what):
    """jobs: tuples that `_record` takes, those of one text and voice beside each other."""
    voices.prepare()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        clips = pool.imap(_record, jobs, chunksize=6)
        for _ in tqdm(clips, total=len(jobs), desc=what, unit="clip", smoothing=0.02):
            pass


def _record_dialogs(work, name, jobs):
    """Questions by their users, answers by Joe, and the manifest NAME.jsonl -> the pairs of the
    users, and Joe's clip of each answer as a dict."""
    clips = {}
    lines = []
    users = []
    joe = {}
    (work / "speech").mkdir(parents=True, exist_ok=True)
    for job in jobs:
        how = (job["text"], job["voice"], job["speed"], job["pitch"])
        question = f"speech/{clip_name(*how)}"
        answer = f"speech/{clip_name(job['answer'], voices.MODEL_VOICE)}"
        clips[question] = (str(work / question), *how)
        clips[answer] = (str(work / answer), job["answer"], voices.MODEL_VOICE, 1.0, 1.0)
        turn = {"heard": question, "transcript": job["text"],
                "spoken": answer, "response": job["answer"],
                "patience": PATIENCE.get(job["kind"])}
        about = {key: job[key] for key in ("kind", "voice", "unseen_words") if key in job}
        lines.append({"turns": [turn], **about})
        users.append({"audio": question, "text": job["text"]})
        joe[job["answer"]] = answer
    record_all(list(clips.values()), name)
    write_lines(work / f"{name}.jsonl", lines)
    return users, joe


def plan_backchannels(clips, share):
    """The "uh huh" that users say into answers: a list of (folder, text, voice, speed, pitch), the
    same in every run. clips: {engine: (how many, at how many pitches)}."""
    rng = random.Random(5000)
    backchannels = []
    for engine, (count, pitches) in clips.items():
        folder = f"backchannels/{engine}"
        texts = itertools.cycle(BACKCHANNELS + MORE_BACKCHANNELS)
        for text in itertools.islice(texts, _part(count, share)):
            voice, speed, _ = voices.draw_user(rng, engine)
            for _ in range(pitches):
                _, _, pitch = voices.draw_user(rng, engine)
                backchannels.append((folder, text, voice, speed, pitch))
    return backchannels


def record_backchannels(work, backchannels):
    """backchannels: (folder, text, voice, speed, pitch) of each."""
    jobs = [(str(work / folder / clip_name(*how)), *how) for folder, *how in backchannels]
    for folder in {folder for folder, *_ in backchannels}:
        (work / folder).mkdir(parents=True, exist_ok=True)
    record_all(jobs, "back-channels")


def test_speech(args):
    """What is evaluated on: voices kept for it ask, dialogs in test.jsonl, and murmur, in the
    folder backchannels-test."""
    _record_dialogs(args.work, "test", plan_test(args.share))
    backchannels = []
    for text, voice in zip(itertools.cycle(BACKCHANNELS), voices.HELD_OUT * 3):
        backchannels.append(("backchannels-test", text, voice, 1.0, 1.0))
    record_backchannels(args.work, backchannels)


def speech(args):
    """Text to speech: every question by its user's voice, every answer by Joe.

    Manifests: dialogs in train.jsonl, pairs of the users in users.jsonl, pairs of Joe, answers to
    more questions among them, in joe.jsonl; and users' "uh huh" in the folder backchannels."""
    work = args.work
    users, joe = _record_dialogs(work, "train", plan_speech(RECORDINGS, 0, args.share))
    record_backchannels(work, plan_backchannels(BACKCHANNEL_CLIPS, args.share))
    questions = world.sample(_part(MORE_ANSWERS, args.share), 3000, held_out=False)
    more = {}
    for pair in questions:
        more[pair.answer] = f"speech/{clip_name(pair.answer, voices.MODEL_VOICE)}"
    jobs = [(str(work / path), text, voices.MODEL_VOICE, 1.0, 1.0) for text, path in more.items()]
    record_all(jobs, "answers")
    write_lines(work / "users.jsonl", users)
    pairs = [{"audio": path, "text": text} for text, path in (joe | more).items()]
    write_lines(work / "joe.jsonl", pairs)


def more_speech(args):
    """The second helping: dialogs by each engine in more-ENGINE.jsonl."""
    lists = world.sample(_part(LISTS, args.share), 2, held_out=False, kind="repeat")
    jobs = plan_speech(MORE_RECORDINGS, 1, args.share)
    jobs += plan_speech(LIST_RECORDINGS, 3, args.share, lists)
    for engine in MORE_RECORDINGS:
        of_engine = [job for job in jobs if job["voice"].partition(":")[0] == engine]
        _record_dialogs(args.work, f"more-{engine}", of_engine)


def replayed_speech(args):
    """Questions with the answers that the model gives itself, in replay/dialogs-ENGINE.jsonl."""
    import replay
    out = args.work / "replay"
    jobs = replay.record_questions(out, REPLAY_SHARES, _part(REPLAYED, args.share), seed=11)
    # A model that has learnt nothing, as in a rehearsal, answers nothing right: then any answer
    # will do.
    speaker = replay.Speaker(args.work / "short-model")
    paths = replay.record_answers(out, jobs, speaker)
    if args.share < 1 and len(paths) < 2:
        paths = _record_replayed_by_joe(out, jobs)
    replay.write_manifest(out, jobs, paths)
    lines = [json.loads(line) for line in open(out / "dialogs.jsonl")]
    for engine in REPLAY_SHARES:
        of_engine = [line for line in lines if line["voice"].partition(":")[0] == engine]
        write_lines(out / f"dialogs-{engine}.jsonl", of_engine)


def _record_replayed_by_joe(out, jobs):
    """For a rehearsal: Joe's recording of every answer -> {answer: path relative to `out`}"""
    (out / "spoken").mkdir(parents=True, exist_ok=True)
    paths = {}
    for job in jobs:
        paths[job["answer"]] = f"spoken/{clip_name(job['answer'], voices.MODEL_VOICE)}"
    record_all([(str(out / path), answer, voices.MODEL_VOICE, 1.0, 1.0)
                for answer, path in paths.items()], "answers")
    return paths


# --- codec, tokenizer, grids ---

def codec(args):
    """The codec, on the first helping: work/start/mimi.json and mimi.safetensors."""
    import codec as trainer
    trainer.train(args.work, args.work / "start", _part(CODEC_STEPS, args.share),
                  _part(POLISHING_STEPS, args.share), args.device)


def hearing(args):
    """An encoder that hears better, for the model that ships: work/hearing/mimi.json and
    mimi.safetensors."""
    import codec as trainer
    trainer.train_hearing(args.work, args.work / "start", args.work / "hearing",
                          _part(HEARING_STEPS, args.share), args.device)


def tokenizer(args):
    """A byte-level BPE of the world's texts, and the model before training, beside the codec in
    work/start."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    config = flm.PRESETS["tiny"]
    texts = []
    for pair in world.sample(20_000, 4000):
        texts += [pair.question, pair.answer]
    special = {
        config.wait_token: "<wait>", config.asr_token: "<asr>", config.answer_token: "<answer>",
    }
    in_order = ["<unused>", *(special[token] for token in sorted(special))]
    bpe = Tokenizer(models.BPE())
    gguf_files.cut_words(bpe, "gpt-2")
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size, show_progress=False, special_tokens=in_order,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainer)
    bpe.save(str(args.work / "start" / "tokenizer.json"))
    torch.manual_seed(0)
    model_files.save(flm.init_weights(flm.FLM(config)), args.work / "start")


def encode(table, args):
    """Encoded grids of the manifests of a table, with the codec and tokenizer in work/start."""
    work = args.work
    for name, grids in table.items():
        if not (work / grids.manifest).read_text():
            continue  # a rehearsal may have no dialog of an engine
        more = dict(grids.more)
        if "backchannels" in more:
            more["backchannels"] = (work / more["backchannels"],)
        if "hearing" in more:
            more["hearing"] = work / more["hearing"]
        settings = data.Settings(grids.format, join=grids.join, draws=grids.draws, **more)
        data.encode(work / grids.manifest, work / "grids" / name, work / "start", settings,
                    device=args.device, workers=os.cpu_count())


# --- training ---

def computes_bfloat16(device):
    """Whether products in 16 bits take less than three times as long as in 32. Without instructions
    for them they take fifty times as long."""
    x = torch.randn(512, 512, device=device)
    in_16_bits = min(seconds_of_products(x.bfloat16()) for _ in range(3))
    return in_16_bits < 3 * min(seconds_of_products(x) for _ in range(3))


def seconds_of_products(x):
    started = time.perf_counter()
    for _ in range(10):
        (x @ x).sum().item()
    return time.perf_counter() - started


def stage(name, args):
    """One of the paper's four stages, or a part of the last, from the one before it."""
    work = args.work
    names = list(STAGES)
    init = work / "start"
    if name != names[0]:
        init = work / names[names.index(name) - 1]
    chosen = STAGES[name]
    folders = [work / "grids" / folder for folder in chosen.grids]
    folders = [folder for folder in folders if folder.exists()]
    of_the_paper = "-".join(name.split("-")[:3])  # parts have a fourth word
    train.train(train.Settings(
        grids=tuple(folders), init=init, out=work / name, stage=of_the_paper, epochs=chosen.epochs,
        lr=chosen.lr, device=args.device, bfloat16=computes_bfloat16(args.device),
        **{**ALL_STAGES, **chosen.more}))


def lay_beside(work, out):
    """Tokenizer, sampling and the codec that hears, beside the model in `out`."""
    for path in (work / "start/tokenizer.json", work / "hearing/mimi.json",
                 work / "hearing/mimi.safetensors", HERE / "model/sampling.json"):
        shutil.copy(path, out / path.name)


def short_model(args):
    """The model before the long rows, in work/short-model: it answers what is replayed."""
    out = args.work / "short-model"
    model_files.save(model_files.load(args.work / "fine-tuning-2-last"), out)
    lay_beside(args.work, out)


def model(args):
    """The model folder that ships, in work/model: weights LONG_SHARE of the way from before the
    long rows to after them, 16 bits each."""
    out = args.work / "model"
    before = model_files.load(args.work / "fine-tuning-2-last")
    after = model_files.load(args.work / "fine-tuning-2-long")
    with torch.no_grad():
        for old, new in zip(before.parameters(), after.parameters()):
            new.copy_(old.lerp(new, LONG_SHARE))
    model_files.save(after.half(), out)
    lay_beside(args.work, out)


def evaluation(args):
    """The questions of test.jsonl, asked of work/model, also paused, interrupted and disturbed:
    work/evaluation/results.txt."""
    work = args.work
    evaluate.main([
        "--dialogs", str(work / "test.jsonl"), "--most", "240", "--model", str(work / "model"),
        "--out", str(work / "evaluation"), "--backchannels", str(work / "backchannels-test"),
        "--snr", "20", "10", "5", "--rooms", "--leakage", "0.1", "--whisper"])


def examples(args):
    """The sounds of examples/, in work/examples: a question, and a user's side of a
    conversation."""
    out = args.work / "examples"
    out.mkdir(parents=True, exist_ok=True)
    voice, question = QUESTION
    soundfile.write(out / "question.wav", voices.say(question, voice), voices.SAMPLE_RATE)
    pause = np.zeros(round(PAUSE * voices.SAMPLE_RATE), np.float32)
    voice, questions = CONVERSATION
    parts = [pause[:voices.SAMPLE_RATE // 2]]
    for text in questions:
        parts += [voices.say(text, voice), pause]
    soundfile.write(out / "questions.flac", np.concatenate(parts), voices.SAMPLE_RATE)


# --- the command line ---

STEPS = {
    "test": test_speech,
    "speech": speech,
    "codec": codec,
    "hearing": hearing,
    "tokenizer": tokenizer,
    "more-speech": more_speech,
    "grids": functools.partial(encode, FIRST_GRIDS | MORE_GRIDS),
    **{name: functools.partial(stage, name) for name in STAGES if name != "fine-tuning-2-long"},
    "short-model": short_model,
    "replay": replayed_speech,
    "long-grids": functools.partial(encode, LONG_GRIDS),
    "fine-tuning-2-long": functools.partial(stage, "fine-tuning-2-long"),
    "model": model,
    "examples": examples,
    "evaluation": evaluation,
}


def take_steps(args):
    """Every step that is not done yet, or the one of --only. Raises ValueError, OSError."""
    if not 0 < args.share <= 1:
        raise ValueError(f"--share must be above 0 and at most 1, not {args.share:g}")
    args.work.mkdir(parents=True, exist_ok=True)
    share_file = args.work / "share"
    if share_file.exists():
        before = float(share_file.read_text())
        if before != args.share:
            raise ValueError(f"{args.work} was begun with --share {before:g}: choose another "
                             "--work")
    share_file.write_text(f"{args.share}\n")
    for name in [args.only] if args.only else STEPS:
        mark = args.work / f"{name}.done"
        if args.only or not mark.exists():
            print(f"--- {name}", flush=True)
            STEPS[name](args)
            mark.touch()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=HERE / "work",
                        help="folder for everything made on the way (default: %(default)s)")
    parser.add_argument("--only", choices=STEPS,
                        help="this step alone; what of it is finished is not made again")
    parser.add_argument("--device", default="cpu",
                        help="where codec and model are trained (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1,
                        help="of the recordings and of the codec's steps, for a rehearsal in "
                        "another --work (default: %(default)s)")
    try:
        take_steps(parser.parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"make.py: {error}")
    except KeyboardInterrupt:
        sys.exit("make.py: stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
