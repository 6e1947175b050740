"""Scores against answers worked by hand, and the batched engine against chat.py's own loop."""
import json
import random
import sys

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

import chat
import eval as evaluation
import stream
from workshop import (
    conditions, costs, full_duplex_bench, grid_losses, measures, results,
    run_folder, scenes, sounds, spelling, test_sets)
from workshop.monologue import read_monologue

SECOND = 24_000


# --- text and numbers ---

@pytest.mark.parametrize("guess, truth, errors", [
    ("a b c", "a b c", 0), ("a x c", "a b c", 1), ("a c", "a b c", 1), ("a b b c", "a b c", 1),
    ("", "a b c", 3), ("b c d", "a b c", 2)])
def test_word_errors_by_hand(guess, truth, errors):
    """Catches a distance that counts a substitution twice or an insertion never."""
    assert measures.word_errors(guess.split(), truth.split()) == errors


@pytest.mark.parametrize("one, other", [
    ("3 plus 4 is 7.", "Three plus four is seven"), ("3 + 4 = 7", "three plus four is seven"),
    ("D-O-G", "d, o, g"), ("Dr. Ticket", "doctor, ticket"), ("don’t", "don't"),
    ("42", "forty-two"), ("1,205 men", "one thousand two hundred five men"),
    ("ＡＢＣ", "abc")])
def test_words_are_what_two_spellings_share(one, other):
    """Catches right answers counted wrong for a digit, a comma, a capital or an apostrophe."""
    assert measures.words(one) == measures.words(other)


def test_what_is_no_other_spelling():
    """Catches a street that becomes a saint."""
    assert measures.words("Main St.") == ["main", "st"]


def test_chinese_is_counted_by_characters():
    """Catches Chinese counted as one long word, and Latin words counted by their letters."""
    guess = measures.words("你好，世界", "zh")
    truth = measures.words("你 好 世间。", "zh")
    assert (measures.word_errors(guess, truth), len(truth)) == (1, 4)
    assert measures.words("我的iPhone坏了", "zh") == ["我", "的", "iphone", "坏", "了"]


def test_english_is_spelled_as_in_whispers_tables():
    """Catches numbers, contractions and apostrophes that cost errors which published tables do not
    have."""
    pytest.importorskip("whisper_normalizer")
    spell = spelling.Spelling("en")
    assert spell.words("Don’t pay forty-two dollars, um, Mr. Smith!") == spell.words(
        "do not pay $42 mister smith")
    assert spell.words("The colour is grey.") == spell.words("the color is gray")
    assert (spell.rate, spell.missing) == ("WER", [])


def test_chinese_is_spelled_as_it_is_read():
    """Catches traditional characters, full width and digits counted as errors."""
    pytest.importorskip("opencc")
    pytest.importorskip("cn2an")
    spell = spelling.Spelling("zh")
    assert spell.words("氣溫２５度。") == ["气", "温", "二", "十", "五", "度"]
    assert spell.words("2024年") == ["二", "零", "二", "四", "年"]
    assert spell.words("20%的iPhone") == spell.words("百分之二十的 iphone")
    assert spell.rate == "CER"


@pytest.mark.parametrize("language, rate, missing", [
    ("en", "WER (own spelling)", ["whisper-normalizer"]),
    ("zh", "CER (own spelling)", ["opencc", "cn2an"]),
    ("de", "WER (own spelling)", ["whisper-normalizer"])])
def test_a_number_says_that_packages_are_missing(monkeypatch, language, rate, missing):
    """Catches a number that looks like a published one and is not."""
    for name in ("whisper_normalizer", "opencc", "cn2an"):
        monkeypatch.setitem(sys.modules, name, None)
    spell = spelling.Spelling(language)
    assert (spell.rate, spell.missing) == (rate, missing)
    assert spell.words("Ja, 7.") == measures.words("Ja, 7.", language)


def test_an_answer_stands_in_a_response(monkeypatch):
    """Catches "The capital of France is Paris." counted as wrong where Paris is asked for, and
    "Rome" counted as right in "Romeo"."""
    monkeypatch.setitem(sys.modules, "whisper_normalizer", None)
    spell = spelling.Spelling("en")
    assert spell.contains("The capital of France is Paris.", "paris")
    assert spell.contains("It is New York City.", "New York")
    assert not spell.contains("It is New Old York.", "New York")
    assert not spell.contains("Romeo did it.", "Rome")
    assert not spell.contains("Nobody knows.", "...")


def test_intervals_by_hand():
    """Catches an interval without width at 0 of n, a rate averaged over recordings in place of
    words, and numbers that change from run to run."""
    half = measures.number([True, False] * 5, "share")
    assert (half["value"], half["n"]) == (0.5, 10)
    assert (half["low"], half["high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    none = measures.number([False] * 10, "share")
    assert (none["low"], none["high"]) == pytest.approx((0, 0.2775), abs=1e-4)
    assert measures.number([(1, 2), (0, 8)], "rate")["value"] == 0.1  # and not 0.25
    times = measures.number([0.1, 0.2, 0.9], "s")
    assert times == measures.number([0.1, 0.2, 0.9], "s")
    assert times["value"] == 0.2
    assert 0.1 <= times["low"] < times["high"] <= 0.9
    nothing = dict(value=None, n=0, low=None, high=None, unit="s")
    assert measures.number([], "s") == nothing


def test_at_most_so_many_evenly_spaced():
    """Catches the first lines of a manifest taken for all of it, and one more than was allowed."""
    assert measures.spaced([0, 1, 2, 3, 4, 5, 6], 3) == [0, 3, 6]
    assert measures.spaced([0, 1], 3) == [0, 1]


# --- what the monologue says ---

class Letters:
    """A tokenizer whose ids are letters; those above have no spelling, as in a Qwen tokenizer."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(ord("a") + i) for i in ids if i < 26)


class Special:
    wait_token, asr_token, answer_token = 97, 98, 99


@pytest.mark.parametrize("text, lines, transcripts", [
    # <wait> ends a line, and its time is that of its first word.
    ([97, 97, 0, 1, 97, 2], [(2, "ab"), (5, "c")], []),
    # What stands between <asr> and <answer> is the user's.
    ([97, 98, 0, 1, 99, 2, 3, 97], [(5, "cd")], [(2, "ab")]),
    # Nor does a <wait> between them change that.
    ([97, 98, 0, 97, 1, 99, 97, 2], [(7, "c")], [(2, "a"), (4, "b")]),
    # An <asr> that is not closed: nothing was answered.
    ([97, 98, 0, 1, 97], [], [(2, "ab")]),
    # Moshi's <end-of-pad> is an <answer> too.
    ([97, 99, 0, 97, 99, 1], [(2, "a"), (5, "b")], [])])
def test_a_monologue_is_split_by_ids(text, lines, transcripts):
    """Catches a transcript scored as the answer where <asr> and <answer> have no spelling, and the
    answer scored as the transcript."""
    assert read_monologue(text, Letters(), Special, frame_rate=1) == (lines, transcripts)


# --- when somebody speaks ---

def sounding(*bounds, seconds=10.0):
    """A waveform that sounds between pairs of times."""
    wave = torch.zeros(round(seconds * SECOND))
    for start, end in bounds:
        part = wave[round(start * SECOND):round(end * SECOND)]
        part += 0.1 * torch.randn(len(part))
    return wave


def test_spans_by_hand():
    """Catches a pause between two words taken for the end of speech, and hiss taken for speech."""
    wave = sounding((1, 2), (2.3, 3), (3.6, 4)) + 0.001 * torch.randn(240_000)
    assert sounds.spans(wave) == [[1, 3], [3.6, 4]]
    assert sounds.spans(torch.zeros(1000)) == []


def question(text="What?", expected="It is seven.", sound=(0.2, 1.0)):
    wave = sounding(sound, seconds=1.5)
    return scenes.clip(wave, question=text, expected=expected, about={"kind": "sum"})


def played(scene, lines, *bounds):
    """The row of a scene in which the model wrote some lines, and sounded between pairs of
    times."""
    return dict(scene.row, lines=lines, spans=sounds.spans(sounding(*bounds)), seconds=10.0)


def graded(row, language="en"):
    return evaluation.grade(row, language)


def test_a_question_by_hand():
    """Catches latency counted from the end of the file in place of the end of speech, and an answer
    with something after it taken for an exact one."""
    alone = scenes.scene([(0, question())])
    grades = graded(played(alone, [[1.2, "it is 7"]], (1.5, 3)))
    assert grades["right"] and not grades["exact"] and grades["takeover"]
    assert grades["thinks after"] == pytest.approx(0.2)
    assert grades["speaks after"] == pytest.approx(0.5)
    row = played(alone, [[1.2, "It is seven."], [4.0, "It is nine."]], (1.5, 3))
    grades = graded(row | {"recognised": "It is seven"})
    assert grades["right"] and not grades["exact"]
    assert grades["spoken right"] and not grades["spoken exact"]
    grades = graded(played(alone, []))
    assert not grades["right"] and not grades["takeover"]
    assert grades["speaks after"] is None


def test_turns_by_hand():
    """Catches the answer to one question counted for the next."""
    two = scenes.scene([(0, question()), (5, question(expected="No."))])
    row = played(two, [[1.2, "It is seven."], [6.3, "No."]], (1.5, 3), (6.5, 7))
    grades = graded(row)
    assert grades["right, turn 1"] and grades["right, turn 2"]
    assert grades["speaks after, turn 2"] == pytest.approx(0.5)
    first, second = conditions.by_question(row)
    assert first["lines"] == [[1.2, "It is seven."]]
    assert second["lines"] == [[6.3, "No."]]


def test_an_interruption_by_hand():
    """Catches the end of an answer that was over anyway counted as stopping, and the first answer
    graded for the second."""
    alone = scenes.scene([(0, question())])
    before = played(alone, [[1.2, "It is seven."]], (1.5, 4))
    other = question("And?", "No.")
    scene = evaluation.intruding(question(), before, other, random.Random(0))
    at = scene.row["at"]
    assert 1.6 <= at <= 2.8
    assert sounds.spans(scene.wave)[-1][0] == pytest.approx(at, abs=0.03)
    stops = played(scene, [[1.2, "It is seven."], [at + 1, "No."]],
                   (1.5, at + 0.4), (at + 1.3, at + 2))
    grades = graded(stops)
    assert grades["stopped"] and grades["right"]
    assert grades["stops after"] == pytest.approx(0.4, abs=0.03)
    assert grades["speaks after"] == pytest.approx(0.5, abs=0.03)
    grades = graded(played(scene, [[1.2, "It is seven."]], (1.5, 4)))
    assert not grades["stopped"] and not grades["right"]
    assert grades["stops after"] is None
    short = dict(before, spans=[[1.5, 2.0]])
    assert evaluation.intruding(question(), short, question(), random.Random(0)) is None


def test_a_backchannel_by_hand():
    """Catches an answer that goes on counted as stopped, and what was thought before counted as
    said in reply."""
    alone = scenes.scene([(0, question())])
    before = played(alone, [[1.2, "It is seven."]], (1.5, 4))
    murmur = scenes.clip(sounding((0, 0.3), seconds=0.4))
    scene = evaluation.intruding(question(), before, murmur, random.Random(0))
    goes_on = played(scene, [[1.2, "It is seven."]], (1.5, 3.9))
    assert graded(goes_on) == {"false stop": False, "says more": False}
    lines = [[1.2, "It is seven."], [4.0, "Yes?"]]
    cut = played(scene, lines, (1.5, scene.row["at"] + 0.5))
    assert graded(cut) == {"false stop": True, "says more": True}


def test_a_pause_by_hand():
    """Catches a pause laid outside the question, and a start before the user is done taken for
    quick."""
    scene = scenes.with_pause(question(sound=(0.0, 1.4)), random.Random(0))
    wave, row = scene
    end = sounds.spans(wave)[0][1]
    assert 0.16 <= end <= 1.37
    assert row["pause"] == pytest.approx(end, abs=0.03)
    assert row["turns"][0]["end"] == pytest.approx(1.4 + len(wave) / SECOND - 6.5, abs=0.03)
    early = row["pause"] + 0.3
    starts_early = played(scene, [[early, "No."], [3.0, "It is seven."]],
                          (early, early + 0.5), (3.2, 4))
    grades = graded(starts_early)
    assert grades["false start"] and not grades["right"] and grades["right at last"]
    assert grades["speaks after"] == 0
    grades = graded(played(scene, [[3.0, "It is seven."]], (3.2, 4)))
    assert not grades["false start"]


def test_noise_is_as_loud_as_asked():
    """Catches a signal-to-noise ratio of amplitudes for one of powers."""
    quiet = scenes.scene([(0, question(sound=(0.0, 1.0)))])
    loud = scenes.in_noise(quiet, 6, (), random.Random(0))
    noise = (loud.wave - quiet.wave).square().mean()
    voice = quiet.wave[:SECOND].square().mean()
    assert 10 * torch.log10(voice / noise).item() == pytest.approx(6, abs=0.1)


# --- the engine ---

@pytest.fixture(scope="module")
def partner(untrained):
    return chat.Partner(untrained, chat.Sampling())


@pytest.fixture(scope="module")
def waves():
    torch.manual_seed(1)
    return [0.1 * torch.randn(n) for n in (24_000, 12_345, 40_000, 19_200)]


def print_nothing(*_, **__):
    """In the place of `print`."""


def test_a_batch_is_each_alone_is_chat(partner, waves):
    """Catches conversations of a batch that hear each other, frames shifted against chat.py's, and
    draws that depend on the company: of random weights, which make every draw a close one."""
    seeds = [3, 1, 4, 1]
    for i, talk in evaluation.converse(partner, waves, seeds, batch=3):
        (_, alone), = evaluation.converse(partner, [waves[i]], [seeds[i]])
        assert alone.text == talk.text
        assert torch.equal(alone.codes, talk.codes)
        monologue = partner.monologue(print_nothing)
        _, model_audio, _ = partner.converse(waves[i], monologue, seeds[i])
        assert monologue.lines == talk.lines
        torch.testing.assert_close(talk.model_audio, model_audio, rtol=0, atol=1e-5)


def test_what_comes_later_changes_nothing_before(partner, waves):
    """Catches an offline pass that looks ahead: interruptions are measured by comparison with a
    first conversation."""
    wave = waves[2]
    changed = wave.clone()
    changed[15 * 1920:] = 0
    (_, one), (_, other) = evaluation.converse(partner, [wave, changed])
    assert one.text[:15] == other.text[:15]
    assert torch.equal(one.codes[:14], other.codes[:14])
    assert not torch.equal(one.codes, other.codes)


def test_forced_text_is_read_in_its_frames(partner):
    """Catches forced text that reaches the model a frame late: against the loop by hand."""
    model = partner.model
    ids = stream.Ids.of(model.config)
    script = stream.Script(ids)
    script.respond(stream.Turn(speak_frames=6, response=[7, 8, 9]))
    grid = script.grid()
    rows = stream.delay(grid, ids).text
    greedy = chat.Sampling.greedy()
    (_, (_, codes, _)), = evaluation.play(model, greedy, [grid.listen], text=[rows])
    assert codes.shape == (len(grid), 8)
    loop = chat.Duplex(model, greedy)
    for t, token in enumerate(rows[:-1]):
        frame = loop.steps({0: grid.listen[t]}, force_text={0: rows[t + 1]})
        assert frame[0][:2] == (token, codes[t].tolist())


def test_a_forced_speaking_channel_is_read_in_its_frames(partner):
    """Catches an empty speaking channel that reaches the model a frame late: every token that was
    drawn is the likeliest of one pass over the same rows."""
    model = partner.model
    ids = stream.Ids.of(model.config)
    script = stream.Script(ids)
    script.wait(12)
    grid = script.grid(None, torch.randint(0, 500, (len(script), 8)))
    forced = stream.delay(grid, ids).speak
    played = evaluation.play(model, chat.Sampling.greedy(), [grid.listen], speak=[forced])
    (_, (text, _, _)), = played
    rows = stream.delay(stream.Grid(torch.tensor(text), grid.speak, grid.listen, grid.loss), ids)
    with torch.no_grad():
        h = model.hidden(rows.text[None], rows.speak[None], rows.listen[None])
        likeliest = model.text_logits(h)[0].argmax(-1).tolist()
    assert text[1:] == likeliest[:len(text) - 1]


def test_losses_are_the_straightforward_ones(partner):
    """Catches classes mixed up, and tokens of one grid counted for another."""
    torch.manual_seed(0)
    ids = stream.Ids.of(partner.model.config)
    script = stream.Script(ids)
    script.respond(stream.Turn(speak_frames=4, response=[5, 6]))
    codes = torch.randint(0, 500, (len(script), 8))
    grids = [script.grid(codes, None), script.grid(None, codes)]
    sums, counts = grid_losses.losses(partner.model, grids)
    for grid, nats, n in zip(grids, sums, counts):
        rows = stream.delay(grid, ids)
        batch = [x[None] for x in (rows.text, rows.speak, rows.listen, rows.loss)]
        with torch.no_grad():
            expected = costs.straightforward(partner.model, *batch)
        torch.testing.assert_close(nats[1:].float(), expected[1:], rtol=1e-4, atol=1e-3)
        assert n.tolist() == torch.bincount(rows.loss[1:].flatten(), minlength=5).tolist()


def test_an_echo_is_heard_after_its_delay(partner, waves):
    """Catches a loudspeaker that leaks before it sounds, into another conversation, or into the
    recording itself."""
    wave = waves[2]
    gains = (0.0, 0.5)
    echo = [(gain, 0.15) for gain in gains]
    (_, alone), = evaluation.converse(partner, [wave], [5])
    for i, talk in evaluation.converse(partner, [wave] * 2, [5, 5], echo=echo):
        if gains[i] == 0:
            torch.testing.assert_close(talk.model_audio, alone.model_audio, rtol=0, atol=1e-5)
        late = F.pad(gains[i] * talk.model_audio, (3600, 0))[:len(wave)]
        torch.testing.assert_close(talk.user_audio - wave, late, rtol=0, atol=1e-6)
    assert not torch.equal(talk.user_audio, wave)
    assert torch.equal(alone.user_audio, wave)


# --- the command ---

def measure(folder, untrained, *options):
    """Run eval.py with some options -> its results.json."""
    evaluation.main([*map(str, options), "--model", str(untrained), "--out", str(folder)])
    return json.loads((folder / "results.json").read_text())


def bench_sample(folder, side=None, content=None):
    """A sample of Full-Duplex-Bench: a second of noise, and a file beside it."""
    folder.mkdir(parents=True)
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(folder / "input.wav", noise, 16_000)
    if side:
        (folder / side).write_text(json.dumps(content))


def test_full_duplex_bench_folder(untrained, tmp_path):
    """Catches an output.wav out of step with input.wav or written over one that was there, results
    without counts or intervals, and conversations held twice."""
    samples = tmp_path / "samples"
    bench_sample(samples / "a", "turn_taking.json", [{"timestamp": [0.5, 0.9]}])
    bench_sample(samples / "b", "interrupt.json", [{"timestamp": [0.2, 0.6]}])
    bench_sample(samples / "c")
    numbers = measure(tmp_path / "out", untrained, "--fdb", samples)["fdb"]
    outputs = sorted(samples.rglob("output.wav"))
    assert [soundfile.info(file).duration for file in outputs] == [1.0] * 3
    assert {"turn-taking takeover", "interruption takeover", "backchannel takeover",
            "interruption latency"} <= numbers.keys()
    for number in numbers.values():
        assert number.keys() == {"value", "n", "low", "high", "unit"}
        if number["n"]:
            assert number["low"] <= number["value"] <= number["high"]
        else:
            assert number["value"] is None
    times = [file.stat().st_mtime_ns for file in outputs]
    measure(tmp_path / "out", untrained, "--fdb", samples)
    assert times == [file.stat().st_mtime_ns for file in outputs]
    with pytest.raises(SystemExit, match="output.wav exists: move it, or add --overwrite"):
        measure(tmp_path / "other", untrained, "--fdb", samples)


def test_full_duplex_bench_1_5(untrained, tmp_path):
    """Catches folders of version 1.5 graded as back-channels, a clean recording without its answer,
    and an answer to it that is graded."""
    folder = tmp_path / "samples" / "user_interruption" / "1"
    bench_sample(folder, "metadata.json", {"timestamps": [0.4, 0.6]})
    soundfile.write(folder / "clean_input.wav", np.zeros(16_000), 16_000)
    numbers = measure(tmp_path / "out", untrained, "--fdb", tmp_path / "samples")
    outputs = {file.name for file in folder.glob("*output.wav")}
    assert outputs == {"output.wav", "clean_output.wav"}
    assert numbers["fdb"].keys() == {"user_interruption stop latency",
                                     "user_interruption response latency"}
    assert numbers["fdb"]["user_interruption stop latency"]["n"] <= 1


def test_full_duplex_bench_by_hand():
    """Catches latency from the wrong end of the user's turn, and what was said before an
    interruption counted after it."""
    row = dict(task="interruption", end=3.0, seconds=6.0, spans=[[1.0, 2.5], [3.4, 3.9]],
               lines=[[1.0, "One, two, three, four."], [3.2, "Yes."]])
    assert full_duplex_bench.grade(row, "en") == {"interruption takeover": False,
                                            "interruption latency": None}
    row["spans"][1][1] = 4.5
    assert full_duplex_bench.grade(row, "en") == {"interruption takeover": True,
                                            "interruption latency": pytest.approx(0.4)}
    row["task"] = "turn-taking"
    assert full_duplex_bench.grade(row, "en")["turn-taking latency"] == 0
    murmurs = dict(task="backchannel", seconds=4.0, spans=[[0.5, 0.8], [2.0, 2.3]],
                   lines=[[0.4, "Yes."], [1.9, "I see."]])
    assert full_duplex_bench.grade(murmurs, "en") == {"backchannel takeover": False,
                                                "backchannels a second": (2, 4.0)}
    murmurs["spans"][1][1] = 3.2
    assert full_duplex_bench.grade(murmurs, "en") == {"backchannel takeover": True,
                                                "backchannels a second": (0, 4.0)}


def test_overlaps_by_hand():
    """Catches a stop counted from the start of the answer, and a response from before the
    overlap's end."""
    row = dict(task="version 1.5", event="user_interruption", overlap=[2.0, 3.0],
               spans=[[1.0, 2.6], [3.5, 5.0]], lines=[], seconds=6.0)
    assert full_duplex_bench.grade(row, "en") == {
        "user_interruption stop latency": pytest.approx(0.6),
        "user_interruption response latency": pytest.approx(0.5)}
    row["spans"] = [[0.2, 0.9]]
    assert set(full_duplex_bench.grade(row, "en").values()) == {None}
    del row["overlap"]
    assert full_duplex_bench.grade(row, "en") == {}


def test_the_timing_of_backchannels_by_hand():
    """Catches a distance that is not 0 for the same times, that is not the largest for others, or
    in another base than the benchmark's."""
    same = [0.0] * 10 + [1.0] + [0.0] * 9
    distance = full_duplex_bench.timing_distance
    assert distance([[2.05, 2.1]], 3.9, same) == pytest.approx(0, abs=1e-3)
    assert distance([[0.05, 0.1]], 3.9, same) == pytest.approx(np.log(2) ** 0.5, abs=1e-3)
    assert distance([], 3.9, same) == 1
    # p = (1/2, 1/2), q = (1, 0): KL(p, m) = ln(2/3) / 2 + ln(2) / 2, KL(q, m) = ln(4/3)
    by_hand = ((np.log(2 / 3) + np.log(2)) / 4 + np.log(4 / 3) / 2) ** 0.5
    assert distance([[0.1, 0.3]], 0.3, [1.0, 0.0]) == pytest.approx(by_hand, abs=1e-3)
    row = dict(task="backchannel", seconds=3.9, lines=[], spans=[[2.05, 2.1]], people=same)
    assert full_duplex_bench.grade(row, "en")["backchannel JSD"] == pytest.approx(0, abs=1e-3)


def test_a_missing_recogniser_is_told_first(untrained, tmp_path, monkeypatch):
    """Catches an hour of conversations that are held before the missing package is noticed."""
    monkeypatch.setattr(evaluation, "start", None)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(SystemExit, match="--whisper lacks the package faster_whisper: pip install"):
        measure(tmp_path, untrained, "--dialogs", "x", "--whisper")


@pytest.mark.parametrize("options, sentence", [
    ("", "nothing to measure: name --dialogs"),
    ("--snr 10", "--snr needs the questions of --dialogs"),
    ("--fdb nowhere", "nowhere holds no input.wav"),
    ("--dialogs nowhere.jsonl", "nowhere.jsonl cannot be read"),
    ("--grids nowhere", "nowhere holds no grids"),
    ("--asr x --model nowhere", "nowhere does not exist"),
    ("--asr x --most 0", "--batch and --most must be 1 or more"),
    ("--dialogs x --snr nan", "--snr must be -100 .. 100, not nan"),
    ("--dialogs x --leakage -1", "--leakage must be 0 .. 10, not -1.0")])
def test_mistakes_are_one_sentence(untrained, tmp_path, options, sentence):
    """Catches a traceback where a path is wrong or an option has no use."""
    command = ["--model", str(untrained), "--out", str(tmp_path / "out"), *options.split()]
    with pytest.raises(SystemExit, match=sentence) as error:
        evaluation.main(command)
    assert "\n" not in str(error.value)


def test_a_folder_keeps_to_one_model(untrained, tmp_path, monkeypatch):
    """Catches results of two settings mixed in one folder, and a folder of other things filled with
    results. (The recogniser's packages need not be here: nothing is transcribed.)"""
    monkeypatch.setattr(evaluation.eval_options, "check_packages", lambda name: None)
    (tmp_path / "things").write_text("")
    with pytest.raises(SystemExit, match="holds other things than results"):
        measure(tmp_path, untrained, "--fdb", ".")
    for _ in range(2):
        with pytest.raises(SystemExit, match="no input.wav"):
            measure(tmp_path / "out", untrained, "--fdb", ".", "--whisper")
    with pytest.raises(SystemExit, match="results of another seed, whisper"):
        measure(tmp_path / "out", untrained, "--fdb", ".", "--seed", 8, "--whisper", "large-v3")


def test_groups_are_in_order():
    """Catches minute 10 before minute 2."""
    groups = [("minute", 10), ("voice", "b"), ("minute", 2), ("kind", True), ("voice", "a")]
    assert sorted(groups, key=results.in_order) == [
        ("kind", True), ("minute", 2), ("minute", 10), ("voice", "a"), ("voice", "b")]


# --- test sets as they are downloaded ---

def silence(file, seconds=0.5):
    """A recording in which nobody speaks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.zeros(round(16_000 * seconds)), 16_000)
    return file


@pytest.mark.parametrize("name, text", [
    ("q.csv", "question,answer,audio\nWho?,Paris,a.wav\n"),
    ("q.csv", 'Questions,Answers,audio_filename\nWho?,"[\'Paris\', \'Lutetia\']",a.wav\n'),
    ("q.tsv", "question\tanswer\taudio\nWho?\tParis\ta.wav\n"),
    ("q.jsonl", '{"question": "Who?", "answers": ["Paris", "Lutetia"], "audio": "a.wav"}\n')])
def test_lists_of_questions(tmp_path, name, text):
    """Catches a list of accepted answers taken for one answer, and recordings in a folder of their
    own that are not found."""
    silence(tmp_path / "audio" / "a.wav")
    (tmp_path / name).write_text(text)
    answers = ["Paris", "Lutetia"] if "Lutetia" in text else ["Paris"]
    assert test_sets.questions(tmp_path / name, None) == [
        (tmp_path / "audio" / "a.wav", "Who?", answers)]


def test_librispeech_and_fleurs(tmp_path):
    """Catches an utterance that is left out, and the id of a line taken for a word."""
    silence(tmp_path / "libri" / "1" / "2" / "1-2-0000.flac")
    silence(tmp_path / "libri" / "1" / "2" / "1-2-0001.flac")
    (tmp_path / "libri/1/2/1-2.trans.txt").write_text("1-2-0000 HE WENT\n1-2-0001 ON\n")
    listed = test_sets.utterances(tmp_path / "libri", None)
    assert [entry["transcript"] for entry in listed] == ["he went", "on"]
    assert listed[1]["heard"].name == "1-2-0001.flac"
    silence(tmp_path / "fleurs" / "test" / "9.wav")
    row = "7\t9.wav\tHe went.\the went\th e | w e n t\t8000\tMALE\n"
    (tmp_path / "fleurs/test.tsv").write_text(row)
    listed = test_sets.utterances(tmp_path / "fleurs", None)
    assert listed == [{"heard": tmp_path / "fleurs/test/9.wav", "transcript": "He went."}]


def test_seed_tts(tmp_path):
    """Catches the text of the reference read aloud in place of the text."""
    silence(tmp_path / "prompt-wavs" / "a.wav")
    (tmp_path / "meta.lst").write_text("x1|Reference.|prompt-wavs/a.wav|Read this.\n")
    assert test_sets.texts(tmp_path / "meta.lst", None) == [
        {"response": "Read this.", "reference": tmp_path / "prompt-wavs" / "a.wav"}]


@pytest.mark.parametrize("read, name, text, sentence", [
    (test_sets.questions, "q.csv", "question,answer\nWho?,Paris\n", "a line needs an audio"),
    (test_sets.questions, "q.csv", "question,answer,audio\n", "has no questions"),
    (test_sets.questions, "q.csv", "answer,audio\nParis,b.wav\n", "b.wav is not beside it"),
    (test_sets.utterances, "1.trans.txt", "1-0 HE\n", "1-0.flac is not there: unpack"),
    (test_sets.utterances, "test.tsv", "1\tb.wav\n", "2 columns, and three"),
    (test_sets.utterances, "test.tsv", "1\tb.wav\tHe\the\n", "b.wav is not there: unpack"),
    (test_sets.utterances, "other.txt", "", "holds neither"),
    (test_sets.texts, "meta.lst", "x1|Reference.\n", "a line of Seed-TTS is"),
    (test_sets.texts, "meta.lst", "x1|R.|b.wav|Read.\n", "b.wav does not exist")])
def test_a_broken_test_set_is_one_sentence(tmp_path, read, name, text, sentence):
    """Catches a traceback for a download that is not complete."""
    (tmp_path / name).write_text(text)
    source = tmp_path if read is test_sets.utterances else tmp_path / name
    with pytest.raises(ValueError, match=sentence) as error:
        read(source, None)
    assert "\n" not in str(error.value)


def test_open_answers_by_hand(monkeypatch):
    """Catches an answer that is right by one of several accepted ones counted as wrong, and the
    monologue's answer counted for the spoken one."""
    monkeypatch.setitem(sys.modules, "whisper_normalizer", None)
    spelling.spelling_of.cache_clear()
    one = question(expected="Paris")
    scene = scenes.scene([(0, one)], tail=evaluation.OPEN_TAIL)
    row = played(scene, [[1.2, "It is"], [2.0, "Lutetia."]], (1.5, 3))
    row |= {"answers": ["Paris", "Lutetia"], "recognised": "It is lute."}
    grades = evaluation.grade_answers(row, "en")
    spelling.spelling_of.cache_clear()
    assert grades["answer in monologue (own spelling)"]
    assert not grades["answer in speech (own spelling)"]
    assert grades["speaks after"] == pytest.approx(0.5)


def test_the_next_question_by_the_same_voice():
    """Catches a question that interrupts itself, and another voice taken for the same one."""
    voices = ["a", "b", "a", "c"]
    clips = [scenes.clip(torch.zeros(10), about={"voice": voice}) for voice in voices]
    assert scenes.next_of_each(clips) == [1, 2, 3, 0]
    assert scenes.next_of_each(clips, "voice") == [2, None, 0, None]
    assert scenes.next_of_each(clips, "kind") == [None] * 4


# --- whole parts, with a model of random weights ---

@pytest.fixture
def dialogs(tmp_path):
    """A manifest of three dialogs by two voices, of which the last has a second turn."""
    silence(tmp_path / "q.wav")
    turn = {"heard": "q.wav", "transcript": "w1 w2", "spoken": "q.wav", "response": "w3"}
    lines = [{"turns": [turn], "voice": "a"}, {"turns": [turn], "voice": "b"},
             {"turns": [turn, turn], "voice": "a"}]
    manifest = tmp_path / "dialogs.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def test_one_part_alone(untrained, dialogs, tmp_path, monkeypatch):
    """Catches a check during training that waits for parts which nobody asked for, and a second
    turn that is left out."""
    monkeypatch.setattr(scenes, "TAIL", 0.4)
    monkeypatch.setattr(scenes, "TURN_PAUSE", 0.2)
    numbers = measure(tmp_path / "out", untrained, "--dialogs", dialogs, "--only", "questions")
    assert set(numbers) == {"questions", "questions, voice a", "questions, voice b"}
    assert numbers["questions"]["right"]["n"] == 3
    numbers = measure(tmp_path / "out", untrained, "--dialogs", dialogs, "--only", "turns")
    assert numbers["follow-up"]["right"]["n"] == 1


def test_recordings_in_chunks(untrained, tmp_path, monkeypatch):
    """Catches a test set of which a chunk is left out, is held twice, or gets another's text; and a
    run that does not go on where it was stopped."""
    monkeypatch.setattr(evaluation, "WRITING", 1)
    monkeypatch.setattr(results, "BATCHES_IN_MEMORY", 1)
    lines = []
    for i in range(5):
        silence(tmp_path / "set" / f"1-{i}.flac", seconds=0.1 * (5 - i))
        lines.append(f"1-{i} w{i}\n")
    (tmp_path / "set" / "1.trans.txt").write_text("".join(lines))
    out = tmp_path / "out"
    command = ("--asr", tmp_path / "set", "--batch", 2)
    numbers = measure(out, untrained, *command)
    rows = [json.loads((out / "asr" / f"000{i}.json").read_text()) for i in range(5)]
    assert [row["expected"] for row in rows] == [f"w{i}" for i in range(5)]
    assert rows[0]["seconds"] > rows[4]["seconds"]
    error_rate, = [name for name in numbers["asr"] if name.startswith("WER")]
    assert numbers["asr"][error_rate]["n"] == 5
    (out / "asr" / "0003.json").unlink()
    times = [(out / "asr" / f"000{i}.wav").stat().st_mtime_ns for i in range(5)]
    assert measure(out, untrained, *command) == numbers
    changed = [(out / "asr" / f"000{i}.wav").stat().st_mtime_ns != times[i] for i in range(5)]
    assert changed == [False, False, False, True, False]


def test_a_plan_by_hand(untrained, tmp_path, monkeypatch, capsys):
    """Catches a plan that holds conversations or writes a folder, that adds up frames where the
    longest of a batch decides, and that counts again what is there already."""
    monkeypatch.setattr(evaluation, "WRITING", 1)
    for i in range(3):
        silence(tmp_path / "set" / f"1-{i}.flac", seconds=0.16 * (i + 1))
    (tmp_path / "set" / "1.trans.txt").write_text("1-0 w0\n1-1 w1\n1-2 w2\n")
    out = tmp_path / "out"
    command = ("--model", untrained, "--asr", tmp_path / "set", "--out", out, "--batch", 2)

    def plan(*options):
        evaluation.main([str(word) for word in (*command, *options)])
        asr, = [line.split() for line in capsys.readouterr().out.splitlines()
                if line.startswith("asr ")]
        return asr

    # The first frame, 3 of silence, 2, 4 and 6 of sound, 1 word, 1 to write in; 2 at once.
    assert plan("--plan", 90_000) == ["asr", "3", "30", "0.00", "h", "22", "0.55", "h"]
    assert not out.exists()
    assert plan("--plan")[:3] == ["asr", "3", "30"]
    evaluation.main([str(word) for word in command])
    (out / "asr" / "0001.json").unlink()
    capsys.readouterr()
    assert plan("--plan", 90_000)[1:3] == ["1", "10"]


def test_a_plan_of_conversations(untrained, dialogs, tmp_path, capsys):
    """Catches a plan that stops at a part which needs the answers of another."""
    evaluation.main([str(word) for word in (
        "--model", untrained, "--dialogs", dialogs, "--plan", 80, "--talk", 0.1, "--snr", 10,
        "--out", tmp_path / "out")])
    parts = [line.rpartition("h")[0][:32].strip() for line in capsys.readouterr().out.splitlines()]
    assert {"questions", "pause", "follow-up", "noise 10 dB", "talk", "together"} <= set(parts)
    assert "interruption" not in parts


def test_a_model_of_fine_tuning_1_is_silent_while_it_writes(partner, tmp_path):
    """Catches an empty speaking channel where the stage was trained on silence."""
    silence(tmp_path / "a.wav")
    entry = {"heard": tmp_path / "a.wav", "transcript": "w1 w2"}

    class Run:
        args = eval_arguments("--asr", "x", "--asr-format", "asr-response-tts")
    Run.partner = partner
    scene, forced = evaluation.recognition_scene(entry, Run)
    frames = len(scene.wave) // 1920
    assert forced["speak"].shape == (frames + 1, stream.K)
    silent = partner.codec.encode(torch.zeros(1, 1, 50 * 1920))[0, :, -1]
    assert (forced["speak"][1:-1] == silent).all()
    Run.args = eval_arguments("--asr", "x", "--asr-format", "asr")
    _, forced = evaluation.recognition_scene(entry, Run)
    assert (forced["speak"][1:-1] == partner.model.config.empty_token).all()


def test_a_reference_is_heard_before_the_text(partner, tmp_path):
    """Catches a reference that falls into the words, one that a model without the format hears, and
    an empty listening channel after it."""
    soundfile.write(tmp_path / "r.wav", np.full(24_000, 0.5), 24_000)
    entry = {"response": "w1", "reference": tmp_path / "r.wav"}

    class Run:
        args = eval_arguments("--tts", "x", "--tts-format", "reference-tts")
    Run.partner = partner
    scene, forced = evaluation.reading_scene(entry, Run)
    # Frame 0, 3 of silence, 12.5 of the reference and 2 until its turn is over; then the word.
    assert forced["hears"]
    assert (forced["text"] == partner.model.config.wait_token).nonzero()[0] == 0
    assert forced["text"][4 + 13 + 2] == 1
    sound = scene.wave.nonzero().flatten()
    assert (sound[0] // 1920, len(sound)) == (4, 24_000)
    Run.args = eval_arguments("--tts", "x", "--tts-format", "tts")
    scene, forced = evaluation.reading_scene(entry, Run)
    assert not forced["hears"] and not scene.wave.any()
    assert forced["text"][4] == 1


def test_who_is_not_heard_leaves_the_channel_empty(partner):
    """Catches a reference that reaches the model in one conversation of a batch and not in another,
    and sound that a model hears while it reads aloud."""
    model = partner.model
    greedy = chat.Sampling.greedy()
    sound = torch.arange(6)[:, None].expand(-1, 8)
    empty = torch.full((6, 8), model.config.empty_token)
    user = [sound, sound, empty, sound]
    played = dict(evaluation.play(model, greedy, user, hears=[True, False, True, True]))
    assert torch.equal(played[0][1], played[3][1])
    assert torch.equal(played[1][1][:-1], played[2][1][:-1])
    assert not torch.equal(played[0][1], played[1][1])


def test_a_run_knows_its_references(tmp_path, untrained):
    """Catches a model that was trained on references and is measured without."""
    assert run_folder.tts_format(tmp_path) == "tts"
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    grids = tmp_path / "grids"
    grids.mkdir()
    (folder / "run.json").write_text(json.dumps({"method": {"data": {str(grids): "x"}}}))
    assert run_folder.tts_format(tmp_path) == "tts"
    for format in ("tts", "reference-tts"):
        (grids / "grids.json").write_text(json.dumps({"format": format}))
        assert run_folder.tts_format(tmp_path) == format
    (tmp_path / "pairs.jsonl").write_text("{}")
    with pytest.raises(SystemExit, match="has no references: --tts-format reference-tts needs"):
        measure(tmp_path / "out", untrained, "--tts", tmp_path / "pairs.jsonl", "--tts-format",
                "reference-tts")


def eval_arguments(*options):
    parser = evaluation.eval_options.make_parser(evaluation.CONVERSATIONS)
    return parser.parse_args([*options, "--out", "x"])


def test_a_run_says_its_stage(tmp_path):
    """Catches a run of fine-tuning 1 that is asked as one of post-training."""
    assert run_folder.asr_format(tmp_path) == "asr"
    for step, stage in ((1, "post-training-2"), (2, "fine-tuning-1")):
        folder = tmp_path / "checkpoints" / f"step-0000000{step}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"method": {"stage": stage}}))
    assert run_folder.asr_format(tmp_path) == "asr-response-tts"


def test_a_run_in_training_is_asked_by_its_newest_checkpoint(tmp_path, monkeypatch):
    """Catches an old checkpoint that is asked, one that is exported for each question, half an
    export taken for a model, and a trained model that is passed over."""
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step-0000000{step}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    exports = []

    def export(source, folder):
        exports.append(source.name)
        (folder / "config.json").write_text("{}")
        if len(exports) == 1:
            raise OSError("the disk is full")
    monkeypatch.setattr(run_folder.checkpoints, "export", export)
    with pytest.raises(OSError):
        run_folder.model_folder(tmp_path)
    for _ in range(2):
        model = run_folder.model_folder(tmp_path)
        assert model == str(tmp_path / "exported" / "step-00000002")
    assert exports == ["step-00000002"] * 2
    (tmp_path / "model.safetensors").write_text("")
    assert run_folder.model_folder(tmp_path) == tmp_path
