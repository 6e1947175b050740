"""README's "Teach it something": its settings, its old dialogs, its example."""
from pathlib import Path

import pytest

import chat
import train
from workshop import manifests, model_files, model_folder, training_options, training_set

ROOT = Path(__file__).parent.parent
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
