"""From recordings to grids, with a small random codec: what stands where, what a manifest may get wrong, resuming."""
import json
import random

import numpy as np
import pytest
import soundfile
import torch

import data
import flm
import mimi
import stream
from stream import Ids

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
    grids, ids = data.load([tmp_path / "g"]), Ids.of(flm.PRESETS["tiny"])
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


def test_one_channel_formats(folder, tmp_path):
    """Catches loss or codes on the channel that a pair format leaves empty."""
    ids = Ids.of(flm.PRESETS["tiny"])
    for format, empty in (("tts", "listen"), ("asr", "speak")):
        data.encode(folder / "pairs.jsonl", tmp_path / format, format, folder, 1, 3)
        for grid in data.load([tmp_path / format]):
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
    for a, b in zip(data.load([tmp_path / "whole"]), data.load([tmp_path / "stopped"]), strict=True):
        stream.assert_same(a, b, Ids.of(flm.PRESETS["tiny"]))
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
    ("not json", "line 1"), ('{"text": "no audio"}', "needs audio, text"), ('{"audio": "none.wav", "text": "x"}', "none.wav does not exist")])
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
