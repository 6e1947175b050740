"""Questions of the small model's world, with the answers that it gives itself: what a further
training replays.

What this is: a set of dialogs that keeps a model what it is. The questions are recorded anew, by
the engines of voices.py. The answers are the codes that the model itself speaks, so training on
them moves neither its voice nor its words. Where new dialogs are mixed with this set, the old ones
are not forgotten. What this is not: a way to teach it anything; but with --answers-by the answers
are recorded by a program, so that the model can learn to say what it knows in another voice.

    python tiny/replay.py replay                    # 1,000 questions by espeak-ng, a few minutes
    python data.py encode replay/dialogs.jsonl grids/replay --format response-tts-free \\
        --join 6 26 --longest-sample 2047 --backchannels replay/backchannels/espeak \\
        --rooms --speeds 0.88 1.13 --reaction 0.64

tiny/replay holds such grids of 3,000 questions by six engines, for the shipped model.

A question that the model answers wrongly is asked again by other voices. An answer that it never
gives is left out. `spoken` of each turn is a .npy file of codes [frames, K]. One answer has one
file, so that the model hears itself say a sentence in one way.

Shapes: T frames, K = 8 codebooks.
"""
import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import chat  # noqa: E402
import data  # noqa: E402
import eval as evaluate  # noqa: E402
import make  # noqa: E402
import stream  # noqa: E402
import voices  # noqa: E402
import world  # noqa: E402
from workshop import measures, sound_file, synthesis  # noqa: E402
from workshop.manifests import write_lines  # noqa: E402

BEFORE = 3     # frames of silence before a question
AFTER = 75     # frames in which it must have been answered
ROUNDS = 4     # voices that ask for one answer before it is given up
BATCH = 64     # conversations at once
SENTENCES_SEED = 77  # of the further sentences of --answers-by
PITCHES = {"kokoro": 4}  # recordings of one synthesis, where synthesis is slow
PATIENCE = make.PATIENCE  # seconds of silence before some kinds of answers


def record_questions(out, shares, questions, seed):
    """Record questions; shares: {engine: part of them}. Returns a list of jobs (dicts with text,
    answer, kind, voice, and `path`, relative to `out`). Recordings that are there already stay."""
    counts = {}
    for engine, share in shares.items():
        pitches = PITCHES.get(engine, 1)
        counts[engine] = (max(1, round(questions * share / pitches)), pitches)
    jobs = make.plan_speech(counts, seed, 1)
    (out / "heard").mkdir(parents=True, exist_ok=True)
    clips = []
    for job in jobs:
        how = job["text"], job["voice"], job["speed"], job["pitch"]
        job["path"] = f"heard/{make.clip_name(*how)}"
        clips.append((str(out / job["path"]), *how))
    make.record_all(clips, "questions")
    return jobs


def record_backchannels(out, shares, questions):
    """Record a tenth as many "uh huh" by the same engines, in out/backchannels/ENGINE."""
    counts = {}
    for engine, share in shares.items():
        pitches = PITCHES.get(engine, 1)
        counts[engine] = (max(1, round(0.1 * questions * share / pitches)), pitches)
    make.record_backchannels(out, make.plan_backchannels(counts, 1))


class Speaker:
    """A model that is asked and whose answers are kept as codes."""

    def __init__(self, folder):
        self.partner = chat.Partner(folder, chat.Sampling.of(folder))
        self.encoder = data.Encoder(folder)
        self.quiet = int(self.encoder.silence[0])  # codebook 0 of silence

    def ask(self, files, seed):
        """Ask each recording in a conversation of its own -> [(its words, codes [T, K])]."""
        frame = data.FRAME
        waves = []
        for file in files:
            audio = sound_file.read_audio(file).numpy()
            padding = -len(audio) % frame + AFTER * frame
            waves.append(np.pad(audio, (BEFORE * frame, padding)))
        listen = self.encoder.encode(waves)
        seeds = [seed] * len(files)
        sampling, model = self.partner.duplex.sampling, self.partner.model
        answers = [None] * len(files)
        for i, (text, codes, _) in evaluate.play(model, sampling, listen, seeds, BATCH):
            answers[i] = self.answer(text, codes)
        return answers

    def answer(self, text, codes):
        """text ids [T] and codes [T, K] of a conversation -> (its words, the codes of its speech,
        from SPEECH_DELAY frames after the first word to the last frame that sounds)."""
        wait = self.partner.model.config.wait_token
        frames = [t for t in range(1, len(text)) if text[t] != wait]  # those with a word
        if not frames:
            return "", codes[:0]
        words = self.partner.tokenizer.decode([text[t] for t in frames]).strip()
        start = frames[0] + stream.SPEECH_DELAY
        loud = (codes[:, 0] != self.quiet).numpy()
        loud[1:] &= loud[:-1]  # two frames in a row: one alone is a stray code
        sounding = np.flatnonzero(loud[start:])
        if not len(sounding):
            return words, codes[:0]
        stop = start + int(sounding[-1]) + 1 + data.RINGING
        return words, codes[start:stop]


def record_answers(out, jobs, speaker, rounds=ROUNDS):
    """Have every distinct answer of `jobs` spoken by the model -> {answer: path of its codes,
    relative to `out`}. An answer that is on disk already is not asked for again."""
    (out / "spoken").mkdir(parents=True, exist_ok=True)
    asked_by = {}
    for job in jobs:
        asked_by.setdefault(job["answer"], []).append(job)
    paths = {}
    for answer in asked_by:
        name = hashlib.sha1(answer.encode()).hexdigest()[:16]
        paths[answer] = f"spoken/{name}.npy"
    todo = [answer for answer in asked_by if not (out / paths[answer]).exists()]
    with tqdm(total=len(todo), desc="answers", unit="answer") as bar:
        for turn in range(rounds):
            missing = []
            for start in range(0, len(todo), BATCH):
                group = todo[start:start + BATCH]
                files = [out / asked_by[a][turn % len(asked_by[a])]["path"] for a in group]
                for answer, (words, codes) in zip(group, speaker.ask(files, seed=turn)):
                    right = measures.words(words) == measures.words(answer)
                    if not right or not len(codes):
                        missing.append(answer)
                        continue
                    np.save(out / paths[answer], codes.numpy().astype(np.int16))
                    bar.update()
            todo = missing
    return {answer: path for answer, path in paths.items() if (out / path).exists()}


def say_answers(out, jobs, voice, workers):
    """Have every distinct answer of `jobs`, and more of the small model's world, spoken by a
    program, a command with {text} and {out} -> {answer: path of its sound, relative to `out`}.
    Raises ValueError for a command that cannot be a voice.

    Writes out/sentences.jsonl, pairs of all of them: a voice is learned from more sentences than
    the questions lead to."""
    synthesis.check_voice(voice)
    speech = synthesis.Speech(out, None)
    answers = {job["answer"] for job in jobs}
    answers |= {pair.answer for pair in world.sample(3 * len(jobs), SENTENCES_SEED, held_out=False)}
    paths = {answer: speech.clip(voice, answer) for answer in sorted(answers)}
    failed = speech.make(workers)
    paths = {answer: path for answer, path in paths.items() if path not in failed}
    write_lines(out / "sentences.jsonl", [{"audio": path, "text": answer}
                                          for answer, path in paths.items()])
    return paths


def write_manifest(out, jobs, paths):
    """dialogs.jsonl of all questions whose answer the model knows -> how many there are."""
    lines = []
    for job in jobs:
        if job["answer"] not in paths:
            continue
        turn = {"heard": job["path"], "transcript": job["text"],
                "spoken": paths[job["answer"]], "response": job["answer"]}
        if job["kind"] in PATIENCE:
            turn["patience"] = PATIENCE[job["kind"]]
        lines.append({"turns": [turn], "kind": job["kind"], "voice": job["voice"]})
    write_lines(out / "dialogs.jsonl", lines)
    return len(lines)


def parse_shares(texts):
    """["espeak:0.8", "flite"] -> {"espeak": 0.8, "flite": 1.0}. Raises ValueError."""
    shares = {}
    for text in texts:
        engine, _, share = text.partition(":")
        if engine not in voices.ENGINES:
            raise ValueError(f"there is no engine {engine}, only {', '.join(voices.ENGINES)}")
        shares[engine] = float(share or 1)
    return shares


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Record questions of the small model's world with the answers that it gives "
                    "itself.")
    parser.add_argument("out", type=Path,
                        help="folder for recordings, dialogs.jsonl and backchannels/ENGINE")
    parser.add_argument("--questions", type=int, default=1000, metavar="N",
                        help="recordings of questions (default: %(default)s)")
    parser.add_argument("--engines", nargs="+", default=["espeak"], metavar="ENGINE:SHARE",
                        help="speech engines of voices.py, each with its share (default: espeak)")
    parser.add_argument("--model", type=Path, default=chat.SHIPPED,
                        help="folder of the model that answers (default: the shipped one)")
    parser.add_argument("--answers-by", metavar="COMMAND",
                        help="a program that says the answers in place of the model, as data.py "
                        "synth takes it: 'flite -voice slt -t {text} -o {out}'")
    parser.add_argument("--workers", type=int, default=1,
                        help="programs at once with --answers-by (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0,
                        help="of the questions (default: %(default)s)")
    args = parser.parse_args(arguments)
    try:
        shares = parse_shares(args.engines)
        jobs = record_questions(args.out, shares, args.questions, args.seed)
        record_backchannels(args.out, shares, args.questions)
        if args.answers_by:
            paths = say_answers(args.out, jobs, args.answers_by, args.workers)
        else:
            paths = record_answers(args.out, jobs, Speaker(args.model))
        count = write_manifest(args.out, jobs, paths)
    except (OSError, ValueError) as error:
        sys.exit(f"replay.py: {error}")
    except KeyboardInterrupt:
        sys.exit("replay.py: stopped; the same command goes on")
    print(f"{count} dialogs of {len(jobs)} questions, {len(paths)} distinct answers")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
