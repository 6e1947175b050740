"""From recordings to grids, with a small random codec: what stands where, what changes what is
heard, which shards a run makes, and what a user can get wrong."""
import json
import os
import random
import resource
import shutil

import numpy as np
import pytest
import soundfile
import torch

import data
import flm
import mimi
import stream
from conftest import assert_same
from data import Settings
from stream import Ids
from workshop import (acoustics, codec_files, config_files, encoding, model_files, rooms, shards,
                      training_set)
from workshop.drawing import draw
from workshop.manifests import DataError
from workshop.parallel import in_parallel

RATE = 24_000
IDS = Ids.of(flm.PRESETS["tiny"])
VOCABULARY = {"?": 0, "who": 4, "are": 5, "you": 6, "I": 7, "am": 8, "Joe": 9}


def sine(seconds, level=0.3):
    return (level * np.sin(np.arange(int(seconds * RATE)) * 0.05)).astype(np.float32)


def write_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a random miniature codec, a tokenizer of words, and special ids; and two
    recordings."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = mimi.Config(**{**vars(mimi.PRESETS["tiny"]), "num_layers": 1})
    codec_files.save(mimi.Mimi(config), folder)
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config_files.to_json(flm.PRESETS["tiny"])))
    soundfile.write(folder / "q.wav", sine(0.5), RATE)
    soundfile.write(folder / "a.wav", sine(0.7), RATE)
    pairs = [{"audio": "q.wav", "text": "who are you"}, {"audio": "a.wav", "text": "I am Joe"}]
    write_lines(folder / "pairs.jsonl", pairs * 3)
    turn = {"heard": "q.wav", "transcript": "who are you",
            "spoken": "a.wav", "response": "I am Joe"}
    write_lines(folder / "dialogs.jsonl", [{"turns": [turn]}] * 3)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return data.Encoder(folder)


def question(folder, **more):
    """A turn of a manifest as data.py has it."""
    return {"heard": folder / "q.wav", "transcript": "who", "spoken": folder / "a.wav",
            "response": "I"} | more


def frames_of(seconds):
    """Frames of a clip that the model speaks."""
    return int(np.ceil(seconds * RATE / data.FRAME)) + data.RINGING


# --- what stands where ---

def test_dialog_stands_where_the_format_says(folder, encoder, tmp_path):
    """Catches recordings laid at another time than their words: the answer sounds from two frames
    after the response's first word, and silence is elsewhere."""
    data.encode(folder / "dialogs.jsonl", tmp_path / "g", folder, Settings("asr-response-tts"))
    grids = list(training_set.Grids([tmp_path / "g"]))
    assert len(grids) == 3
    for grid in grids:
        drawing = draw(grid, IDS)
        text = grid.text.tolist()
        asr = text.index(IDS.asr)
        assert text[asr:asr + 8] == [IDS.asr, 4, 5, 6, IDS.answer, 7, 8, 9], drawing
        start = asr + 5 + stream.SPEECH_DELAY
        stop = start + frames_of(0.7)
        assert (grid.speak[1:start] == encoder.silence).all(), drawing
        assert torch.equal(grid.speak[start:stop], encoder.speak_codes(folder / "a.wav")), drawing
        assert (grid.speak[stop:] == encoder.silence).all(), drawing


class QuietRandom(random.Random):
    """Draws no noise and no long silence: 0.29 is below NO_NOISE_PROBABILITY and above
    LONG_SILENCE_PROBABILITY."""

    def random(self):
        return 0.29


def test_listening_is_continuous(folder, encoder):
    """Catches a question whose wave is lost, cut or moved: without noise, what is heard is zero but
    for the questions."""
    maker = data.GridMaker(encoder, Settings("response-tts"))
    plan = maker.plan([question(folder)] * 2, QuietRandom(0))
    audio = plan.user_audio
    assert len(audio) == len(plan.script) * data.FRAME
    assert len(plan.script.listen_spans) == len(plan.script.speak_spans) == 2
    for start, stop in plan.script.listen_spans:
        span = slice(start * data.FRAME, stop * data.FRAME)
        assert np.abs(audio[span]).max() > 0.01
        assert not audio[span][-data.CLOSING_SILENCE * data.FRAME:].any()
        assert np.count_nonzero(audio[span]) >= 0.5 * RATE - 10
        audio[span] = 0
    assert not audio.any()


def test_patience_holds_the_response_back(folder, encoder):
    """Catches a turn's patience that is dropped on the way, or added to the closing silence instead
    of replacing it."""
    maker = data.GridMaker(encoder, Settings("response-tts"))
    delays = []
    for turn in (question(folder), question(folder, patience=0.4)):
        script = maker.plan([turn], random.Random(0)).script
        first_word = next(t for t, token in enumerate(script.text) if token != IDS.wait)
        delays.append(first_word - script.listen_spans[0][0])
    assert delays[1] - delays[0] == 5 - data.CLOSING_SILENCE


def test_one_channel_formats(folder, tmp_path):
    """Catches loss or codes on the channel that a pair format leaves empty."""
    for format, empty in (("tts", "listen"), ("asr", "speak")):
        settings = Settings(format, join=(1, 3))
        data.encode(folder / "pairs.jsonl", tmp_path / format, folder, settings)
        for grid in training_set.Grids([tmp_path / format]):
            assert (getattr(grid, empty)[1:] == IDS.empty).all()
            assert bool((grid.loss[:, 1:] != 0).any()) == (format == "tts")


def test_every_line_is_used_once_a_draw():
    """Catches dialogs that joining loses or repeats, and an order that is not the one asked for."""
    def joined(settings):
        order, starts = data.join(50, settings)
        return [order[start:stop].tolist() for start, stop in zip(starts, starts[1:])]
    settings = Settings("tts", join=(1, 4), draws=3)
    samples = joined(settings)
    assert sorted(sum(samples, [])) == sorted(list(range(50)) * 3)
    assert {len(sample) for sample in samples} == {1, 2, 3, 4}
    assert samples == joined(settings)
    draws = [sum(samples, [])[start:start + 50] for start in (0, 50, 100)]
    assert len({tuple(draw) for draw in draws}) == 3
    assert joined(Settings("tts", shuffled=False)) == [[i] for i in range(50)]


def test_an_interruption_is_heard_where_the_answer_ends(folder, encoder, monkeypatch):
    """Catches recordings laid at other frames than the script's, and a clip that is not cut where
    its span is."""
    monkeypatch.setattr(stream, "INTERRUPTION_PROBABILITY", 1.0)
    soundfile.write(folder / "long.wav", sine(3.0), RATE)
    answer = encoder.speak_codes(folder / "long.wav")
    maker = data.GridMaker(encoder, Settings("response-tts-free"))
    cut = 0
    for seed in range(6):
        turn = question(folder, spoken=folder / "long.wav", response="I am Joe")
        plan = maker.plan([turn, turn], random.Random(seed))
        begins, stop = plan.script.speak_spans[0]
        start, _ = plan.script.listen_spans[1]
        codes = plan.speak[begins:stop]
        assert begins <= start < begins + len(answer)
        assert torch.equal(codes, answer[:stop - begins])
        if len(codes) < len(answer):
            cut += 1
            # Half a second after a tone that begins within the first or the second frame.
            assert start + 6 <= stop <= start + 7
        interruption = plan.user_audio[(start + 1) * data.FRAME:(start + 6) * data.FRAME]
        assert data.loudness(interruption) > -45
    assert cut >= 3


def test_a_sample_is_no_longer_than_was_asked_for(folder, tmp_path):
    """Catches samples that do not fit the rows of training, and a last turn that is cut in its
    middle."""
    settings = Settings("response-tts-free", join=(3, 3), draws=8, backchannels=(folder,),
                        longest_sample=60)
    data.encode(folder / "dialogs.jsonl", tmp_path / "g", folder, settings)
    grids = list(training_set.Grids([tmp_path / "g"]))
    assert len(grids) == 8
    assert max(len(grid) for grid in grids) <= 60
    assert all((grid.text == 7).any() for grid in grids), "at least one turn is in each"


def silent_length(turn, format="response-tts"):
    """Frames of a sample of one turn without silences."""
    return len(stream.write(format, [turn], [0, 0], IDS))


def test_every_silence_is_shortened_where_one_does_not_suffice():
    """Catches a sample that is longer than --longest-sample because one of its silences alone was
    made shorter: training then refuses the whole set."""
    turn = stream.Turn(listen_frames=1000, speak_frames=890, response=[7])
    least = silent_length(turn)
    settings = Settings("response-tts", longest_sample=least + 50)
    turns, silences = encoding.fit([turn], [100, 90], settings, IDS)
    assert len(stream.write("response-tts", turns, silences, IDS)) == least + 50
    assert encoding.fit([turn], [100, 30], settings, IDS)[1] == [20, 30]  # one that suffices


def test_a_turn_that_cannot_fit_is_named_and_left_out(folder, tmp_path, capsys):
    """Catches a turn that is written although it is longer than --longest-sample, and turns that
    are left out and counted nowhere."""
    soundfile.write(folder / "minute.wav", sine(6.0), RATE)
    turn = {"heard": "q.wav", "spoken": "a.wav", "response": "I"}
    rows = [{"turns": [turn]}, {"turns": [turn | {"spoken": "minute.wav"}]}, {"turns": [turn] * 3}]
    write_lines(folder / "long.jsonl", rows)
    settings = Settings("response-tts", shuffled=False, longest_sample=40)
    report = data.encode(folder / "long.jsonl", tmp_path / "g", folder, settings)
    assert (report.samples, report.left_out, report.turns_left_out) == (2, 1, 2)
    assert report.longest <= 40
    printed = capsys.readouterr().err
    assert "SKIPPED: the sample of line 2 of long.jsonl" in printed
    assert "its first turn alone has" in printed and "--longest-sample is 40" in printed
    assert "2 turns left out for --longest-sample" in str(report)
    assert f"training needs --length {report.longest + 1} or more" in str(report)


def test_silences_are_as_long_as_was_asked_for():
    """Catches a model that is trained without the minute in which a person thinks, or with one that
    nobody asked for."""
    rng = random.Random(0)
    usual = [data.random_silence(Settings("tts"), rng) for _ in range(5000)]
    patient = Settings("tts", longest_silence=100.0)
    long = [data.random_silence(patient, rng) for _ in range(5000)]
    short = [data.random_silence(Settings("tts", long_silences=0), rng) for _ in range(1000)]
    assert max(usual) == data.LONG_SILENCE[1]
    assert 1150 < max(long) <= 1250
    share = np.mean(np.array(long) > data.LONG_SILENCE[1])
    assert abs(share - data.VERY_LONG_SILENCE_PROBABILITY) < 0.015
    assert max(short) <= 1 + data.LONG_SILENCE[0]


def test_aligned_words_stand_in_the_frames_of_their_sound(folder, encoder, tmp_path):
    """Catches word times read in another unit, or words laid beside their sound."""
    words = [["I", 0.0, 0.1], ["am", 0.25, 0.3], ["Joe", 0.5, 0.7]]
    row = {"audio": "a.wav", "text": "I am Joe", "words": words}
    write_lines(folder / "words.jsonl", [row])
    data.encode(folder / "words.jsonl", tmp_path / "g", folder, Settings("word-aligned"))
    grid, = training_set.Grids([tmp_path / "g"])
    text = grid.text.tolist()
    start = text.index(7)
    wait, word_follows = IDS.wait, IDS.answer
    assert text[start - 1:start + 8] == [word_follows, 7, wait, word_follows, 8, wait, word_follows,
                                         9, wait]
    assert torch.equal(grid.speak[start:start + 10], encoder.speak_codes(folder / "a.wav"))


def test_a_part_of_a_recording_becomes_the_codes_of_that_part(folder, encoder, tmp_path):
    """Catches a start and an end that `check` knows and `encode` ignores."""
    soundfile.write(tmp_path / "whole.wav", np.concatenate([sine(1.0, 0.1), sine(0.7)]), RATE)
    row = {"audio": "whole.wav", "text": "I am Joe", "start": 1.0, "end": 1.7}
    write_lines(tmp_path / "pairs.jsonl", [row])
    data.encode(tmp_path / "pairs.jsonl", tmp_path / "g", folder, Settings("tts"))
    grid, = training_set.Grids([tmp_path / "g"])
    start = (grid.text != IDS.wait).nonzero()[0].item() + stream.SPEECH_DELAY
    codes = encoder.speak_codes(folder / "a.wav")
    assert torch.equal(grid.speak[start:start + len(codes)], codes)
    assert (grid.speak[start + len(codes):] == encoder.silence).all()


def test_a_channel_of_somebody_who_only_listens_is_a_sample(folder, tmp_path):
    """Catches a piece of a conversation that no grid can be made of because nothing is said."""
    soundfile.write(tmp_path / "left.wav", np.zeros(RATE), RATE)
    turn = {"heard": str(folder / "a.wav"), "spoken": "left.wav", "words": []}
    write_lines(tmp_path / "stereo.jsonl", [{"turns": [turn]}])
    data.encode(tmp_path / "stereo.jsonl", tmp_path / "g", folder, Settings("stereo"))
    grid, = training_set.Grids([tmp_path / "g"])
    assert (grid.text == IDS.wait).all()
    assert len(grid) > 12


def test_what_is_spoken_may_be_given_as_codes(folder, tmp_path):
    """Catches codes of a .npy file that are encoded, cut or shifted on their way into the grid, and
    files that hold no codes."""
    shutil.copy(folder / "q.wav", tmp_path)
    codes = np.arange(40).reshape(5, 8)
    np.save(tmp_path / "a.npy", codes)
    turn = {"heard": "q.wav", "transcript": "who are you",
            "spoken": "a.npy", "response": "I am Joe"}
    write_lines(tmp_path / "dialogs.jsonl", [{"turns": [turn]}])
    data.encode(tmp_path / "dialogs.jsonl", tmp_path / "g", folder, Settings("response-tts"))
    grid, = training_set.Grids([tmp_path / "g"])
    start = (grid.text != IDS.wait).nonzero()[0].item() + stream.SPEECH_DELAY
    assert grid.speak[start:start + 5].tolist() == codes.tolist()
    for wrong in (codes[:, :7], codes.astype(float), codes[:0], codes - 1, codes + 512):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(ValueError, match="wrong.npy"):
            shards.read_codes(tmp_path / "wrong.npy", 512)


def test_what_is_heard_may_have_a_codec_of_its_own(folder, encoder, tmp_path):
    """Catches a second encoder that writes what is spoken, or none of what is heard; codebooks that
    the model never met; and a reaction that stays the paper's."""
    other = codec_files.load(folder)
    with torch.no_grad():
        for weight in other.encoder_transformer.parameters():
            weight.mul_(1.5)
    codec_files.save(other, tmp_path)
    grids = {}
    for name, more in (("one", {}), ("two", {"hearing": tmp_path}), ("soon", {"reaction": 0.0})):
        settings = Settings("response-tts-free", join=(2, 2), **more)
        data.encode(folder / "dialogs.jsonl", tmp_path / name, folder, settings)
        grids[name] = training_set.Grids([tmp_path / name])[0]
    sounding = {name: (grid.speak != encoder.silence).any(1).sum() for name, grid in grids.items()}
    assert sounding["soon"] < sounding["one"] - 3
    assert torch.equal(grids["one"].speak, grids["two"].speak)
    assert torch.equal(grids["one"].text, grids["two"].text)
    assert (grids["one"].listen != grids["two"].listen).float().mean() > 0.1
    other.quantizer.rvq_first.codebooks[0].embedding_sum.mul_(2)
    codec_files.save(other, tmp_path)
    with pytest.raises(DataError, match="has other codebooks than"):
        data.Encoder(folder, hearing=tmp_path)


# --- level, noise, leakage ---

def test_gain_stays_in_the_paper_s_bounds():
    """Catches a loudness formula or a range of gains other than section 3.2.1's."""
    assert data.loudness(np.ones(10)) == pytest.approx(0, abs=1e-4)
    assert data.loudness(np.zeros(10)) == pytest.approx(-120)
    rng = random.Random(0)
    utterance = sine(1, 0.1)
    levels = np.array([data.loudness(data.random_gain(utterance, rng)) for _ in range(300)])
    unchanged = np.abs(levels - data.loudness(utterance)) < 1e-3
    assert unchanged.mean() == pytest.approx(1 - data.GAIN_PROBABILITY, abs=0.1)
    peak_level = data.loudness(utterance) + 20
    assert data.LOUDNESS_FLOOR - 0.01 <= levels.min() < -39
    assert peak_level - 1 < levels.max() <= peak_level


@pytest.mark.parametrize("level", [1e-2, 1e-3, 1e-4])
def test_every_utterance_reaches_the_floor(level):
    """Catches a floor of -40 dB that holds only where a gain is drawn: a quiet recording stays
    below it in two samples of five, while section 3.2.1 enforces a minimum."""
    rng = random.Random(0)
    utterance = sine(0.2, level)
    levels = [data.loudness(data.random_gain(utterance, rng)) for _ in range(50)]
    assert min(levels) > data.LOUDNESS_FLOOR - 0.2  # footnote 9 adds 1e-6 to the root mean square


def test_the_floor_leaves_silence_and_full_scale_alone():
    """Catches digital silence that is divided by its own loudness, and a click that is amplified
    beyond full scale to reach the floor."""
    rng = random.Random(0)
    click = np.zeros(RATE, np.float32)
    click[100] = 0.01
    for _ in range(20):
        assert not data.random_gain(np.zeros(RATE, np.float32), rng).any()
        assert np.abs(data.random_gain(click, rng)).max() <= 1


def test_synthetic_noise_stays_in_the_paper_s_bounds():
    """Catches a range of loudness, or a share of silence, other than section 3.2.1's."""
    rng = random.Random(0)
    levels = [data.loudness(data.noise(RATE, rng)) for _ in range(300)]
    loud = [level for level in levels if level > -119]
    assert len(loud) == pytest.approx(300 * (1 - data.NO_NOISE_PROBABILITY), abs=30)
    assert -70.1 < min(loud)
    assert max(loud) < -39.9


def test_recorded_noise_is_joined_scaled_and_sometimes_silent(tmp_path):
    """Catches noise recordings used at their own loudness, silence drawn for whole samples only,
    and a wave that ends early."""
    soundfile.write(tmp_path / "n.wav", sine(0.25, 0.9), RATE)
    paths = [str(tmp_path / "n.wav")]
    levels = []
    for seed in range(20):
        segments = data.noise(10 * RATE // 4, random.Random(seed), paths).reshape(10, -1)
        levels += [data.loudness(segment) for segment in segments]
    loud = [level for level in levels if level > -119]
    assert len(loud) == pytest.approx(140, abs=25)
    assert -70.1 < min(loud) < -65
    assert -45 < max(loud) < -39.9
    assert len(data.noise(RATE + 7, random.Random(0), paths)) == RATE + 7


def test_recorded_noise_begins_anywhere(tmp_path):
    """Catches segments that always begin at the first sample of their recording: of a long one a
    model would never hear the rest. A ramp tells where a segment begins."""
    seconds = 10
    ramp = np.arange(1, seconds * RATE + 1, dtype=np.float32) / (seconds * RATE)
    soundfile.write(tmp_path / "ramp.wav", ramp, RATE, subtype="FLOAT")
    paths = [str(tmp_path / "ramp.wav")]
    starts = []
    for seed in range(60):
        segment = data.recorded_noise(RATE, random.Random(seed), paths)
        assert len(segment) == RATE
        starts.append(float(segment[0]) * seconds)
    assert min(starts) < 1
    assert 8 < max(starts) < seconds - data.SHORTEST_NOISE
    assert np.histogram(starts, bins=3, range=(0, 9))[0].min() > 10


def test_leakage_is_late_quiet_and_as_often_as_the_paper_says():
    """Catches another delay, gain or probability than section 3.2.2's, and a leak of what lies
    outside the wave."""
    rng = random.Random(0)
    model_audio = np.zeros(RATE, np.float32)
    model_audio[:100] = 1
    gains = []
    delays = []
    for _ in range(1000):
        leakage = data.draw_leak(rng)
        if leakage:
            user_audio = np.zeros(RATE, np.float32)
            data.leak(user_audio, model_audio, *leakage)
            gains.append(user_audio.max())
            delays.append(np.argmax(user_audio > 0) / RATE)
    assert len(gains) == pytest.approx(300, abs=50)
    assert 0 < min(gains) < 0.02
    assert 0.18 < max(gains) <= 0.2
    assert 0.1 <= min(delays) < 0.12
    assert 0.48 < max(delays) <= 0.5


def test_leakage_is_in_the_free_format_alone_unless_asked_for():
    """Catches an echo in plain Response-TTS, which the paper does not tell of, or none where it
    does."""
    assert Settings("response-tts-free").leaks
    assert not Settings("response-tts").leaks
    assert Settings("response-tts", leakage=True).leaks


# --- rooms ---

def test_a_telephone_carries_a_band():
    """Catches a band that is no band: 5 kHz is lost, 1 kHz stays what it was."""
    time = np.arange(RATE) / RATE
    low = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    high = np.sin(2 * np.pi * 5000 * time).astype(np.float32)
    narrow = acoustics.band(low + high, rooms.TELEPHONE_LOWEST[1], rooms.TELEPHONE_HIGHEST[0])
    middle = slice(RATE // 4, 3 * RATE // 4)  # away from the edges, where the filter rings
    assert np.abs(narrow - low)[middle].max() < 0.02


def test_a_room_echoes_behind_the_voice():
    """Catches an echo that comes before the sound, is louder than it, or never ends."""
    click = np.zeros(RATE, np.float32)
    click[1000] = 1
    wet = rooms.room(click, random.Random(0))
    length = len(wet) - len(click)
    shortest, longest = rooms.ROOM_DECAY
    assert shortest * RATE <= length <= longest * RATE
    assert np.abs(wet[:1000]).max() < 1e-5
    power = wet[1001:1000 + length] ** 2
    assert 10 ** (-rooms.ROOM_DIRECT[1] / 10) * 0.9 < power.sum() < 1.1
    assert power[-length // 10:].sum() < 1e-4 * power[:length // 10].sum()


def test_a_microphone_favours_octaves_at_random():
    """Catches a response that is flat, the same in every octave or of another spread, and one that
    moves the sound in time."""
    time = np.arange(RATE) / RATE
    tones = [np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (750, 3000)]
    gains = []
    for seed in range(200):
        clips = [acoustics.microphone(tone, rooms.MICROPHONE, random.Random(seed)) for tone in tones]
        # A sound that came later or earlier would not correlate like this.
        gains.append([(tone @ clip) / (tone @ tone) for tone, clip in zip(tones, clips)])
    decibels = 20 * np.log10(np.array(gains))
    assert decibels.std(0) == pytest.approx([rooms.MICROPHONE] * 2, rel=0.2)
    assert np.abs(decibels.mean(0)).max() < 1
    assert abs(np.corrcoef(decibels.T)[0, 1]) < 0.3


def test_a_pause_falls_between_words():
    """Catches a pause inside a word: of two tones and a gap it must lengthen the gap."""
    tone = np.sin(np.arange(12_000, dtype=np.float32))
    gap = np.zeros(2400, np.float32)
    audio = np.concatenate([tone, gap, tone])
    paused, start = rooms.hesitate(audio, 0.5, random.Random(0))
    assert len(paused) == len(audio) + 12_000
    assert 12_000 <= start <= 14_400
    assert np.array_equal(paused[:12_000], tone)
    assert np.array_equal(paused[-12_000:], tone)


def test_a_pause_may_precede_the_last_word():
    """Catches pauses that always stand at the first of several gaps, as the quietest place of
    digital silence does: a model that never heard one before a list's third word takes it for the
    end."""
    tone = np.sin(np.arange(12_000, dtype=np.float32))
    gap = np.zeros(2400, np.float32)
    audio = np.concatenate([tone, gap, tone, gap, tone])
    starts = [rooms.hesitate(audio, 0.5, random.Random(seed))[1] for seed in range(40)]
    first = sum(12_000 - 480 <= start <= 12_000 + 2880 for start in starts)
    last = sum(26_400 - 480 <= start <= 26_400 + 2880 for start in starts)
    assert first + last == 40
    assert first > 8
    assert last > 8


# --- shards and training sets ---

def test_a_stopped_run_goes_on_to_the_same_grids(folder, tmp_path, monkeypatch):
    """Catches shards that depend on the run that made them, and a folder that is continued with
    other settings or by a version that draws other random numbers."""
    monkeypatch.setattr(data, "SAMPLES_PER_SHARD", 2)
    manifest = folder / "dialogs.jsonl"
    settings = Settings("response-tts", draws=2)
    for run in ("whole", "stopped"):
        data.encode(manifest, tmp_path / run, folder, settings)
    first, second = sorted((tmp_path / "stopped").glob("shard-*"))[:2]
    before = first.stat().st_mtime_ns
    second.unlink()
    data.encode(manifest, tmp_path / "stopped", folder, settings)
    assert first.stat().st_mtime_ns == before
    whole = training_set.Grids([tmp_path / "whole"])
    stopped = training_set.Grids([tmp_path / "stopped"])
    for one, other in zip(whole, stopped, strict=True):
        assert_same(one, other, IDS)
    with pytest.raises(DataError, match="grids of another manifest, model or setting"):
        data.encode(manifest, tmp_path / "stopped", folder, Settings("response-tts"))
    monkeypatch.setattr(data, "VERSION", data.VERSION + 1)
    with pytest.raises(DataError, match="or of another version of data.py"):
        data.encode(manifest, tmp_path / "stopped", folder, settings)


def test_processes_and_parts_make_the_same_shards(folder, tmp_path, monkeypatch):
    """Catches shards that depend on which process, machine or order made them, and parts that leave
    a shard out."""
    monkeypatch.setattr(data, "SAMPLES_PER_SHARD", 2)
    manifest = folder / "dialogs.jsonl"
    settings = Settings("response-tts-free", join=(1, 2), draws=3, noise=(folder,),
                        backchannels=(folder,))
    one, many = tmp_path / "one", tmp_path / "many"
    data.encode(manifest, one, folder, settings)
    data.encode(manifest, many, folder, settings, workers=2, part="2/2")
    assert 0 < len(list(many.glob("shard-*"))) < len(list(one.glob("shard-*")))
    data.encode(manifest, many, folder, settings, part="1/2")
    for shard in one.glob("shard-*"):
        assert shard.read_bytes() == (many / shard.name).read_bytes()
    assert training_set.Grids([many]).formats[0] == "response-tts-free"


def test_broken_audio_costs_its_sample_alone(folder, tmp_path, capsys):
    """Catches one unreadable recording that ends a run of days, is dropped in silence, or changes
    the other samples."""
    (folder / "broken.wav").write_bytes(b"RIFF not a wav")
    names = ("q.wav", "broken.wav", "a.wav")
    write_lines(folder / "some-broken.jsonl", [{"audio": name, "text": "who"} for name in names])
    counts = data.encode(folder / "some-broken.jsonl", tmp_path / "g", folder, Settings("asr"))
    assert (counts.samples, counts.left_out) == (2, 1)
    messages = capsys.readouterr().err
    assert "SKIPPED" in messages
    assert "broken.wav" in messages
    assert len(training_set.Grids([tmp_path / "g"])) == 2


def made_up_shard(path, lengths, code):
    """A shard of grids that hold nothing but `code`."""
    grids = []
    for T in lengths:
        codes = torch.full((T, stream.K), code)
        no_loss = torch.zeros(T, 1 + stream.K, dtype=torch.uint8)
        grids.append(stream.Grid(codes[:, 0], codes, codes, no_loss))
    shards.save(grids, path)


def test_weights_repeat_and_halve_a_source(tmp_path):
    """Catches an epoch that ignores weights, or that draws the same random half every time (section
    3.1)."""
    for code, name in enumerate(("plain", "annotated")):
        (tmp_path / name).mkdir()
        made_up_shard(tmp_path / name / "shard-00000.safetensors", range(1, 11), code)
    (tmp_path / "plain" / "grids.json").write_text('{"format": "asr"}')
    grids = training_set.Grids([f"{tmp_path / 'plain'}:0.5", f"{tmp_path / 'annotated'}:5"])
    assert grids.lengths.tolist() == [*range(1, 11)] * 2
    assert grids.formats == ["asr"] * 10 + ["unknown"] * 10
    assert [int(grids[i].speak.unique()) for i in (0, 9, 10, 19)] == [0, 0, 1, 1]
    assert len(grids[12]) == 3
    epochs = [grids.epoch(np.random.default_rng(seed)).tolist() for seed in range(20)]
    for epoch in epochs:
        assert len(epoch) == 55
        assert sorted(i for i in epoch if i >= 10) == sorted([*range(10, 20)] * 5)
    halves = {frozenset(i for i in epoch if i < 10) for epoch in epochs}
    assert {len(half) for half in halves} == {5}
    assert len(halves) > 10
    assert epochs[0] != sorted(epochs[0])


def test_a_damaged_shard_is_named_and_the_others_are_read(tmp_path, capsys):
    """Catches one bad file that ends a run of days, one that is left out in silence, and lengths
    remembered past their shard."""
    for name in "ab":
        made_up_shard(tmp_path / f"shard-{name}.safetensors", [3, 4], 1)
    assert len(training_set.Grids([tmp_path])) == 4
    assert capsys.readouterr().err == ""
    content = (tmp_path / "shard-a.safetensors").read_bytes()
    (tmp_path / "shard-a.safetensors").write_bytes(content[:-9])
    grids = training_set.Grids([tmp_path])
    assert grids.lengths.tolist() == [3, 4]
    assert len(grids[1]) == 4
    assert "shard-a.safetensors" in capsys.readouterr().err
    (tmp_path / "shard-b.safetensors").unlink()
    with pytest.raises(DataError, match="holds no grids"):
        training_set.Grids([tmp_path])


def test_a_known_shard_is_not_opened_again(tmp_path, monkeypatch):
    """Catches a start of training that opens each of ten thousand shards."""
    made_up_shard(tmp_path / "shard-a.safetensors", [3, 4], 1)
    training_set.Grids([tmp_path])

    def open_again(path):
        raise AssertionError(f"{path} was opened")
    monkeypatch.setattr(training_set.shards, "Shard", open_again)
    assert training_set.Grids([tmp_path]).lengths.tolist() == [3, 4]


# --- what a user, or a machine, can get wrong ---

def test_a_killed_worker_is_one_sentence():
    """Catches a run that hangs when a worker is killed."""
    with pytest.raises(DataError, match="a worker was killed"):
        list(in_parallel(os._exit, [1, 1, 1], 2))  # as sudden as a kill


def test_a_full_disk_is_one_sentence(folder, tmp_path):
    """Catches a traceback, or half a shard, on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))  # as little room as a full disk has
    try:
        with pytest.raises(stream.GridError, match="shard-00000.safetensors cannot be written"):
            data.encode(folder / "dialogs.jsonl", tmp_path / "g", folder, Settings("response-tts"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((tmp_path / "g").glob("*shard*"))


def test_a_full_disk_is_one_sentence_for_the_index_too(folder, tmp_path):
    """Catches a traceback of the library that writes the index of samples."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(DataError, match="samples.index cannot be written"):
            data.encode(folder / "dialogs.jsonl", tmp_path / "g", folder, Settings("response-tts"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_another_recording_under_the_same_name_is_noticed(folder, tmp_path):
    """Catches a recording of the manifest that is replaced, after which encode says that all
    samples are there."""
    manifest = tmp_path / "m.jsonl"
    soundfile.write(tmp_path / "q.wav", sine(0.3), RATE)
    write_lines(manifest, [{"audio": "q.wav", "text": "who"}])
    for _ in range(2):
        data.encode(manifest, tmp_path / "g", folder, Settings("asr"))
    soundfile.write(tmp_path / "q.wav", sine(0.4), RATE)
    with pytest.raises(DataError, match="grids of recordings that are no longer the same"):
        data.encode(manifest, tmp_path / "g", folder, Settings("asr"))
    about = json.loads((tmp_path / "g" / "grids.json").read_text())
    del about["recordings"]  # as older versions wrote it
    (tmp_path / "g" / "grids.json").write_text(json.dumps(about))
    assert data.encode(manifest, tmp_path / "g", folder, Settings("asr")).samples == 1


@pytest.mark.parametrize("setting", [dict(join=(2, 2)), dict(draws=2), dict(shuffled=False),
                                     dict(seed=1)])
def test_the_index_of_other_settings_is_not_used(folder, tmp_path, setting):
    """Catches an index of samples that is taken for that of another --join, --draws, --seed or
    order, where grids and grids.json were removed and the index stayed."""
    out = tmp_path / "g"
    data.encode(folder / "pairs.jsonl", out, folder, Settings("tts"))
    for file in (out / "grids.json", *out.glob("shard-*")):
        file.unlink()
    data.encode(folder / "pairs.jsonl", out, folder, Settings("tts", **setting))
    data.encode(folder / "pairs.jsonl", tmp_path / "new", folder, Settings("tts", **setting))
    for shard in (tmp_path / "new").glob("shard-*"):
        assert shard.read_bytes() == (out / shard.name).read_bytes()


def test_grids_of_which_nothing_says_what_they_are_stay_alone(folder, tmp_path):
    """Catches shards of other settings that a new run takes for its own, a damaged grids.json
    that is not named, and a file in the place of the folder."""
    out = tmp_path / "g"
    data.encode(folder / "pairs.jsonl", out, folder, Settings("tts"))
    (out / "grids.json").write_text('{"format": "tt')
    with pytest.raises(ValueError, match="grids.json is not JSON"):
        data.encode(folder / "pairs.jsonl", out, folder, Settings("tts"))
    with pytest.raises(ValueError, match="grids.json is not JSON"):
        training_set.Grids([out])
    (out / "grids.json").unlink()
    with pytest.raises(DataError, match="holds grids, but no grids.json"):
        data.encode(folder / "pairs.jsonl", out, folder, Settings("tts"))
    with pytest.raises(DataError, match="is a file, and grids are written into a folder"):
        data.encode(folder / "pairs.jsonl", out / "index.json", folder, Settings("tts"))


def test_recordings_that_cannot_be_read_are_named(folder, tmp_path, capsys):
    """Catches recordings of noise by a telephone that are passed over without a word."""
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "a.aiff", sine(0.2), RATE)
    (tmp_path / "noise" / "b.M4A").write_bytes(b"")
    settings = Settings("asr", noise=(tmp_path / "noise",))
    data.encode(folder / "pairs.jsonl", tmp_path / "g", folder, settings)
    assert encoding.recordings(settings.noise) == (str(tmp_path / "noise" / "a.aiff"),)
    printed = capsys.readouterr().err
    assert printed.count("1 recordings are left out") == 1
    assert "b.M4A; convert them first, for example by `ffmpeg" in printed


def test_a_hub_id_names_a_model(folder, tmp_path, monkeypatch):
    """Catches a Hub id of --model of which the codec is fetched and the configuration is not."""
    monkeypatch.setattr(model_files, "resolve", lambda path, wanted: folder)
    settings = Settings("asr")
    assert data.encode(folder / "pairs.jsonl", tmp_path / "g", "owner/name", settings).samples == 6


@pytest.mark.parametrize("change", ["config.json", "mimi.safetensors", "constant", "noise"])
def test_a_run_goes_on_with_what_it_began_with_alone(folder, tmp_path, monkeypatch, change):
    """Catches a folder whose shards are of two kinds: by a model whose configuration or codec
    changed, a constant that was edited, or another recording of noise under the same name."""
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "n.wav", sine(0.2), RATE)
    settings = Settings("response-tts", noise=(tmp_path / "noise",))
    manifest = folder / "dialogs.jsonl"
    for _ in range(2):  # nothing has changed
        data.encode(manifest, tmp_path / "g", model, settings)
    if change == "config.json":
        config = json.loads((model / change).read_text())
        (model / change).write_text(json.dumps(config | {"other": 1}))
    elif change == "mimi.safetensors":
        with open(model / change, "ab") as file:
            file.write(b" ")
    elif change == "constant":
        monkeypatch.setattr(data, "CLOSING_SILENCE", 3)
    else:
        soundfile.write(tmp_path / "noise" / "n.wav", sine(0.3), RATE)
    with pytest.raises(DataError, match="grids of another manifest, model or setting"):
        data.encode(manifest, tmp_path / "g", model, settings)


def test_the_released_codec_counts_in_what_grids_are_made_from(folder, tmp_path):
    """Catches a fingerprint that knows the codec by our name for its file alone."""
    prints = set()
    for content in (b"one", b"two"):
        for name in ("config.json", "tokenizer.json"):
            (tmp_path / name).write_text("{}")
        (tmp_path / codec_files.MOSHI_FILE).write_bytes(content)
        run = encoding.Run(folder / "dialogs.jsonl", tmp_path / "g", tmp_path, Settings("tts"), {},
                           64)
        prints.add(encoding.fingerprint(run))
    assert len(prints) == 2


def test_another_model_s_tokenizer_is_refused(folder, tmp_path):
    """Catches ids beyond the model's, which end in a failed look-up in training."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 8}))
    sentence = "is another model's: its ids go up to 9, config.json's to 7"
    with pytest.raises(DataError, match=sentence):
        data.Encoder(other)


@pytest.mark.parametrize("command, sentence", [
    ("encode none.jsonl out --format tts", "none.jsonl cannot be read"),
    ("check none.jsonl", "none.jsonl cannot be read"),
    ("import librispeech . out.jsonl --overwrite", "holds nothing that can be used as librisp"),
    ("import ljspeech . out.jsonl --overwrite", "metadata.csv"),
    ("import librispech . out.jsonl", "there is no layout librispech"),
    ("synth none.jsonl out --model-voice x --user-voice y", "must have an {out}"),
    ("encode none.jsonl out --format tts --join 0 2", "--join takes"),
    ("encode none.jsonl out --format tts --speeds 2 1", "--speeds SLOWEST and FASTEST"),
    ("encode none.jsonl out --format tts --reaction -1", "--reaction must be 0 .. 60 seconds"),
    ("encode none.jsonl out --format tts --longest-silence 1", "--longest-silence must be 10"),
    ("encode none.jsonl out --format tts --long-silences 2", "--long-silences must be a share"),
    ("encode none.jsonl out --format tts --device gpu", "--device gpu cannot be used"),
    ("encode none.jsonl out --format tts --part 3", "no part 3"),
    ("encode none.jsonl out --format tts --longest-sample -5", "--longest-sample must be 1 frame"),
    ("encode none.jsonl out --format tts --noise .", "--noise changes nothing in grids of the"),
    ("encode none.jsonl out --format tts --rooms", "--rooms changes nothing"),
    ("encode none.jsonl out --format tts --speeds 0.9 1.1", "--speeds changes nothing"),
    ("encode none.jsonl out --format tts --hearing x", "--hearing changes nothing"),
    ("encode none.jsonl out --format asr --leakage", "--leakage changes nothing"),
    ("encode none.jsonl out --format stereo --speeds 0.9 1.1", "--speeds changes nothing"),
    ("encode none.jsonl out --format response-tts --backchannels .", "--backchannels changes"),
    ("encode none.jsonl out --format response-tts --reaction 0.6", "--reaction changes nothing"),
    ("encode none.jsonl out --format tts --model nowhere", "nowhere does not exist"),
    ("encode none.jsonl out --format tts --workers 0", "--workers must be 1 or more, not 0"),
    ("encode none.jsonl out --format tts --part 3/2", "there is no part 3/2"),
    ("check .", "holds no grids"),
])
def test_wrong_commands_are_one_sentence(tmp_path, monkeypatch, capsys, command, sentence):
    """Catches a traceback for what a user can mistype, and a manifest that a failed import
    empties."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.jsonl").write_text("before")
    with pytest.raises(SystemExit) as stopped:
        data.main(command.split())
    assert sentence in f"{stopped.value.code} {capsys.readouterr().err}"
    assert (tmp_path / "out.jsonl").read_text() == "before"
    assert not list(tmp_path.rglob("*.part"))


def test_single_turns_are_said_to_have_no_interruptions(capsys):
    """Catches a set for interruptions that has none, because --join was left as it is, and a
    warning where turns are joined, or the format has no interruptions."""
    for format, join, is_warned in [("response-tts-free", (1, 1), True),
                                    ("response-tts-free", (1, 4), False),
                                    ("response-tts", (1, 1), False)]:
        encoding.warn_of_single_turns(Settings(format=format, join=join))
        assert ("yields no interruption" in capsys.readouterr().err) == is_warned


def test_every_option_reaches_the_settings(folder, tmp_path):
    """Catches an option of the command line that is parsed and then forgotten."""
    data.main(["encode", str(folder / "dialogs.jsonl"), str(tmp_path / "g"), "--model", str(folder),
               "--format", "response-tts-free", "--join", "1", "2", "--draws", "2", "--seed", "5",
               "--in-order", "--speeds", "0.9", "1.1", "--rooms", "--reaction", "0.6",
               "--longest-silence", "20", "--long-silences", "0.1", "--longest-sample", "200"])
    about = json.loads((tmp_path / "g" / "grids.json").read_text())
    del about["made_from"]
    del about["recordings"]
    assert about == {"format": "response-tts-free", "join": [1, 2], "draws": 2, "seed": 5,
                     "shuffled": False, "speeds": [0.9, 1.1], "rooms": True, "reaction": 0.6,
                     "longest_silence": 20.0, "long_silences": 0.1, "longest_sample": 200}
