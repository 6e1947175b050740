"""Recordings without texts, by a recogniser that stands in for faster-whisper: pieces are cut where
it is silent, every one is written once, and a stopped run goes on."""
import json
import types

import numpy as np
import pytest
import soundfile

import data
from workshop import recogniser, speech, transcription
from workshop.manifests import DataError, read_lines, read_manifest

RATE = 24_000


def sounds(spans, seconds):
    """A tone within some spans of seconds, and faint noise everywhere."""
    time = np.arange(int(seconds * RATE)) / RATE
    audio = 1e-4 * np.random.default_rng(0).standard_normal(len(time))
    for start, end in spans:
        inside = (time >= start) & (time < end)
        audio[inside] += 0.3 * np.sin(2 * np.pi * 300 * time[inside])
    return audio.astype(np.float32)


class Stub:
    """In a recogniser's place: the text is the length of what it is given, and it may stop."""

    def __init__(self, stop_after=None):
        self.calls = 0
        self.stop_after = stop_after

    def listen(self, audio, rate):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return {"text": f"{len(audio) / rate:.1f} seconds", "confidence": 0.5}


@pytest.fixture
def folder(tmp_path):
    """Two recordings, one in a folder below, and a file that is none."""
    (tmp_path / "in" / "below").mkdir(parents=True)
    three = sounds([(0.5, 2.0), (2.3, 3.0), (5.0, 6.0)], 7)
    soundfile.write(tmp_path / "in" / "a.wav", three, RATE)
    soundfile.write(tmp_path / "in" / "below" / "b.flac", sounds([(1.0, 2.0)], 3), 16_000)
    (tmp_path / "in" / "c.wav").write_bytes(b"RIFF")
    return tmp_path


def test_speech_is_where_it_sounds():
    """Catches spans in another unit, faint noise taken for speech, and a click taken for a word."""
    audio = sounds([(0.5, 2.0), (2.1, 3.0), (5.0, 6.0), (6.5, 6.54)], 7)
    spans = speech.speech_spans(audio)
    assert np.allclose(spans, [(0.5, 3.0), (5.0, 6.0)], atol=0.03)
    assert speech.speech_spans(np.zeros(RATE, np.float32)) == []


def test_pieces_end_in_silence_and_are_short_enough():
    """Catches a piece that a recogniser cannot take whole, speech that is in no piece or in two,
    and a long sound that is cut where it is loud."""
    audio = sounds([(0.5, 2.0), (2.3, 3.0), (5.0, 6.0), (8.0, 20.0)], 22)
    audio[int(15.0 * RATE):int(15.1 * RATE)] = 0  # too short a gap for a pause
    pieces = speech.pieces(audio, silence=0.6, longest=10)
    assert np.allclose([start for start, _ in pieces[:2]], [0.35, 4.85], atol=0.03)
    assert all(end - start <= 10 for start, end in pieces)
    assert all(one[1] <= other[0] for one, other in zip(pieces, pieces[1:]))
    assert any(abs(start - 15.05) < 0.2 for start, _ in pieces)
    inside = np.zeros(len(audio), bool)
    for start, end in pieces:
        inside[int(start * RATE):int(end * RATE)] = True
    assert inside[np.abs(audio) > 0.1].mean() > 0.999


def test_every_piece_becomes_a_line_that_encode_can_read(folder, capsys):
    """Catches times that are not those of the file, a confidence that is lost, and a broken
    recording that ends the run or is dropped without a word."""
    out = folder / "pairs.jsonl"
    counts = transcription.transcribe(folder / "in", out, Stub().listen, "stub")
    assert counts["lines"] == 3 and counts["recordings that cannot be read"] == 1
    assert "c.wav" in capsys.readouterr().err
    rows = [row for _, row in read_lines(out)]
    assert [row["start"] for row in rows] == pytest.approx([0.35, 4.85, 1.35], abs=0.03)
    assert {row["confidence"] for row in rows} == {0.5}
    parts = [turn["spoken"] for (turn,) in read_manifest(out, "tts")]
    assert [part.path.name for part in parts] == ["a.wav", "a.wav", "b.flac"]
    for row, part in zip(rows, parts):
        assert row["text"] == f"{part.end - part.start:.1f} seconds"
    assert not list(folder.glob(".*"))


def test_a_stopped_run_goes_on(folder):
    """Catches a recording that is listened to twice, or lost, when a run is stopped, and half a
    line or half a character that a kill leaves."""
    out = folder / "pairs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        transcription.transcribe(folder / "in", out, Stub(stop_after=2).listen, "stub")
    assert not out.exists()
    progress = folder / ".pairs.jsonl.progress"
    progress.write_bytes(progress.read_bytes() + b'{"path": "half')
    with pytest.raises(DataError, match="with other settings"):
        transcription.transcribe(folder / "in", out, Stub().listen, "another model")
    progress.write_bytes(progress.read_bytes() + b'{"path": "\xe5')  # half of a character, too
    stub = Stub()
    transcription.transcribe(folder / "in", out, stub.listen, "stub")
    assert stub.calls == 1  # of b.flac
    assert len(list(read_lines(out))) == 3
    with pytest.raises(ValueError, match="pairs.jsonl exists"):
        transcription.transcribe(folder / "in", out, stub.listen, "stub")


def test_recordings_of_a_telephone_are_named(folder, capsys):
    """Catches .m4a beside .wav that is passed over without a word, and .aiff that could be read."""
    (folder / "in" / "memo.m4a").write_bytes(b"ftyp")
    soundfile.write(folder / "in" / "d.aiff", sounds([(0.5, 1.5)], 2), RATE)
    counts = transcription.transcribe(folder / "in", folder / "p.jsonl", Stub().listen, "stub")
    assert counts["recordings of a kind that is not read"] == 1
    assert counts["lines"] == 4
    printed = capsys.readouterr().err
    assert "memo.m4a; convert them first, for example by `ffmpeg -i memo.m4a memo.flac`" in printed


def test_a_recogniser_s_times_are_made_those_of_the_piece(tmp_path):
    """Catches words behind the end of their piece, or in another order than their sound, for which
    the whole line is refused later."""
    soundfile.write(tmp_path / "a.wav", sounds([(0.5, 1.5)], 2), RATE)

    def listen(audio, rate):
        words = [["One", 0.0, 0.4], ["two", 0.3, 0.2], ["three", 0.25, 9.0]]
        return {"text": "One two three", "confidence": 0.9, "words": words}
    transcription.transcribe(tmp_path, tmp_path / "out.jsonl", listen, "stub")
    ((turn,),) = read_manifest(tmp_path / "out.jsonl", "word-aligned")
    assert turn["words"] == [["One", 0.0, 0.4], ["two", 0.3, 0.3],
                             ["three", 0.3, pytest.approx(1.3, abs=0.03)]]


def test_silence_alone_is_no_success(tmp_path):
    """Catches an empty manifest, and exit code 0, where nothing was understood."""
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(DataError, match="no words were understood in 1 recordings"):
        transcription.transcribe(tmp_path, tmp_path / "out.jsonl", Stub().listen, "stub")


def test_a_folder_without_a_model_is_noticed_at_once(tmp_path, capsys):
    """Catches a wrong --whisper that is found out after hours of other work."""
    soundfile.write(tmp_path / "a.wav", sounds([(0, 1)], 1), RATE)
    rows = {"audio": "a.wav", "text": "ten letters"}
    (tmp_path / "m.jsonl").write_text(json.dumps(rows))
    for name in (str(tmp_path), "./nowhere", str(tmp_path / "gone")):
        with pytest.raises(ValueError, match="is no folder of a faster-whisper model"):
            recogniser.check_packages(name)
        for command in (["transcribe", str(tmp_path), str(tmp_path / "out.jsonl")],
                        ["check", str(tmp_path / "m.jsonl")]):
            with pytest.raises(SystemExit) as stopped:
                data.main([*command, "--whisper", name])
            assert "has no model.bin" in stopped.value.code
    assert not (tmp_path / "m.clean.jsonl").exists()
    assert not recogniser.is_folder("Systran/whisper-tiny")


@pytest.mark.parametrize("size", ["tiny", "small", "large-v3", "distil-large-v3.5", "turbo"])
def test_a_size_is_no_folder(size, tmp_path, monkeypatch):
    """Catches `--whisper tiny` beside a folder tiny/, as this repository has one: it is no model of
    Whisper's, and the size is meant."""
    (tmp_path / size).mkdir()
    monkeypatch.chdir(tmp_path)
    assert not recogniser.is_folder(size)
    assert recogniser.is_folder(f"./{size}")


def test_the_recogniser_says_how_sure_it_is():
    """Catches a confidence that is a mean of means, or no probability, and word times that are
    lost."""
    word = types.SimpleNamespace(word=" It", start=0.1, end=0.25)
    segments = [types.SimpleNamespace(text=" It", tokens=[1] * 3, avg_logprob=0.0, words=[word]),
                types.SimpleNamespace(text=" rains.", tokens=[1], avg_logprob=-4.0, words=[])]
    model = types.SimpleNamespace(transcribe=lambda audio, **options: (segments, None))
    whisper = recogniser.Recogniser.__new__(recogniser.Recogniser)
    whisper.model, whisper.language = model, "en"
    result = whisper.listen(np.zeros(RATE, np.float32), RATE, with_words=True)
    assert result == {"text": "It rains.", "confidence": 0.368, "words": [["It", 0.1, 0.25]]}
    assert whisper.transcribe(np.zeros(RATE, np.float32), RATE) == "It rains."
