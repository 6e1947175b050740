"""What the paper measures (section 4), and what a listener notices: right answers, speech, and how
the model behaves while both talk.

What this is: conversations with recorded people, many in one batch, and numbers from them, each
with its count and a 95 % interval (workshop/measures.py). What this is not: a judge of open answers
or of naturalness, for which the paper asks a large model and people (section 4.3), or a clock:
`chat.py --bench` times the frames.

    python eval.py --dialogs tiny/work/test.jsonl --rooms --whisper --out results
    python eval.py --model runs/pt2 --asr pairs.jsonl --tts pairs.jsonl --out results-pt2

What is unusual here: many conversations step together in one chat.Duplex. Each is exactly the one
that chat.py would hold, and all are over sooner. A model is causal: what it writes at a frame
depends on nothing later. A conversation that is held a second time, now with an interruption, is
therefore the same up to the interruption, and "it stopped" is a comparison of the two.

The scenes, with time from left to right; `ask` is the user's sound, `answer` the model's:

    questions       ask ----.  answer
                             ^^ speaks after: from the end of the user's sound to the model's first
    pause           ask -- | -- ask  answer
                             false start: a sound between the pause and the end of the question
    interruption    ask ----.  answer X  answer 2
                                  ask 2 --.
                                  ^^^^^^^ stops after: from the first sound of the second question
                             to the end of the answer, if that is earlier than before (stopped);
                             the second question's answer is the one that counts
    backchannel     ask ----.  answ|er
                                   uh-huh
                             false stop: the answer ends earlier than before
                             says more: the monologue has more lines than before
    turns           ask ----.  answer  ask ----.  answer  ...       five questions
    talk            the same for ten minutes: right answers by the minute
    long silence    a hundred seconds of silence  ask ----.  answer

Shapes: T frames, K = 8 codebooks, N samples.
"""
import argparse
import json
import random
import sys
from collections import namedtuple
from dataclasses import asdict, dataclass, field, replace
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
import mimi
import stream
import train
from data import FRAME, SAMPLE_RATE
from workshop import full_duplex_bench, model_files, report, sound_file
from workshop.batches import collate
from workshop.full_duplex_bench import between, takes_turn
from workshop.manifests import read_lines, write_lines
from workshop.measures import number, word_errors, words
from workshop.recogniser import Recogniser, check_packages

# Decision: the paper does not say when a sound begins or ends, or how its conversations were timed.
AUDIBLE = 0.01        # root mean square, of full scale, above which a window of sound is heard
WINDOW = 0.02         # seconds of a window
GAP = 0.5             # seconds of silence that end a stretch of speech
TAIL = 5.0            # seconds of silence after the last question, in which it must be answered
PAUSES = (0.6, 1.0)   # seconds of silence within a question
EARLIEST = 0.1        # seconds of an answer before the user interrupts it, at least
LEFT = 1.2            # seconds of it that would be left after that, at least
CUT = 0.3             # seconds by which an answer must end earlier than before to have been cut;
                      # other random draws alone move its end by 0.2
TURNS = 5             # questions of a conversation
TURN_PAUSE = 4.0      # seconds after each, for the answer
TALKS = 4             # long conversations
LONG_SILENCE = 100.0  # seconds of silence before a question
SILENCES = 32         # questions that are asked after it, at most
# Frames of a pair of the ASR-style and TTS-style parts.
SILENCE = 3           # before a recording or a text
WRITING = 25          # after it, to write in
SAYING = 8            # for each token that is spoken, at most
GROUPS = ("unseen_words", "kind", "voice")  # keys of --dialogs whose values are counted apart
# Options that must stay the same in a folder of results.
SETTINGS = ("dialogs", "backchannels", "noise", "talk", "asr", "tts", "fdb", "most", "seed",
            "language", "whisper")


# --- the engine: many conversations step together ---

# What a model did beside one recording. user_audio, model_audio: float32 [N]; lines: (seconds,
# text) of its monologue; text [T] and codes [T, K]: the ids of each frame. Those of frame 0 mean
# nothing.
Conversation = namedtuple("Conversation", "user_audio model_audio lines text codes")


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


def converse(partner, waves, seeds=None, batch=32, **forced):
    """Hold the conversation that chat.py would hold with each recording, float32 [N] at 24 kHz.
    Yields (which one, Conversation) as each batch is over. forced: text, speak, echo of `play`."""
    user_audio = [F.pad(wave, (0, -len(wave) % FRAME)).view(-1, FRAME) for wave in waves]
    played = play(partner.model, partner.duplex.sampling, user_audio, seeds, batch, partner.codec,
                  **forced)
    for i, (text, codes, model_audio) in played:
        monologue = partner.monologue(no_output)
        for t, token in enumerate(text):
            monologue.add(t / stream.FRAME_RATE, token)
        N = len(waves[i])
        yield i, Conversation(user_audio[i].flatten()[:N], model_audio[:N], monologue.lines, text,
                              codes)


def no_output(*_, **__):
    """What a monologue prints with where nothing is printed."""


@torch.no_grad()
def losses(model, grids):
    """Teacher-forced cross-entropy (equation 3's terms, without its weights) of n grids -> sums
    [n, 5] in nats, tokens [n, 5], by grid and class of stream.Loss."""
    equation = train.Equation3(model)
    ids = stream.Ids.of(model.config)
    device = model.lm_head.weight.device
    sums = []
    tokens = []
    for grid in grids:
        batch = collate([[stream.delay(grid, ids)]], len(grid) + stream.ACOUSTIC_DELAY, ids)
        terms = equation(*(tensor.to(device) for tensor in batch))
        sums.append(terms.cpu().double())
        tokens.append(train.count_tokens([batch]))
    return torch.stack(sums), torch.stack(tokens)


# --- scenes: what the user says, and when ---

@dataclass(frozen=True)
class Clip:
    """A recording of the user, float32 [N], with the seconds at which its sound starts and ends. A
    question has the answer that is expected. about: what else is known of it."""
    wave: torch.Tensor
    start: float
    end: float
    question: str = ""
    expected: str | None = None
    about: dict = field(default_factory=dict)


# What the user says, float32 [N], and the row that describes it. A row is a dict, and a file once
# the scene was played. Its turns are the questions: `since` and `until` say which part of the
# model's output answers one.
Scene = namedtuple("Scene", "wave row")


def spans(audio):
    """Where a waveform [N] sounds: [[start, end]] in seconds."""
    size = round(WINDOW * SAMPLE_RATE)
    windows = audio[:len(audio) // size * size].view(-1, size)
    level = windows.square().mean(1).sqrt()
    stretches = []
    for i in (level > AUDIBLE).nonzero()[:, 0].tolist():
        end = round((i + 1) * WINDOW, 2)
        if stretches and i * WINDOW - stretches[-1][1] < GAP:
            stretches[-1][1] = end
        else:
            stretches.append([round(i * WINDOW, 2), end])
    return stretches


def clip(wave, **known):
    """A recording [N] -> Clip. known: question, expected, about."""
    sound = spans(wave)
    if not sound:
        sound = [[0, len(wave) / SAMPLE_RATE]]
    return Clip(wave, sound[0][0], sound[-1][1], **known)


def scene(placed, first=0, **about):
    """[(seconds, Clip)] -> Scene, with TAIL seconds of silence at its end. Only the questions from
    number `first` on are turns. about: more of its row."""
    wave = torch.zeros(length_of(placed) + round(TAIL * SAMPLE_RATE))
    for at, one in placed:
        begin = round(at * SAMPLE_RATE)
        wave[begin:begin + len(one.wave)] += one.wave
    questions = [(at, one) for at, one in placed if one.expected is not None][first:]
    turns = [turn_of(questions, i, first) for i in range(len(questions))]
    row = dict(placed[0][1].about, **about, turns=turns)
    return Scene(wave.clip(-1, 1), row)


def length_of(placed):
    """Samples until the last of some placed clips is over."""
    return max(round(at * SAMPLE_RATE) + len(one.wave) for at, one in placed)


def turn_of(questions, i, first):
    """Question number i of [(seconds, Clip)] as a turn of a row. Its answer is what begins after
    its own first sound and before that of the next question. The very first question of a
    conversation counts from second 0, so that an answer before it is a wrong one."""
    at, one = questions[i]
    since = at + one.start
    if first == 0 and i == 0:
        since = 0
    until = 1e9
    if i + 1 < len(questions):
        next_at, following = questions[i + 1]
        until = next_at + following.start
    return dict(question=one.question, expected=one.expected, since=since, end=at + one.end,
                until=until)


def with_pause(question, rng):
    """A question with silence at a quiet place inside."""
    seconds = rng.uniform(*PAUSES)
    wave, at = data.hesitate(question.wave.numpy(), seconds, rng)
    paused = clip(torch.from_numpy(wave), question=question.question, expected=question.expected,
                  about=question.about)
    return scene([(0, paused)], pause=at / SAMPLE_RATE)


def intruding(question, row, other, rng):
    """The conversation that became `row`, held again with another Clip whose sound begins somewhere
    in the answer; None where the answer is too short for it. Its row has `at`, the second of that
    sound, `undisturbed`, the second at which the answer ended, and `before`, [seconds of the
    conversation, lines of its monologue]."""
    question_end = row["turns"][0]["end"]
    answers = [span for span in row["spans"] if span[0] >= question_end]
    if not answers:
        return None
    start, end = answers[0]
    if end - start < EARLIEST + LEFT:
        return None
    at = rng.uniform(start + EARLIEST, end - LEFT)
    placed = [(0, question), (max(0, at - other.start), other)]
    before = [row["seconds"], len(row["lines"])]
    return scene(placed, 1, at=at, undisturbed=end, before=before)


def in_a_row(clips):
    """One conversation: a clip, TURN_PAUSE seconds for the answer, the next clip, and so on."""
    starts = []
    now = 0.0
    for one in clips:
        starts.append(now)
        now += len(one.wave) / SAMPLE_RATE + TURN_PAUSE
    return scene(list(zip(starts, clips)))


def in_every_place(questions):
    """Conversations of TURNS questions, in which each question stands once in each place."""
    scenes = []
    for i in range(0, len(questions) - TURNS + 1, TURNS):
        group = questions[i:i + TURNS]
        for first in range(TURNS):
            scenes.append(in_a_row(group[first:] + group[:first]))
    return scenes


def long_talk(questions, first, minutes):
    """A conversation that is full of questions: from number `first` on, and from the beginning
    again after the last."""
    clips = []
    seconds = 0.0
    while seconds < 60 * minutes:
        one = questions[(first + len(clips)) % len(questions)]
        seconds += len(one.wave) / SAMPLE_RATE + TURN_PAUSE
        clips.append(one)
    return in_a_row(clips)


def after_silence(question):
    """A question after LONG_SILENCE seconds of silence."""
    return scene([(LONG_SILENCE, question)])


def noisy(quiet, snr, recordings, rng):
    """A Scene in noise from its beginning to its end, `snr` dB below the voice: one of some
    recordings or, without any, pink noise (3 dB less an octave)."""
    wave, row = quiet
    if recordings:
        noise = sound_file.read_audio(rng.choice(recordings)).numpy()
    else:
        noise = pink(len(wave), rng.getrandbits(64))
    noise = torch.from_numpy(np.resize(noise, len(wave)).astype(np.float32))
    voice = wave[:round(row["turns"][0]["end"] * SAMPLE_RATE)]
    as_loud = (voice.square().mean() / noise.square().mean()).sqrt()
    return Scene((wave + noise * 10 ** (-snr / 20) * as_loud).clip(-1, 1), row)


def pink(N, seed):
    """Pink noise [N]: white noise whose power falls with the frequency."""
    white = np.fft.rfft(np.random.default_rng(seed).standard_normal(N))
    return np.fft.irfft(white / np.sqrt(np.arange(1, len(white) + 1)), N)


def in_room(dry, rng):
    """A Scene as it sounds in a made-up room."""
    wave = data.room(dry.wave.numpy(), rng)[:len(dry.wave)]
    return Scene(torch.from_numpy(wave).clip(-1, 1), dry.row)


def recognition_scene(entry, tokenizer, ids):
    """ASR-style (Table 4): a recording is heard, then silence to write in, and nothing is spoken.
    -> (Scene, the delayed grid whose `speak` is forced)."""
    tokens = tokenizer.encode(entry["transcript"]).ids
    wave = F.pad(sound_file.read_audio(entry["heard"]), (SILENCE * FRAME, 0))
    script = stream.Script(ids)
    script.wait(SILENCE + len(wave) // FRAME + len(tokens) + WRITING)
    wave = F.pad(wave, (0, len(script) * FRAME - len(wave)))
    return Scene(wave, dict(expected=entry["transcript"])), stream.delay(script.grid(), ids)


def reading_scene(entry, tokenizer, ids):
    """TTS-style (Table 5): the text is given, with silence to say it in. -> (Scene, the delayed
    grid whose `text` is forced)."""
    tokens = tokenizer.encode(entry["response"]).ids
    script = stream.Script(ids)
    script.wait(SILENCE)
    script.respond(stream.Turn(speak_frames=SAYING * len(tokens) + WRITING, response=tokens))
    wave = torch.zeros(len(script) * FRAME)
    return Scene(wave, dict(expected=entry["response"])), stream.delay(script.grid(), ids)


# --- grades: what the row of a conversation that was played says ---
# Beside what its scene says, such a row has `seconds`, `audio` (a path), `lines` [[seconds, text]]
# of the monologue, `spans` [[start, end]] of the model's sound and, with --whisper, `heard`: the
# recogniser's text of that sound.

def grade(row):
    """A row -> {measure: boolean, seconds or None}."""
    grades = {}
    turns = row.get("turns", ())
    for k, turn in enumerate(turns, 1):
        suffix = f", turn {k}" if len(turns) > 1 else ""
        for measure, value in grade_turn(row, turn).items():
            grades[measure + suffix] = value
    if "heard" in row:
        grades |= grade_speech(row)
    if "pause" in row:
        grades |= grade_pause(row)
    if "at" in row:
        grades |= grade_interruption(row) if turns else grade_backchannel(row)
    return grades


def responses(lines):
    """The texts of some lines, without a transcript that stands before <answer>."""
    return [text.split("<answer>")[-1] for _, text in lines]


def grade_turn(row, turn):
    """right: the first response is the expected one, word by word. exact: all responses together
    are, letter by letter. takeover: the model takes the turn (full_duplex_bench.py). thinks after,
    speaks after: seconds from the user's end to the first line and sound; 0 for one before it."""
    sounds, lines = between(row, turn["since"], turn["until"])
    texts = responses(lines)
    return {"right": bool(texts) and words(texts[0]) == words(turn["expected"]),
            "exact": " ".join(texts) == turn["expected"],
            "takeover": takes_turn(sounds, lines),
            "thinks after": delay_of(lines, turn["end"]),
            "speaks after": delay_of(sounds, turn["end"])}


def delay_of(events, end):
    """Seconds from the user's end to the first of some lines or sounds, at least 0; None without
    any."""
    if not events:
        return None
    return max(0, events[0][0] - end)


def grade_speech(row):
    """spoken right, spoken exact: the same of what a recogniser hears."""
    expected = row["expected"] if "expected" in row else row["turns"][0]["expected"]
    return {"spoken right": words(row["heard"]) == words(expected),
            "spoken exact": row["heard"] == expected}


def grade_pause(row):
    """right at last: the last response is the expected one. false start: the model sounds after
    the pause began and before the user is done."""
    turn = row["turns"][0]
    _, lines = between(row, turn["since"], turn["until"])
    texts = responses(lines)
    early = [start for start, _ in row["spans"] if row["pause"] <= start < turn["end"]]
    return {"right at last": bool(texts) and words(texts[-1]) == words(turn["expected"]),
            "false start": bool(early)}


def end_of_answer(row):
    """The second at which the sound ends that the user breaks into."""
    for start, end in row["spans"]:
        if start <= row["at"] < end:
            return end
    return row["at"]


def grade_interruption(row):
    """stopped: the answer ends earlier than it would have. stops after: so many seconds after the
    first sound of the interruption."""
    end = end_of_answer(row)
    stopped = end < row["undisturbed"] - CUT
    stops_after = None
    if stopped:
        stops_after = end - row["at"]
    return {"stopped": stopped, "stops after": stops_after}


def grade_backchannel(row):
    """false stop: the answer ends earlier than it would have. says more: the monologue has more
    lines than it had without the back-channel, in the same time."""
    seconds, lines_before = row["before"]
    lines = [at for at, _ in row["lines"] if at < seconds]
    return {"false stop": end_of_answer(row) < row["undisturbed"] - CUT,
            "says more": len(lines) > lines_before}


def by_question(row):
    """The row of a conversation -> a row for each of its questions, with the minute in which it was
    asked."""
    rows = []
    for turn in row["turns"]:
        _, lines = between(row, turn["since"], turn["until"])
        minute = int(turn["end"] // 60) + 1
        rows.append(dict(row, turns=[turn], minute=minute, lines=lines))
    return rows


def transcript_of(lines):
    """What a monologue says the user said: all lines or, with <asr> (section 3.2.2), the part of
    each up to <answer>."""
    parts = [text.split("<asr>")[-1].split("<answer>")[0].strip() for _, text in lines]
    return " ".join(parts)


def unit_of(values):
    """The unit of a measure's values, as measures.number takes it."""
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return "share"
    if kinds == {tuple}:
        return "a second"
    return "s"


def numbers_of(rows, grades, language):
    """{measure: number} of a part, and the errors of `heard` against the text of a pair or else
    against the monologue."""
    numbers = {}
    for measure in dict.fromkeys(measure for one in grades for measure in one):
        values = [one[measure] for one in grades if one.get(measure) is not None]
        numbers[measure] = number(values, unit_of(values))
    errors = []
    for row in rows:
        if "heard" not in row:
            continue
        text = row.get("expected") or " ".join(text for _, text in row["lines"])
        truth = words(text, language)
        errors.append((word_errors(words(row["heard"], language), truth), len(truth)))
    if errors:
        numbers["CER" if language == "zh" else "WER"] = number(errors, "rate")
    return numbers


# --- a run: a conversation that was held stays in its folder ---

def spaced(things, most):
    """At most so many things of a list, evenly spaced."""
    step = -(-len(things) // most)
    return things[::step]


class Run:
    """A model, the folder of its results, and the parts that were measured so far: {name: (numbers,
    rows, grades)}. Raises ValueError where the folder holds something else."""

    def __init__(self, args):
        self.args = args
        self.parts = {}
        self.recogniser = None
        folder = model_files.resolve(args.model)
        sampling = chat.Sampling.of(folder)
        settings = settings_of(args, folder, sampling)
        known = known_settings(args.out, settings)
        dtype = torch.bfloat16 if args.bfloat16 else torch.float32
        self.partner = chat.Partner(folder, sampling, args.device, dtype)
        args.out.mkdir(parents=True, exist_ok=True)
        write_lines(args.out / "settings.json", [known | settings])

    def draws(self, *what):
        """Random draws that belong to one thing alone, the same in every run."""
        return random.Random(" ".join(str(word) for word in (self.args.seed, *what)))

    def measure(self):
        """Every part that was asked for."""
        args = self.args
        if args.dialogs:
            self.dialogs(args.dialogs)
        if args.asr:
            self.recognition(args.asr)
        if args.tts:
            self.reading(args.tts)
        if args.grids:
            self.grids(args.grids)
        if args.fdb:
            self.full_duplex_bench(args.fdb)

    # --- holding conversations ---

    def hold(self, part, scenes, **forced):
        """Play scenes, or read those that were played before -> rows. OUT/PART/NUMBER.json is a
        row, and the .wav beside it has the user left, the model right. A scene may be None: it is
        left out. forced: of `converse`, lists with an item for each scene."""
        folder = self.args.out / part.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        files = {i: folder / f"{i:04d}.json" for i, one in enumerate(scenes) if one}
        todo = [i for i, file in files.items() if not file.exists()]
        waves = [scenes[i][0] for i in todo]
        seeds = [self.args.seed + i for i in todo]
        forced = {name: [values[i] for i in todo] for name, values in forced.items()}
        talks = converse(self.partner, waves, seeds, self.args.batch, **forced)
        done = len(files) - len(todo)
        for n, talk in tqdm(talks, total=len(files), initial=done, desc=part, unit="talk"):
            i = todo[n]
            save(talk, scenes[i][1], files[i])
        return [json.loads(file.read_text()) for file in files.values()]

    def transcribe(self, rows):
        """Add `heard` to rows: what the recogniser hears of the model. Without --whisper, nothing
        is added."""
        if self.args.whisper is None:
            return rows
        todo = [row for row in rows if "heard" not in row]
        if todo and self.recogniser is None:
            self.recogniser = Recogniser(self.args.whisper, self.args.device, self.args.language)
        for row in tqdm(todo, desc="transcribing", unit="talk", disable=not todo):
            file = self.args.out / row["audio"]
            audio, rate = soundfile.read(file, dtype="float32")
            row["heard"] = self.recogniser.transcribe(audio[:, 1], rate)
            write_lines(file.with_suffix(".json"), [row])
        return rows

    def count(self, part, rows, grade=grade):
        """Grade the rows of a part, and keep its numbers."""
        grades = [grade(row) for row in rows]
        self.parts[part] = numbers_of(rows, grades, self.args.language), rows, grades

    # --- conversations ---

    def dialogs(self, manifest):
        """Questions alone, and then with what people and rooms do to them."""
        questions = self.read_questions(manifest)
        alone = [scene([(0, one)]) for one in questions]
        rows = self.transcribe(self.hold("questions", alone))
        self.count("questions", rows)
        self.count_groups(rows)
        self.people(questions, rows)
        self.places(alone)
        if self.args.talk:
            self.talks(questions, self.args.talk)
        for gain in self.args.leakage:
            self.leakage(gain, alone)

    def read_questions(self, manifest):
        """The first turns of --dialogs as Clips."""
        dialogs = data.read_manifest(manifest, "asr-response-tts")
        entries = [entry for _, entry in read_lines(manifest)]
        questions = []
        for turns, entry in spaced(list(zip(dialogs, entries)), self.args.most):
            about = {key: entry[key] for key in GROUPS if key in entry}
            wave = sound_file.read_audio(turns[0]["heard"])
            questions.append(clip(wave, question=turns[0]["transcript"],
                                  expected=turns[0]["response"], about=about))
        return questions

    def count_groups(self, rows):
        """Numbers of the questions by what is known of them."""
        groups = {(key, row[key]) for row in rows for key in GROUPS if row.get(key)}
        for key, value in sorted(groups, key=str):
            group = [row for row in rows if row.get(key) == value]
            self.count(f"questions, {key} {value}", group)

    def people(self, questions, rows):
        """Pauses, interruptions, back-channels, and several questions in a row."""
        murmurs = []
        if self.args.backchannels:
            murmurs = [clip(sound_file.read_audio(file))
                       for file in data.recordings([self.args.backchannels])]
        paused = []
        interrupted = []
        murmured = []
        for i, (one, row) in enumerate(zip(questions, rows)):
            other = questions[(i + 1) % len(questions)]
            paused.append(with_pause(one, self.draws("pause", i)))
            interrupted.append(intruding(one, row, other, self.draws("interruption", i)))
            if murmurs:
                murmur = self.draws("murmur", i).choice(murmurs)
                murmured.append(intruding(one, row, murmur, self.draws("backchannel", i)))
        self.hold_and_count("pause", paused)
        self.hold_and_count("interruption", interrupted)
        self.hold_and_count("backchannel", murmured)
        self.hold_and_count("turns", in_every_place(questions))

    def places(self, alone):
        """The questions again, in noise and in rooms."""
        recordings = data.recordings(self.args.noise)
        for snr in self.args.snr:
            scenes = [noisy(one, snr, recordings, self.draws(snr, i))
                      for i, one in enumerate(alone)]
            self.hold_and_count(f"noise {snr:g} dB", scenes)
        if self.args.rooms:
            scenes = [in_room(one, self.draws("room", i)) for i, one in enumerate(alone)]
            self.hold_and_count("rooms", scenes)

    def hold_and_count(self, part, scenes):
        if scenes:
            self.count(part, self.hold(part, scenes))

    def talks(self, questions, minutes):
        """Long conversations: right answers by the minute in which the question was asked; and
        answers after a long silence."""
        starts = [len(questions) * i // TALKS for i in range(TALKS)]
        talks = self.hold("talk", [long_talk(questions, first, minutes) for first in starts])
        rows = [row for talk in talks for row in by_question(talk)]
        self.count("talk", rows)
        last = max(row["minute"] for row in rows)
        for minute in range(1, last + 1):
            self.count(f"talk, minute {minute}", [row for row in rows if row["minute"] == minute])
        silences = [after_silence(one) for one in spaced(questions, SILENCES)]
        self.count("long silence", self.hold("long silence", silences))

    def leakage(self, gain, alone):
        """The questions again, while the model hears itself at this gain."""
        echo = []
        for i in range(len(alone)):
            seconds = self.draws(self.args.seed + i).uniform(*data.LEAKAGE_DELAY)
            echo.append((gain, seconds))
        part = f"leakage {gain:g}"
        self.count(part, self.hold(part, alone, echo=echo))

    # --- the paper's tables ---

    def read_pairs(self, manifest, style):
        """The entries of a manifest of pairs."""
        return [turns[0] for turns in spaced(data.read_manifest(manifest, style), self.args.most)]

    def recognition(self, manifest):
        """Table 4: errors of the monologue against the text of each recording."""
        ids = stream.Ids.of(self.partner.model.config)
        scenes = []
        speak = []
        for entry in self.read_pairs(manifest, "asr"):
            one, grid = recognition_scene(entry, self.partner.tokenizer, ids)
            scenes.append(one)
            speak.append(grid.speak)
        rows = self.hold("asr", scenes, speak=speak)
        for row in rows:
            row["heard"] = transcript_of(row["lines"])
        self.count("asr", rows)

    def reading(self, manifest):
        """Table 5: errors of what a recogniser hears against the text that was given."""
        ids = stream.Ids.of(self.partner.model.config)
        scenes = []
        text = []
        for entry in self.read_pairs(manifest, "tts"):
            one, grid = reading_scene(entry, self.partner.tokenizer, ids)
            scenes.append(one)
            text.append(grid.text)
        self.count("tts", self.transcribe(self.hold("tts", scenes, text=text)))

    def grids(self, folders):
        """Teacher-forced loss by format and class."""
        grids = data.Grids(folders)
        for format in sorted(set(grids.formats)):
            places = [i for i, name in enumerate(grids.formats) if name == format]
            some = [grids[i] for i in spaced(places, self.args.most)]
            bar = tqdm(some, desc=f"loss, {format}", unit="grid")
            sums, tokens = losses(self.partner.model, bar)
            numbers = {}
            for kind in stream.Loss:
                if kind == stream.Loss.NONE or not tokens[:, kind].any():
                    continue
                pairs = torch.stack([sums[:, kind], tokens[:, kind]], 1).tolist()
                numbers[kind.name.lower()] = number(pairs, "nats")
            self.parts[f"loss, {format}"] = numbers, [], []

    # --- Full-Duplex-Bench ---

    def full_duplex_bench(self, folder):
        """Write output.wav beside each input.wav of the benchmark, in time with it. Folders of
        version 1.5 have a clean_input.wav too: clean_output.wav is written, and nothing is
        graded."""
        scenes = []
        ungraded = 0
        for file in sorted(folder.rglob("input.wav")):
            row = dict(question=str(file.parent), **full_duplex_bench.task_of(file))
            scenes.append(self.bench_scene(file, row, len(scenes)))
            clean = file.with_name("clean_input.wav")
            if clean.exists():
                scenes.append(self.bench_scene(clean, row, len(scenes)))
            if row["task"] == full_duplex_bench.VERSION_15:
                ungraded += 1
        if not scenes:
            raise ValueError(f"{folder} holds no input.wav")
        if ungraded:
            print(f"eval.py: {ungraded} folders are of Full-Duplex-Bench 1.5: output.wav and "
                  "clean_output.wav are written for its own scripts, and are not graded here",
                  file=sys.stderr)
        self.count("fdb", self.hold("fdb", scenes), full_duplex_bench.grade)

    def bench_scene(self, file, row, place):
        """A recording of the benchmark as a Scene whose answer goes beside it. Raises ValueError
        where a file is there that this run did not write."""
        output = file.with_name(file.name.replace("input", "output"))
        ours = (self.args.out / "fdb" / f"{place:04d}.json").exists()
        if output.exists() and not ours and not self.args.overwrite:
            raise ValueError(f"{output} exists: move it, or add --overwrite")
        return Scene(sound_file.read_audio(file), dict(row, output=str(output)))


def save(talk, row, file):
    """Write a Conversation: its sound beside the row, and then the row with what came of it. The
    row comes last, because a row that exists is not played again."""
    sound = file.with_suffix(".wav")
    both = torch.stack([talk.user_audio, talk.model_audio], 1).numpy()
    sound_file.write_audio(sound, both, SAMPLE_RATE)
    if row.get("output"):
        sound_file.write_audio(Path(row["output"]), talk.model_audio.numpy(), SAMPLE_RATE)
    write_lines(file, [dict(row, seconds=len(talk.model_audio) / SAMPLE_RATE,
                            audio=f"{file.parent.name}/{sound.name}", lines=talk.lines,
                            spans=spans(talk.model_audio))])


def settings_of(args, folder, sampling):
    """What numbers depend on: options, weights, sampling -> dict of JSON values."""
    settings = {key: str(getattr(args, key)) for key in SETTINGS if getattr(args, key) is not None}
    if not args.snr:
        del settings["noise"]
    if not args.talk:
        del settings["talk"]  # a later command may add the long conversations
    times = sorted(file.stat().st_mtime for file in folder.glob("*.safetensors"))
    return settings | dict(model=[str(folder.resolve()), *times], sampling=asdict(sampling))


def known_settings(out, settings):
    """The settings of a folder of results; {} where it is new. Raises ValueError where they are
    others, or where the folder holds other things."""
    file = out / "settings.json"
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} holds other things than results: choose another folder")
        return {}
    known = json.loads(file.read_text())
    changed = [key for key in settings if known.get(key, settings[key]) != settings[key]]
    if changed:
        raise ValueError(f"{out} holds results of another {', '.join(changed)}: choose another "
                         "folder, or remove it")
    return known


# --- the command ---

def make_parser():
    parser = argparse.ArgumentParser(
        description="Measure a model. Ask for one part or for many. What OUT holds is not measured "
        "again: the same command goes on after a stop, and a later command adds parts.",
        epilog="OUT: results.txt (a table), results.json (value, n, low, high), results.png, "
        "failures.md, and every conversation, the user left, the model right.")
    add_conversation_options(parser)
    group = parser.add_argument_group("the paper's tables, for post-trained models, and others'")
    group.add_argument("--asr", type=Path, metavar="JSONL",
                       help="pairs, heard in ASR style: errors of the monologue (Table 4)")
    group.add_argument("--tts", type=Path, metavar="JSONL",
                       help="pairs, spoken in TTS style: errors of what --whisper hears (Table 5)")
    group.add_argument("--grids", nargs="+", default=[], metavar="FOLDER",
                       help="folders of data.py encode: teacher-forced loss by class")
    group.add_argument("--fdb", type=Path, metavar="FOLDER",
                       help="Full-Duplex-Bench v1: write output.wav beside each input.wav")
    group.add_argument("--overwrite", action="store_true",
                       help="replace an output.wav that is there already")
    add_run_options(parser)
    return parser


def add_conversation_options(parser):
    group = parser.add_argument_group(
        "conversation: questions alone, with a pause in them, interrupted, five in a row")
    group.add_argument("--dialogs", type=Path, metavar="JSONL",
                       help="dialogs of voices that the model was not trained on "
                       "(workshop/manifests.py has the format); their first turns are asked")
    group.add_argument("--backchannels", type=Path, metavar="FOLDER",
                       help="recordings of uh-huh and the like, spoken into answers")
    group.add_argument("--snr", type=float, nargs="+", default=[], metavar="DB",
                       help="ask the questions again, in noise so many dB below the voice")
    group.add_argument("--noise", nargs="+", default=[], metavar="FOLDER",
                       help="recordings for --snr (default: pink noise)")
    group.add_argument("--rooms", action="store_true",
                       help="ask the questions again, in made-up rooms")
    group.add_argument("--talk", type=float, default=10, metavar="MINUTES",
                       help="length of the long conversations that are full of "
                       "questions; questions after a hundred seconds of silence belong to them; "
                       "0 for neither "
                       "(default: %(default)s)")
    group.add_argument("--leakage", type=float, nargs="+", default=[], metavar="GAIN",
                       help="ask the questions again, while the model hears itself at this gain")


def add_run_options(parser):
    group = parser.add_argument_group("how")
    group.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                       help="for results and conversations")
    group.add_argument("--model", default=chat.SHIPPED,
                       help="folder or Hub id (default: the small model shipped here)")
    group.add_argument("--whisper", nargs="?", const="", metavar="MODEL",
                       help="transcribe what the model says: faster-whisper folder or id "
                       "(default: a packaged Whisper tiny)")
    group.add_argument("--language", default="en",
                       help="language of the texts; zh counts characters (default: %(default)s)")
    group.add_argument("--most", type=int, default=200, metavar="N",
                       help="use at most N entries of a manifest, evenly spaced "
                       "(default: %(default)s)")
    group.add_argument("--batch", type=int, default=32, metavar="N",
                       help="conversations at once (default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    group.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    group.add_argument("--bfloat16", action="store_true", help="weights in 16 bits, for GPUs")


def check_arguments(args):
    """Raise ValueError, one sentence, for options that cannot be used."""
    if min(args.batch, args.most) < 1:
        raise ValueError("--batch and --most must be 1 or more")
    if not 0 <= args.talk <= 600:
        raise ValueError(f"--talk must be 0 .. 600 minutes, not {args.talk:g}")
    for name, lowest, highest in (("snr", -100, 100), ("leakage", 0, 10)):
        for value in getattr(args, name):
            if not lowest <= value <= highest:
                raise ValueError(f"--{name} must be {lowest} .. {highest}, not {value}")
    for name in ("backchannels", "snr", "noise", "rooms", "leakage"):
        if getattr(args, name) and not args.dialogs:
            raise ValueError(f"--{name} needs the questions of --dialogs")
    if not (args.dialogs or args.asr or args.tts or args.grids or args.fdb):
        raise ValueError("nothing to measure: name --dialogs, --asr, --tts, --grids or --fdb")
    if args.whisper is not None:
        check_packages(args.whisper)
    mimi.check_device(args.device)


def main(arguments=None):
    args = make_parser().parse_args(arguments)
    try:
        check_arguments(args)
        run = Run(args)
        run.measure()
        numbers = {part: numbers for part, (numbers, _, _) in run.parts.items()}
        write_lines(args.out / "results.json", [numbers])
        print(report.write(run.parts, args.out), end="")
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
