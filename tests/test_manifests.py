"""Manifests, and what people have before they have one: a message names the line that is wrong, and
one wrong line costs no other."""
import json
import sys

import numpy as np
import pytest
import soundfile

import data
from workshop import importers, manifests, sound_file, synthesis
from workshop.check import check
from workshop.manifests import DataError, read_manifest

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
    """A folder with one recording of a second, a.wav."""
    tone(tmp_path / "a.wav")
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
}
BAD_DIALOGS = {
    "no turns": ({"turns": []}, "at least one turn"),
    "turns of another kind": ({"turns": "x"}, "at least one turn"),
    "a turn of another kind": ({"turns": [3]}, "an object is needed, not 3"),
    "no response": ({"turns": [{"heard": "a.wav", "spoken": "a.wav"}]}, "there is no response"),
    "empty response": ({"turns": [TURN | {"response": ""}]}, "response is empty"),
    "patience": ({"turns": [TURN | {"patience": "0.3"}]}, "patience is seconds of silence"),
    "negative patience": ({"turns": [TURN | {"patience": -1}]}, "patience is seconds of silence"),
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
    counts = check(file, longest=60, format=format)
    assert sum(counts.values()) - counts["none"] - counts["duplicate"] == 1
    offender = json.loads((folder / "m.offenders.jsonl").read_text().splitlines()[0])
    assert offender["line"] == 2 and sentence in offender["detail"]
    # The third line is a duplicate of the first.
    assert len(read_manifest(folder / "m.clean.jsonl", format)) == 1


def test_keys_that_nobody_reads_are_named(folder, capsys):
    """Catches a slip of the pen in a key that is taken for a wish."""
    rows = [{"turns": [TURN], "kind": "fact"}, {"turns": [TURN | {"patiense": 1}]}]
    check(write(folder / "m.jsonl", *rows), longest=60)
    assert "kind (1), patiense (1)" in capsys.readouterr().err


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
        check(file, 60, format="asr-response-tts")
    with pytest.raises(DataError, match="there is no words"):
        read_manifest(write(folder / "p.jsonl", GOOD), "word-aligned")


def test_words_in_a_turn_are_a_key_that_nobody_reads(folder, capsys):
    """Catches a KeyError for word times in a dialog, whose turns have no `audio`."""
    file = write(folder / "m.jsonl", {"turns": [TURN | {"words": [["It", 0.1, 0.2]]}]})
    assert len(read_manifest(file, "response-tts")) == 1
    assert check(file, longest=60)["none"] == 1
    assert "words (1)" in capsys.readouterr().err


def test_pairs_and_dialogs_do_not_stand_together(folder):
    """Catches a manifest that `check` calls good and that no format reads."""
    file = write(folder / "m.jsonl", GOOD, {"turns": [TURN]}, GOOD | {"text": "It snows."})
    assert check(file, longest=60) == {"none": 2, "wrong kind": 1}
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


# --- tables ---

def imported(folder, content, name="t.csv"):
    (folder / name).write_text(content, encoding="utf-8", newline="")
    counts = importers.bring_in("table", folder / name, folder / "out.jsonl")
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


@pytest.mark.parametrize("rows", [
    'a.wav,"Half a mark\na.wav,Two\na.wav,Three\n', 'a.wav,"Half\na.wav,Two\na.wav,"Three"\n'])
def test_a_lone_quotation_mark_swallows_nothing(folder, rows):
    """Catches three rows that become one, without a word."""
    (folder / "out.jsonl").write_text("before")
    with pytest.raises(DataError, match="quotation mark"):
        imported(folder, "audio,text\n" + rows)
    assert (folder / "out.jsonl").read_text() == "before"


def test_a_table_without_the_columns_says_what_it_has(folder):
    """Catches a KeyError for a header of other names."""
    sentence = "needs the columns audio and text in its first line, and has: path, words"
    with pytest.raises(DataError, match=sentence):
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
    """Catches two folders that hold the same file name and end in the same clips, of which the last
    one wins."""
    conversation(tmp_path, "a/talk.wav", seconds=3.0)
    conversation(tmp_path, "b/talk.wav", [("No.", [1.2, 2.6])], seconds=3.0)
    counts, rows = brought_in(tmp_path, "a/talk.wav", "b/talk.wav")
    assert counts == (2, 0)
    clips = [turn[key] for row in rows for turn in row["turns"] for key in ("heard", "spoken")]
    assert len(set(clips)) == 4
    seconds = [soundfile.info(row["turns"][0]["spoken"]).duration for row in rows]
    assert seconds == pytest.approx([0.5, 1.4], abs=0.01)


def test_a_broken_recording_costs_itself_alone(tmp_path, capsys):
    """Catches an import that one recording stops: without its words, in mono, without
    times, cut short, absent."""
    conversation(tmp_path, "good.wav")
    tone(tmp_path / "no-words.wav", 2.0, (0.5, 0.5))
    conversation(tmp_path, "mono.wav", channels=None)
    conversation(tmp_path, "no-times.wav", [("Yes.", None), (" Well.", [0.5])])
    conversation(tmp_path, "cut.wav")
    (tmp_path / "cut.wav").write_bytes(b"RIFF")
    conversation(tmp_path, "other.wav")
    (tmp_path / "other.json").write_text('{"words": []}')
    broken = ["no-words.wav", "mono.wav", "no-times.wav", "cut.wav", "other.wav", "absent.wav"]
    (lines, left_out), rows = brought_in(tmp_path, *broken, "good.wav")
    assert lines == 1
    assert left_out >= 6
    messages = capsys.readouterr().err
    for name in broken:
        assert name.split(".")[0] in messages
    assert rows[0]["turns"][0]["response"] == "Yes."


def test_alignments_nested_too_deep_are_no_alignments(tmp_path):
    """Catches a RecursionError that one file of alignments stops a whole import with."""
    file = tmp_path / "a.json"
    file.write_text("[" * 100_000)
    with pytest.raises(DataError, match="holds no alignments"):
        importers.read_alignments(file)


def test_word_times_without_sense_make_no_clips(tmp_path, capsys):
    """Catches reversed times and times beyond the end, which were written as empty clips."""
    words = [("Yes.", [1.0, 1.5]), ("back", [2.5, 2.1]), ("late", [50, 51]),
             ("nan", [float("nan"), 1])]
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
    assert (lines, left_out) == (1, 1)
    assert len(row["turns"]) == 1
    assert "what the model says at 0 s" in capsys.readouterr().err


def test_swapped_channels_are_suspected(tmp_path):
    """Catches a data set whose model is the other speaker: its words lie where its channel is
    quiet."""
    conversation(tmp_path, "right.wav", channels=(0.5, 0.01))
    conversation(tmp_path, "wrong.wav", channels=(0.01, 0.5))
    brought_in(tmp_path, "right.wav", "wrong.wav")
    counts = check(tmp_path / "out.jsonl", longest=60)
    assert counts["channels swapped"] == 1


def test_a_stereo_conversation_is_cut_into_turns(tmp_path):
    """Catches channels swapped, turns cut at the wrong times, and a pause within a sentence taken
    for its end."""
    words = [(" Hi", [1.0, 1.2]), (" there.", [1.9, 2.5]), (" Bye.", [5.0, 5.5])]
    conversation(tmp_path, "c.wav", words, channels=(0.5, 0.1), seconds=8.0)
    counts, _ = brought_in(tmp_path, "c.wav")
    assert counts == (1, 0)
    (turns,) = read_manifest(tmp_path / "out.jsonl", "response-tts-free")
    assert [turn["response"] for turn in turns] == ["Hi there.", "Bye."]
    questions = [sound_file.read_audio(turn["heard"]) for turn in turns]
    answers = [sound_file.read_audio(turn["spoken"]) for turn in turns]
    assert [round(len(audio) / RATE, 2) for audio in questions] == [1.0, 2.5]
    assert [round(len(audio) / RATE, 2) for audio in answers] == [1.5, 0.5]
    assert questions[0].max() < 0.04
    assert answers[0].max() > 0.13


# --- layouts of data sets ---

def test_layouts_become_manifests(tmp_path):
    """Catches a layout read with the wrong column, folder or text, and a missing recording that
    stays in the manifest."""
    for name in ("libri/1/2/1-2-0000.flac", "lj/wavs/LJ1.wav", "cv/clips/c.mp3", "plain/p.wav",
                 "aishell/train/wav/SSB0005/SSB00050001.wav"):
        tone(tmp_path / name, 0.1)
    texts = {
        "libri/1/2/1-2.trans.txt": "1-2-0000 HE SAID\n1-2-0001 GONE\n",
        "lj/metadata.csv": 'LJ1|Dr. "X|Doctor "X\n',
        "aishell/train/content.txt": "SSB00050001.wav\t广 guang3 州 zhou1\n",
        "cv/validated.tsv": 'client_id\tpath\tsentence\nx\tc.mp3\tShe said "no.\n',
        "plain/t.csv": 'audio,text\np.wav,"One, two"\n',
        "plain/t.jsonl": '{"audio": "p.wav", "text": "x", "words": [["x", 0, 0.1]]}\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for layout, source, missing, text in (
            ("librispeech", "libri", 1, "he said"), ("ljspeech", "lj", 0, 'Doctor "X'),
            ("aishell-3", "aishell", 0, "广州"), ("common-voice", "cv", 0, 'She said "no.'),
            ("table", "plain/t.csv", 0, "One, two"), ("table", "plain/t.jsonl", 0, "x")):
        counts = importers.bring_in(layout, tmp_path / source, tmp_path / "out.jsonl")
        assert counts == (1, missing)
        ((turn,),) = read_manifest(tmp_path / "out.jsonl", "tts")
        assert turn["response"] == text
        assert turn["spoken"].exists()
    importers.bring_in("table", tmp_path / "plain/t.jsonl", tmp_path / "out.jsonl")
    ((turn,),) = read_manifest(tmp_path / "out.jsonl", "word-aligned")
    assert turn["words"] == [["x", 0, 0.1]]


@pytest.mark.parametrize("layout", importers.LAYOUTS)
def test_another_layout_is_one_sentence(tmp_path, layout):
    """Catches a traceback, or an empty manifest, for a folder that is not laid out as was said."""
    tone(tmp_path / "plain/p.wav", 0.1)
    with pytest.raises((DataError, OSError), match="plain"):
        importers.bring_in(layout, tmp_path / "plain", tmp_path / "out.jsonl")


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
    counts = check(write(tmp_path / "m.jsonl", *rows), longest=4)
    offenders = {}
    for _, row in manifests.read_lines(tmp_path / "m.offenders.jsonl"):
        offenders[row["line"]] = row["problem"]
    assert offenders == {3: "silent", 4: "too long", 5: "clipped", 6: "unreadable", 7: "duplicate",
                         8: "text", 9: "wrong kind"}
    assert counts == {"none": 2, **dict.fromkeys(offenders.values(), 1)}
    clean = [row["audio"] for _, row in manifests.read_lines(tmp_path / "m.clean.jsonl")]
    assert clean == ["good.wav", "other.wav"]


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
        assert synthesis.synthesise(file, tmp_path / "s", voices[0], voices[1:]) == (2, 2)
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

    def voices(model_voice):
        return ["--model-voice", model_voice, "--user-voice", voice]
    commands = [
        (["check", folder / "m.jsonl"], "no line can be used"),
        (["check", folder / "empty.jsonl"], "no line can be used"),
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
