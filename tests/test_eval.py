"""Scores against answers worked by hand, and the batched engine against chat.py's own loop."""
import json
import random
import sys

import numpy as np
import pytest
import soundfile
import torch

import chat
import eval as evaluation
import stream
from data import SAMPLE_RATE
from workshop import costs, full_duplex_bench, measures


# --- text and numbers ---

@pytest.mark.parametrize("found, expected, errors", [
    ("a b c", "a b c", 0), ("a x c", "a b c", 1), ("a c", "a b c", 1), ("a b b c", "a b c", 1), ("", "a b c", 3), ("b c d", "a b c", 2)])
def test_word_errors_by_hand(found, expected, errors):
    """Catches a distance that counts a substitution twice or an insertion never."""
    assert measures.word_errors(found.split(), expected.split()) == errors


def test_words_are_what_two_spellings_share():
    """Catches right answers counted wrong for a digit, a comma or a capital, and Chinese counted as one long word."""
    assert measures.words("3 plus 4 is 7.") == measures.words("Three plus four is seven")
    assert measures.words("D-O-G") == measures.words("d, o, g")
    assert measures.words("Dr. Ticket") == measures.words("doctor, ticket")
    found, expected = (measures.words(text, "zh") for text in ("你好，世界", "你 好 世间。"))
    assert (measures.word_errors(found, expected), len(expected)) == (1, 4)


def test_intervals_by_hand():
    """Catches an interval without width at 0 of n, a rate averaged over recordings in place of words, and numbers that
    change from run to run."""
    half = measures.number([True, False] * 5, "share")
    assert (half["value"], half["n"]) == (0.5, 10) and (half["low"], half["high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    none = measures.number([False] * 10, "share")
    assert (none["low"], none["high"]) == pytest.approx((0, 0.2775), abs=1e-4)
    assert measures.number([(1, 2), (0, 8)], "rate")["value"] == 0.1  # and not 0.25
    times = measures.number([0.1, 0.2, 0.9], "s")
    assert times == measures.number([0.1, 0.2, 0.9], "s") and times["value"] == 0.2 and 0.1 <= times["low"] < times["high"] <= 0.9
    assert measures.number([], "s") == dict(value=None, n=0, low=None, high=None, unit="s")


# --- when somebody speaks ---

def sounding(*bounds, seconds=10.0):
    """A waveform that sounds between pairs of times."""
    wave = torch.zeros(round(seconds * SAMPLE_RATE))
    for start, end in bounds:
        wave[round(start * SAMPLE_RATE):round(end * SAMPLE_RATE)] = 0.1 * torch.randn(round((end - start) * SAMPLE_RATE))
    return wave


def test_spans_by_hand():
    """Catches a pause between two words taken for the end of speech, and hiss taken for speech."""
    wave = sounding((1, 2), (2.3, 3), (3.6, 4)) + 0.001 * torch.randn(240_000)
    assert evaluation.spans(wave) == [[1, 3], [3.6, 4]]
    assert evaluation.spans(torch.zeros(1000)) == []


def question(text="What?", expected="It is seven.", sound=(0.2, 1.0)):
    return evaluation.clip(sounding(sound, seconds=1.5), question=text, expected=expected, about={"kind": "sum"})


def played(scene, lines, *spans):
    return dict(scene[1], lines=lines, spans=evaluation.spans(sounding(*spans)), seconds=10.0)


def test_a_question_by_hand():
    """Catches latency counted from the end of the file in place of the end of speech, a transcript taken for the answer, and
    an answer with something after it taken for an exact one."""
    alone = evaluation.scene([(0, question())])
    graded = evaluation.grade(played(alone, [[1.2, "<asr>What?<answer>it is 7"]], (1.5, 3)))
    assert graded["right"] and not graded["exact"] and graded["takeover"]
    assert (graded["thinks after"], graded["speaks after"]) == pytest.approx((0.2, 0.5))
    graded = evaluation.grade(played(alone, [[1.2, "It is seven."], [4.0, "It is nine."]], (1.5, 3)) | {"heard": "It is seven"})
    assert graded["right"] and not graded["exact"] and graded["spoken right"] and not graded["spoken exact"]
    graded = evaluation.grade(played(alone, []))
    assert not graded["right"] and not graded["takeover"] and graded["speaks after"] is None


def test_turns_by_hand():
    """Catches the answer to one question counted for the next."""
    row = played(evaluation.scene([(0, question()), (5, question(expected="No."))]), [[1.2, "It is seven."], [6.3, "No."]], (1.5, 3), (6.5, 7))
    graded = evaluation.grade(row)
    assert graded["right, turn 1"] and graded["right, turn 2"] and graded["speaks after, turn 2"] == pytest.approx(0.5)


def test_an_interruption_by_hand():
    """Catches the end of an answer that was over anyway counted as stopping, and the first answer graded for the second."""
    before = played(evaluation.scene([(0, question())]), [[1.2, "It is seven."]], (1.5, 4))
    scene = evaluation.intruding(question(), before, question("And?", "No."), random.Random(0))
    at = scene[1]["at"]
    assert 1.6 <= at <= 2.8 and evaluation.spans(scene[0])[-1][0] == pytest.approx(at, abs=0.03)
    graded = evaluation.grade(played(scene, [[1.2, "It is seven."], [at + 1, "No."]], (1.5, at + 0.4), (at + 1.3, at + 2)))
    assert graded["stopped"] and graded["right"] and graded["stops after"] == pytest.approx(0.4, abs=0.03)
    assert graded["speaks after"] == pytest.approx(0.5, abs=0.03)
    graded = evaluation.grade(played(scene, [[1.2, "It is seven."]], (1.5, 4)))
    assert not graded["stopped"] and graded["stops after"] is None and not graded["right"]
    short = dict(before, spans=[[1.5, 2.0]])
    assert evaluation.intruding(question(), short, question(), random.Random(0)) is None


def test_a_backchannel_by_hand():
    """Catches an answer that goes on counted as stopped, and what was thought before counted as said in reply."""
    before = played(evaluation.scene([(0, question())]), [[1.2, "It is seven."]], (1.5, 4))
    scene = evaluation.intruding(question(), before, evaluation.clip(sounding((0, 0.3), seconds=0.4)), random.Random(0))
    assert evaluation.grade(played(scene, [[1.2, "It is seven."]], (1.5, 3.9))) == {"false stop": False, "says more": False}
    cut = played(scene, [[1.2, "It is seven."], [4.0, "Yes?"]], (1.5, scene[1]["at"] + 0.5))
    assert evaluation.grade(cut) == {"false stop": True, "says more": True}


def test_a_pause_by_hand():
    """Catches a pause laid outside the question, and a start before the user is done taken for quick."""
    wave, row = evaluation.with_pause(question(sound=(0.0, 1.4)), random.Random(0))
    end = evaluation.spans(wave)[0][1]
    assert 0.16 <= end <= 1.37 and row["pause"] == pytest.approx(end, abs=0.03)
    assert row["turns"][0]["end"] == pytest.approx(1.4 + len(wave) / SAMPLE_RATE - 6.5, abs=0.03)
    early = row["pause"] + 0.3
    graded = evaluation.grade(played((wave, row), [[early, "No."], [3.0, "It is seven."]], (early, early + 0.5), (3.2, 4)))
    assert graded["false start"] and not graded["right"] and graded["right at last"] and graded["speaks after"] == 0
    assert not evaluation.grade(played((wave, row), [[3.0, "It is seven."]], (3.2, 4)))["false start"]


def test_noise_is_as_loud_as_asked():
    """Catches a signal-to-noise ratio of amplitudes for one of powers."""
    quiet = evaluation.scene([(0, question(sound=(0.0, 1.0)))])
    loud = evaluation.noisy(quiet, 6, (), random.Random(0))
    noise = (loud.wave - quiet.wave).square().mean()
    voice = quiet.wave[:SAMPLE_RATE].square().mean()
    assert 10 * torch.log10(voice / noise).item() == pytest.approx(6, abs=0.1)


# --- the engine ---

@pytest.fixture(scope="module")
def partner(untrained):
    return chat.Partner(untrained, chat.Sampling())


@pytest.fixture(scope="module")
def waves():
    torch.manual_seed(1)
    return [0.1 * torch.randn(n) for n in (24_000, 12_345, 40_000, 19_200)]


def test_a_batch_is_each_alone_is_chat(partner, waves):
    """Catches conversations of a batch that hear each other, frames shifted against chat.py's, and draws that depend on the
    company: of random weights, which make every draw a close one."""
    seeds = [3, 1, 4, 1]
    for i, found in evaluation.converse(partner, waves, seeds, batch=3):
        wave, seed = waves[i], seeds[i]
        (_, alone), = evaluation.converse(partner, [wave], [seed])
        assert alone.text == found.text and torch.equal(alone.codes, found.codes)
        monologue = partner.monologue(lambda *_, **__: None)
        _, said, _ = chat.converse(partner, wave, monologue, seed)
        assert monologue.lines == found.lines
        torch.testing.assert_close(found.model_audio, said, rtol=0, atol=1e-5)


def test_what_comes_later_changes_nothing_before(partner, waves):
    """Catches an offline pass that looks ahead: interruptions are measured by comparison with a first conversation."""
    changed = torch.cat([waves[2][:15 * 1920], torch.zeros(len(waves[2]) - 15 * 1920)])
    (_, one), (_, other) = evaluation.converse(partner, [waves[2], changed])
    assert one.text[:15] == other.text[:15] and torch.equal(one.codes[:14], other.codes[:14]) and not torch.equal(one.codes, other.codes)


def test_given_rows_are_read_in_their_frames(partner):
    """Catches given text, or the empty speaking channel, that reaches the model a frame late: every token that was drawn is
    the likeliest of one pass over the same rows."""
    model, ids = partner.model, stream.Ids.of(partner.model.config)
    script = stream.Script(ids)
    script.respond(stream.Turn(speak_frames=6, response=[7, 8, 9]))
    grid = script.grid()
    (_, (_, codes, _)), = evaluation.play(model, chat.Sampling.greedy(), [grid.listen], text=[stream.delay(grid, ids).text])
    assert codes.shape == (len(grid), 8)
    loop = chat.Duplex(model, chat.Sampling.greedy())
    rows = stream.delay(grid, ids).text
    for t, row in enumerate(rows[:-1]):  # by hand
        frame = loop.steps({0: grid.listen[t]}, force_text={0: rows[t + 1]})
        assert frame[0][:2] == (row, codes[t].tolist())

    heard = script.grid(None, torch.randint(0, 500, (len(script), 8)))
    (_, (text, _, _)), = evaluation.play(model, chat.Sampling.greedy(), [heard.listen], speak=[stream.delay(heard, ids).speak])
    rows = stream.delay(stream.Grid(torch.tensor(text), heard.speak, heard.listen, heard.loss), ids)
    with torch.no_grad():
        likeliest = model.text_logits(model.hidden(rows.text[None], rows.speak[None], rows.listen[None]))[0].argmax(-1).tolist()
    assert text[1:] == likeliest[:len(text) - 1]


def test_losses_are_the_straightforward_ones(partner):
    """Catches classes mixed up, and tokens of one grid counted for another."""
    torch.manual_seed(0)
    ids, script = stream.Ids.of(partner.model.config), stream.Script(stream.Ids.of(partner.model.config))
    script.respond(stream.Turn(speak_frames=4, response=[5, 6]))
    grids = [script.grid(torch.randint(0, 500, (len(script), 8))), script.grid(None, torch.randint(0, 500, (len(script), 8)))]
    sums, counts = evaluation.losses(partner.model, grids)
    for grid, found, n in zip(grids, sums, counts):
        rows = stream.delay(grid, ids)
        with torch.no_grad():
            expected = costs.straightforward(partner.model, *(x[None] for x in (rows.text, rows.speak, rows.listen, rows.loss)))
        torch.testing.assert_close(found[1:].float(), expected[1:], rtol=1e-4, atol=1e-3)
        assert n.tolist() == torch.bincount(rows.loss[1:].flatten(), minlength=5).tolist()


def test_an_echo_is_heard_after_its_delay(partner, waves):
    """Catches a loudspeaker that leaks before it sounds, into another conversation, or into the recording itself."""
    (_, alone), = evaluation.converse(partner, [waves[2]], [5])
    for i, found in evaluation.converse(partner, [waves[2]] * 2, [5, 5], echo=[(0.0, 0.15), (0.5, 0.15)]):
        if i == 0:
            torch.testing.assert_close(found.model_audio, alone.model_audio, rtol=0, atol=1e-5)
        echo = torch.nn.functional.pad((0.0, 0.5)[i] * found.model_audio, (3600, 0))[:len(waves[2])]
        torch.testing.assert_close(found.user_audio - waves[2], echo, rtol=0, atol=1e-6)
    assert not torch.equal(found.user_audio, waves[2]) and torch.equal(alone.user_audio, waves[2])


# --- the command ---

def test_full_duplex_bench_folder(untrained, tmp_path):
    """Catches an output.wav out of step with input.wav or written over one that was there, results without counts or
    intervals, and conversations held twice."""
    for task, side in (("a", {"turn_taking.json": [{"timestamp": [0.5, 0.9]}]}), ("b", {"interrupt.json": [{"timestamp": [0.2, 0.6]}]}), ("c", {})):
        (tmp_path / "samples" / task).mkdir(parents=True)
        soundfile.write(tmp_path / "samples" / task / "input.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
        for name, content in side.items():
            (tmp_path / "samples" / task / name).write_text(json.dumps(content))
    command = ["--fdb", str(tmp_path / "samples"), "--model", str(untrained), "--out", str(tmp_path / "out")]
    evaluation.main(command)
    outputs = sorted((tmp_path / "samples").rglob("output.wav"))
    assert [soundfile.info(file).duration for file in outputs] == [1.0] * 3
    found = json.loads((tmp_path / "out" / "results.json").read_text())["fdb"]
    assert {"turn-taking takeover", "interruption takeover", "backchannel takeover", "interruption latency"} <= found.keys()
    for number in found.values():
        assert number.keys() == {"value", "n", "low", "high", "unit"} and (number["n"] == 0) == (number["value"] is None)
        assert number["n"] == 0 or number["low"] <= number["value"] <= number["high"]
    times = [file.stat().st_mtime_ns for file in outputs]
    evaluation.main(command)
    assert times == [file.stat().st_mtime_ns for file in outputs]
    with pytest.raises(SystemExit, match="output.wav exists: move it, or add --overwrite"):
        evaluation.main([*command[:-1], str(tmp_path / "other")])


def test_full_duplex_bench_1_5_is_answered_and_not_graded(untrained, tmp_path, capsys):
    """Catches folders of version 1.5 graded as back-channels, and a clean recording without its answer."""
    folder = tmp_path / "samples" / "1"
    folder.mkdir(parents=True)
    for name in ("input", "clean_input"):
        soundfile.write(folder / f"{name}.wav", np.zeros(16_000), 16_000)
    (folder / "metadata.json").write_text("{}")
    evaluation.main(["--fdb", str(tmp_path / "samples"), "--model", str(untrained), "--out", str(tmp_path / "out")])
    assert "of Full-Duplex-Bench 1.5" in capsys.readouterr().err
    assert {file.name for file in folder.glob("*output.wav")} == {"output.wav", "clean_output.wav"}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == {"fdb": {}}


def test_a_missing_recogniser_is_told_first(untrained, tmp_path, monkeypatch):
    """Catches an hour of conversations that are held before the missing package is noticed."""
    monkeypatch.setattr(evaluation, "Run", None)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(SystemExit, match="--whisper lacks the package faster_whisper: pip install"):
        evaluation.main(["--dialogs", "x", "--whisper", "--model", str(untrained), "--out", str(tmp_path)])


def test_full_duplex_bench_by_hand():
    """Catches latency from the wrong end of the user's turn, and what was said before an interruption counted after it."""
    row = dict(task="interruption", end=3.0, seconds=6.0, spans=[[1.0, 2.5], [3.4, 3.9]], lines=[[1.0, "One, two, three, four."], [3.2, "Yes."]])
    assert full_duplex_bench.grade(row) == {"interruption takeover": False, "interruption latency": None}
    row["spans"][1][1] = 4.5
    assert full_duplex_bench.grade(row) == {"interruption takeover": True, "interruption latency": pytest.approx(0.4)}
    assert full_duplex_bench.grade(row | {"task": "turn-taking"})["turn-taking latency"] == 0
    murmurs = dict(task="backchannel", seconds=4.0, spans=[[0.5, 0.8], [2.0, 2.3]], lines=[[0.4, "Yes."], [1.9, "I see."]])
    assert full_duplex_bench.grade(murmurs) == {"backchannel takeover": False, "backchannels a second": (2, 4.0)}
    murmurs["spans"][1][1] = 3.2
    assert full_duplex_bench.grade(murmurs) == {"backchannel takeover": True, "backchannels a second": (0, 4.0)}


@pytest.mark.parametrize("more, sentence", [
    ([], "nothing to measure: name --dialogs"), (["--snr", "10"], "--snr needs the questions of --dialogs"),
    (["--fdb", "nowhere"], "nowhere holds no input.wav"), (["--dialogs", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    (["--grids", "nowhere"], "nowhere holds no grids"), (["--asr", "x", "--model", "nowhere"], "nowhere does not exist"),
    (["--asr", "x", "--most", "0"], "--batch and --most must be 1 or more"),
    (["--dialogs", "x", "--snr", "nan"], "--snr must be -100 .. 100, not nan"),
    (["--dialogs", "x", "--leakage", "-1"], "--leakage must be 0 .. 10, not -1.0")])
def test_mistakes_are_one_sentence(untrained, tmp_path, more, sentence):
    """Catches a traceback where a path is wrong or an option has no use."""
    with pytest.raises(SystemExit, match=sentence) as error:
        evaluation.main(["--model", str(untrained), "--out", str(tmp_path / "out"), *more])
    assert "\n" not in str(error.value)


def test_a_folder_keeps_to_one_model(untrained, tmp_path, monkeypatch):
    """Catches results of two settings mixed in one folder, and a folder of other things filled with
    results. (The recogniser's packages need not be here: nothing is transcribed.)"""
    monkeypatch.setattr(evaluation, "check_packages", lambda name: None)
    (tmp_path / "things").write_text("")
    with pytest.raises(SystemExit, match="holds other things than results"):
        evaluation.main(["--fdb", ".", "--model", str(untrained), "--out", str(tmp_path)])
    known, changed = ["--fdb", ".", "--model", str(untrained), "--out", str(tmp_path / "out")], ["--seed", "8", "--whisper", "large-v3"]
    for _ in range(2):
        with pytest.raises(SystemExit, match="no input.wav"):
            evaluation.main([*known, "--whisper"])
    with pytest.raises(SystemExit, match="results of another seed, whisper"):
        evaluation.main([*known, *changed])
