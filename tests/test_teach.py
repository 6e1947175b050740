"""README's "Teach it something" and "A new voice": settings, old dialogs, example, decoder."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import chat
import train
from workshop import (codec_files, manifests, model_files, model_folder, training_options,
                      training_set)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tiny"))
import new_voice  # noqa: E402
import replay  # noqa: E402

REPLAY = ROOT / "tiny" / "replay"


@pytest.fixture
def runs(monkeypatch):
    """The train.Settings that command lines lead to; nothing is trained."""
    settings = []
    monkeypatch.setattr(train, "train", settings.append)

    def run(*more, grids=("grids/new",)):
        train.main(["run", *grids, "--init", str(chat.SHIPPED), "--out", "runs/new", *more])
        return settings[-1]
    return run


def test_keep_knowing_sets_what_was_not_given(runs):
    """Catches the flag without effect: the stage's own rates teach a small model nothing, and rows
    shorter than its own make it forget the start of a talk."""
    known = runs("--keep-knowing")
    for name, value in training_options.KEEP_KNOWING.items():
        assert getattr(known, name) == value, name
    assert known.length == 2048, "as config.json of the shipped model says"


def test_keep_knowing_yields_to_what_was_given(runs):
    """Catches a flag that overrides the command line, also where it names the usual default."""
    known = runs("--keep-knowing", "--lr", "1e-4", "1e-5", "--depth-share", "1", "--length", "512")
    assert tuple(known.lr) == (1e-4, 1e-5)
    assert known.depth_share == 1.0
    assert known.length == 512


def test_keep_knowing_holds_nothing_out_beside_folders_to_validate_on(runs):
    """Catches a twentieth of the new dialogs that is neither trained on nor validated."""
    assert runs("--keep-knowing", "--valid", "grids/test").hold_out == 0.0


def test_without_the_flag_nothing_changes(runs):
    """Catches settings that leak into every run."""
    plain = runs()
    assert plain.lr is None
    assert plain.wait_weight == train.GAMMA


def test_new_dialogs_alone_are_warned_of(runs, capsys):
    """Catches the silent loss of all old answers, for which one folder of grids is enough."""
    runs("--keep-knowing")
    assert "nothing repeats what the model knew" in capsys.readouterr().out
    runs("--keep-knowing", grids=("grids/new", "tiny/replay:0.5"))
    assert "nothing repeats" not in capsys.readouterr().out


def test_keep_knowing_needs_a_model():
    """Catches a traceback where nothing is named that knows something."""
    with pytest.raises(SystemExit, match="--keep-knowing needs --init"):
        train.main(["run", "grids/new", "--out", "runs/new", "--keep-knowing"])


def test_the_old_dialogs_fit_the_shipped_model():
    """Catches a model or codec that changes while the dialogs to replay stay behind: ids outside of
    its vocabularies, samples longer than its rows, or answers that its tokenizer spells as
    nonsense."""
    config = model_files.read_config(chat.SHIPPED)
    grids = training_set.Grids([str(REPLAY)])
    tokenizer = model_folder.read_tokenizer(chat.SHIPPED)
    assert len(grids) == 194
    texts = ""
    for i in range(0, len(grids), 20):
        grid = grids[i]
        assert len(grid) < config.trained_frames
        assert 0 <= int(grid.speak.min()) and int(grid.speak.max()) < config.aud_vocab_size
        assert 0 <= int(grid.listen.min()) and int(grid.listen.max()) < config.aud_vocab_size
        words = [token for token in grid.text.tolist() if token != config.wait_token]
        texts += tokenizer.decode(words)
    assert "The capital of" in texts and "plus" in texts


def test_the_example_can_be_read():
    """Catches a voice or a dialog of the example that data.py synth would refuse."""
    folder = ROOT / "examples" / "teach"
    rows = [row for _, row in manifests.read_rows(folder / "narnia.jsonl")]
    assert len(rows) == 4 and all(row["turns"][0]["response"] for row in rows)
    voices = (folder / "voices.txt").read_text().splitlines()
    assert len(set(voices)) == 20
    for voice in voices:
        assert "{text}" in voice and "{out}" in voice


# --- a new voice ---

@pytest.fixture
def hum(tmp_path):
    """A folder with half a minute of a hum, which stands for a voice."""
    folder = tmp_path / "hum"
    folder.mkdir()
    time = np.arange(16 * 24_000) / 24_000
    for name, hertz in (("low", 150), ("high", 220)):
        soundfile.write(folder / f"{name}.wav", 0.3 * np.sin(2 * np.pi * hertz * time), 24_000)
    return folder


@pytest.fixture
def stopped_after_one_step(monkeypatch):
    """Ctrl-C behind a checkpoint of the first step, once."""
    run = new_voice.tiny_codec.run

    def stop(name, checkpoint, steps, learn, seed, **parts):
        def learn_or_stop(step, rng):
            if step == 1 and not checkpoint.exists():
                states = {key: part.state_dict() for key, part in parts.items()}
                torch.save(states | {"step": 1}, checkpoint)
                raise KeyboardInterrupt
            return learn(step, rng)
        run(name, checkpoint, steps, learn_or_stop, seed, **parts)
    return lambda: monkeypatch.setattr(new_voice.tiny_codec, "run", stop)


def test_a_decoder_learns_a_voice_and_the_codes_stay(hum, tmp_path, stopped_after_one_step):
    """Catches an encoder or a codebook that moves with the decoder: the language model and all
    grids would hear and speak other codes than those that they were made of. Catches a stopped run
    that begins again, or ends elsewhere."""
    whole = tmp_path / "whole"
    new_voice.main([str(hum), str(whole), "--steps", "2"])
    before = codec_files.load(chat.SHIPPED).state_dict()
    after = codec_files.load(whole).state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    parts = {name.partition(".")[0] for name in moved}
    assert parts == {"upsample", "decoder_transformer", "decoder"}
    names = {file.name for file in chat.SHIPPED.iterdir()}
    assert {file.name for file in whole.iterdir()} == names
    model = whole / "model.safetensors"
    assert model.read_bytes() == (chat.SHIPPED / "model.safetensors").read_bytes()

    stopped_after_one_step()
    again = tmp_path / "again"
    with pytest.raises(SystemExit, match="the same command goes on"):
        new_voice.main([str(hum), str(again), "--steps", "2"])
    new_voice.main([str(hum), str(again), "--steps", "2"])
    other = codec_files.load(again).state_dict()
    assert all(torch.equal(after[name], other[name]) for name in after)


def test_a_voice_needs_half_a_minute_and_a_folder_of_its_own(hum, tmp_path):
    """Catches a decoder that is ruined by one sentence, and a folder that is written over."""
    (hum / "low.wav").unlink()
    with pytest.raises(SystemExit, match="16 s of the voice are too few"):
        new_voice.main([str(hum), str(tmp_path / "start")])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="holds other things than a new voice"):
        new_voice.main([str(hum), str(tmp_path / "mine")])


def test_old_questions_are_answered_by_another_voice(tmp_path, monkeypatch):
    """Catches dialogs whose answers are still the model's own codes."""
    job = {"text": "Who are you?", "answer": "I am Joe.", "kind": "self", "voice": "any",
           "path": "question.wav"}
    monkeypatch.setattr(replay, "record_questions", lambda *rest: [job])
    monkeypatch.setattr(replay, "record_backchannels", lambda *rest: None)
    script = tmp_path / "say.py"
    script.write_text("import sys, numpy, soundfile\n"
                      "sound = numpy.full(2400, len(sys.argv[1]) / 100)\n"
                      "soundfile.write(sys.argv[2], sound, 24000)\n")
    voice = f"{sys.executable} {script} {{text}} {{out}}"
    replay.main([str(tmp_path / "voice"), "--answers-by", voice])
    line, = (tmp_path / "voice" / "dialogs.jsonl").read_text().splitlines()
    turn, = json.loads(line)["turns"]
    assert turn["response"] == "I am Joe."
    audio, _ = soundfile.read(tmp_path / "voice" / turn["spoken"])
    assert audio == pytest.approx(0.09, abs=1e-3)
    pairs = (tmp_path / "voice" / "sentences.jsonl").read_text().splitlines()
    sounds = {pair["text"]: pair["audio"] for pair in map(json.loads, pairs)}
    assert sounds["I am Joe."] == turn["spoken"]
    assert 1 < len(sounds) <= 4, "three more sentences of its world for each question, or as many"
