"""What the shipped model says, minute after minute: the conversations that people hold with it, by
codes alone where sound is not looked at, so that minutes of talk take seconds.

These tests look at words, not at a machine's health: a model that falls silent for ever runs as
fast, and in as little memory, as one that answers."""
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import chat
import data
import eval as evaluate
from workshop import sound_file

ROOT = Path(__file__).parent.parent
QUESTION = ROOT / "examples" / "question.wav"    # the capital of France
QUESTIONS = ROOT / "examples" / "questions.flac"  # six questions with pauses for the answers
ANSWERS = ["Good morning to you.", "The capital of Japan is Tokyo.", "Seven plus eight is fifteen.",
           "Dragon, river, candle.", "The opposite of happy is sad.", "I am a small voice model."]
SECOND = 24_000


@pytest.fixture(scope="module")
def partner(shipped):
    return chat.Partner(shipped, chat.Sampling.of(shipped))


def seconds(n):
    return torch.zeros(round(n * SECOND))


def lines_of(partner, waves):
    """Hold a conversation with each waveform [N], without decoding what is said -> the lines
    thought in each: [(seconds, text)]."""
    codec = partner.codec
    conversations = []
    for wave in waves:
        whole = F.pad(wave, (0, -len(wave) % data.FRAME))
        conversations.append(codec.encode(whole[None, None])[0].T)  # [T, K]
    lines = [[] for _ in waves]
    # At most three side by side: what is longer would keep the others' places computing.
    played = evaluate.play(partner.model, partner.duplex.sampling, conversations, batch=3)
    for i, (text, _, _) in played:
        monologue = partner.monologue(lambda *_, **__: None)
        for frame, token in enumerate(text):
            monologue.add(frame / codec.config.frame_rate, token)
        lines[i] = monologue.lines
    return lines


@pytest.fixture(scope="module")
def conversations(partner):
    """Some long conversations, held side by side: {name: lines}."""
    six = sound_file.read_audio(QUESTIONS)
    one = sound_file.read_audio(QUESTION)
    noise = torch.randn(60 * SECOND, generator=torch.Generator().manual_seed(0)) * 10 ** (-50 / 20)
    waves = {"forty-two questions": six.repeat(7),
             "after 100 s": torch.cat([seconds(100), one, seconds(5)]),
             "silence": seconds(60),
             "noise": noise}
    return dict(zip(waves, lines_of(partner, list(waves.values()))))


def test_the_fortieth_question_is_answered(conversations):
    """Catches a model that falls silent, or babbles, once a conversation is longer than the rows
    that it was trained on."""
    lines = [text for _, text in conversations["forty-two questions"]]
    expected = ANSWERS * 7
    right = [text == answer for text, answer in zip(lines, expected)]
    assert len(lines) == len(expected), lines
    assert sum(right) >= 38, lines
    assert sum(right[-6:]) >= 5, "the last ones are answered as well as the first"


def test_a_question_after_a_hundred_seconds_of_silence_is_answered(conversations):
    """Catches a model that has forgotten how to begin when nobody spoke for longer than it ever met
    in training."""
    (at, text), = conversations["after 100 s"]
    assert text == "The capital of France is Paris."
    assert 100 < at < 104


@pytest.mark.parametrize("kind", ["silence", "noise"])
def test_nothing_is_said_to_nobody(conversations, kind):
    """Catches a model that talks into a minute of digital silence, or of noise of -50 dB."""
    assert conversations[kind] == []


@pytest.mark.parametrize("gain", [0.1, 0.3])
def test_it_does_not_talk_with_itself(partner, gain, pytestconfig):
    """Catches a model that takes its own voice, back in the microphone 0.24 s later, for a
    user's."""
    wave = torch.cat([sound_file.read_audio(QUESTION), seconds(60 if pytestconfig.getoption("long") else 10)])
    (_, talk), = evaluate.converse(partner, [wave], echo=[(gain, 0.24)])
    assert [text for _, text in talk.lines] == ["The capital of France is Paris."]


def test_the_model_says_how_much_it_remembers(shipped, partner):
    """Catches a shipped model without `trained_frames`, or a conversation that remembers more than
    it was trained to."""
    frames = json.loads((shipped / "config.json").read_text())["trained_frames"]
    assert partner.duplex.cache.length == frames == chat.default_context(partner.model.config)


def test_a_larger_context_is_warned_of(partner, capsys):
    """Catches a silent return of the fault by `--context`."""
    chat.warn_of_context(partner.model.config, partner.model.config.trained_frames + 1)
    assert "was trained on rows of" in capsys.readouterr().err
    chat.warn_of_context(partner.model.config, partner.model.config.trained_frames)
    assert not capsys.readouterr().err


# --- hours, with --long ---

@pytest.fixture
def long(pytestconfig):
    if not pytestconfig.getoption("long"):
        pytest.skip("--long holds conversations of ten minutes and of three hours")


def test_ten_minutes_of_questions(partner, long):
    """Catches answers that get fewer as a conversation gets longer."""
    six = sound_file.read_audio(QUESTIONS)
    lines, = lines_of(partner, [six.repeat(19)])
    assert len(lines) == 19 * 6
    right = [text == answer for (_, text), answer in zip(lines, ANSWERS * 19)]
    assert sum(right) >= 0.9 * len(right)
    assert sum(right[-30:]) >= sum(right[:30]) - 3


class Watch:
    """What a long conversation costs and says, by the quarter of an hour."""
    QUARTER = 15 * 60 * 25 // 2  # frames

    def __init__(self, questions):
        self.questions = questions  # in a quarter of an hour
        self.megabytes = []
        self.milliseconds = []
        self.right = []
        self.lines = 0
        self.started = time.process_time()

    def note(self, frame, monologue):
        """Called after each frame."""
        if frame % self.QUARTER:
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.megabytes.append(pages * 4096 / 1e6)
        now = time.process_time()
        self.milliseconds.append(1000 * (now - self.started) / self.QUARTER)
        self.started = now
        lines = [text for _, text in monologue.lines[self.lines:]]
        self.lines += len(lines)
        self.right.append(sum(text in ANSWERS for text in lines) / self.questions)
        print(f"{frame / 750:6.1f} min, {self.right[-1]:.0%} of the questions answered right, "
              f"{self.milliseconds[-1]:.1f} ms of processor a frame, {self.megabytes[-1]:.1f} MB", flush=True)


def test_three_hours_of_questions(partner, long):
    """Catches a model that stops answering, memory that grows and frames that get slower, in three
    hours of conversation through everything that the server runs through: Opus, codec, model,
    monologue, Opus."""
    pytest.importorskip("sphn")
    from workshop.server import Opus
    client = Opus(SECOND)
    server = Opus(SECOND)
    six = sound_file.read_audio(QUESTIONS)
    samples = six.repeat(math.ceil(3 * 3600 * SECOND / len(six))).numpy()
    watch = Watch(questions=15 * 60 * SECOND / len(six) * 6)
    monologue = partner.monologue(lambda *_, **__: None)
    partner.duplex.reset(seed=0)
    ears = np.zeros(0, np.float32)
    frame = 0
    for start in range(0, len(samples), data.FRAME):
        packet = client.encode(samples[start:start + data.FRAME])
        ears = np.concatenate([ears, server.decode(packet)])
        while len(ears) >= data.FRAME:
            user_audio = torch.from_numpy(ears[:data.FRAME])
            ears = ears[data.FRAME:]
            text, _, model_audio = partner.duplex.steps({0: user_audio})[0]
            assert model_audio.isfinite().all()
            client.decode(server.encode(model_audio.numpy()))
            monologue.add(frame / 12.5, text)
            frame += 1
            watch.note(frame, monologue)
    assert min(watch.right) > 0.85, watch.right
    assert watch.right[-1] >= watch.right[0] - 0.05, watch.right
    third = len(watch.megabytes) // 3
    assert watch.megabytes[-1] - watch.megabytes[third] < 30, watch.megabytes
    assert np.median(watch.milliseconds[-third:]) < 2 * np.median(watch.milliseconds[:third]), watch.milliseconds
