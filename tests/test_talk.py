"""What the shipped model says, minute after minute: the conversations that people hold with it, by
codes alone where sound is not looked at, so that minutes of talk take seconds.

A model reads rows that are known in one pass, and so remembers minutes of talk at once. The talk
that these tests let it remember is one that it held itself.

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
import stream
from workshop import chat_options, sound_file
from workshop.monologue import read_monologue

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


def codes_of(partner, wave):
    """A waveform [N] -> the codes [T, K] that the model hears."""
    whole = F.pad(wave, (0, -len(wave) % data.FRAME))
    return partner.codec.encode(whole[None, None])[0].T


def lines_of(partner, text):
    """Text ids, one a frame -> the lines of the monologue: [(seconds, text)]."""
    lines, _ = read_monologue(text, partner.tokenizer, partner.model.config, stream.FRAME_RATE)
    return lines


def talk(partner, codes, batch=3):
    """Hold a conversation by codes [T, K] with each user, side by side -> [(text ids, a Grid of
    what was heard, written and said)]. Speech is not decoded."""
    talks = [None] * len(codes)
    # What is longer than its company keeps the others' places computing.
    played = evaluate.play(partner.model, partner.duplex.sampling, codes, batch=batch)
    for i, (text, speak, _) in played:
        loss = torch.zeros(len(text), 1 + stream.K, dtype=torch.uint8)
        speak[0, 0] = partner.model.config.pad_token
        talks[i] = text, stream.Grid(torch.tensor(text), speak, codes[i], loss)
    return talks


def talk_on(partner, past, frames, codes):
    """Go on after a talk, a Grid that is repeated until it is so many frames long: it is read in
    one pass. codes [T, K]: what the user says from then on -> text ids [T]."""
    times = math.ceil((frames + 1) / len(past))
    long = stream.Grid(past.text.repeat(times), past.speak.repeat(times, 1),
                       past.listen.repeat(times, 1), past.loss.repeat(times, 1))
    rows = stream.delay(long, stream.Ids.of(partner.model.config))
    loop = chat.Duplex(partner.model, partner.duplex.sampling)
    loop.reset(seed=0)
    with torch.inference_mode():
        partner.model.hidden(rows.text[None, :frames], rows.speak[None, :frames],
                             rows.listen[None, :frames], loop.cache)
        loop.state.text[0] = rows.text[frames]
        loop.state.speak[0] = rows.speak[frames]
        loop.state.listen[0] = long.listen[frames - 1]
        loop.state.frames[0] = frames
    return [loop.steps({0: heard})[0][0] for heard in codes]


@pytest.fixture(scope="module")
def talks(partner):
    """Three conversations of half a minute, held side by side: {name: (text ids, Grid)}."""
    six = sound_file.read_audio(QUESTIONS)
    noise = torch.randn(len(six), generator=torch.Generator().manual_seed(0)) * 10 ** (-50 / 20)
    waves = {"six questions": six, "silence": torch.zeros(len(six)), "noise": noise}
    return dict(zip(waves, talk(partner, [codes_of(partner, wave) for wave in waves.values()])))


def test_questions_past_the_context_are_answered(partner, talks):
    """Catches a model that falls silent, or babbles, once a conversation is longer than the rows
    that it was trained on."""
    text, grid = talks["six questions"]
    assert [line for _, line in lines_of(partner, text)] == ANSWERS
    remembered = partner.model.config.trained_frames
    frames = remembered // len(grid) * len(grid)  # whole rounds of questions, and less than a row
    later = talk_on(partner, grid, frames, grid.listen)
    assert frames + len(later) > remembered + 100
    lines = [line for _, line in lines_of(partner, later)]
    right = [line == answer for line, answer in zip(lines, ANSWERS)]
    assert len(lines) == len(ANSWERS) and sum(right) >= 5, lines


def test_a_question_after_a_hundred_seconds_of_silence_is_answered(partner, talks):
    """Catches a model that has forgotten how to begin when nobody spoke for longer than it ever met
    in training."""
    _, grid = talks["silence"]
    question = torch.cat([sound_file.read_audio(QUESTION), seconds(5)])
    text = talk_on(partner, grid, 1250, codes_of(partner, question))
    (at, line), = lines_of(partner, text)
    assert line == "The capital of France is Paris."
    assert 0 < at < 4


@pytest.mark.parametrize("kind", ["silence", "noise"])
def test_nothing_is_said_to_nobody(partner, talks, kind):
    """Catches a model that talks into digital silence, or into noise of -50 dB: at the beginning of
    a conversation, or after a minute of it."""
    text, grid = talks[kind]
    assert lines_of(partner, text) == []
    later = talk_on(partner, grid, 750, grid.listen[:75])
    assert lines_of(partner, later) == []


def test_it_does_not_talk_with_itself(partner, pytestconfig):
    """Catches a model that takes its own voice, back in the microphone 0.24 s later and 0.1 or 0.3
    times as loud, for a user's."""
    silence = seconds(60 if pytestconfig.getoption("long") else 10)
    wave = torch.cat([sound_file.read_audio(QUESTION), silence])
    echo = [(0.1, 0.24), (0.3, 0.24)]
    for i, talk in evaluate.converse(partner, [wave, wave], echo=echo):
        lines = [text for _, text in talk.lines]
        assert lines == ["The capital of France is Paris."], f"gain {echo[i][0]}"


def test_the_model_says_how_much_it_remembers(shipped, partner):
    """Catches a shipped model without `trained_frames`, or a conversation that remembers more than
    it was trained to."""
    frames = json.loads((shipped / "config.json").read_text())["trained_frames"]
    assert partner.duplex.cache.length == frames == chat.default_context(partner.model.config)


def test_a_larger_context_is_warned_of(partner, capsys):
    """Catches a silent return of the fault by `--context`."""
    chat_options.warn_of_context(partner.model.config, partner.model.config.trained_frames + 1)
    assert "was trained on sequences of" in capsys.readouterr().err
    chat_options.warn_of_context(partner.model.config, partner.model.config.trained_frames)
    assert not capsys.readouterr().err


# --- hours, with --long ---

@pytest.fixture
def long(pytestconfig):
    if not pytestconfig.getoption("long"):
        pytest.skip("--long holds conversations of ten minutes and of three hours")


def test_ten_minutes_of_questions(partner, long):
    """Catches answers that get fewer as a conversation gets longer."""
    six = sound_file.read_audio(QUESTIONS)
    (text, _), = talk(partner, [codes_of(partner, six.repeat(19))])
    lines = lines_of(partner, text)
    assert len(lines) == 19 * 6
    right = [line == answer for (_, line), answer in zip(lines, ANSWERS * 19)]
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
              f"{self.milliseconds[-1]:.1f} ms of processor a frame, "
              f"{self.megabytes[-1]:.1f} MB", flush=True)


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
    earlier = np.median(watch.milliseconds[:third])
    assert np.median(watch.milliseconds[-third:]) < 2 * earlier, watch.milliseconds
