"""What the user says, and when: recordings laid into one waveform, with the questions among them.

What this is: clips, and scenes of clips with the row that says what is expected when. What this is
not: who speaks into an answer, which scenes are played, or how a row is graded (all of it eval.py).
Serves eval.py.

    one = clip(wave, question="Who are you?", expected="I am Joe.")
    scene([(0, one), (6.5, one)])       # asked twice, and 5 s of silence at the end
"""
from collections import namedtuple
from dataclasses import dataclass, field

import torch

from workshop import rooms
from workshop.sounds import SAMPLE_RATE, noise_below, spans

# Decision: the paper does not say how long an answer was waited for.
TAIL = 5.0        # seconds of silence after the last question, in which it must be answered
TURNS = 5         # questions of a conversation
TURN_PAUSE = 4.0  # seconds after each, for the answer
PAUSES = (0.6, 1.0)  # seconds of silence within a question


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


def clip(wave, **known):
    """A recording [N] -> Clip. known: question, expected, about."""
    sound = spans(wave)
    if not sound:
        sound = [[0, len(wave) / SAMPLE_RATE]]
    return Clip(wave, sound[0][0], sound[-1][1], **known)


def scene(placed, first=0, tail=None, **about):
    """[(seconds, Clip)] -> Scene, with `tail` seconds of silence at its end (None: TAIL). Only the
    questions from number `first` on are turns. about: more of its row."""
    if tail is None:
        tail = TAIL
    stops = [round(at * SAMPLE_RATE) + len(one.wave) for at, one in placed]
    wave = torch.zeros(max(stops) + round(tail * SAMPLE_RATE))
    for at, one in placed:
        begin = round(at * SAMPLE_RATE)
        wave[begin:begin + len(one.wave)] += one.wave
    questions = [(at, one) for at, one in placed if one.expected is not None][first:]
    turns = [turn_of(questions, i, first) for i in range(len(questions))]
    row = dict(placed[0][1].about, **about, turns=turns)
    return Scene(wave.clip(-1, 1), row)


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


def in_a_row(clips, first=0):
    """One conversation: a clip, TURN_PAUSE seconds for the answer, the next clip, and so on. Only
    those from number `first` on are turns."""
    starts = []
    now = 0.0
    for one in clips:
        starts.append(now)
        now += len(one.wave) / SAMPLE_RATE + TURN_PAUSE
    return scene(list(zip(starts, clips)), first)


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


def next_of_each(questions, same=None):
    """The place of the question that follows each, after the last the first. same: a key of `about`
    that both must have, and with one value; None where there is no other."""
    places = []
    for i, one in enumerate(questions):
        others = [*range(i + 1, len(questions)), *range(i)]
        if same:
            value = one.about.get(same)
            others = [j for j in others if value and questions[j].about.get(same) == value]
        places.append(others[0] if others else None)
    return places


# --- what people and rooms do to a question ---

def with_pause(question, rng):
    """A question with silence at a quiet place inside."""
    seconds = rng.uniform(*PAUSES)
    wave, at = rooms.hesitate(question.wave.numpy(), seconds, rng)
    paused = clip(torch.from_numpy(wave), question=question.question, expected=question.expected,
                  about=question.about)
    return scene([(0, paused)], pause=at / SAMPLE_RATE)


def in_room(dry, rng):
    """A Scene as it sounds in a made-up room."""
    wave = rooms.room(dry.wave.numpy(), rng)[:len(dry.wave)]
    return Scene(torch.from_numpy(wave).clip(-1, 1), dry.row)


def in_noise(quiet, snr, paths, rng):
    """A Scene in noise from its beginning to its end, `snr` dB below the voice; paths: recordings
    of noise, none for pink noise."""
    wave, row = quiet
    voice = wave[:round(row["turns"][0]["end"] * SAMPLE_RATE)]
    return Scene((wave + noise_below(voice, snr, len(wave), paths, rng)).clip(-1, 1), row)
