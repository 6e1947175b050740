"""The worked example of STAGES.md: recordings of two people with their overlap, and the page."""
import json
import random
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import data
import flm
import mimi
import stream
import train
from workshop import codec_files, config_files, conversations, importers, manifests
from workshop.drawing import draw

HOUSE = Path(__file__).resolve().parent.parent
PAGE = (HOUSE / "STAGES.md").read_text()
RATE = 24_000
IDS = stream.Ids.of(flm.PRESETS["tiny"])
VOCABULARY = {"?": 0, "yes": 4, "I": 5, "see": 6, "bye": 7}
# The model says "yes", and while the user is speaking "I see", and in the end "bye".
WORDS = [("yes", [1.0, 1.4]), ("I", [3.0, 3.3]), ("see", [3.4, 3.9]), ("bye", [7.0, 7.5])]


def tone_at(spans, seconds, hertz):
    """A sine that sounds within some spans of seconds."""
    time = np.arange(int(seconds * RATE)) / RATE
    audio = np.zeros(len(time), np.float32)
    for start, stop in spans:
        inside = (time >= start) & (time < stop)
        audio[inside] = 0.3 * np.sin(2 * np.pi * hertz * time[inside])
    return audio


@pytest.fixture
def folder(tmp_path):
    """A model folder with a random miniature codec; and a conversation of 8 seconds, its words, and
    its manifest."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    torch.manual_seed(0)
    codec_files.save(mimi.Mimi(mimi.Config(**{**vars(mimi.PRESETS["tiny"]), "num_layers": 1})), tmp_path)
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(config_files.to_json(flm.PRESETS["tiny"])))
    left = tone_at([span for _, span in WORDS], 8, 300)
    right = tone_at([(0.2, 0.9), (2.0, 6.0)], 8, 500)
    soundfile.write(tmp_path / "talk.wav", np.stack([left, right], 1), RATE)
    alignments = [[word, span, "SPEAKER_MAIN"] for word, span in WORDS]
    (tmp_path / "talk.json").write_text(json.dumps({"alignments": alignments}))
    (tmp_path / "set.jsonl").write_text('{"path": "talk.wav"}')
    return tmp_path


def test_both_channels_are_whole_and_side_by_side(folder, monkeypatch):
    """Catches speech at the same time that is lost, channels that are moved against each other, and
    an utterance that is written at another moment than SPEECH_DELAY frames before its sound."""
    counts = importers.bring_in("stereo", folder / "set.jsonl", folder / "stereo.jsonl")
    assert counts == (1, 0)
    (turns,) = manifests.read_manifest(folder / "stereo.jsonl", "stereo")
    monkeypatch.setattr(data, "NO_NOISE_PROBABILITY", 1.0)
    monkeypatch.setattr(data, "GAIN_PROBABILITY", 0.0)
    encoder = data.Encoder(folder)
    maker = data.GridMaker(encoder, data.Settings("stereo"))
    grids, problems, _ = maker.grids([turns], [random.Random(0)])
    plan = maker.plan(turns, random.Random(0))
    (grid,) = grids
    assert not problems

    channels, _ = soundfile.read(folder / "talk.wav", dtype="float32")
    answer = encoder.speak_codes(turns[0]["spoken"])
    first = int((grid.speak[1:] != encoder.silence).any(1).nonzero()[0]) + 1
    start = plan.user_audio.nonzero()[0][0] // data.FRAME - int(0.2 * stream.FRAME_RATE)
    user_audio = plan.user_audio[start * data.FRAME:][:len(channels)]
    assert np.abs(user_audio - channels[:, 1]).max() < 1e-4
    assert torch.equal(grid.speak[start:start + len(answer)], answer)
    assert first >= start

    text = grid.text.tolist()
    expected = [IDS.wait] * len(text)
    for second, ids in ((1.0, [4]), (3.0, [5, 6]), (7.0, [7])):
        frame = start + int(second * stream.FRAME_RATE) - stream.SPEECH_DELAY
        expected[frame:frame + len(ids)] = ids
    assert text == expected, draw(grid, IDS)


def test_a_long_conversation_is_cut_into_pieces(folder, monkeypatch):
    """Catches samples that fit no row of training, and word times that count from the start of the
    recording where they should from the start of the piece."""
    monkeypatch.setattr(conversations, "PIECE", 3)
    importers.bring_in("stereo", folder / "set.jsonl", folder / "stereo.jsonl")
    pieces = [turns[0] for turns in manifests.read_manifest(folder / "stereo.jsonl", "stereo")]
    assert [turn["words"] for turn in pieces] == [
        [["yes", 1.0, 1.4]], [["I see", 0.0, pytest.approx(0.9)]], [["bye", 1.0, 1.5]]]
    for key in ("heard", "spoken"):
        seconds = [soundfile.info(turn[key]).duration for turn in pieces]
        assert seconds == pytest.approx([3, 3, 2], abs=0.01)


def test_the_page_s_stage_is_one():
    """Catches a line for train.STAGES that the class no longer takes, or a format that is gone."""
    line = re.search(r'^    ("conversations": Stage.*),$', PAGE, re.M)[1]
    stage = eval(f"{{{line}}}", {"Stage": train.Stage})["conversations"]
    assert stage.formats == ("stereo",)


def test_the_page_shows_the_code_as_it_is():
    """Catches a page whose code is not the code: each block names its file in its first line, and
    its parts, between lines of `...`, stand there."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 3
    for name, block in blocks:
        source = textwrap.dedent((HOUSE / name).read_text())
        lines = [line.strip() for line in source.splitlines()]
        for part in block.split("...\n"):
            quoted = [line.strip() for line in part.splitlines()]
            while quoted and not quoted[0]:
                quoted.pop(0)
            while quoted and not quoted[-1]:
                quoted.pop()
            starts = [i for i in range(len(lines)) if lines[i:i + len(quoted)] == quoted]
            assert starts, f"{name} does not hold:\n{part}"
