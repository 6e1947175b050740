"""What people have -> manifests: recordings of two people, and the layouts of data sets."""
import json

import numpy as np
import pytest
import soundfile

import data
from test_manifests import tone, write
from workshop import conversations, importers, manifests, sound_file
from workshop.check import Limits, check
from workshop.manifests import DataError, read_manifest

RATE = 24_000


# --- conversations in stereo ---

def conversation(folder, name, words=((" Yes.", [1.0, 1.5]),), channels=(0.5, 0.5), seconds=3.0):
    tone(folder / name, seconds, channels)
    entries = [[*word, "SPEAKER_MAIN"] for word in words]
    (folder / name).with_suffix(".json").write_text(json.dumps({"alignments": entries}))


def brought_in(folder, *names):
    write(folder / "set.jsonl", *({"path": name} for name in names))
    counts = importers.bring_in("moshi-finetune", folder / "set.jsonl", folder / "out.jsonl",
                                overwrite=True)
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
        conversations.read_alignments(file)


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


def talk(folder, left, right, words, name="talk.wav", seconds=6.0):
    """A conversation whose channels sound within some spans of seconds."""
    time = np.arange(int(seconds * RATE)) / RATE
    channels = []
    for spans in (left, right):
        channel = np.zeros(len(time), np.float32)
        for start, end in spans:
            inside = (time >= start) & (time < end)
            channel[inside] = 0.3 * np.sin(2 * np.pi * 300 * time[inside])
        channels.append(channel)
    soundfile.write(folder / name, np.stack(channels, 1), RATE)
    (folder / name).with_suffix(".json").write_text(json.dumps({"alignments": words}))


MODEL_OPENS = [["Hello.", [0.5, 1.0], "SPEAKER_MAIN"], ["Is", [2.0, 2.2], "SPEAKER_1"],
               ["it?", [2.2, 2.6], "SPEAKER_1"], ["Yes.", [4.0, 4.5], "SPEAKER_MAIN"]]


def test_a_conversation_that_the_model_opens_is_kept(tmp_path):
    """Catches a recording that is dropped as silent because the user has said nothing yet, and
    words of the user that are lost."""
    talk(tmp_path, [(0.5, 1.0), (4.0, 4.5)], [(2.0, 2.6)], MODEL_OPENS)
    (lines, left_out), (row,) = brought_in(tmp_path, "talk.wav")
    assert (lines, left_out) == (1, 0)
    first, second = row["turns"]
    assert first["opens"] and "opens" not in second
    assert [turn["response"] for turn in row["turns"]] == ["Hello.", "Yes."]
    assert second["transcript"] == "Is it?"
    assert check(tmp_path / "out.jsonl") == {"none": 1}
    # At the very start there is nothing to hear: a frame of it stands for that.
    talk(tmp_path, [(0.0, 1.0)], [(2.0, 2.6)], [["Hello.", [0.0, 1.0], "SPEAKER_MAIN"]])
    _, (row,) = brought_in(tmp_path, "talk.wav")
    assert soundfile.info(row["turns"][0]["heard"]).duration == pytest.approx(0.08, abs=0.001)


def test_a_silent_question_is_still_an_offence(tmp_path):
    """Catches a check that lets all silence pass because some is meant."""
    talk(tmp_path, [(0.5, 1.0), (4.0, 4.5)], [(2.0, 2.6)], MODEL_OPENS)
    _, (row,) = brought_in(tmp_path, "talk.wav")
    del row["turns"][0]["opens"]
    with pytest.raises(DataError, match="silent 1"):
        check(write(tmp_path / "again.jsonl", row))


def test_a_pause_of_the_model_is_no_turn(tmp_path):
    """Catches a turn in which nothing is heard, where the model goes on after a pause."""
    words = [["One.", [2.0, 2.4], "SPEAKER_MAIN"], ["Two.", [4.0, 4.4], "SPEAKER_MAIN"]]
    talk(tmp_path, [(2.0, 2.4), (4.0, 4.4)], [(0.5, 1.5)], words)
    _, (row,) = brought_in(tmp_path, "talk.wav")
    (turn,) = row["turns"]
    assert turn["response"] == "One. Two."
    assert soundfile.info(turn["spoken"]).duration == pytest.approx(2.4, abs=0.01)


def test_a_piece_in_which_the_model_only_listens_is_kept(tmp_path, monkeypatch):
    """Catches minutes of listening that are thrown away, silence of both that is kept, and channels
    that `check` drops because one of them is silent."""
    monkeypatch.setattr(conversations, "PIECE", 2)
    words = [["Hello.", [0.5, 1.0], "SPEAKER_MAIN"]]
    talk(tmp_path, [(0.5, 1.0)], [(2.5, 3.5)], words)
    write(tmp_path / "set.jsonl", {"path": "talk.wav"})
    counts = importers.bring_in("stereo", tmp_path / "set.jsonl", tmp_path / "out.jsonl")
    assert counts == (2, 1)
    first, second = [turns[0] for turns in read_manifest(tmp_path / "out.jsonl", "stereo")]
    assert first["words"] == [["Hello.", 0.5, 1.0]]
    assert second["words"] == [] and second["response"] == ""
    for format in (None, "stereo"):
        assert check(tmp_path / "out.jsonl", format=format) == {"none": 2}


def test_a_channel_may_be_as_long_as_import_cuts_it(tmp_path, monkeypatch):
    """Catches a channel of a conversation that `check` calls too long by the limit of a single
    utterance, while `import stereo` makes pieces of five minutes."""
    talk(tmp_path, [(0.5, 1.0)], [(2.5, 3.5)], [["Hello.", [0.5, 1.0], "SPEAKER_MAIN"]], seconds=70)
    write(tmp_path / "set.jsonl", {"path": "talk.wav"})
    importers.bring_in("stereo", tmp_path / "set.jsonl", tmp_path / "out.jsonl")
    assert check(tmp_path / "out.jsonl") == {"none": 1}
    with pytest.raises(DataError, match="too long 1"):
        check(tmp_path / "out.jsonl", Limits(longest_channel=60))


@pytest.mark.parametrize("path", ["", ".", "/", "\0", "gone.wav", "x" * 300 + ".wav"])
def test_one_path_that_is_none_costs_its_recording_alone(tmp_path, path):
    """Catches an import that a file which is not there, or a name that none can have, stops."""
    conversation(tmp_path, "good.wav")
    (lines, left_out), _ = brought_in(tmp_path, path, "good.wav")
    assert lines == 1
    assert left_out == 1


def test_swapped_channels_are_suspected(tmp_path):
    """Catches a data set whose model is the other speaker: its words lie where its channel is
    quiet."""
    conversation(tmp_path, "right.wav", channels=(0.5, 0.01))
    conversation(tmp_path, "wrong.wav", channels=(0.01, 0.5))
    brought_in(tmp_path, "right.wav", "wrong.wav")
    counts = check(tmp_path / "out.jsonl")
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
        counts = importers.bring_in(layout, tmp_path / source, tmp_path / "out.jsonl",
                                    overwrite=True)
        assert counts == (1, missing)
        ((turn,),) = read_manifest(tmp_path / "out.jsonl", "tts")
        assert turn["response"] == text
        assert turn["spoken"].exists()
    importers.bring_in("table", tmp_path / "plain/t.jsonl", tmp_path / "out.jsonl", overwrite=True)
    ((turn,),) = read_manifest(tmp_path / "out.jsonl", "word-aligned")
    assert turn["words"] == [["x", 0, 0.1]]


@pytest.mark.parametrize("layout, files, texts", [
    ("st-cmds", {"20170001P00001A0001.txt": "你好 吗\n", "20170001P00001A0001.wav": None,
                 "20170001P00001A0001.metadata": "speaker", "20170001P00001A0002.txt": "",
                 "20170001P00001A0002.wav": None}, ["你好吗"]),
    ("magicdata", {"train/TRANS.txt": "UtteranceID\tSpeakerID\tTranscription\n"
                                      "38_5716_1.wav\t38_5716\t播放[FIL]一首歌[SPK]\n"
                                      "38_5716_2.wav\t38_5716\tgone\n",
                   "train/38_5716/38_5716_1.wav": None,
                   "dev/TRANS.txt": "UtteranceID\tSpeakerID\tTranscription\n"
                                    "5_1_1.wav\t5_1\tThe API\n", "dev/5_1/5_1_1.wav": None},
     ["The API", "播放一首歌"]),
    ("primewords", {"set1_transcript.json": '[{"id": 1, "file": "a1b2.wav", "user_id": 9, "text": '
                                            '"现在 几 点"}, {"id": 2, "text": "x"}]',
                    "audio_files/a/a1/a1b2.wav": None}, ["现在几点"]),
    ("thchs-30", {"data/A2_0.wav.trn": "绿 是 阳春\nlv4 shi4 yang2 chun1\nl v4 sh ix4\n",
                  "data/A2_0.wav": None, "train/A2_0.wav.trn": "../data/A2_0.wav.trn\n",
                  "train/A2_0.wav": None}, ["绿是阳春"]),
    ("fleurs", {"train.tsv": "1\t10.wav\tIt's 5 o'clock.\tit's 5 o'clock\ti t\t9\tMALE\n2\tx\n",
                "audio/train/10.wav": None,
                "dev.tsv": "3\t11.wav\tYes.\tyes\ty\t9\tFEMALE\n", "dev/11.wav": None},
     ["It's 5 o'clock.", "Yes."]),
])
def test_more_layouts_become_manifests(tmp_path, layout, files, texts):
    """Catches a layout read with the wrong column, folder or text, spaces that stay between Chinese
    words, and marks of noise that are taught as text."""
    for name, text in files.items():
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            tone(file, 0.1)
        else:
            file.write_text(text, encoding="utf-8")
    lines, left_out = importers.bring_in(layout, tmp_path / "set", tmp_path / "out.jsonl")
    dialogs = read_manifest(tmp_path / "out.jsonl", "tts")
    assert [turn["response"] for (turn,) in dialogs] == texts
    assert lines == len(texts)
    assert left_out == (layout != "thchs-30")


def test_thchs_30_s_parts_are_read_through_their_links(tmp_path):
    """Catches the path of a text that is taken for the text."""
    for name, text in (("data/A2_0.wav.trn", "绿 是\nlv4\n"),
                       ("train/A2_0.wav.trn", "../data/A2_0.wav.trn\n")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, encoding="utf-8")
    tone(tmp_path / "train/A2_0.wav", 0.1)
    importers.bring_in("thchs-30", tmp_path / "train", tmp_path / "out.jsonl")
    assert read_manifest(tmp_path / "out.jsonl", "tts")[0][0]["response"] == "绿是"


@pytest.mark.parametrize("layout", importers.LAYOUTS)
def test_another_layout_is_one_sentence(tmp_path, layout):
    """Catches a traceback, or an empty manifest, for a folder that is not laid out as was said."""
    tone(tmp_path / "plain/p.wav", 0.1)
    with pytest.raises((DataError, OSError), match="plain"):
        importers.bring_in(layout, tmp_path / "plain", tmp_path / "out.jsonl")


# --- references ---

def test_a_reference_is_another_recording_of_the_same_voice(tmp_path):
    """Catches a recording that is its own reference, one of another voice, parts of one file that
    lose their times, and a manifest that encode does not take."""
    lines = []
    for name in ("a/1", "a/2", "b/1", "b/2", "c/1"):
        file = tmp_path / f"{name}.wav"
        file.parent.mkdir(exist_ok=True)
        soundfile.write(file, np.full(4800, 0.1), 24_000)
        lines.append({"audio": f"{name}.wav", "text": name})
    lines += [{"audio": "c/1.wav", "text": "part", "start": 0.05, "end": 0.1}]
    manifest = tmp_path / "pairs.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "references.jsonl"
    data.main(["references", str(manifest), str(out)])
    dialogs = [turn for turn, in read_manifest(out, "reference-tts")]
    assert [turn["response"] for turn in dialogs] == ["a/1", "a/2", "b/1", "b/2", "c/1", "part"]
    heard = [turn["heard"] for turn in dialogs]
    assert heard[:4] == [tmp_path / f"{name}.wav" for name in ("a/2", "a/1", "b/2", "b/1")]
    assert (heard[4].start, heard[4].end) == (0.05, 0.1)
    assert dialogs[5]["spoken"] == heard[4] and heard[5] == dialogs[4]["spoken"]
    manifest.write_text(json.dumps(lines[4]) + "\n")
    with pytest.raises(SystemExit, match="no two recordings are in one folder"):
        data.main(["references", str(manifest), str(out), "--overwrite"])


def test_another_speed_is_another_voice():
    """Catches references whose pitch is not that of the speech that follows."""
    with pytest.raises(ValueError, match="--speeds would make another voice"):
        data.Settings("reference-tts", speeds=(0.9, 1.1))
