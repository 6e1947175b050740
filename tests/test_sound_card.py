"""Microphone and loudspeaker with made-up devices of every kind; a machine that is busy or slow."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import chat
from conftest import Device
from workshop import pace, sound_card as cards

ROOT = Path(__file__).parent.parent
SIZE = 1920   # samples of a frame
HEADSET = Device("headset", 1, 1, 16_000, (16_000,), (1,))
EARPHONE = Device("earphone", 1, 0, 16_000, (16_000,), (1,))
BOX = Device("box", 0, 2, 48_000, (48_000,), (2,))
HDMI = Device("HDMI", 0, 8, 44_100, (44_100, 48_000), (2, 8))
ANY = Device("any", 2, 2, 44_100, (24_000, 44_100), (1, 2))
TWO = Device("two", 2, 2, 44_100, (44_100,), (2,))
MANY = Device("many", 6, 8, 48_000, (48_000,), (6, 8))
LIES = Device("lies", 1, 1, 96_000, (48_000,), (1,))
BOTH = Device("both", native=48_000, rates=(24_000, 48_000))
NATIVE = Device("native", native=48_000, rates=(48_000,))


def run(*arguments):
    """The command -> None, or the one sentence it ends with."""
    try:
        chat.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def tone(rate, seconds=2.0, loudness=0.3):
    """440 Hz, float32 [N]."""
    angles = 2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate
    return (loudness * np.sin(angles)).astype(np.float32)


@pytest.mark.parametrize("devices, opened", [
    ([BOTH], {"input": (24_000, 1), "output": (24_000, 1)}),
    ([NATIVE], {"input": (48_000, 1), "output": (48_000, 1)}),
    ([EARPHONE, BOX], {"input": (16_000, 1), "output": (48_000, 2)}),
    ([ANY], {"input": (24_000, 2), "output": (24_000, 2)}),
    ([TWO], {"input": (44_100, 2), "output": (44_100, 2)}),
    ([MANY], {"input": (48_000, 6), "output": (48_000, 8)}),
    ([LIES], {"input": (48_000, 1), "output": (48_000, 1)}),
])
def test_each_device_is_opened_as_it_wants(sound_card, devices, opened):
    """Catches one rate or channel for both directions, where a device takes another."""
    system = sound_card(np.zeros((0, 1), np.float32), *devices)
    with cards.SoundCard(24_000, SIZE):
        assert system.opened == opened


@pytest.mark.parametrize("devices", [[Device()], [EARPHONE, BOX], [TWO]])
def test_a_microphone_is_heard_recorded_and_unplugged(tmp_path, untrained, sound_card, devices):
    """Catches a pitch or loudness that changes; sound that is lost; a channel that stays silent;
    and a talk that hangs when the microphone is gone."""
    microphone, loudspeaker = devices[0], devices[-1]
    sound = np.repeat(tone(microphone.native, 1.6)[:, None], microphone.channels[0], 1)
    system = sound_card(sound, *devices)
    message = run("--model", untrained, "--record", tmp_path / "both.wav")
    assert "the microphone gives nothing any more" in message
    both, rate = soundfile.read(tmp_path / "both.wav", dtype="float32")
    user_audio, model_audio = both.T
    assert rate == 24_000 and len(both) >= 1.4 * rate
    second = user_audio[7200:31_200]  # past the filters' start
    assert np.abs(np.fft.rfft(second)).argmax() == 440
    assert second.std() == pytest.approx(0.3 / 2 ** 0.5, rel=0.02)
    played = np.concatenate(system.played)
    assert played.shape == (round(1.6 * loudspeaker.native), loudspeaker.channels[0])
    assert (played == played[:, :1]).all()
    assert np.abs(model_audio).max() > 0 and np.abs(played).max() > 0


@pytest.mark.parametrize("loudspeaker", [Device(), BOX, HEADSET])
def test_an_answer_keeps_its_pitch(sound_card, loudspeaker):
    """Catches frames that are played at another rate than the device's: another pitch, and gaps or
    a lag."""
    system = sound_card(np.zeros((0, 1), np.float32), loudspeaker)
    mouth = cards.Loudspeaker(system, None, 24_000, SIZE)
    blocks = []
    for frame in torch.from_numpy(tone(24_000, 2.0)).split(SIZE):
        mouth.play(frame)
        for _ in range(2):
            blocks.append(np.ones((mouth.stream.size, mouth.stream.channels), np.float32))
            mouth.fill(blocks[-1])
    rate = loudspeaker.native
    second = np.concatenate(blocks)[rate // 2:rate // 2 + rate, 0]
    assert np.abs(np.fft.rfft(second)).argmax() == 440
    assert second.std() == pytest.approx(0.3 / 2 ** 0.5, rel=0.02)


def test_several_channels_become_one():
    """Catches a voice that a dead channel halves, that opposite phases silence, or that a second
    voice replaces."""
    voice = tone(48_000, 0.04)
    other = np.roll(tone(48_000, 0.04), 27)
    nothing = 0 * voice
    for channels, expected in [
        ([voice], voice),
        ([voice, voice], voice),
        ([nothing, voice], voice),
        ([voice, nothing, 0.001 * voice], voice),
        ([voice, -voice], voice),
        ([voice, other], (voice + other) / 2),
        ([nothing, nothing], nothing),
    ]:
        mix = cards.Mixer(len(channels))
        for _ in range(3):
            mixed = mix(np.stack(channels, 1))
        assert np.allclose(mixed, expected, atol=1e-6), len(channels)


def ends(sound_card, *devices):
    """A microphone and a loudspeaker that no clock moves."""
    system = sound_card(np.zeros((0, 1), np.float32), *devices)
    microphone = cards.Microphone(system, None, 24_000, SIZE)
    loudspeaker = cards.Loudspeaker(system, None, 24_000, SIZE)
    return microphone, loudspeaker


def test_late_frames_lose_nothing_that_was_heard(sound_card):
    """Catches sound dropped while the model is slow for a moment, and a talk that stays ten seconds
    behind for good."""
    microphone, _ = ends(sound_card)
    count = round(cards.PILE / cards.BLOCK)
    for i in range(count):
        microphone.take(np.full((SIZE // 2, 1), i, np.float32))
    assert microphone.behind() == pytest.approx(cards.PILE) and microphone.lost == 0
    frames = iter(microphone)
    assert [next(frames)[0].item() for _ in range(5)] == [0, 2, 4, 6, 8]
    for i in range(10):  # as many as were taken: it is full again
        microphone.take(np.full((SIZE // 2, 1), count + i, np.float32))
    assert microphone.lost == 0
    for i in range(2):
        microphone.take(np.full((SIZE // 2, 1), count + 10 + i, np.float32))
    assert microphone.lost == pytest.approx(cards.PILE)
    assert next(frames)[0].item() == count + 10


def test_a_microphone_that_hangs_ends_the_talk(sound_card, monkeypatch):
    """Catches a talk that waits for ever for a device that has not stopped and gives nothing."""
    microphone, _ = ends(sound_card)
    microphone.stream.active = True
    monkeypatch.setattr(cards, "PATIENCE", 0.2)
    with pytest.raises(ValueError, match="gives nothing any more"):
        next(iter(microphone))


def test_two_clocks_grow_no_lag(sound_card):
    """Catches a queue that grows through half an hour because one device's clock runs faster, and
    an answer that stays behind after late frames."""
    for drift in (1 - 2e-4, 1 + 2e-4):  # more than two crystals differ
        _, loudspeaker = ends(sound_card)
        frame = torch.zeros(SIZE)
        block = np.zeros((SIZE // 2, 1), np.float32)
        pulled = 0
        for i in range(22_500):  # frames of half an hour
            loudspeaker.play(frame)
            while pulled * SIZE // 2 < (i + 1) * SIZE * drift:
                loudspeaker.fill(block)
                pulled += 1
            assert len(loudspeaker.frames) <= cards.LAG
        assert loudspeaker.skipped <= 5
    _, loudspeaker = ends(sound_card)
    for i in range(10):
        loudspeaker.play(torch.full((SIZE,), float(i)))
    block = np.zeros((SIZE, 1), np.float32)
    loudspeaker.fill(block)
    assert block[0, 0] == 10 - cards.LAG and loudspeaker.skipped == 10 - cards.LAG


def test_a_loudspeaker_plays_what_there_is_without_a_gap(sound_card):
    """Catches samples that are lost, doubled or put off where a device's block ends in a frame."""
    _, loudspeaker = ends(sound_card, Device(channels_out=2, channels=(1, 2)))
    for i in range(2):
        loudspeaker.play(torch.arange(SIZE) + 1.0 + i * SIZE)
    blocks = [np.full((700, 2), 9.0, np.float32) for _ in range(6)]
    for block in blocks:
        loudspeaker.fill(block)
    played = np.concatenate(blocks)
    assert (played[:2 * SIZE, 0] == np.arange(2 * SIZE) + 1).all()
    assert (played[:, 1] == played[:, 0]).all()
    assert (played[2 * SIZE:] == 0).all()


def test_device_errors_are_one_sentence(sound_card, untrained):
    """Catches "device -1", a number that is none, a device of the other kind, or one that is taken,
    told in PortAudio's words or in a traceback."""
    taken = Device("taken", 1, 1, 48_000, (), (1,))
    for devices, arguments, sentence in [
        ([EARPHONE, BOX], ("--input-device", 1), "--input-device 1 (box) is no microphone"),
        ([EARPHONE, BOX], ("--output-device", 0), "--output-device 0 (earphone) is no loudspeaker"),
        ([EARPHONE, BOX], ("--input-device", 7), "--input-device 7 is no sound device, there are"),
        ([EARPHONE, BOX], ("--output-device", -1), "--output-device -1 is no sound device"),
        ([HDMI], (), "no microphone here: connect one"),
        ([EARPHONE], (), "no loudspeaker here: connect one"),
        ([taken], (), "the microphone 'taken' cannot be opened (Invalid sample rate"),
    ]:
        sound_card(np.zeros((960, 1), np.float32), *devices)
        message = run("--model", untrained, *arguments)
        assert isinstance(message, str) and sentence in message and "\n" not in message, message


def test_a_machine_without_a_sound_system_is_told_what_to_install(tmp_path, monkeypatch):
    """Catches a traceback where PortAudio is missing, or does not start while it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    for error in ("OSError", "RuntimeError"):
        monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
        (tmp_path / "sounddevice.py").write_text(f"raise {error}('PortAudio is not there')")
        message = run("--list-devices")
        assert message.startswith("chat.py: no sound system here (PortAudio is not there): install")


def test_wrong_devices_are_told_before_the_model_is_loaded(sound_card, monkeypatch):
    """Catches sixteen gigabytes that are read before a wrong number is noticed."""
    sound_card(np.zeros((960, 1), np.float32), HDMI)
    monkeypatch.setattr(chat, "Partner", None)
    assert "no microphone here" in run()


def test_a_loudspeaker_that_goes_away_ends_the_talk(sound_card):
    """Catches a talk that goes on unheard."""
    system = sound_card(np.zeros((96_000, 1), np.float32))
    with pytest.raises(ValueError, match="the loudspeaker has gone"):
        with cards.SoundCard(24_000, SIZE) as card:
            for _ in card:
                system.loudspeaker.active = False


def make_frames_slow(monkeypatch):
    """Each frame is said to have taken 0.2 s."""
    hold = chat.Partner.hold

    def slow(*arguments, **options):
        for user_audio, model_audio, _ in hold(*arguments, **options):
            yield user_audio, model_audio, 0.2
    monkeypatch.setattr(chat.Partner, "hold", slow)


def test_a_machine_that_is_too_slow_is_told_once(sound_card, untrained, monkeypatch, capsys):
    """Catches a talk that falls behind without a word, and one that says so in every frame."""
    counter = pace.Pace(0.08)
    warnings = [counter.add(seconds) for seconds in [0.5] + [0.05] * 60 + [0.0801] * 200]
    sentences = [warning for warning in warnings if warning]
    assert len(sentences) == 1 and counter.late == 201
    assert sentences[0].startswith("this machine takes 81 ms for a frame of 80 ms, so a live talk ")
    assert pace.too_slow(0.08, 0.08) is None

    monkeypatch.setattr(pace, "WINDOW", 10)
    make_frames_slow(monkeypatch)
    sound_card(tone(24_000, 1.0)[:, None])
    run("--model", untrained)
    assert capsys.readouterr().out.count("this machine takes 200 ms for a frame of 80 ms") == 1


def test_a_file_on_a_slow_machine(tmp_path, untrained, monkeypatch, capsys):
    """Catches a conversation with a file that does not say that a live one would fall behind."""
    soundfile.write(tmp_path / "question.wav", tone(24_000, 0.5), 24_000)
    make_frames_slow(monkeypatch)
    files = ("--in", tmp_path / "question.wav", "--out", tmp_path / "answer.wav")
    assert run(*files, "--model", untrained) is None
    assert "ms for a frame of 80 ms, so a live talk falls behind" in capsys.readouterr().out


def test_threads_follow_the_model_and_the_user(monkeypatch):
    """Catches one thread for a model that needs more, and a user's choice that is overruled."""
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    small = torch.nn.Linear(10, 10)
    with torch.device("meta"):
        large = torch.nn.Linear(10_000, 10_000)
    pace.settle_threads(small, large)
    assert chosen == []
    pace.settle_threads(small, small)
    assert chosen == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    pace.settle_threads(small)
    assert chosen == [1]

    for name in pace.WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "100")
    pace.sleep_while_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    pace.sleep_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


# A program of its own, since threads are set once. It prints the seconds of a frame, the median:
# alone, and beside a busy core.
MEASURE = """
import os, statistics, subprocess, sys
cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
import chat, torch
from workshop import ways_in

def measure(partner, args):
    frames = torch.zeros(15, partner.codec.config.frame_size)
    monologue = partner.monologue(lambda *_, **__: None)
    busy = None
    for beside in (False, True):
        if beside:
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            os.sched_setaffinity(busy.pid, cores[1:])
        try:
            seconds = [took for _, _, took in partner.hold(frames, monologue)]
        finally:
            if busy:
                busy.kill()
        print(statistics.median(seconds))

ways_in.talk_to_file = measure
chat.main(sys.argv[1:])
"""


def test_one_busy_core_does_not_make_frames_late(tmp_path, untrained):
    """Catches threads that wait for each other by spinning: beside one busy core they made a frame
    take twenty times as long and more. Two cores, one of them kept busy, are compared with the same
    two as they are, so that a slow machine does not fail."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("takes two cores, and Linux to choose them")
    environment = dict(os.environ)
    for name in (*pace.WAITING, "OMP_NUM_THREADS"):
        environment.pop(name, None)
    files = ["--in", ROOT / "examples" / "question.wav", "--out", tmp_path / "answer.wav"]
    command = [sys.executable, "-c", MEASURE, *files, "--model", untrained]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    alone, beside = (float(value) for value in result.stdout.split()[-2:])
    times = f"a frame takes {1000 * alone:.0f} ms, beside a busy core {1000 * beside:.0f} ms"
    assert beside < 6 * alone, times
