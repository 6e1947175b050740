"""Sound files as people have them: every format that is written, damaged headers, scales, phases,
and targets that lose nothing."""
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from workshop import codec_command as command_line, files, sound_file

ROOT = Path(__file__).parent.parent
RATE = 24_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)  # a second


def power(audio):
    return float(np.square(np.asarray(audio)).mean())


# --- reading ---

def test_reading_mixes_down_and_resamples(tmp_path, capsys):
    """Catches a stereo file read as one channel, or a rate taken for another: a 440 Hz tone stays
    one."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(22_050) / 44_100)
    soundfile.write(tmp_path / "a.flac", np.stack([tone, 0 * tone], 1), 44_100)
    audio = sound_file.read_audio(tmp_path / "a.flac").numpy()
    assert len(audio) == 12_000 and audio.dtype == np.float32
    assert np.abs(audio).max() == pytest.approx(0.25, rel=0.05)
    assert np.abs(np.fft.rfft(audio)).argmax() == 220  # half a second: bins of 2 Hz
    assert not capsys.readouterr().err


@pytest.mark.parametrize("gain", [-1.0, -0.8])
def test_opposite_phase_is_heard(tmp_path, capsys, gain):
    """Catches a mixdown in which two channels cancel each other, so that silence is heard without a
    word."""
    soundfile.write(tmp_path / "a.wav", np.stack([TONE, gain * TONE], 1), RATE, subtype="FLOAT")
    audio = sound_file.read_audio(tmp_path / "a.wav").numpy()
    assert np.array_equal(audio, TONE)
    assert "channels of opposite phase" in capsys.readouterr().err


def test_other_channels_are_mixed_as_ever(tmp_path, capsys):
    """Catches a sense of phase that takes unrelated voices, many silent channels, or silence for
    opposite phase."""
    other = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    silent = 0 * TONE
    one_of_many = [TONE] + [silent] * 31
    for channels in ([TONE, other], [TONE, silent], one_of_many, [silent, silent],
                     [TONE, -0.3 * TONE]):
        both = np.stack(channels, 1)
        soundfile.write(tmp_path / "a.wav", both, RATE, subtype="FLOAT")
        audio = sound_file.read_audio(tmp_path / "a.wav").numpy()
        np.testing.assert_allclose(audio, both.mean(1), atol=1e-6)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_floats_at_the_scale_of_whole_numbers(tmp_path, capsys, bits):
    """Catches a float file of samples up to 32,767 that is heard as nothing but clipping."""
    soundfile.write(tmp_path / "a.wav", TONE * 2.0 ** (bits - 1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(sound_file.read_audio(tmp_path / "a.wav").numpy(), TONE, atol=1e-6)
    assert f"taken as {bits}-bit numbers" in capsys.readouterr().err


def test_a_loud_recording_is_left_as_it_is(tmp_path, capsys):
    """Catches a loud float recording that is taken for whole numbers and becomes inaudible."""
    soundfile.write(tmp_path / "a.wav", TONE * 6, RATE, subtype="FLOAT")
    assert np.array_equal(sound_file.read_audio(tmp_path / "a.wav").numpy(), TONE * 6)
    assert not capsys.readouterr().err


def rewrite_header(path, size=None, cut=0, rate=None):
    """Change what a .wav of ours says: the bytes of its samples, its rate; or cut bytes off its
    end."""
    whole = bytearray(path.read_bytes())
    place = whole.index(b"data") + 4
    if size is not None:
        struct.pack_into("<I", whole, place, size)
    if rate is not None:
        struct.pack_into("<I", whole, whole.index(b"fmt ") + 12, rate)
    path.write_bytes(whole[:len(whole) - cut])


def test_a_stream_that_was_cut_off_is_read(tmp_path, capsys):
    """Catches a .wav whose header still says "no samples", as a recorder that was killed leaves it,
    heard as nothing."""
    path = tmp_path / "a.wav"
    soundfile.write(path, TONE, RATE)
    whole = sound_file.read_audio(path).numpy()
    rewrite_header(path, size=0)
    assert np.array_equal(sound_file.read_audio(path).numpy(), whole)
    assert "the 48,000 bytes that follow are read" in capsys.readouterr().err
    rewrite_header(path, size=0xFFFFFFFF)  # what ffmpeg writes to a pipe: nothing is wrong with it
    assert np.array_equal(sound_file.read_audio(path).numpy(), whole)
    assert not capsys.readouterr().err
    rewrite_header(path, size=48_000, cut=24_000)
    assert np.array_equal(sound_file.read_audio(path).numpy(), whole[:12_000])
    assert "is cut short" in capsys.readouterr().err


def test_an_empty_wav_with_a_title_stays_empty(tmp_path):
    """Catches a title behind no samples that is played as sound."""
    path = tmp_path / "a.wav"
    soundfile.write(path, TONE[:0], RATE)
    title = b"INFOINAM" + struct.pack("<I", 6) + b"hello\0"
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", len(title)) + title)
    with pytest.raises(ValueError, match="holds no audio"):
        sound_file.read_audio(path)


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    """Catches tracebacks, "System error" for a missing file, and no hint where a file has only to
    be converted."""
    for rate in (1, 2_000_000_000):
        soundfile.write(tmp_path / f"{rate}.wav", TONE[:100], RATE)
        rewrite_header(tmp_path / f"{rate}.wav", rate=rate)
    soundfile.write(tmp_path / "one.wav", TONE[:1], 96_000)
    soundfile.write(tmp_path / "none.wav", TONE[:0], RATE)
    soundfile.write(tmp_path / "huge.wav", np.array([1e30, 0]), RATE, subtype="DOUBLE")
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan), RATE, subtype="FLOAT")
    for name in ("clip.webm", "clip.M4A", "clip.mp4", "clip.aac", "noise.wav", "samples.raw"):
        (tmp_path / name).write_bytes(b"this is no sound that anybody knows")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "folder.wav").mkdir()
    for name, sentence in [
        ("missing.wav", "does not exist"), ("folder.wav", "is a folder"),
        ("empty.wav", "it is empty"), ("noise.wav", "Format not recognised"),
        ("samples.raw", "it has no header"), ("none.wav", "holds no audio"),
        ("1.wav", "header: 1 samples a second"),
        ("2000000000.wav", "header: 2,000,000,000 samples"),
        ("one.wav", "holds too little sound: 1 samples at 96,000 Hz"),
        ("nan.wav", "samples that are no numbers"),
        ("huge.wav", "no scale is known"),
        ("clip.webm", "`ffmpeg -i clip.webm clip.wav`"),
        ("clip.M4A", "`ffmpeg -i clip.M4A clip.wav`"),
        ("clip.mp4", "convert it first"), ("clip.aac", "convert it first"),
    ]:
        with pytest.raises(ValueError) as error:
            sound_file.read_audio(tmp_path / name)
        message = str(error.value)
        assert message.startswith(str(tmp_path / name)), message
        assert sentence in message and "\n" not in message, message


@pytest.mark.parametrize("rate, narrow", [(8000, True), (16_000, False)])
def test_telephone_sound_is_told(tmp_path, capsys, rate, narrow):
    """Catches a question by telephone that is misheard without a word of warning."""
    soundfile.write(tmp_path / "a.wav", TONE[:4000], rate)
    sound_file.read_question(tmp_path / "a.wav")
    assert ("heard less well" in capsys.readouterr().err) == narrow


# --- writing ---

@pytest.mark.parametrize("ending", sound_file.FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_is_read_again(tmp_path, ending, channels):
    """Catches a format that is announced and cannot be read, one that loses a channel, the rate or
    the length, and WAV under another ending."""
    audio = np.stack([TONE, 0.5 * TONE], 1)[:, :channels]
    if channels == 1:
        audio = audio[:, 0]
    path = tmp_path / f"a{ending}"
    sound_file.check_target(path)
    sound_file.write_audio(path, audio, RATE)
    again, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE and again.shape == audio.shape
    assert soundfile.info(path).format == sound_file.FORMATS[ending][0]
    middle = slice(4000, 20_000)  # a lossy encoder begins softly
    loss = power(again[middle] - audio[middle]) / power(audio[middle])
    assert loss < (1e-3 if ending in (".ogg", ".mp3") else 1e-8), loss
    assert os.listdir(tmp_path) == [path.name]


def test_no_ending_is_promised_that_does_not_work(tmp_path):
    """Catches endings that soundfile lists, and whose files are lost (.raw .sd2 .wve .xi .htk), or
    that are unknown."""
    for ending in (".raw", ".sd2", ".wve", ".xi", ".htk", ".sds", ".xyz", ".opus", ".txt", ""):
        with pytest.raises(ValueError, match="no sound format is known by that ending"):
            sound_file.check_target(tmp_path / f"a{ending}")


def test_targets_are_checked_before_anything_is_done(tmp_path):
    """Catches a folder, a read-only folder or an existing file that is noticed only when a
    conversation is over, and a check that leaves something behind."""
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "there.wav").write_bytes(b"mine")
    (tmp_path / "file").touch()
    for path, sentence in [
        (tmp_path / "folder.wav", "is a folder"),
        (tmp_path / "there.wav", "exists: choose another name"),
        (tmp_path / "no" / "a.wav", "is no folder to write a.wav to"),
        (tmp_path / "file" / "a.wav", "is no folder to write"),
        (tmp_path / ("a" * 300 + ".wav"), "File name too long"),
    ]:
        with pytest.raises((ValueError, OSError), match=sentence):
            sound_file.check_target(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.wav", "there.wav"]
    sound_file.check_target(tmp_path / "there.wav", overwrite=True)
    assert (tmp_path / "there.wav").read_bytes() == b"mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files(tmp_path):
    """Catches a read-only folder that is noticed at the end, also by a user whom permissions do not
    bind."""
    with pytest.raises(ValueError, match="cannot be written"):
        sound_file.check_target(Path("/proc/self/a.wav"))


def test_a_source_is_never_a_target(tmp_path, monkeypatch):
    """Catches a source that is overwritten under another spelling, a link of either kind, or with
    --overwrite."""
    source = tmp_path / "q.wav"
    soundfile.write(source, TONE, RATE)
    (tmp_path / "soft.wav").symlink_to(source)
    (tmp_path / "hard.wav").hardlink_to(source)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("q.wav", "./q.wav", "folder/../q.wav", "soft.wav", "hard.wav", source):
        with pytest.raises(ValueError, match="is what is read"):
            sound_file.check_target(path, overwrite=True, sources=[source])


def test_two_names_of_one_file(tmp_path, monkeypatch):
    """Catches two spellings of a file that does not exist yet, so that the second writer overwrites
    the first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert files.same_file("a.wav", tmp_path / "a.wav")
    assert files.same_file("a.wav", "link/a.wav")
    assert files.same_file("a.wav", "A.WAV")  # one file on a Mac
    assert not files.same_file("a.wav", "b.wav")


def test_writing_through_a_link_keeps_the_link(tmp_path):
    """Catches a link that is replaced by a file, so that the file behind it stays old."""
    (tmp_path / "real.wav").touch()
    (tmp_path / "link.wav").symlink_to("real.wav")
    sound_file.write_audio(tmp_path / "link.wav", TONE, RATE)
    assert (tmp_path / "link.wav").is_symlink()
    assert soundfile.info(tmp_path / "real.wav").frames == RATE


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    """Catches a conversation that is held although its disk has no room for both of its files."""
    monkeypatch.setattr(sound_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    sound_file.check_space({tmp_path / "a.wav": 600_000})
    with pytest.raises(ValueError, match="has 1.0 MB free and 1.2 MB are needed for b.wav"):
        sound_file.check_space({tmp_path / "a.wav": 600_000, tmp_path / "b.wav": 600_000})


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    """Catches a disk that fills while a file is replaced, so that neither the old nor the new one
    is left."""
    (tmp_path / "a.wav").write_bytes(b"mine")

    def fail(self, data):
        self.touch()
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match="a.wav cannot be written: No space left on device"):
            sound_file.write_audio(tmp_path / "a.wav", TONE, RATE)
    assert os.listdir(tmp_path) == ["a.wav"] and (tmp_path / "a.wav").read_bytes() == b"mine"


# --- the codec's command line ---

def codec_command(*arguments):
    """mimi.py's command -> None, or the sentence that it ends with."""
    try:
        command_line.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def test_the_codec_overwrites_nothing(tmp_path, untrained, capsys):
    """Catches a voice that is overwritten by its own copy, WAV bytes under a .flac name, and a
    traceback."""
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, TONE, RATE)
    before = voice.read_bytes()
    again = tmp_path / "folder" / ".." / "voice.wav"
    (tmp_path / "folder").mkdir()
    assert "is what is read" in codec_command(voice, again, "--overwrite", "--model", untrained)
    assert "no sound format" in codec_command(voice, tmp_path / "a.sd2", "--model", untrained)
    missing = codec_command(tmp_path / "no.wav", tmp_path / "a.wav", "--model", untrained)
    assert "does not exist" in missing
    assert codec_command(voice, tmp_path / "a.flac", "--model", untrained) is None
    assert soundfile.info(tmp_path / "a.flac").format == "FLAC"
    assert "13 frames of 8 codes" in capsys.readouterr().out
    assert "a.flac exists" in codec_command(voice, tmp_path / "a.flac", "--model", untrained)
    assert codec_command(voice, tmp_path / "a.flac", "--overwrite", "--model", untrained) is None
    assert voice.read_bytes() == before


@pytest.mark.parametrize("option, first", [("", "1. A row: 17 channels\n"), ("--help", "usage: stream.py")])
def test_nobody_reads_what_is_drawn(option, first):
    """Catches a traceback where a reader goes away early."""
    command = f"{sys.executable} {ROOT / 'stream.py'} {option} | (head -c 20; exec 0<&-)"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert ended.stdout.startswith(first[:20]) and not ended.stderr, ended.stderr


def test_a_pipe_is_read(tmp_path):
    """Catches a reader that looks at a pipe twice, as at a file: the second time nothing is
    there."""
    soundfile.write(tmp_path / "a.wav", TONE, RATE)
    os.mkfifo(tmp_path / "pipe")
    whole = (tmp_path / "a.wav").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[whole])
    writer.start()
    piped = sound_file.read_audio(tmp_path / "pipe")
    writer.join()
    assert np.array_equal(piped.numpy(), sound_file.read_audio(tmp_path / "a.wav").numpy())


def test_a_header_that_promises_years(tmp_path):
    """Catches a traceback where a damaged header asks for more memory than there is."""
    path = tmp_path / "a.flac"
    sound_file.write_audio(path, TONE, RATE)
    damaged = bytearray(path.read_bytes())
    damaged[21] |= 0x0F  # the upper bits of FLAC's number of samples
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="speaks of 746 hours of sound: no more than 24"):
        sound_file.read_audio(path)


def test_a_user_s_part_file_stays(tmp_path):
    """Catches an answer that is written by way of a name that the user may have given to a file."""
    mine = tmp_path / "answer.wav.part"
    mine.write_text("mine")
    sound_file.write_audio(tmp_path / "answer.wav", np.zeros(100, np.float32), 24_000)
    assert mine.read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} == {"answer.wav", "answer.wav.part"}
