"""Manifests, and what people have before they have one: what is wrong with a line is said of that line, and costs no other."""
import json
import sys

import numpy as np
import pytest
import soundfile

import data
from workshop import importers, manifests, synthesis
from workshop.manifests import DataError

RATE = 24_000


def tone(file, seconds=1.0, channels=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(np.arange(int(seconds * RATE)) * 0.05)
    if channels:
        wave = np.stack([level * wave for level in channels], 1)
    soundfile.write(file, wave, RATE)


@pytest.fixture
def folder(tmp_path):
    """A folder with one recording of a second, a.wav."""
    tone(tmp_path / "a.wav")
    return tmp_path


def write(file, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


GOOD = {"audio": "a.wav", "text": "It rains."}
TURN = {"heard": "a.wav", "transcript": "Does it rain?", "spoken": "a.wav", "response": "It rains."}
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
    "word order": (GOOD | {"words": [["It", 0.5, 0.6], ["rains.", 0.1, 0.2]]}, "before the word that stands before it"),
    "word time not finite": ('{"audio": "a.wav", "text": "x", "words": [["x", NaN, 1]]}', "must be seconds"),
    "word time beyond numbers": ('{"audio": "a.wav", "text": "x", "words": [["x", 0, 1' + "0" * 400 + "]]}", "must be seconds"),
    "word beyond its recording": (GOOD | {"words": [["It", 0.1, 0.2], ["rains.", 4, 5]]}, "and its recording at 1.0 s"),
    "lone surrogate in a key that nobody reads": ('{"audio": "a.wav", "text": "x", "voice": "\\ud800"}', "half of a character"),
    "words of another kind": (GOOD | {"words": "It rains."}, "must be a list"),
}
BAD_DIALOGS = {
    "no turns": ({"turns": []}, "at least one turn"),
    "turns of another kind": ({"turns": "x"}, "at least one turn"),
    "a turn of another kind": ({"turns": [3]}, "an object is needed, not 3"),
    "no response": ({"turns": [{key: TURN[key] for key in ("heard", "spoken")}]}, "there is no response"),
    "empty response": ({"turns": [TURN | {"response": ""}]}, "response is empty"),
    "patience": ({"turns": [TURN | {"patience": "0.3"}]}, "patience is seconds of silence"),
    "patience not finite": ('{"turns": [{"heard": "a.wav", "spoken": "a.wav", "response": "x", "patience": Infinity}]}', "patience is"),
}


@pytest.mark.parametrize("name", [*BAD, *BAD_DIALOGS])
def test_check_and_encode_agree(folder, name):
    """Catches a line that `check` calls good and `encode` refuses, or the other way round; and a bad line that costs the others."""
    line, sentence = {**BAD, **BAD_DIALOGS}[name]
    good, format = ({"turns": [TURN]}, "response-tts") if name in BAD_DIALOGS else (GOOD, "tts")
    file = write(folder / "m.jsonl", good, line, good | {"other": "key"})
    with pytest.raises(DataError, match="1 lines cannot be used") as refused:
        data.read_manifest(file, format)
    assert sentence in str(refused.value) and "line 2" in str(refused.value)
    counts = data.check(file, longest=60, format=format)
    assert sum(counts.values()) - counts["none"] - counts["duplicate"] == 1
    offender = json.loads((folder / "m.offenders.jsonl").read_text().splitlines()[0])
    assert offender["line"] == 2 and sentence in offender["detail"]
    assert len(data.read_manifest(folder / "m.clean.jsonl", format)) == 1  # the third is the first one's duplicate


def test_keys_that_nobody_reads_are_named(folder, capsys):
    """Catches a slip of the pen in a key that is taken for a wish."""
    data.check(write(folder / "m.jsonl", {"turns": [TURN], "kind": "fact"}, {"turns": [TURN | {"patiense": 1}]}), longest=60)
    assert "kind (1), patiense (1)" in capsys.readouterr().err


def test_the_format_decides_what_is_needed(folder):
    """Catches a dialog without transcripts that no format may use, and one that fine-tuning 1 takes without."""
    turn = {key: TURN[key] for key in ("heard", "spoken", "response")}
    file = write(folder / "m.jsonl", {"turns": [turn]})
    assert data.read_manifest(file, "response-tts")[0][0]["transcript"] == ""
    for refuse in (lambda: data.read_manifest(file, "asr-response-tts"), lambda: data.read_manifest(file, "tts"),
                   lambda: data.check(file, 60, format="asr-response-tts")):
        with pytest.raises(DataError):
            refuse()
    with pytest.raises(DataError, match="there is no words"):
        data.read_manifest(write(folder / "p.jsonl", GOOD), "word-aligned")


def test_pairs_and_dialogs_do_not_stand_together(folder):
    """Catches a manifest that `check` calls good and that no format reads."""
    file = write(folder / "m.jsonl", GOOD, {"turns": [TURN]}, GOOD | {"text": "It snows."})
    assert data.check(file, longest=60) == {"none": 2, "wrong kind": 1}
    assert len(data.read_manifest(folder / "m.clean.jsonl", "tts")) == 2


@pytest.mark.parametrize("encoding, name", [("utf-16", "UTF-16"), ("gb18030", "not in UTF-8"), ("latin-1", "not in UTF-8")])
def test_other_encodings_are_named(folder, encoding, name):
    """Catches a traceback, or a text of wrong signs, where a file is not in UTF-8."""
    text = "广州" if encoding == "gb18030" else "café"
    for file, rows in (("m.jsonl", json.dumps(GOOD | {"text": text}, ensure_ascii=False)), ("t.csv", f"audio,text\na.wav,{text}\n")):
        (folder / file).write_bytes(rows.encode(encoding))
    with pytest.raises(DataError, match=name):
        data.read_manifest(folder / "m.jsonl", "tts")
    with pytest.raises(DataError, match=name):
        importers.bring_in("table", folder / "t.csv", folder / "out.jsonl")


def test_line_separators_are_text(folder):
    """Catches a text that U+2028 or U+0085 cuts in two, in manifests and tables, and a byte-order mark that is read as text."""
    text = "one\u2028two\u0085three"
    file = folder / "m.jsonl"
    file.write_text("\ufeff" + json.dumps(GOOD | {"text": text}, ensure_ascii=False), encoding="utf-8")
    assert data.read_manifest(file, "tts")[0][0]["response"] == text
    (folder / "t.csv").write_text(f"\ufeffaudio,text\na.wav,{text}\n", encoding="utf-8")
    importers.bring_in("table", folder / "t.csv", folder / "out.jsonl")
    assert data.read_manifest(folder / "out.jsonl", "tts")[0][0]["response"] == text


# --- tables ---

def imported(folder, content, name="t.csv"):
    (folder / name).write_text(content, encoding="utf-8", newline="")
    counts = importers.bring_in("table", folder / name, folder / "out.jsonl")
    return counts, [turn["response"] for turn, in data.read_manifest(folder / "out.jsonl", "tts")]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_every_dialect(folder, separator):
    """Catches a KeyError for semicolons and tabs, and cells of quoted texts cut in two."""
    rows = [["text", "audio", "speaker"], [f'"One{separator} two, ""three"""', "a.wav", "x"], ["Four", "a.wav", ""]]
    counts, texts = imported(folder, "\r\n".join(separator.join(row) for row in rows) + "\r\n")
    assert counts == (2, 0)
    assert texts == [f'One{separator} two, "three"', "Four"]


def test_a_line_break_in_a_quoted_text_is_a_space(folder, capsys):
    """Catches words on two lines that are glued together, and a column of another meaning taken for word times."""
    content = 'audio,text,words\na.wav,"One\ntwo, three",x\na.wav,"four\r\nfive",y\n'
    assert imported(folder, content)[1] == ["One two, three", "four five"]
    assert "in 2 quoted texts a line break became a space" in capsys.readouterr().err


def test_rows_that_cannot_be_right_are_named_and_left_out(folder, capsys):
    """Catches a text cut at a comma that was not quoted, and a row without a text that becomes null."""
    counts, texts = imported(folder, "audio,text\na.wav,One, two\na.wav\na.wav,\n,x\n\na.wav,Three\nb.wav,Gone\n")
    assert texts == ["Three"] and counts == (1, 5)
    told = capsys.readouterr().err
    for sentence in ("line 2: 3 cells in a table of 2 columns", "line 3: 1 cells", "line 4: no text", "line 5: no audio", "b.wav does not exist"):
        assert sentence in told


@pytest.mark.parametrize("rows", ['a.wav,"Half a mark\na.wav,Two\na.wav,Three\n', 'a.wav,"Half\na.wav,Two\na.wav,"Three"\n'])
def test_a_lone_quotation_mark_swallows_nothing(folder, rows):
    """Catches three rows that become one, without a word."""
    (folder / "out.jsonl").write_text("before")
    with pytest.raises(DataError, match="quotation mark"):
        imported(folder, "audio,text\n" + rows)
    assert (folder / "out.jsonl").read_text() == "before"


def test_a_table_without_the_columns_says_what_it_has(folder):
    """Catches a KeyError for a header of other names."""
    with pytest.raises(DataError, match="needs the columns audio and text in its first line, and has: path, words"):
        imported(folder, "path,words\na.wav,x\n")


# --- conversations in stereo ---

def conversation(folder, name, words=((" Yes.", [1.0, 1.5]),), channels=(0.5, 0.5), seconds=3.0):
    tone(folder / name, seconds, channels)
    entries = [[*word, "SPEAKER_MAIN"] for word in words]
    (folder / name).with_suffix(".json").write_text(json.dumps({"alignments": entries}))


def brought_in(folder, *names):
    write(folder / "set.jsonl", *({"path": name} for name in names))
    counts = importers.bring_in("moshi-finetune", folder / "set.jsonl", folder / "out.jsonl")
    return counts, [row for _, row in manifests.read_lines(folder / "out.jsonl")]


def test_recordings_of_one_name_stay_apart(tmp_path):
    """Catches two folders that hold the same file name and end in the same clips, of which the last one wins."""
    conversation(tmp_path, "a/talk.wav", seconds=3.0)
    conversation(tmp_path, "b/talk.wav", [("No.", [1.2, 2.6])], seconds=3.0)
    counts, rows = brought_in(tmp_path, "a/talk.wav", "b/talk.wav")
    assert counts == (2, 0)
    clips = [turn[key] for row in rows for turn in row["turns"] for key in ("heard", "spoken")]
    assert len(set(clips)) == 4
    assert soundfile.info(rows[0]["turns"][0]["spoken"]).duration == pytest.approx(0.5, abs=0.01)
    assert soundfile.info(rows[1]["turns"][0]["spoken"]).duration == pytest.approx(1.4, abs=0.01)


def test_a_broken_recording_costs_itself_alone(tmp_path, capsys):
    """Catches an import that one recording stops: without its words, in mono, without times, cut short, absent."""
    conversation(tmp_path, "good.wav")
    tone(tmp_path / "no-words.wav", 2.0, (0.5, 0.5))
    conversation(tmp_path, "mono.wav", channels=None)
    conversation(tmp_path, "no-times.wav", [("Yes.", None), (" Well.", [0.5])])
    conversation(tmp_path, "cut.wav")
    (tmp_path / "cut.wav").write_bytes(b"RIFF")
    conversation(tmp_path, "other.wav")
    (tmp_path / "other.json").write_text('{"words": []}')
    names = ["no-words.wav", "mono.wav", "no-times.wav", "cut.wav", "other.wav", "absent.wav", "good.wav"]
    (lines, left_out), rows = brought_in(tmp_path, *names)
    assert lines == 1 and left_out >= 6
    told = capsys.readouterr().err
    for name in names[:-1]:
        assert name.split(".")[0] in told
    assert rows[0]["turns"][0]["response"] == "Yes."


def test_word_times_without_sense_make_no_clips(tmp_path, capsys):
    """Catches reversed times and times beyond the end, which were written as empty clips."""
    words = [("Yes.", [1.0, 1.5]), ("back", [2.5, 2.1]), ("late", [50, 51]), ("nan", [float("nan"), 1])]
    conversation(tmp_path, "talk.wav", words)
    _, (row,) = brought_in(tmp_path, "talk.wav")
    assert [turn["response"] for turn in row["turns"]] == ["Yes."]
    assert "3 words without times" in capsys.readouterr().err
    for turn in row["turns"]:
        for key in ("heard", "spoken"):
            assert soundfile.info(turn[key]).duration > 0.08


def test_what_the_model_says_first_is_counted(tmp_path, capsys):
    """Catches a turn that is dropped without a word."""
    conversation(tmp_path, "talk.wav", [("Hello.", [0.0, 0.4]), ("Yes.", [2.0, 2.5])])
    (lines, left_out), (row,) = brought_in(tmp_path, "talk.wav")
    assert (lines, left_out) == (1, 1) and len(row["turns"]) == 1
    assert "what the model says at 0 s" in capsys.readouterr().err


def test_swapped_channels_are_suspected(tmp_path):
    """Catches a data set whose model is the other speaker: its words lie where its channel is quiet."""
    conversation(tmp_path, "right.wav", channels=(0.5, 0.01))
    conversation(tmp_path, "wrong.wav", channels=(0.01, 0.5))
    brought_in(tmp_path, "right.wav", "wrong.wav")
    counts = data.check(tmp_path / "out.jsonl", longest=60)
    assert counts["channels swapped"] == 1


# --- commands ---

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
    for command, sentence in [
            (["check", folder / "m.jsonl"], "no line can be used"),
            (["check", folder / "empty.jsonl"], "no line can be used"),
            (["import", "table", folder / "t.csv", folder / "out.jsonl"], "holds nothing that can be used as table"),
            (["encode", folder / "m.jsonl", folder / "g", "--format", "tts"], "1 lines cannot be used"),
            (["encode", folder / "empty.jsonl", folder / "g", "--format", "tts"], "is empty"),
            (["synth", folder / "texts.jsonl", folder / "s", "--model-voice", voice, "--user-voice", voice], "no dialog could be spoken"),
            (["synth", folder / "texts.jsonl", folder / "s", "--model-voice", "no-such-voice {out}", "--user-voice", voice],
             "there is no program no-such-voice"),
            (["synth", folder / "empty.jsonl", folder / "s", "--model-voice", voice, "--user-voice", voice], "is empty")]:
        with pytest.raises(SystemExit) as end:
            data.main([str(word) for word in command])
        assert sentence in str(end.value.code) and "\n" not in str(end.value.code)
