"""Manifests, and what people have before they have one: a message names the line that is wrong, and
one wrong line costs no other."""
import json
import random
import sys

import numpy as np
import pytest
import soundfile

import data
from test_stream import random_grid
from workshop import check as check_module
from workshop import importers, manifests, packages, shards, sound_file, synthesis
from workshop import training_set
from workshop.check import Limits, check
from workshop.manifests import DataError, read_manifest
from workshop.parallel import in_parallel

RATE = 24_000


def tone(file, seconds=1.0, channels=None, level=0.3, subtype=None):
    """Write a sine; channels: the level of each, as a share of `level`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(np.arange(int(seconds * RATE)) * 0.05)
    if channels:
        wave = np.stack([share * wave for share in channels], 1)
    soundfile.write(file, wave, RATE, subtype=subtype)


@pytest.fixture
def folder(tmp_path):
    """A folder with one recording of a second, a.wav, and a file of codes."""
    tone(tmp_path / "a.wav")
    np.save(tmp_path / "a.npy", np.zeros((5, 8), int))
    return tmp_path


def write(file, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


GOOD = {"audio": "a.wav", "text": "It rains."}
TURN = {"heard": "a.wav", "transcript": "Does it rain?", "spoken": "a.wav", "response": "It rains."}
HUGE = "0" * 400  # the end of a number that no float holds
BAD = {  # a line -> what is said of it
    "no text": ({"audio": "a.wav"}, "there is no text"),
    "no audio": ({"text": "x"}, "there is no audio"),
    "empty text": ({"audio": "a.wav", "text": "  "}, "text is empty"),
    "text of another kind": ({"audio": "a.wav", "text": 3}, "text must be a text, not 3"),
    "lone surrogate": ('{"audio": "a.wav", "text": "ab\\ud800"}', "half of a character"),
    "missing recording": ({"audio": "b.wav", "text": "x"}, "b.wav does not exist"),
    "a folder": ({"audio": ".", "text": "x"}, "does not exist"),
    "no path": ({"audio": 7, "text": "x"}, "must be the path of a recording, not 7"),
    "no JSON": ("{", "no JSON"),
    "a list": ("[1]", "is a JSON object"),
    "deep": ("[" * 100_000, "no JSON"),
    "word times as text": (GOOD | {"words": [["It", "0", "1"]]}, "must be seconds"),
    "word times reversed": (GOOD | {"words": [["It", 0.5, 0.1]]}, "before it starts"),
    "word order": (GOOD | {"words": [["It", 0.5, 0.6], ["rains.", 0.1, 0.2]]},
                   "before the word that stands before it"),
    "word time not finite": ('{"audio": "a.wav", "text": "x", "words": [["x", NaN, 1]]}',
                             "must be seconds"),
    "word time beyond numbers": ('{"audio": "a.wav", "text": "x", "words": [["x", 0, 1%s]]}' % HUGE,
                                 "must be seconds"),
    "word beyond its recording": (GOOD | {"words": [["It", 0.1, 0.2], ["rains.", 4, 5]]},
                                  "and its recording at 1.0 s"),
    "lone surrogate in a key that nobody reads":
        ('{"audio": "a.wav", "text": "x", "voice": "\\ud800"}', "half of a character"),
    "words of another kind": (GOOD | {"words": "It rains."}, "must be a list"),
    "part that ends before it starts": (GOOD | {"start": 0.5, "end": 0.2},
                                        "audio ends at 0.2 s, and starts at 0.5 s"),
    "part beyond its file": (GOOD | {"start": 0.5, "end": 1.5}, "and has 1.0 s"),
    "part behind its file": (GOOD | {"start": 3}, "is used up to 3 s"),
    "part as text": (GOOD | {"start": "0.5"}, "start must be seconds from the start of the file"),
    "negative part": (GOOD | {"end": -1}, "end must be seconds from the start of the file"),
    "word beyond its part": (GOOD | {"start": 0.5, "end": 0.9, "words": [["It", 0.1, 0.7]]},
                             "and its recording at 0.4 s"),
}
BAD_DIALOGS = {
    "no turns": ({"turns": []}, "at least one turn"),
    "turns of another kind": ({"turns": "x"}, "at least one turn"),
    "a turn of another kind": ({"turns": [3]}, "an object is needed, not 3"),
    "no response": ({"turns": [{"heard": "a.wav", "spoken": "a.wav"}]}, "there is no response"),
    "empty response": ({"turns": [TURN | {"response": ""}]}, "response is empty"),
    "patience": ({"turns": [TURN | {"patience": "0.3"}]}, "patience is seconds of silence"),
    "negative patience": ({"turns": [TURN | {"patience": -1}]}, "patience is seconds of silence"),
    "part of a turn": ({"turns": [TURN | {"heard_end": 2}]}, "heard is used up to 2 s"),
    "part of both recordings": ({"turns": [TURN | {"end": 2}]}, "heard is used up to 2 s"),
    "part of codes": ({"turns": [TURN | {"spoken": "a.npy", "spoken_start": 0.1}]},
                      "a file of codes is used whole"),
    "patience not finite": ('{"turns": [{"heard": "a.wav", "spoken": "a.wav", "response": "x",'
                            ' "patience": Infinity}]}', "patience is"),
}


@pytest.mark.parametrize("name", [*BAD, *BAD_DIALOGS])
def test_check_and_encode_agree(folder, name):
    """Catches a line that `check` calls good and `encode` refuses, or the other way round; and a
    bad line that costs the others."""
    line, sentence = {**BAD, **BAD_DIALOGS}[name]
    good, format = GOOD, "tts"
    if name in BAD_DIALOGS:
        good, format = {"turns": [TURN]}, "response-tts"
    file = write(folder / "m.jsonl", good, line, good | {"other": "key"})
    with pytest.raises(DataError, match="1 lines cannot be used") as refused:
        read_manifest(file, format)
    assert sentence in str(refused.value) and "line 2" in str(refused.value)
    counts = check(file, format=format)
    assert sum(counts.values()) - counts["none"] - counts["duplicate"] == 1
    offender = json.loads((folder / "m.offenders.jsonl").read_text().splitlines()[0])
    assert offender["line"] == 2 and sentence in offender["detail"]
    # The third line is a duplicate of the first.
    assert len(read_manifest(folder / "m.clean.jsonl", format)) == 1


def test_keys_that_nobody_reads_are_named(folder, capsys):
    """Catches a slip of the pen in a key that is taken for a wish."""
    rows = [{"turns": [TURN], "kind": "fact"}, {"turns": [TURN | {"patiense": 1}]}]
    check(write(folder / "m.jsonl", *rows))
    assert "kind (1), patiense (1)" in capsys.readouterr().err


def test_encode_names_keys_that_nobody_reads_once(folder, capsys):
    """Catches a slip of the pen in hours of data of which `encode` says nothing, or a line each."""
    file = write(folder / "m.jsonl", *[GOOD | {"strat": 0.2, "confidence": 0.9}] * 3)
    manifests.index_lines(file, "tts")
    messages = capsys.readouterr().err
    assert messages.count("keys that nobody reads: strat (3)") == 1
    assert "confidence" not in messages


def test_a_part_of_a_file_is_what_is_read(folder):
    """Catches a start and an end that are ignored, so that each line of a lecture gets the whole
    lecture; and times read in another rate than the file's."""
    rate = 16_000
    ramp = np.arange(3 * rate, dtype=np.float32) / (3 * rate)
    soundfile.write(folder / "ramp.wav", ramp, rate, subtype="FLOAT")
    pair = {"audio": "ramp.wav", "text": "x", "start": 1.0, "end": 2.5}
    ((turn,),) = read_manifest(write(folder / "m.jsonl", pair), "tts")
    audio = sound_file.read_audio(turn["spoken"]).numpy()
    assert len(audio) == 1.5 * RATE
    expected = np.linspace(1 / 3, 2.5 / 3, len(audio))
    assert np.abs(audio - expected)[100:-100].max() < 1e-3  # at the edges the filter rings
    open_end = write(folder / "m.jsonl", {"audio": "ramp.wav", "text": "x", "start": 2.0})
    assert len(sound_file.read_audio(read_manifest(open_end, "asr")[0][0]["heard"])) == RATE


def test_the_parts_of_a_turn_are_its_own(folder):
    """Catches the times of one recording that are taken for the other's, and a start that is for
    both and reaches one."""
    tone(folder / "long.wav", 4.0)
    turn = TURN | {"heard": "long.wav", "spoken": "long.wav", "start": 1.0, "end": 3.0,
                   "heard_end": 2.0, "spoken_start": 2.5}
    ((turn,),) = read_manifest(write(folder / "m.jsonl", {"turns": [turn]}), "response-tts")
    seconds = [len(sound_file.read_audio(turn[key])) / RATE for key in ("heard", "spoken")]
    assert seconds == [1.0, 0.5]
    assert "from 2.5 s to 3 s" in str(turn["spoken"])


def test_the_format_decides_what_is_needed(folder):
    """Catches a dialog without transcripts that no format may use, and one that fine-tuning 1 takes
    without."""
    turn = {key: TURN[key] for key in ("heard", "spoken", "response")}
    file = write(folder / "m.jsonl", {"turns": [turn]})
    assert read_manifest(file, "response-tts")[0][0]["transcript"] == ""
    for format in ("asr-response-tts", "tts"):
        with pytest.raises(DataError):
            read_manifest(file, format)
    with pytest.raises(DataError):
        check(file, format="asr-response-tts")
    with pytest.raises(DataError, match="there is no words"):
        read_manifest(write(folder / "p.jsonl", GOOD), "word-aligned")


def test_words_in_a_turn_are_read_for_stereo_alone(folder, capsys):
    """Catches a KeyError for word times in a dialog, whose turns have no `audio`; and a note that
    nobody reads them, by the very check that reads them."""
    file = write(folder / "m.jsonl", {"turns": [TURN | {"words": [["It", 0.1, 0.2]]}]})
    assert len(read_manifest(file, "response-tts")) == 1
    assert check(file)["none"] == 1
    assert "words" not in capsys.readouterr().err
    assert check(file, format="response-tts")["none"] == 1
    assert "words (1)" in capsys.readouterr().err


def test_pairs_and_dialogs_do_not_stand_together(folder):
    """Catches a manifest that `check` calls good and that no format reads."""
    file = write(folder / "m.jsonl", GOOD, {"turns": [TURN]}, GOOD | {"text": "It snows."})
    assert check(file) == {"none": 2, "wrong kind": 1}
    assert len(read_manifest(folder / "m.clean.jsonl", "tts")) == 2


@pytest.mark.parametrize("encoding, name", [
    ("utf-16", "UTF-16"), ("gb18030", "not in UTF-8"), ("latin-1", "not in UTF-8")])
def test_other_encodings_are_named(folder, encoding, name):
    """Catches a traceback, or a text of wrong signs, where a file is not in UTF-8."""
    text = "广州" if encoding == "gb18030" else "café"
    line = json.dumps(GOOD | {"text": text}, ensure_ascii=False)
    (folder / "m.jsonl").write_bytes(line.encode(encoding))
    (folder / "t.csv").write_bytes(f"audio,text\na.wav,{text}\n".encode(encoding))
    with pytest.raises(DataError, match=name):
        read_manifest(folder / "m.jsonl", "tts")
    with pytest.raises(DataError, match=name):
        importers.bring_in("table", folder / "t.csv", folder / "out.jsonl")


def test_line_separators_are_text(folder):
    """Catches a text that U+2028 or U+0085 cuts in two, in manifests and tables, and a byte-order
    mark that is read as text."""
    text = "one\u2028two\u0085three"
    file = folder / "m.jsonl"
    line = json.dumps(GOOD | {"text": text}, ensure_ascii=False)
    file.write_text(f"\ufeff{line}", encoding="utf-8")
    assert read_manifest(file, "tts")[0][0]["response"] == text
    (folder / "t.csv").write_text(f"\ufeffaudio,text\na.wav,{text}\n", encoding="utf-8")
    importers.bring_in("table", folder / "t.csv", folder / "out.jsonl")
    assert read_manifest(folder / "out.jsonl", "tts")[0][0]["response"] == text


def test_a_line_is_read_from_its_place(folder):
    """Catches a place that counts characters instead of bytes, or forgets a byte-order mark or an
    empty line."""
    texts = ["广州", "café", "x\u2028y"]
    lines = [json.dumps(GOOD | {"text": text}, ensure_ascii=False) for text in texts]
    file = folder / "m.jsonl"
    content = "\ufeff" + lines[0] + "\r\n\n" + "\n".join(lines[1:])
    file.write_text(content, encoding="utf-8", newline="")
    offsets = manifests.index_lines(file, "tts")
    with open(file, "rb") as raw:
        assert [manifests.read_line(raw, offset)["text"] for offset in offsets] == texts


# --- tables ---

def imported(folder, content, name="t.csv"):
    (folder / name).write_text(content, encoding="utf-8", newline="")
    counts = importers.bring_in("table", folder / name, folder / "out.jsonl", overwrite=True)
    dialogs = read_manifest(folder / "out.jsonl", "tts")
    return counts, [turns[0]["response"] for turns in dialogs]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_every_dialect(folder, separator):
    """Catches a KeyError for semicolons and tabs, and cells of quoted texts cut in two."""
    rows = [["text", "audio", "speaker"],
            [f'"One{separator} two, ""three"""', "a.wav", "x"],
            ["Four", "a.wav", ""]]
    lines = [separator.join(row) + "\r\n" for row in rows]
    counts, texts = imported(folder, "".join(lines))
    assert counts == (2, 0)
    assert texts == [f'One{separator} two, "three"', "Four"]


def test_a_line_break_in_a_quoted_text_is_a_space(folder, capsys):
    """Catches words on two lines that are glued together, and a column of another meaning taken for
    word times."""
    content = 'audio,text,words\na.wav,"One\ntwo, three",x\na.wav,"four\r\nfive",y\n'
    assert imported(folder, content)[1] == ["One two, three", "four five"]
    assert "in 2 quoted texts a line break became a space" in capsys.readouterr().err


def test_rows_that_cannot_be_right_are_named_and_left_out(folder, capsys):
    """Catches a text cut at a comma that was not quoted, and a row without a text that becomes
    null."""
    rows = ["audio,text", "a.wav,One, two", "a.wav", "a.wav,", ",x", "", "a.wav,Three",
            "b.wav,Gone"]
    counts, texts = imported(folder, "\n".join(rows))
    assert texts == ["Three"]
    assert counts == (1, 5)
    messages = capsys.readouterr().err
    for sentence in ("line 2: 3 cells in a table of 2 columns", "line 3: 1 cells",
                     "line 4: no text", "line 5: no audio", "b.wav does not exist"):
        assert sentence in messages


def test_a_table_may_name_parts(folder, capsys):
    """Catches columns start and end of a table that are dropped, so that each row gets the whole
    recording."""
    content = "audio,text,start,end\na.wav,One,0.25,0.5\na.wav,Two,,\na.wav,Three,x,1\n"
    counts, texts = imported(folder, content)
    assert counts == (2, 1) and texts == ["One", "Two"]
    assert "start must be seconds, not 'x'" in capsys.readouterr().err
    one, two = read_manifest(folder / "out.jsonl", "asr")
    assert (one[0]["heard"].start, one[0]["heard"].end) == (0.25, 0.5)
    assert two[0]["heard"] == folder / "a.wav"


@pytest.mark.parametrize("rows", [
    'a.wav,"Half a mark\na.wav,Two\na.wav,Three\n', 'a.wav,"Half\na.wav,Two\na.wav,"Three"\n'])
def test_a_lone_quotation_mark_swallows_nothing(folder, rows):
    """Catches three rows that become one, without a word."""
    (folder / "out.jsonl").write_text("before")
    with pytest.raises(DataError, match="quotation mark"):
        imported(folder, "audio,text\n" + rows)
    assert (folder / "out.jsonl").read_text() == "before"


def test_a_long_cell_is_no_lone_quotation_mark(folder, monkeypatch):
    """Catches a cell of more than 131,072 characters that is blamed on quotation marks."""
    content = f"audio,text,notes\na.wav,One,{'x' * 200_000}\n"
    assert imported(folder, content)[1] == ["One"]
    monkeypatch.setattr(importers, "LONGEST_CELL", 150_000)
    with pytest.raises(DataError, match="a cell has more than 150,000 characters"):
        imported(folder, content)


def test_a_table_without_the_columns_says_what_it_has(folder):
    """Catches a KeyError for a header of other names."""
    sentence = "needs the columns audio and text in its first line, and has: path, words"
    with pytest.raises(DataError, match=sentence):
        imported(folder, "path,words\na.wav,x\n")


# --- check ---

def test_check_finds_each_kind_of_offender(tmp_path):
    """Catches a problem that goes unseen, a clean line that is accused, and a clean manifest with
    offenders in it."""
    tone(tmp_path / "good.wav", 2.0)
    tone(tmp_path / "other.wav", 1.5)
    tone(tmp_path / "silent.wav", 2.0, level=1e-4)
    tone(tmp_path / "long.wav", 5.0)
    clipped = np.clip(3 * np.sin(np.arange(2 * RATE) * 0.05), -1, 1)
    soundfile.write(tmp_path / "clipped.wav", clipped, RATE, subtype="FLOAT")
    (tmp_path / "none.wav").write_bytes(b"")
    rows = []
    for name in ("good", "other", "silent", "long", "clipped", "none", "good"):
        rows.append({"audio": f"{name}.wav", "text": "twenty letters of text"})
    rows.append({"audio": "other.wav", "text": "x" * 90})
    rows.append({"audio": "good.wav", "text": None})
    counts = check(write(tmp_path / "m.jsonl", *rows), Limits(longest=4))
    offenders = {}
    for _, row in manifests.read_lines(tmp_path / "m.offenders.jsonl"):
        offenders[row["line"]] = row["problem"]
    assert offenders == {3: "silent", 4: "too long", 5: "clipped", 6: "unreadable", 7: "duplicate",
                         8: "text", 9: "wrong kind"}
    assert counts == {"none": 2, **dict.fromkeys(offenders.values(), 1)}
    clean = [row["audio"] for _, row in manifests.read_lines(tmp_path / "m.clean.jsonl")]
    assert clean == ["good.wav", "other.wav"]


def test_check_compares_texts_with_speech_and_not_with_silence(tmp_path):
    """Catches a long recording of one word whose text fills it, and Chinese that is judged by the
    letters of English."""
    tone(tmp_path / "speech.wav", 2.0)
    voice, _ = soundfile.read(tmp_path / "speech.wav")
    quiet = np.zeros(8 * RATE)
    quiet[:len(voice)] = voice
    soundfile.write(tmp_path / "quiet.wav", quiet, RATE)
    rows = [{"audio": "quiet.wav", "text": "x" * 100}, {"audio": "quiet.wav", "text": "x" * 30},
            {"audio": "speech.wav", "text": "广" * 12}, {"audio": "speech.wav", "text": "广" * 30}]
    check(write(tmp_path / "m.jsonl", *rows))
    offenders = [row for _, row in manifests.read_lines(tmp_path / "m.offenders.jsonl")]
    assert [(row["line"], row["problem"]) for row in offenders] == [(1, "text"), (4, "text")]
    assert "100 letters in 2.0 s of speech" in offenders[0]["detail"]


def test_check_asks_the_recogniser_and_listeners(tmp_path, monkeypatch):
    """Catches a text of another recording, a recogniser's guess and a poor recording that pass
    although they were asked about, and packages that are needed where nobody asked."""
    for name in "abcd":
        tone(tmp_path / f"{name}.wav", 1.0, level=0.1 + 0.1 * "abcd".index(name))
    rows = [{"audio": "a.wav", "text": "It rains a lot."}, {"audio": "b.wav", "text": "No idea."},
            {"audio": "c.wav", "text": "It rains a bit.", "confidence": 0.3},
            {"audio": "d.wav", "text": "It pours a lot."}]
    file = write(tmp_path / "m.jsonl", *rows)
    assert check(file) == {"none": 4}

    class Stub:
        def transcribe(self, audio, rate):
            return "it rains a lot"
    monkeypatch.setattr(check_module, "recogniser_of", lambda name, language: Stub())
    monkeypatch.setattr(check_module.quality, "score", lambda audio, rate: 9 * audio.max())
    limits = Limits(most_errors=0.3, least_confidence=0.5, least_mos=1.5)
    assert check(file, limits) == {"none": 1, "other words": 1, "low confidence": 1,
                                   "poor sound": 1}


def test_jobs_are_taken_as_they_are_needed():
    """Catches workers that list all jobs before they begin the first: the rows of a manifest of ten
    million lines would not fit into memory."""
    taken = []

    def jobs():
        for i in range(1000):
            taken.append(i)
            yield i
    results = in_parallel(abs, jobs(), 2)
    assert next(results) == 0
    assert len(taken) < 100
    assert list(results) == list(range(1, 1000))


def test_check_of_a_folder_looks_at_ids_and_classes(tmp_path):
    """Catches a folder of grids that is called whole because its bytes are what was written, while
    what was written is no grid."""
    grid = random_grid(random.Random(0))
    shards.save([grid], tmp_path / "shard-00000.safetensors")
    assert "1 whole" in training_set.check_grids(tmp_path)
    grid.loss[1, 0] = 1
    shards.save([grid], tmp_path / "shard-00000.safetensors")
    with pytest.raises(DataError, match="loss class 1 cannot stand at a text id"):
        training_set.check_grids(tmp_path)


# --- synthesis ---

SAY = """
import sys, soundfile, numpy as np
out, voice, text = sys.argv[1:]
open(out.split("audio")[0] + "made", "a").write(voice)
assert text != "fail"
soundfile.write(out, float(voice) * np.sin(np.arange(2400 * len(text)) * 0.05), 24000)
"""


def test_dialogs_are_spoken_by_two_users_and_one_model(tmp_path, capsys):
    """Catches a shell that reads the words, a voice that changes within a dialog, clips made twice,
    and a failure that is lost."""
    (tmp_path / "say.py").write_text(SAY)
    texts = [("$(touch x); 'q", "yes"), ("{out}", "no")]
    turns = [{"transcript": transcript, "response": response} for transcript, response in texts]
    failing = {"turns": [{"transcript": "fail", "response": "yes"}]}
    file = write(tmp_path / "texts.jsonl", {"turns": turns}, failing)
    voices = [f"{sys.executable} {tmp_path / 'say.py'} {{out}} 0.{i} {{text}}" for i in range(1, 5)]
    for _ in range(2):
        counts = synthesis.synthesise(file, tmp_path / "s", voices[0], voices[1:], overwrite=True)
        assert counts == (2, 2)
    assert "could not say 'fail'" in capsys.readouterr().err
    first, second = read_manifest(tmp_path / "s" / "dialogs.jsonl", "asr-response-tts")

    def peaks(turns, key):
        """The loudest samples of some clips: each voice has a level of its own."""
        clips = [sound_file.read_audio(turn[key]) for turn in turns]
        return {round(float(clip.max()), 1) for clip in clips}
    assert peaks(first, "spoken") == peaks(second, "spoken") == {0.1}
    assert len(peaks(first, "heard")) == len(peaks(second, "heard")) == 1
    assert peaks(first, "heard") != peaks(second, "heard")
    assert len(sound_file.read_audio(first[1]["heard"])) == 2400 * len("{out}")
    # Eight clips of three letters each; the two that failed are tried again, and nothing else is.
    assert len((tmp_path / "s" / "made").read_text()) == 3 * (2 + 4 + 2) + 3 * 2


def test_voices_come_from_a_list_and_one_may_ask_each_dialog(tmp_path, monkeypatch, capsys):
    """Catches 700 voices that need 700 options, a comment taken for a voice, two users where one is
    asked for, and a clip below the DNSMOS that was asked for."""
    (tmp_path / "say.py").write_text(SAY)
    (tmp_path / "voices.txt").write_text("# three voices\n\n" + "\n".join(
        f"{sys.executable} {tmp_path / 'say.py'} {{out}} 0.{i} {{text}}" for i in (2, 3, 4)))
    turn = {"transcript": "one", "response": "two"}
    file = write(tmp_path / "texts.jsonl", *[{"turns": [turn, turn]}] * 6)
    voice = f"{sys.executable} {tmp_path / 'say.py'} {{out}} 0.1 {{text}}"
    data.main(["synth", str(file), str(tmp_path / "s"), "--model-voice", voice,
               "--user-voices", str(tmp_path / "voices.txt"), "--users", "1"])
    dialogs = read_manifest(tmp_path / "s" / "dialogs.jsonl", "response-tts")
    assert len(dialogs) == 6
    assert all(turns[0]["heard"] == turns[1]["heard"] for turns in dialogs)
    assert len({turns[0]["heard"] for turns in dialogs}) > 1
    assert "(--users)" not in capsys.readouterr().err
    data.main(["synth", str(file), str(tmp_path / "t"), "--model-voice", voice,
               "--user-voices", str(tmp_path / "voices.txt"), "--users", "5"])
    note = "each dialog should be asked by 5 voices (--users), and there are no more than 3"
    assert note in capsys.readouterr().err

    monkeypatch.setattr(synthesis.quality, "score", lambda audio, rate: 10 * audio.max())
    for folder in ("new", "s"):  # clips that are new, and clips that an earlier run has made
        with pytest.raises(DataError, match="no dialog could be spoken"):
            synthesis.synthesise(file, tmp_path / folder, voice, [voice], least_mos=1.5,
                                 overwrite=True)
    assert "its DNSMOS is 1.00" in capsys.readouterr().err
    (tmp_path / "voices.txt").write_text("# none\n")
    with pytest.raises(DataError, match="holds no voice"):
        synthesis.read_voices(tmp_path / "voices.txt")


def test_a_check_names_what_it_counts_and_what_it_wrote(tmp_path, capsys):
    """Catches a table without a heading, of which a reader must guess what "none" counts."""
    sound = tmp_path / "a.wav"
    soundfile.write(sound, np.sin(np.arange(24_000) / 20) * 0.3, 24_000)
    file = write(tmp_path / "m.jsonl", {"audio": "a.wav", "text": "some words"},
                 {"audio": "b.wav", "text": "some words"})
    data.main(["check", str(file)])
    printed = capsys.readouterr().out
    assert "    lines problem\n        1 none\n        1 missing recording\n" in printed
    assert "m.clean.jsonl has the lines without a problem" in printed
    assert (tmp_path / "m.clean.jsonl").exists() and (tmp_path / "m.offenders.jsonl").exists()


def test_a_package_that_is_not_there_is_named(folder, monkeypatch):
    """Catches a traceback in the middle of a run for want of an optional package."""
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    write(folder / "m.jsonl", GOOD)
    with pytest.raises(SystemExit) as stopped:
        data.main(["check", str(folder / "m.jsonl"), "--dnsmos", "3"])
    assert "--dnsmos lacks the package speechmos: pip install" in stopped.value.code


# --- commands ---

def refusal(*command):
    """What a command of data.py says when it refuses."""
    with pytest.raises(SystemExit) as stopped:
        data.main([str(word) for word in command])
    return str(stopped.value.code)


def test_nothing_that_was_there_is_overwritten_unasked(folder):
    """Catches a command that replaces what it reads, or a file that another has made."""
    table = write(folder / "r.jsonl", GOOD)
    other = write(folder / "other.jsonl", "mine")
    for overwrite in ([], ["--overwrite"]):
        assert "r.jsonl is what is read" in refusal("import", "table", table, table, *overwrite)
    assert "other.jsonl exists: choose" in refusal("import", "table", table, other)
    assert "other.jsonl exists: choose" in refusal("transcribe", folder, other, "--whisper", "")
    assert "other.jsonl exists: choose" in refusal("references", table, other)
    dialogs = write(folder / "dialogs.jsonl", {"turns": [TURN]})
    voices = ("--model-voice", "cat {out}", "--user-voice", "cat {out}")
    for overwrite in ([], ["--overwrite"]):
        sentence = refusal("synth", dialogs, folder, *voices, *overwrite)
        assert "dialogs.jsonl is what is read, and is not overwritten" in sentence
    texts = write(folder / "texts.jsonl", {"turns": [TURN]})
    assert "dialogs.jsonl exists: choose" in refusal("synth", texts, folder, *voices)
    assert json.loads(table.read_text()) == GOOD and other.read_text() == "mine"
    assert json.loads(dialogs.read_text()) == {"turns": [TURN]}
    data.main(["import", "table", str(table), str(other), "--overwrite"])
    assert json.loads(other.read_text())["text"] == GOOD["text"]


def test_options_without_effect_are_refused(folder):
    """Catches an option of `check` that is taken for a wish and then forgotten."""
    file = write(folder / "m.jsonl", GOOD)
    for option in (["--most-errors", "0.2"], ["--language", "zh"]):
        assert f"{option[0]} is for --whisper, which is not asked for" in refusal("check", file,
                                                                                 *option)
    for option in (["--longest", "9"], ["--format", "tts"], ["--dnsmos", "3"], ["--workers", "2"]):
        assert f"{option[0]} is for manifests, and" in refusal("check", folder, *option)


def test_messages_say_where_and_what_to_type(folder):
    """Catches a folder that is missing and blamed on the layout, the name of a hidden file, a
    proposed command that lacks its manifest, and an error of the standard library."""
    file = write(folder / "m.jsonl", GOOD)
    sentence = refusal("import", "table", file, folder / "nosuch" / "p.jsonl")
    assert "nosuch is no folder to write p.jsonl to" in sentence
    assert "laid out" not in sentence
    sentence = refusal("encode", file, folder / "g", "--format", "response-tts")
    assert f"`python data.py check {file} --format response-tts`" in sentence
    assert "--workers must be 1 or more, not 0" in refusal("check", file, "--workers", 0)


def test_a_voice_s_command_keeps_its_backslashes():
    """Catches a Windows path that loses its backslashes, and quotes that hold no word together."""
    command = r'C:\Voices\say.exe --voice "C:\My Voices\anna" -o {out} -- {text}'
    assert synthesis.split_command(command, windows=True) == [
        r"C:\Voices\say.exe", "--voice", r"C:\My Voices\anna", "-o", "{out}", "--", "{text}"]
    assert synthesis.split_command(r"say 'C:\x y' a\ b", windows=False) == ["say", r"C:\x y", "a b"]
    with pytest.raises(DataError, match="is no command"):
        synthesis.split_command("say 'x", windows=False)


def test_nothing_done_is_no_success(folder, capsys):
    """Catches exit code 0 where nothing is left of what was asked for."""
    write(folder / "m.jsonl", {"audio": "gone.wav", "text": "x"})
    (folder / "t.csv").write_text("audio,text\ngone.wav,x\n")
    write(folder / "texts.jsonl", {"turns": [{"transcript": "a", "response": "b"}]})
    write(folder / "empty.jsonl")
    voice = f"{sys.executable} -c raise {{out}}"

    def voices(model_voice):
        return ["--model-voice", model_voice, "--user-voice", voice]
    commands = [
        (["check", folder / "m.jsonl"], "no line can be used"),
        (["check", folder / "empty.jsonl"], "empty.jsonl is empty: it needs a line of JSON"),
        (["import", "table", folder / "t.csv", folder / "out.jsonl"],
         "holds nothing that can be used as table"),
        (["encode", folder / "m.jsonl", folder / "g", "--format", "tts"], "1 lines cannot be used"),
        (["encode", folder / "empty.jsonl", folder / "g", "--format", "tts"], "is empty"),
        (["synth", folder / "texts.jsonl", folder / "s", *voices(voice)],
         "no dialog could be spoken"),
        (["synth", folder / "texts.jsonl", folder / "s", *voices("no-such-voice {out}")],
         "there is no program no-such-voice"),
        (["synth", folder / "empty.jsonl", folder / "s", *voices(voice)], "is empty"),
    ]
    for command, sentence in commands:
        with pytest.raises(SystemExit) as end:
            data.main([str(word) for word in command])
        assert sentence in str(end.value.code)
        assert "\n" not in str(end.value.code)
