"""From recordings to grids, with a small random codec: what stands where, what a manifest may get wrong, resuming."""
import json
import os
import random
import resource
import shutil
import signal
import sys

import numpy as np
import pytest
import soundfile
import torch

import data
import flm
import mimi
import stream
from conftest import assert_same
from stream import Ids
from workshop import manifests, sound_file

RATE = 24_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a random miniature codec, a tokenizer of words, and special ids; and two recordings."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    mimi.save(mimi.Mimi(mimi.Config(**{**vars(mimi.PRESETS["tiny"]), "num_layers": 1})), folder)
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "who": 4, "are": 5, "you": 6, "I": 7, "am": 8, "Joe": 9}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(flm.PRESETS["tiny"].to_json()))
    for name, seconds in (("q", 0.5), ("a", 0.7)):
        soundfile.write(folder / f"{name}.wav", 0.3 * np.sin(np.arange(int(seconds * RATE)) * 0.05), RATE)
    (folder / "pairs.jsonl").write_text("\n".join(['{"audio": "q.wav", "text": "who are you"}', '{"audio": "a.wav", "text": "I am Joe"}'] * 3))
    turn = {"heard": "q.wav", "transcript": "who are you", "spoken": "a.wav", "response": "I am Joe"}
    (folder / "dialogs.jsonl").write_text("\n".join([json.dumps({"turns": [turn]})] * 3))
    return folder


def test_dialog_stands_where_the_format_says(folder, tmp_path):
    """Catches recordings laid at another time than their words: the heard tone is in the frames before <asr>, the said
    one from two frames after the response's first word, and silence is elsewhere."""
    data.encode(folder / "dialogs.jsonl", tmp_path / "g", "asr-response-tts", folder)
    grids, ids = list(data.Grids([tmp_path / "g"])), Ids.of(flm.PRESETS["tiny"])
    assert len(grids) == 3
    quiet = data.Encoder(folder).silence
    for grid in grids:
        drawing = stream.draw(grid, ids)
        text = grid.text.tolist()
        asr = text.index(ids.asr)
        assert text[asr:asr + 8] == [ids.asr, 4, 5, 6, ids.answer, 7, 8, 9], drawing
        start = asr + 5 + stream.SPEECH_DELAY
        said = int(np.ceil(0.7 * RATE / data.FRAME)) + data.RINGING
        assert (grid.speak[1:start] == quiet).all() and (grid.speak[start + said:] == quiet).all(), drawing
        assert torch.equal(grid.speak[start:start + said], data.Encoder(folder).said(folder / "a.wav")), drawing


def test_listening_is_continuous(folder):
    """Catches a question whose wave is lost, cut or moved: without noise and gain the listen wave is zero but for the tone."""
    encoder, turn = data.Encoder(folder), {"heard": folder / "q.wav", "transcript": "who", "spoken": folder / "a.wav", "response": "I"}

    class Quiet(random.Random):
        def random(self):  # below NO_NOISE_PROBABILITY, above LONG_SILENCE_PROBABILITY
            return 0.29
    script, wave, _ = encoder.plan([turn, turn], "response-tts", Quiet(0))
    assert len(wave) == len(script) * data.FRAME and len(script.hears) == len(script.says) == 2
    for start, stop in script.hears:
        tone = wave[start * data.FRAME:stop * data.FRAME]
        assert np.abs(tone).max() > 0.01 and not tone[-data.CLOSING_SILENCE * data.FRAME:].any()
        assert np.count_nonzero(np.abs(tone) > 0) >= 0.5 * RATE - 10
        wave[start * data.FRAME:stop * data.FRAME] = 0
    assert not wave.any()


def test_patience_holds_the_response_back(folder, tmp_path):
    """Catches a line's patience that is dropped on the way, or added to the closing silence in place of replacing it."""
    line = {"heard": str(folder / "q.wav"), "spoken": str(folder / "a.wav"), "response": "I"}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"turns": [line | more]}) + "\n" for more in ({}, {"patience": 0.4})))
    encoder, written = data.Encoder(folder), []
    for turns in data.read_manifest(tmp_path / "m.jsonl", "response-tts"):
        script, _, _ = encoder.plan(turns, "response-tts", random.Random(0))
        written.append(next(t for t, token in enumerate(script.text) if token != encoder.ids.wait) - script.hears[0][0])
    assert written[1] - written[0] == 5 - data.CLOSING_SILENCE
    (tmp_path / "m.jsonl").write_text(json.dumps({"turns": [line | {"patience": -1}]}))
    with pytest.raises(data.DataError, match="line 1: patience is seconds"):
        data.read_manifest(tmp_path / "m.jsonl", "response-tts")


def test_one_channel_formats(folder, tmp_path):
    """Catches loss or codes on the channel that a pair format leaves empty."""
    ids = Ids.of(flm.PRESETS["tiny"])
    for format, empty in (("tts", "listen"), ("asr", "speak")):
        data.encode(folder / "pairs.jsonl", tmp_path / format, format, folder, 1, 3)
        for grid in data.Grids([tmp_path / format]):
            assert (getattr(grid, empty)[1:] == ids.empty).all()
            assert bool((grid.loss[:, 1:] != 0).any()) == (format == "tts")


def test_a_stopped_run_goes_on_to_the_same_grids(folder, tmp_path, monkeypatch):
    """Catches shards that depend on the run that made them."""
    monkeypatch.setattr(data, "SAMPLES_PER_SHARD", 2)
    for run in ("whole", "stopped"):
        data.encode(folder / "dialogs.jsonl", tmp_path / run, "response-tts", folder, draws=2)
    kept = (tmp_path / "stopped" / "shard-00000.safetensors").stat().st_mtime_ns
    (tmp_path / "stopped" / "shard-00001.safetensors").unlink()
    data.encode(folder / "dialogs.jsonl", tmp_path / "stopped", "response-tts", folder, draws=2)
    assert (tmp_path / "stopped" / "shard-00000.safetensors").stat().st_mtime_ns == kept
    for a, b in zip(data.Grids([tmp_path / "whole"]), data.Grids([tmp_path / "stopped"]), strict=True):
        assert_same(a, b, Ids.of(flm.PRESETS["tiny"]))
    with pytest.raises(data.DataError, match="grids of another manifest, model or setting"):
        data.encode(folder / "dialogs.jsonl", tmp_path / "stopped", "response-tts", folder, draws=1)


def test_every_line_is_used_once_a_draw():
    """Catches dialogs that joining loses or repeats."""
    dialogs = [[i] for i in range(50)]
    samples = data.join(dialogs, 1, 4, draws=3, seed=0)
    assert sorted(sum(samples, [])) == sorted(list(range(50)) * 3) and {len(s) for s in samples} == {1, 2, 3, 4}
    assert samples == data.join(dialogs, 1, 4, draws=3, seed=0)


def test_gain_and_noise_stay_in_the_paper_s_bounds():
    """Catches a loudness formula or range other than section 3.2.1's."""
    assert data.loudness(np.ones(10)) == pytest.approx(0, abs=1e-4) and data.loudness(np.zeros(10)) == pytest.approx(-120)
    rng, tone = random.Random(0), 0.1 * np.sin(np.arange(24_000) * 0.05).astype(np.float32)
    levels = [data.loudness(data.random_gain(tone, rng)) for _ in range(300)]
    assert min(levels) >= -40.01 and np.mean(np.abs(np.array(levels) - data.loudness(tone)) < 1e-3) == pytest.approx(0.4, abs=0.1)
    noises = [data.loudness(data.noise(24_000, rng)) for _ in range(300)]
    loud = [x for x in noises if x > -119]
    assert len(loud) == pytest.approx(210, abs=30) and -70.1 < min(loud) and max(loud) < -39.9


@pytest.mark.parametrize("line, sentence", [
    ("not json", "line 1"), ('{"audio": "m.jsonl", "text": null}', "text must be a text, not None"), ('{"text": "no audio"}', "there is no audio"),
    ('{"audio": "none.wav", "text": "x"}', "none.wav does not exist")])
def test_bad_manifests_are_one_sentence(tmp_path, line, sentence):
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(data.DataError, match=sentence):
        data.read_manifest(tmp_path / "m.jsonl", "tts")
    with pytest.raises(data.DataError, match="cannot be read"):
        data.read_manifest(tmp_path / "none.jsonl", "tts")


def made_up_shard(file, lengths, code):
    """A shard of grids that hold nothing but `code`."""
    codes = [torch.full((T, stream.K), code) for T in lengths]
    stream.save([stream.Grid(c[:, 0], c, c, torch.zeros(len(c), 9, dtype=torch.uint8)) for c in codes], file)


def test_weights_repeat_and_halve_a_source(tmp_path):
    """Catches an epoch that ignores weights, or that draws the same random half every time (section 3.1)."""
    for code, name in enumerate(("plain", "annotated")):
        (tmp_path / name).mkdir()
        made_up_shard(tmp_path / name / "shard-00000.safetensors", range(1, 11), code)
    (tmp_path / "plain" / "grids.json").write_text('{"format": "asr"}')
    grids = data.Grids([f"{tmp_path / 'plain'}:0.5", f"{tmp_path / 'annotated'}:5"])
    assert grids.lengths == [*range(1, 11)] * 2 and grids.formats == ["asr"] * 10 + ["unknown"] * 10
    assert [int(grids[i].speak.unique()) for i in (0, 9, 10, 19)] == [0, 0, 1, 1] and len(grids[12]) == 3
    epochs = [grids.epoch(random.Random(seed)) for seed in range(20)]
    assert all(sorted(e[i] for i in range(55) if e[i] >= 10) == sorted([*range(10, 20)] * 5) for e in epochs)
    halves = {frozenset(i for i in e if i < 10) for e in epochs}
    assert {len(half) for half in halves} == {5} and len(halves) > 10 and epochs[0] != sorted(epochs[0])


def test_a_damaged_shard_is_named_and_the_others_are_read(tmp_path, capsys):
    """Catches one bad file that ends a run of days, one that is left out in silence, and lengths remembered past their shard."""
    for name in "ab":
        made_up_shard(tmp_path / f"shard-{name}.safetensors", [3, 4], 1)
    assert len(data.Grids([tmp_path])) == 4 and capsys.readouterr().err == ""
    content = (tmp_path / "shard-a.safetensors").read_bytes()
    (tmp_path / "shard-a.safetensors").write_bytes(content[:-9])
    grids = data.Grids([tmp_path])
    assert grids.lengths == [3, 4] and len(grids[1]) == 4
    assert "shard-a.safetensors" in capsys.readouterr().err
    (tmp_path / "shard-b.safetensors").unlink()
    with pytest.raises(data.DataError, match="holds no grids"):
        data.Grids([tmp_path])


def tone(file, seconds, level=0.3, rate=RATE, channels=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(np.arange(int(seconds * rate)) * 0.05)
    soundfile.write(file, wave if channels is None else np.stack([wave * c for c in channels], 1), rate)
    return file


def test_processes_and_parts_make_the_same_shards(folder, tmp_path, monkeypatch):
    """Catches shards that depend on which process, machine or order made them, and parts that leave a shard out."""
    monkeypatch.setattr(data, "SAMPLES_PER_SHARD", 2)
    options = dict(draws=3, noises=[folder], backchannels=[folder], fewest=1, most=2)
    data.encode(folder / "dialogs.jsonl", tmp_path / "one", "response-tts-free", folder, **options)
    data.encode(folder / "dialogs.jsonl", tmp_path / "many", "response-tts-free", folder, **options, workers=2, part="2/2")
    assert 0 < len(list((tmp_path / "many").glob("shard-*"))) < len(list((tmp_path / "one").glob("shard-*")))
    data.encode(folder / "dialogs.jsonl", tmp_path / "many", "response-tts-free", folder, **options, part="1/2")
    for shard in (tmp_path / "one").glob("shard-*"):
        assert shard.read_bytes() == (tmp_path / "many" / shard.name).read_bytes()
    assert data.Grids([tmp_path / "many"]).formats[0] == "response-tts-free"


def test_an_interruption_is_heard_where_the_answer_ends(folder, monkeypatch):
    """Catches recordings laid at other frames than the script's, and a clip that is not cut where its span is."""
    monkeypatch.setattr(stream, "INTERRUPTION_PROBABILITY", 1.0)
    tone(folder / "long.wav", 3.0)
    encoder, turn = data.Encoder(folder), {"heard": folder / "q.wav", "transcript": "", "spoken": folder / "long.wav", "response": "I am Joe"}
    cut = 0
    for seed in range(6):
        script, wave, spoken = encoder.plan([turn, turn], "response-tts-free", random.Random(seed))
        (_, stop), (start, _) = script.says[0], script.hears[1]
        assert script.says[0][0] <= start < script.says[0][0] + len(encoder.said(folder / "long.wav")) and len(spoken[0]) == stop - script.says[0][0]
        if len(spoken[0]) < len(encoder.said(folder / "long.wav")):
            cut += 1
            assert start + 6 <= stop <= start + 7  # half a second, of a tone that begins within the first or second frame
            assert torch.equal(spoken[0], encoder.said(folder / "long.wav")[:len(spoken[0])])
        assert data.loudness(wave[(start + 1) * data.FRAME:(start + 6) * data.FRAME]) > -45
    assert cut >= 3


def test_what_is_heard_may_have_a_codec_of_its_own(folder, tmp_path):
    """Catches a second encoder that writes what is said, or none of what is heard; codebooks that the model
    never met; and a reaction that stays the paper's."""
    other = mimi.load(folder)
    with torch.no_grad():
        for weight in other.encoder_transformer.parameters():
            weight.mul_(1.5)
    mimi.save(other, tmp_path)
    options = dict(format="response-tts-free", model=folder, fewest=2, most=2)
    for name, more in (("one", {}), ("two", dict(hearing=tmp_path)), ("soon", dict(reaction=0.0))):
        data.encode(folder / "dialogs.jsonl", tmp_path / name, **options, **more)
    one, two, soon = (data.Grids([tmp_path / name])[0] for name in ("one", "two", "soon"))
    sounds = [int((grid.speak != data.Encoder(folder).silence).any(1).sum()) for grid in (one, soon)]
    assert sounds[1] < sounds[0] - 3
    assert torch.equal(one.speak, two.speak) and torch.equal(one.text, two.text) and (one.listen != two.listen).float().mean() > 0.1
    other.quantizer.rvq_first.codebooks[0].embedding_sum.mul_(2)
    mimi.save(other, tmp_path)
    with pytest.raises(data.DataError, match="has other codebooks than"):
        data.Encoder(folder, hearing=tmp_path)
    with pytest.raises(data.DataError, match="--reaction must be 0 .. 60 seconds"):
        data.encode(folder / "dialogs.jsonl", tmp_path / "g", **options, reaction=-1)


def test_what_is_said_may_be_given_as_codes(folder, tmp_path):
    """Catches codes of a .npy file that are encoded, cut or shifted on their way into the grid, and files that hold no codes."""
    shutil.copy(folder / "q.wav", tmp_path)
    codes = np.arange(40).reshape(5, 8)
    np.save(tmp_path / "a.npy", codes)
    turn = {"heard": "q.wav", "transcript": "who are you", "spoken": "a.npy", "response": "I am Joe"}
    (tmp_path / "dialogs.jsonl").write_text(json.dumps({"turns": [turn]}))
    data.encode(tmp_path / "dialogs.jsonl", tmp_path / "g", "response-tts", folder)
    grid, = data.Grids([tmp_path / "g"])
    start = (grid.text != Ids.of(flm.PRESETS["tiny"]).wait).nonzero()[0].item() + stream.SPEECH_DELAY
    assert grid.speak[start:start + 5].tolist() == codes.tolist()
    for wrong in (codes[:, :7], codes.astype(float), codes[:0], codes - 1, codes + 512):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(ValueError, match="wrong.npy"):
            stream.read_codes(tmp_path / "wrong.npy", 512)


def test_a_sample_is_no_longer_than_was_asked_for(folder, tmp_path):
    """Catches samples that do not fit the rows of training, and a last turn that is cut in its middle."""
    settings = dict(fewest=3, most=3, backchannels=[folder], longest_sample=60)
    data.encode(folder / "dialogs.jsonl", tmp_path / "g", "response-tts-free", folder, draws=8, **settings)
    grids = list(data.Grids([tmp_path / "g"]))
    assert len(grids) == 8
    assert max(map(len, grids)) <= 60
    whole = [grid for grid in grids if (grid.text == 7).any()]
    assert whole == grids, "at least one turn is in each"


def test_silences_are_as_long_as_was_asked_for():
    """Catches a model that is trained without the minute in which a person thinks, or with one that nobody asked for."""
    rng = random.Random(0)
    usual = [data.silence(rng) for _ in range(5000)]
    long = [data.silence(rng, 1250) for _ in range(5000)]
    assert max(usual) == data.LONG_SILENCE[1]
    assert 1150 < max(long) <= 1250
    share = np.mean(np.array(long) > data.LONG_SILENCE[1])
    assert abs(share - data.VERY_LONG_SILENCE_PROBABILITY) < 0.015


def test_a_telephone_carries_a_band():
    """Catches a band that is no band: 5 kHz is lost, 1 kHz stays what it was."""
    time = np.arange(RATE) / RATE
    low, high = (np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (1000, 5000))
    narrow = data.telephone(low + high, random.Random(0))
    middle = slice(RATE // 4, 3 * RATE // 4)  # away from the edges, where the filter rings
    assert np.abs(narrow - low)[middle].max() < 0.02


def test_leakage_is_late_quiet_and_as_often_as_the_paper_says():
    """Catches another delay, gain or probability than section 3.2.2's, and a leak of what lies outside the wave."""
    rng, said, gains, delays = random.Random(0), np.zeros(RATE, np.float32), [], []
    said[:100] = 1
    for _ in range(1000):
        heard = np.zeros(RATE, np.float32)
        leakage = data.draw_leak(rng)
        if leakage:
            data.leak(heard, said, *leakage)
            gains.append(heard.max())
            delays.append(np.argmax(heard > 0) / RATE)
    assert len(gains) == pytest.approx(300, abs=50)
    assert 0 < min(gains) < 0.02 and 0.18 < max(gains) <= 0.2 and 0.1 <= min(delays) < 0.12 and 0.48 < max(delays) <= 0.5


def test_a_room_echoes_behind_the_voice():
    """Catches an echo that comes before the sound, is louder than it, or never ends."""
    click = np.zeros(24_000, np.float32)
    click[1000] = 1
    wet = data.room(click, random.Random(0))
    decay = len(wet) - len(click)
    assert data.ROOM_DECAY[0] * 24_000 <= decay <= data.ROOM_DECAY[1] * 24_000 and np.abs(wet[:1000]).max() < 1e-5
    echo = wet[1001:1000 + decay]
    assert 10 ** (-data.ROOM_DIRECT[1] / 10) * 0.9 < (echo ** 2).sum() < 1.1 and (echo[-decay // 10:] ** 2).sum() < 1e-4 * (echo[:decay // 10] ** 2).sum()


def test_a_microphone_favours_octaves_at_random():
    """Catches a response that is flat, the same in every octave or of another spread, and one that moves the sound in time."""
    octaves = np.array([750.0, 3000.0])
    tones = np.sin(2 * np.pi * octaves[:, None] * np.arange(24_000) / 24_000).astype(np.float32)
    gains = np.array([[(tone @ data.microphone(tone, random.Random(seed))) / (tone @ tone) for tone in tones] for seed in range(200)])
    decibels = 20 * np.log10(gains)  # a sound that came later or earlier would not correlate like this
    assert decibels.std(0) == pytest.approx([data.MICROPHONE] * 2, rel=0.2) and np.abs(decibels.mean(0)).max() < 1
    assert abs(np.corrcoef(decibels.T)[0, 1]) < 0.3


def test_a_pause_falls_between_words():
    """Catches a pause inside a word: of two tones and a gap it must lengthen the gap."""
    tone = np.sin(np.arange(12_000, dtype=np.float32))
    audio = np.concatenate([tone, np.zeros(2400, np.float32), tone])
    paused, at = data.hesitate(audio, 0.5, random.Random(0))
    assert len(paused) == len(audio) + 12_000 and 12_000 <= at <= 14_400
    assert np.array_equal(paused[:12_000], tone) and np.array_equal(paused[-12_000:], tone)


def test_a_pause_may_precede_the_last_word():
    """Catches pauses that always stand at the first of several gaps, as the quietest place of digital silence does: a model that
    never heard one before a list's third word takes it for the end."""
    tone, gap = np.sin(np.arange(12_000, dtype=np.float32)), np.zeros(2400, np.float32)
    places = [data.hesitate(np.concatenate([tone, gap, tone, gap, tone]), 0.5, random.Random(seed))[1] for seed in range(40)]
    first, last = ([begin - 480 <= at <= begin + 2880 for at in places] for begin in (12_000, 26_400))
    assert sum(first) + sum(last) == 40 and sum(first) > 8 and sum(last) > 8


def test_recorded_noise_is_joined_scaled_and_sometimes_silent(tmp_path):
    """Catches noise recordings used at their own loudness, silence drawn for whole samples only, and a wave that ends early."""
    files = [str(tone(tmp_path / "n.wav", 0.25, 0.9))]
    segments = [data.loudness(part) for seed in range(20) for part in data.noise(10 * RATE // 4, random.Random(seed), files).reshape(10, -1)]
    loud = [x for x in segments if x > -119]
    assert len(loud) == pytest.approx(140, abs=25) and -70.1 < min(loud) < -65 and -45 < max(loud) < -39.9
    assert len(data.noise(RATE + 7, random.Random(0), files)) == RATE + 7


def test_aligned_words_stand_in_the_frames_of_their_sound(folder, tmp_path):
    """Catches word times read in another unit, or words laid beside their sound."""
    (folder / "words.jsonl").write_text('{"audio": "a.wav", "text": "I am Joe", "words": [["I", 0.0, 0.1], ["am", 0.25, 0.3], ["Joe", 0.5, 0.7]]}')
    data.encode(folder / "words.jsonl", tmp_path / "g", "word-aligned", folder)
    (grid,), ids = data.Grids([tmp_path / "g"]), Ids.of(flm.PRESETS["tiny"])
    text, start = grid.text.tolist(), grid.text.tolist().index(7)
    assert text[start - 1:start + 8] == [ids.answer, 7, ids.wait, ids.answer, 8, ids.wait, ids.answer, 9, ids.wait]
    assert torch.equal(grid.speak[start:start + 10], data.Encoder(folder).said(folder / "a.wav"))


def test_broken_audio_costs_its_sample_alone(folder, tmp_path, capsys):
    """Catches one unreadable recording that ends a run of days, is dropped in silence, or changes the other samples."""
    (folder / "broken.wav").write_bytes(b"RIFF not a wav")
    rows = ['{"audio": "%s", "text": "who"}' % name for name in ("q.wav", "broken.wav", "a.wav")]
    (folder / "some-broken.jsonl").write_text("\n".join(rows))
    assert data.encode(folder / "some-broken.jsonl", tmp_path / "g", "asr", folder) == (2, 1)
    assert "SKIPPED" in (told := capsys.readouterr().err) and "broken.wav" in told and len(data.Grids([tmp_path / "g"])) == 2


def test_layouts_become_manifests(tmp_path):
    """Catches a layout read with the wrong column, folder or text, and a missing recording that is kept."""
    def write(file, text):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for file in ("libri/1/2/1-2-0000.flac", "lj/wavs/LJ1.wav", "aishell/train/wav/SSB0005/SSB00050001.wav", "cv/clips/c.mp3", "plain/p.wav"):
        tone(tmp_path / file, 0.1)
    write(tmp_path / "libri/1/2/1-2.trans.txt", "1-2-0000 HE SAID\n1-2-0001 GONE\n")
    write(tmp_path / "lj/metadata.csv", "LJ1|Dr. \"X|Doctor \"X\n")
    write(tmp_path / "aishell/train/content.txt", "SSB00050001.wav\t广 guang3 州 zhou1\n")
    write(tmp_path / "cv/validated.tsv", 'client_id\tpath\tsentence\nx\tc.mp3\tShe said "no.\n')
    write(tmp_path / "plain/t.csv", 'audio,text\np.wav,"One, two"\n')
    write(tmp_path / "plain/t.jsonl", '{"audio": "p.wav", "text": "x", "words": [["x", 0, 0.1]]}\n')
    for layout, source, missing, text in (
            ("librispeech", "libri", 1, "he said"), ("ljspeech", "lj", 0, 'Doctor "X'), ("aishell-3", "aishell", 0, "广州"),
            ("common-voice", "cv", 0, 'She said "no.'), ("table", "plain/t.csv", 0, "One, two"), ("table", "plain/t.jsonl", 0, "x")):
        assert data.bring_in(layout, tmp_path / source, tmp_path / "out.jsonl") == (1, missing)
        ((turn,),) = data.read_manifest(tmp_path / "out.jsonl", "tts")
        assert turn["response"] == text and turn["spoken"].exists()
    data.bring_in("table", tmp_path / "plain/t.jsonl", tmp_path / "out.jsonl")
    assert data.read_manifest(tmp_path / "out.jsonl", "word-aligned")[0][0]["words"] == [["x", 0, 0.1]]
    for layout in data.LAYOUTS:
        with pytest.raises((data.DataError, OSError), match="plain"):
            data.bring_in(layout, tmp_path / "plain", tmp_path / "out.jsonl")


def test_a_stereo_conversation_is_cut_into_turns(tmp_path):
    """Catches channels swapped, turns cut at the wrong times, and a pause within a sentence taken for its end."""
    tone(tmp_path / "c.wav", 8.0, channels=(0.5, 0.1))
    words = [[" Hi", [1.0, 1.2]], [" there.", [1.9, 2.5]], [" Bye.", [5.0, 5.5]]]
    (tmp_path / "c.json").write_text(json.dumps({"alignments": [[*word, "SPEAKER_MAIN"] for word in words]}))
    (tmp_path / "set.jsonl").write_text('{"path": "c.wav", "duration": 8.0}')
    assert data.bring_in("moshi-finetune", tmp_path / "set.jsonl", tmp_path / "out.jsonl") == (1, 0)
    (turns,) = data.read_manifest(tmp_path / "out.jsonl", "response-tts-free")
    assert [turn["response"] for turn in turns] == ["Hi there.", "Bye."]
    heard, spoken = ([sound_file.read_audio(turn[key]) for turn in turns] for key in ("heard", "spoken"))
    assert [round(len(x) / RATE, 2) for x in heard] == [1.0, 2.5] and [round(len(x) / RATE, 2) for x in spoken] == [1.5, 0.5]
    assert heard[0].max() < 0.11 and spoken[0].max() > 0.13


def test_dialogs_are_spoken_by_two_users_and_one_model(tmp_path, capsys):
    """Catches a shell that reads the words, a voice that changes within a dialog, clips made twice, and a failure that is lost."""
    (tmp_path / "say.py").write_text("import sys, soundfile, numpy as np\nout, voice, text = sys.argv[1:]\n"
                                     "open(out.split('audio')[0] + 'made', 'a').write(voice)\nassert text != 'fail'\n"
                                     "soundfile.write(out, float(voice) * np.sin(np.arange(2400 * len(text)) * 0.05), 24000)\n")
    dialogs = [[{"transcript": "$(touch x); 'q", "response": "yes"}, {"transcript": "{out}", "response": "no"}], [{"transcript": "fail", "response": "yes"}]]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"turns": turns}) for turns in dialogs))
    voices = [f"{sys.executable} {tmp_path / 'say.py'} {{out}} 0.{i} {{text}}" for i in range(1, 5)]
    for _ in range(2):
        assert data.synthesise(tmp_path / "texts.jsonl", tmp_path / "s", voices[0], voices[1:]) == (2, 2)
    told = capsys.readouterr().err
    assert "could not say 'fail'" in told
    first, second = data.read_manifest(tmp_path / "s" / "dialogs.jsonl", "asr-response-tts")
    peaks = [[round(float(sound_file.read_audio(turn[key]).max()), 1) for turn in turns] for turns in (first, second) for key in ("heard", "spoken")]
    assert peaks[1] == peaks[3] == [0.1, 0.1] and len({*peaks[0]}) == len({*peaks[2]}) == 1 and peaks[0] != peaks[2]
    assert len(sound_file.read_audio(first[1]["heard"])) == 2400 * len("{out}")
    assert len((tmp_path / "s" / "made").read_text()) == 3 * (2 + 4 + 2) + 3 * 2  # what failed is tried again, nothing else


def test_check_finds_each_kind_of_offender(tmp_path):
    """Catches a problem that goes unseen, a clean line that is accused, and a clean manifest with offenders in it."""
    tone(tmp_path / "good.wav", 2.0)
    tone(tmp_path / "other.wav", 1.5)
    tone(tmp_path / "silent.wav", 2.0, 1e-4)
    tone(tmp_path / "long.wav", 5.0)
    soundfile.write(tmp_path / "clipped.wav", np.clip(3 * np.sin(np.arange(2 * RATE) * 0.05), -1, 1), RATE, subtype="FLOAT")
    (tmp_path / "none.wav").write_bytes(b"")
    names = ("good", "other", "silent", "long", "clipped", "none", "good")
    rows = [{"audio": f"{name}.wav", "text": "twenty letters of text"} for name in names] + [
        {"audio": "other.wav", "text": "x" * 90}, {"audio": "good.wav", "text": None}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = data.check(tmp_path / "m.jsonl", longest=4)
    assert counts == {"none": 2, "silent": 1, "too long": 1, "clipped": 1, "unreadable": 1, "duplicate": 1, "text": 1, "wrong kind": 1}
    offenders = [json.loads(line) for line in (tmp_path / "m.offenders.jsonl").read_text().splitlines()]
    assert [(o["line"], o["problem"]) for o in offenders] == [
        (3, "silent"), (4, "too long"), (5, "clipped"), (6, "unreadable"), (7, "duplicate"), (8, "text"), (9, "wrong kind")]
    assert [row["audio"] for _, row in manifests.read_lines(tmp_path / "m.clean.jsonl")] == ["good.wav", "other.wav"]


def _die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_machine_does_to_a_run_is_one_sentence(folder, tmp_path):
    """Catches a run that hangs when a worker is killed, a traceback or half a shard on a full disk, and ids beyond the model's."""
    with pytest.raises(data.DataError, match="a worker was killed"):
        list(data.in_parallel(_die, range(3), 2))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))  # as little room as a full disk has
    try:
        with pytest.raises(stream.GridError, match="shard-00000.safetensors cannot be written"):
            data.encode(folder / "dialogs.jsonl", tmp_path / "g", "response-tts", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((tmp_path / "g").glob("*shard*"))
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 8}))
    with pytest.raises(data.DataError, match="is another model's: its ids go up to 9, config.json's to 7"):
        data.Encoder(other)


@pytest.mark.parametrize("command, sentence", [
    ("encode none.jsonl out --format tts", "none.jsonl cannot be read"), ("check none.jsonl", "none.jsonl cannot be read"),
    ("import librispeech . out.jsonl", "holds nothing that can be used as librispeech"), ("import ljspeech . out.jsonl", "metadata.csv"),
    ("synth none.jsonl out --model-voice x --user-voice y", "must have an {out}"),
    ("import librispech . out.jsonl", "there is no layout librispech"), ("encode none.jsonl out --format tts --join 0 2", "--join takes"),
    ("encode none.jsonl out --format tts --device gpu", "--device gpu cannot be used"), ("encode none.jsonl out --format tts --part 3", "no part 3"),
    ("encode none.jsonl out --format tts --part 3/2", "there is no part 3/2")])
def test_wrong_commands_are_one_sentence(tmp_path, monkeypatch, capsys, command, sentence):
    """Catches a traceback for what a user can mistype, and a manifest that a failed import empties."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.jsonl").write_text("kept")
    with pytest.raises(SystemExit) as stopped:
        data.main(command.split())
    assert sentence in f"{stopped.value.code} {capsys.readouterr().err}"
    assert (tmp_path / "out.jsonl").read_text() == "kept" and not list(tmp_path.rglob("*.part"))
