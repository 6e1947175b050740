"""Make a model like the small one that ships with this repository, from nothing: one command, resumable, for 2 CPU cores.

What this is: the order of things and their sizes. Text comes from world.py, speech from voices.py, the codec from
codec.py, everything else from the rooms of the house, called as a user would call them. What this is not: needed in
order to chat.

    pip install -r requirements.txt -r tiny/requirements.txt; apt install espeak-ng flite g++ python3-dev festival festvox-kdlpc16k festvox-us-slt-hts
    python tiny/make.py                      # every step that is not done yet; work files go to tiny/work/
    python tiny/make.py --only fine-tuning-2 # one step; if it was stopped, it goes on from its checkpoint
    python tiny/make.py --share 0.01 --work /tmp/rehearsal   # everything in small: has this machine what it needs?

At the end tiny/work/model is a model folder: `python chat.py --model tiny/work/model --in ...`. To ship it, copy it to
tiny/model, tiny/work/examples to examples, and hold the README's conversation again.
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
from workshop import model_files  # noqa: E402

# How many questions are recorded by each engine, and at how many pitches each recording is kept: a first helping, on which
# the codec and the stages up to the last learn, and a second for the last, with more lists of words: LISTS of them, asked by
# several users each.
RECORDINGS = {"espeak": (8000, 1), "flite": (1200, 1), "joe": (1600, 2), "kokoro": (500, 4)}
MORE_RECORDINGS = {"espeak": (70_000, 1), "flite": (7500, 1), "festival": (2000, 2), "pico": (2000, 2), "joe": (3800, 2), "kokoro": (7000, 4)}
LIST_RECORDINGS, LISTS = {"espeak": (20_000, 1), "flite": (3000, 1), "pico": (800, 2), "joe": (800, 2), "kokoro": (1500, 4)}, 9000
HELD_OUT_PER_VOICE = 30
PATIENCE = {"repeat": 0.24}  # seconds of silence before the answer, a frame more than data.py's: a list may go on (LOG.md)
# What examples/ holds: questions of a voice that is never trained on, the second file's with pauses for the answers.
QUESTION = ("espeak:en-us+m3", "What is the capital of France?")
CONVERSATION = ("espeak:en-us+m3", ["Good morning.", "What is the capital of Japan?", "How much is seven plus eight?",
                                    "Repeat after me: dragon, river, candle.", "Tell me the opposite of happy.", "Who are you?"])
PAUSE = 3.6             # seconds
BACKCHANNELS = ["Uh huh.", "Sure.", "Okay.", "Right.", "Yeah.", "I see."]  # no "mm hm": most engines spell it, "em em aitch em"
MORE_BACKCHANNELS = ["Yes.", "Oh.", "Aha.", "Got it.", "Really?"]  # said in training alone
BACKCHANNEL_CLIPS = {"espeak": (5000, 1), "flite": (1200, 1), "festival": (300, 1), "pico": (500, 2), "joe": (600, 1), "kokoro": (1100, 4)}
MORE_ANSWERS = 6000     # drawn, of the model's voice alone, for its speech
CODEC_STEPS, POLISHING_STEPS, HEARING_STEPS = 4500, 3000, 4200
REACTION = 0.64         # seconds; two frames more than the paper's, so that more of a murmur is heard by then (LOG.md)
# Grids: manifest, format, manifest lines joined to a sample (fewest, most), draws, and other fields of data.Settings. A user of the
# second helping murmurs as the same engine: where only strangers murmur, their voice alone tells a murmur from a question (LOG.md).
FIRST_GRIDS = {
    "tts": ("joe.jsonl", "tts", 1, 4, 1, {}),
    "asr": ("users.jsonl", "asr", 1, 4, 1, dict(speeds=(0.9, 1.1))),
    "asr-response-tts": ("train.jsonl", "asr-response-tts", 1, 3, 1, dict(speeds=(0.9, 1.1))),
    "response-tts": ("train.jsonl", "response-tts", 1, 3, 2, dict(speeds=(0.88, 1.13))),
    "response-tts-free": ("train.jsonl", "response-tts-free", 2, 4, 1,
                          dict(speeds=(0.88, 1.13), backchannels="backchannels")),
}


def grids_of_engines(engines):
    """The grids of the second helping: of each engine's dialogs, with and without interruptions."""
    table = {}
    for engine in engines:
        file = f"more-{engine}.jsonl"
        more = dict(speeds=(0.88, 1.13), rooms=True, hearing="hearing")
        free = dict(more, backchannels=f"backchannels/{engine}", reaction=REACTION)
        table[f"response-tts-{engine}"] = (file, "response-tts", 1, 3, 1, more)
        table[f"response-tts-free-{engine}"] = (file, "response-tts-free", 2, 4, 1, free)
    return table


MORE_GRIDS = grids_of_engines(MORE_RECORDINGS)
GRIDS = FIRST_GRIDS | MORE_GRIDS
# The four stages, the last in three parts: grids, epochs, learning rate at the start and at the end, other fields of
# train.Settings. The rates of Table 3 are a billion-parameter model's; a model this small, trained from nothing, wants more.
# In the last stage speech is learned already and hearing is not, and a <wait> weighs as much as a word: see LOG.md.
ALL_STAGES = dict(batch=4, length=640, repeats=0.2, compile=True)
STAGES = {
    "post-training-1": (["tts", "asr"], 2, 1e-3, 4e-4, {}),
    "post-training-2": (["tts", "asr"], 1, 4e-4, 3e-4, {}),
    "fine-tuning-1": (["asr-response-tts"], 2, 6e-4, 3e-4, {}),
    "fine-tuning-2": (["response-tts", "response-tts-free"], 3.6, 6e-4, 2e-5, dict(depth_share=0.3, wait_weight=1.0)),
    "fine-tuning-2-more": (list(MORE_GRIDS), 2.4, 6e-4, 2e-5, dict(depth_share=0.3, wait_weight=1.0, hide=0.12)),
    "fine-tuning-2-last": (list(MORE_GRIDS), 0.3, 4e-4, 1e-5, dict(depth_share=0.5, wait_weight=1.0, hide=0.12)),
}


def _part(count, share):
    """--share of a count, and one at least."""
    return max(1, round(count * share))


def plan_speech(recordings, seed, share, pool=()):
    """The questions to record, drawn from a pool or from the world: dicts with text, answer, kind, voice, speed, pitch. The same
    list in every run."""
    rng, jobs = random.Random(seed), []
    for engine, (count, pitches) in recordings.items():
        count = _part(count, share)
        for asked in rng.choices(pool, k=count) if pool else world.sample(count, rng.random(), held_out=False):
            voice, speed, _ = voices.draw_user(rng, engine)
            for _ in range(pitches):
                pitch = voices.draw_user(rng, engine)[2]
                jobs.append(dict(text=asked.question, answer=asked.answer, kind=asked.kind, voice=voice,
                                 speed=round(speed, 2), pitch=round(pitch, 3)))
    return jobs


def _plan_test(share):
    """The same of the questions that are kept for evaluation."""
    jobs, each = [], _part(HELD_OUT_PER_VOICE, share)
    for i, voice in enumerate(voices.HELD_OUT):
        unseen = world.sample(each // 2, 1000 + i, held_out=True)
        for asked in unseen + world.sample(each - len(unseen), 2000 + i, held_out=False):
            jobs.append(dict(text=asked.question, answer=asked.answer, kind=asked.kind, voice=voice, speed=1.0,
                             pitch=1.0, unseen_words=asked.held_out))
    return jobs


def clip_name(*parts):
    return hashlib.sha1(" ".join(map(str, parts)).encode()).hexdigest()[:16] + ".wav"


def _record(job):
    path, text, voice, speed, pitch = job
    if not os.path.exists(path):
        audio = voices.say(text, voice, speed, pitch)
        file = io.BytesIO()  # soundfile would wait for the disk after each of many thousand files
        soundfile.write(file, audio, voices.SAMPLE_RATE, format="WAV", subtype="PCM_16")
        Path(path + ".part").write_bytes(file.getvalue())
        os.replace(path + ".part", path)


def _write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def record_all(jobs, what):
    """jobs: tuples that `_record` takes, those of one text and voice beside each other."""
    voices.prepare()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        list(tqdm(pool.imap(_record, jobs, chunksize=6), total=len(jobs), desc=what, unit="clip", smoothing=0.02))


def _record_dialogs(work, name, planned):
    """Questions by their users, answers by Joe, and the manifest NAME.jsonl: the pairs of the users, and of Joe as a dict."""
    jobs, lines, users, joe = {}, [], [], {}
    (work / "speech").mkdir(parents=True, exist_ok=True)
    for job in planned:
        heard = f"speech/{clip_name(job['text'], job['voice'], job['speed'], job['pitch'])}"
        spoken = f"speech/{clip_name(job['answer'], voices.MODEL_VOICE)}"
        jobs[heard] = (str(work / heard), job["text"], job["voice"], job["speed"], job["pitch"])
        jobs[spoken] = (str(work / spoken), job["answer"], voices.MODEL_VOICE, 1.0, 1.0)
        lines.append({"turns": [{"heard": heard, "transcript": job["text"], "spoken": spoken, "response": job["answer"],
                                 "patience": PATIENCE.get(job["kind"])}],
                      **{k: v for k, v in job.items() if k in ("kind", "voice", "unseen_words")}})
        users.append({"audio": heard, "text": job["text"]})
        joe[job["answer"]] = spoken
    record_all(list(jobs.values()), name)
    _write_lines(work / f"{name}.jsonl", lines)
    return users, joe


def plan_backchannels(clips, share):
    """The "uh huh" that users say into answers: a list of (folder, text, voice, speed, pitch), the same in every run.
    clips: {engine: (how many, at how many pitches)}."""
    rng = random.Random(5000)
    murmurs = []
    for engine, (count, pitches) in clips.items():
        folder = f"backchannels/{engine}"
        texts = itertools.cycle(BACKCHANNELS + MORE_BACKCHANNELS)
        for text in itertools.islice(texts, _part(count, share)):
            voice, speed, _ = voices.draw_user(rng, engine)
            for _ in range(pitches):
                _, _, pitch = voices.draw_user(rng, engine)
                murmurs.append((folder, text, voice, speed, pitch))
    return murmurs


def record_backchannels(work, said):
    """said: (folder, text, voice, speed, pitch) of each."""
    jobs = [(str(work / folder / clip_name(*how)), *how) for folder, *how in said]
    for folder in {folder for folder, *_ in said}:
        (work / folder).mkdir(parents=True, exist_ok=True)
    record_all(jobs, "back-channels")


def test_speech(args):
    """What is evaluated on: voices kept for it ask, dialogs in test.jsonl, and murmur, in the folder backchannels-test."""
    _record_dialogs(args.work, "test", _plan_test(args.share))
    record_backchannels(args.work, [("backchannels-test", text, voice, 1.0, 1.0)
                                     for text, voice in zip(itertools.cycle(BACKCHANNELS), voices.HELD_OUT * 3)])


def speech(args):
    """Text to speech: every question by its user's voice, every answer by Joe. Manifests: dialogs in train.jsonl, pairs of
    the users in users.jsonl, pairs of Joe, answers to more questions among them, in joe.jsonl; and users' "uh huh" in the
    folder backchannels."""
    work, share = args.work, args.share
    users, joe = _record_dialogs(work, "train", plan_speech(RECORDINGS, 0, share))
    answers = [asked.answer for asked in world.sample(_part(MORE_ANSWERS, share), 3000, held_out=False)]
    more = {answer: f"speech/{clip_name(answer, voices.MODEL_VOICE)}" for answer in answers}
    record_backchannels(work, plan_backchannels(BACKCHANNEL_CLIPS, share))
    record_all([(str(work / file), text, voices.MODEL_VOICE, 1.0, 1.0) for text, file in more.items()], "answers")
    _write_lines(work / "users.jsonl", users)
    _write_lines(work / "joe.jsonl", [{"audio": audio, "text": text} for text, audio in (joe | more).items()])


def more_speech(args):
    """The second helping: dialogs by each engine in more-ENGINE.jsonl."""
    lists = world.sample(_part(LISTS, args.share), 2, held_out=False, kind="repeat")
    planned = plan_speech(MORE_RECORDINGS, 1, args.share) + plan_speech(LIST_RECORDINGS, 3, args.share, lists)
    for engine in MORE_RECORDINGS:
        _record_dialogs(args.work, f"more-{engine}", [job for job in planned if job["voice"].partition(":")[0] == engine])


def codec(args):
    """The codec, on the first helping: work/start/mimi.json and mimi.safetensors."""
    import codec as trainer
    trainer.train(args.work, args.work / "start", _part(CODEC_STEPS, args.share), _part(POLISHING_STEPS, args.share), args.device)


def hearing(args):
    """An encoder that hears better, for the model that ships: work/hearing/mimi.json and mimi.safetensors."""
    import codec as trainer
    trainer.train_hearing(args.work, args.work / "start", args.work / "hearing", _part(HEARING_STEPS, args.share), args.device)


def tokenizer(args):
    """A byte-level BPE of the world's texts, and the model before training, beside the codec in work/start."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    config, texts = flm.PRESETS["tiny"], [t for a in world.sample(20_000, 4000) for t in (a.question, a.answer)]
    special = {config.wait_token: "<wait>", config.asr_token: "<asr>", config.answer_token: "<answer>"}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=config.vocab_size, show_progress=False,
                            special_tokens=["<unused>", *(special[i] for i in sorted(special))],
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bpe.save(str(args.work / "start" / "tokenizer.json"))
    torch.manual_seed(0)
    model_files.save(flm.init_weights(flm.FLM(config)), args.work / "start")


def grids(args):
    """Encoded grids of every manifest in the formats that the stages need."""
    work = args.work
    for name, (manifest, format, fewest, most, draws, more) in GRIDS.items():
        if "backchannels" in more:
            more = {**more, "backchannels": (work / more["backchannels"],)}
        if "hearing" in more:
            more = {**more, "hearing": work / more["hearing"]}
        settings = data.Settings(format, join=(fewest, most), draws=draws, **more)
        data.encode(work / manifest, work / "grids" / name, work / "start", settings,
                    device=args.device, workers=os.cpu_count())


def computes_bfloat16(device):
    """Whether products in 16 bits take less than three times as long as in 32: without instructions for them, fifty times."""
    def seconds(x):
        started = time.perf_counter()
        for _ in range(10):
            (x @ x).sum().item()
        return time.perf_counter() - started
    x = torch.randn(512, 512, device=device)
    return min(seconds(x.bfloat16()) for _ in range(3)) < 3 * min(seconds(x) for _ in range(3))


def stage(name, args):
    """One of the paper's four stages, from the one before it."""
    work, names, init = args.work, list(STAGES), args.work / "start"
    if name != names[0]:
        init = work / names[names.index(name) - 1]
    folders, epochs, lr, lr_end, settings = STAGES[name]
    train.train(train.Settings(grids=tuple(work / "grids" / folder for folder in folders), init=init, out=work / name,
                               stage="-".join(name.split("-")[:3]),  # parts have a fourth word
                               epochs=epochs, lr=(lr, lr_end), device=args.device, bfloat16=computes_bfloat16(args.device),
                               **{**ALL_STAGES, **settings}))


def model(args):
    """The model folder that ships, in work/model: the last weights, 16 bits each, and the codec that hears."""
    work, out = args.work, args.work / "model"
    model_files.save(model_files.load(work / list(STAGES)[-1]).half(), out)
    for file in (work / "start/tokenizer.json", work / "hearing/mimi.json", work / "hearing/mimi.safetensors", HERE / "model/sampling.json"):
        shutil.copy(file, out / file.name)


def evaluation(args):
    """The questions of test.jsonl, asked of work/model, also paused, interrupted and disturbed: work/evaluation/results.txt."""
    work = args.work
    evaluate.main(["--dialogs", str(work / "test.jsonl"), "--most", "240", "--model", str(work / "model"), "--out", str(work / "evaluation"),
                   "--backchannels", str(work / "backchannels-test"), "--snr", "20", "10", "5", "--rooms", "--leakage", "0.1", "--whisper"])


def examples(args):
    """The sounds of examples/, in work/examples: a question, and a user's side of a conversation."""
    out, pause = args.work / "examples", np.zeros(round(PAUSE * voices.SAMPLE_RATE), np.float32)
    out.mkdir(parents=True, exist_ok=True)
    (voice, question), (other, questions) = QUESTION, CONVERSATION
    start, said = pause[:voices.SAMPLE_RATE // 2], [part for text in questions for part in (voices.say(text, other), pause)]
    soundfile.write(out / "question.wav", voices.say(question, voice), voices.SAMPLE_RATE)
    soundfile.write(out / "questions.flac", np.concatenate([start, *said]), voices.SAMPLE_RATE)


STEPS = {"test": test_speech, "speech": speech, "codec": codec, "hearing": hearing, "tokenizer": tokenizer, "more-speech": more_speech,
         "grids": grids, **{name: functools.partial(stage, name) for name in STAGES}, "model": model, "examples": examples, "evaluation": evaluation}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for everything made on the way (default: %(default)s)")
    parser.add_argument("--only", choices=STEPS, help="this step alone; what of it is finished is not made again")
    parser.add_argument("--device", default="cpu", help="where codec and model are trained (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1, help="of the recordings and of the codec's steps, for a rehearsal in another "
                        "--work (default: %(default)s)")
    args = parser.parse_args()
    try:
        if not 0 < args.share <= 1:
            raise ValueError(f"--share must be above 0 and at most 1, not {args.share:g}")
        args.work.mkdir(parents=True, exist_ok=True)
        known = args.work / "share"
        if (before := float(known.read_text()) if known.exists() else args.share) != args.share:
            raise ValueError(f"{args.work} was begun with --share {before:g}: choose another --work")
        known.write_text(f"{args.share}\n")
        for name in [args.only] if args.only else STEPS:
            done = args.work / f"{name}.done"
            if args.only or not done.exists():
                print(f"--- {name}", flush=True)
                STEPS[name](args)
                done.touch()
    except (OSError, ValueError) as error:
        sys.exit(f"make.py: {error}")
    except KeyboardInterrupt:
        sys.exit("make.py: stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
