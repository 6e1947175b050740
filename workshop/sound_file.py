"""Sound files: reading what people have, writing what they ask for, and saying beforehand what
cannot go well.

What this is: the one way in which sound comes from a disk and goes to it. It serves mimi.py,
chat.py, and every root file that reads recordings. What this is not: the codec (mimi.py), a sound
card, or the record of a conversation (record.py).

    python mimi.py voice.mp3 again.flac           # reads and writes by this file alone

What is wrong with a file and can be put right safely is put right, and said in one sentence on
stderr: channels of opposite phase, floats at the scale of whole numbers, a header that was never
completed. Everything else is a ValueError or OSError whose message is one sentence.
"""
import io
import math
import os
import shutil
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from workshop.files import check_place, replacing

SAMPLE_RATE = 24_000      # Hz, into which all that is read is converted
# What is written for an ending: soundfile's format and subtype. tests/test_sound_file.py writes and
# reads back each of them.
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"),
           ".mp3": ("MP3", "MPEG_LAYER_III"),
           ".aiff": ("AIFF", "PCM_16"), ".aif": ("AIFF", "PCM_16"),
           ".au": ("AU", "PCM_16"), ".caf": ("CAF", "PCM_16"), ".w64": ("W64", "PCM_16")}
READABLE = (*FORMATS, ".opus")
# Endings of what libsndfile does not read, and ffmpeg does.
FOREIGN = {".webm", ".m4a", ".mp4", ".m4b", ".mov", ".aac", ".wma", ".mkv", ".mka", ".amr", ".3gp",
           ".ape", ".ac3", ".wv"}
RATES = (2_000, 768_000)  # samples a second; a header that says anything else is damaged
LONGEST = 24              # hours of sound; a header that says more is damaged
TELEPHONE = 8_000         # samples a second; speech of so few lacks what tells its consonants apart
# A mix with less than this share of the power that unrelated channels would give has cancelled.
OPPOSITE = 0.1
LOUDEST = 8.0             # full scale is 1; samples 18 dB beyond are at a scale of whole numbers
SCALES = (2.0 ** 15, 2.0 ** 23, 2.0 ** 31)  # full scale of 16, 24 and 32 bits
STREAMED = 0x7FFFF000     # data sizes from here on stand for "not known" in the header of a stream
BLOCK = 2 ** 16           # samples given to an encoder at once; Vorbis' takes stack for each


def note(path, sentence):
    """Say on stderr what was noticed in a file."""
    print(f"note: {path} {sentence}", file=sys.stderr)


# --- reading ---

@dataclass(frozen=True)
class Part:
    """What sounds in a file between two times, in seconds; end None: until the file's end."""
    path: Path
    start: float = 0.0
    end: float | None = None

    def __str__(self):
        end = "its end" if self.end is None else f"{self.end:g} s"
        return f"{self.path} from {self.start:g} s to {end}"


def read_audio(path, sample_rate=SAMPLE_RATE):
    """Any file that soundfile reads, mixed down to mono and resampled: float32 [N], about -1 .. 1.
    Of a Part its samples alone are read.

    Raises ValueError, one sentence, for a file that is missing, empty, damaged or no audio."""
    audio, rate = _read(path)
    return _mono_at_rate(path, audio, rate, sample_rate)


def loudness(audio):
    """dB of the root mean square of samples [N], footnote 9 of the paper."""
    return 20 * np.log10(np.sqrt(np.square(audio).mean()) + 1e-6)


def read_question(path, sample_rate=SAMPLE_RATE):
    """`read_audio`, for a model that listens: says so where the sound is too narrow to be heard
    well."""
    audio, rate = _read(path)
    if rate <= TELEPHONE:
        note(path, f"has {rate:,} samples a second, as a telephone's sound: "
                   "speech so narrow is heard less well than at 16,000 and more")
    return _mono_at_rate(path, audio, rate, sample_rate)


def _mono_at_rate(path, audio, rate, sample_rate):
    """audio [M, C] at one rate -> float32 [N] at another."""
    audio = _to_full_scale(path, audio)
    mono = _mix_down(path, audio)
    if rate != sample_rate:
        import soxr
        mono = soxr.resample(mono, rate, sample_rate)
    if not len(mono):
        raise ValueError(f"{path} holds too little sound: {len(audio)} samples at {rate:,} Hz")
    return torch.from_numpy(mono)


def _read(path):
    """-> (audio float32 [N, C], samples a second), as the file has them. Raises ValueError."""
    import soundfile
    part = path if isinstance(path, Part) else Part(Path(path))
    path = Path(part.path)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and no sound file")
    try:
        source = _completed(path)
        with soundfile.SoundFile(source) as file:
            declared = file.frames
            rate = file.samplerate
            if not RATES[0] <= rate <= RATES[1]:
                raise ValueError(f"{path} has a damaged header: {rate:,} samples a second")
            hours = declared / rate / 3600
            if hours > LONGEST:
                raise ValueError(f"{path} has a header that speaks of {hours:,.0f} hours of sound: "
                                 f"no more than {LONGEST} are read")
            first = min(round(part.start * rate), declared)
            last = declared if part.end is None else min(round(part.end * rate), declared)
            file.seek(first)
            audio = file.read(last - first, dtype="float32", always_2d=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise ValueError(f"{path} holds {hours:.1f} hours of sound, too many for the memory "
                         "here") from None
    except TypeError:  # what soundfile raises for samples without a header
        raise ValueError(f"{path} cannot be read as audio: it has no header; "
                         "convert it to .wav first") from None
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path} cannot be read as audio: {_reason(path, error)}") from None
    if not len(audio):
        raise ValueError(f"{part if first else path} holds no audio")
    if not np.isfinite(audio).all():
        raise ValueError(f"{path} holds samples that are no numbers")
    if len(audio) < last - first:
        note(path, f"is cut short: {len(audio) / rate:.1f} s of {(last - first) / rate:.1f} s are "
                   "there and are read")
    return audio, rate


def _reason(path, error):
    """Why soundfile cannot read a file, and what to do, without the path, which the sentence has
    already."""
    if path.suffix.lower() in FOREIGN:
        return f"convert it first, for example by `ffmpeg -i {path.name} {path.stem}.wav`"
    if path.is_file() and not path.stat().st_size:
        return "it is empty"
    return str(error).rpartition(": ")[2].rstrip(".")


def _completed(path):
    """What soundfile shall open: the path, or the bytes of a .wav whose header says "no samples"
    although samples follow.

    A recorder or a pipe that was cut off leaves such a header. soundfile reads a size that is too
    large as what is there, and a size of 0 as nothing. Says so in both cases. What comes through a
    pipe is read whole."""
    if not path.is_file():
        return io.BytesIO(path.read_bytes())
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return path
        place = _find_data(file)
        if place is None:
            return path
        file.seek(place)
        size, = struct.unpack("<I", file.read(4))
        there = os.fstat(file.fileno()).st_size - place - 4
        if size > there and size < STREAMED:
            note(path, f"is cut short: {there:,} of {size:,} bytes of sound are there and are read")
        if size or not there or _is_chunks(file, there):
            return path
        note(path, "has an unfinished header, which speaks of no sound: "
                   f"the {there:,} bytes that follow are read")
        file.seek(0)
        whole = bytearray(file.read())
    struct.pack_into("<I", whole, place, min(there, 2 ** 32 - 1))
    struct.pack_into("<I", whole, 4, min(len(whole) - 8, 2 ** 32 - 1))
    return io.BytesIO(whole)


def _find_data(file):
    """An open .wav -> where the size of its samples stands, or None."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            return file.tell() - 4
        file.seek(size + size % 2, os.SEEK_CUR)
    return None


def _is_chunks(file, size):
    """Whether the next `size` bytes are chunks of a .wav, such as a title, so that it is truly
    empty."""
    end = file.tell() + size
    while end - file.tell() >= 8:
        name, length = struct.unpack("<4sI", file.read(8))
        if not name.decode("latin1").isprintable():
            return False
        file.seek(length + length % 2, os.SEEK_CUR)
    return file.tell() in (end, end + 1)


def _to_full_scale(path, audio):
    """Floats at the scale of whole numbers are brought to -1 .. 1. audio [N, C]. Raises ValueError
    beyond all scales."""
    peak = float(np.abs(audio).max())
    if peak <= LOUDEST:
        return audio
    for scale in SCALES:
        if peak <= scale:
            bits = 1 + round(math.log2(scale))
            note(path, f"has samples up to {peak:,.0f}: they are taken as {bits}-bit numbers "
                       f"and divided by {scale:,.0f}")
            return audio / np.float32(scale)
    raise ValueError(f"{path} has samples up to {peak:.2g}, where full scale is 1: "
                     "no scale is known for them")


def _mix_down(path, audio):
    """audio [N, C] -> [N]: the mean of the channels, or one of them where they cancel each
    other."""
    mono = audio.mean(1)
    channels = audio.shape[1]
    if channels == 1:
        return mono
    powers = np.square(audio, dtype=np.float64).mean(0)  # [C]
    power = np.square(mono, dtype=np.float64).mean()
    if power >= OPPOSITE * powers.mean() / channels:  # unrelated channels have the share 1 / C
        return mono
    if not powers.any():  # digital silence
        return mono
    loudest = int(powers.argmax())
    note(path, "has channels of opposite phase, which cancel each other: "
               f"channel {loudest + 1} alone is read")
    return np.ascontiguousarray(audio[:, loudest])


# --- what cannot go well ---

def check_target(path, overwrite=False, sources=()):
    """Raise ValueError, one sentence, where a sound file must not or cannot be written to `path`.

    sources: files that are read, and that no `overwrite` covers."""
    import soundfile
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file in it")
    format = FORMATS.get(path.suffix.lower())
    if format is None or not soundfile.check_format(*format):
        raise ValueError(f"{path}: no sound format is known by that ending; "
                         f"take one of {' '.join(FORMATS)}")
    check_place(path, overwrite, sources)
    part = part_of(path)
    try:
        part.touch(exist_ok=False)
        part.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def check_space(sizes):
    """Raise ValueError, one sentence, where disks have no room. sizes: {path: bytes that it may
    take}."""
    required = {}
    for path, size in sizes.items():
        folder = Path(path).resolve().parent
        disk = folder.stat().st_dev
        required[disk] = required.get(disk, 0) + size
        free = shutil.disk_usage(folder).free
        if free < required[disk]:
            raise ValueError(f"{folder} has {free / 1e6:.1f} MB free and "
                             f"{required[disk] / 1e6:.1f} MB are needed for {Path(path).name}: "
                             "make room, or choose another disk")


# --- writing ---

def part_of(path):
    """The name beside `path` under which it is written, until it is whole. A link is followed."""
    path = Path(path).resolve()
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def write_audio(path, audio, sample_rate):
    """audio [N] or [N, C] -> a file of the format that its ending names, beside and then renamed.

    Raises OSError, one sentence."""
    data = _encode(path, np.asarray(audio), sample_rate)
    try:
        with replacing(Path(path).resolve()) as part:
            part.write_bytes(data)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from None


def _encode(path, audio, sample_rate):
    """The bytes of a sound file. In memory, so that what a disk refuses is told by the system and
    not by libsndfile."""
    import soundfile
    format, subtype = FORMATS[Path(path).suffix.lower()]
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, channels, subtype, format=format) as file:
        for start in range(0, len(audio), BLOCK):
            file.write(audio[start:start + BLOCK])
    return buffer.getvalue()


def rescue_audio(path, audio, sample_rate):
    """What could not be written to `path`, in the system's folder for temporary files -> a sentence
    that says where it is."""
    try:
        folder = tempfile.mkdtemp(prefix="flm-audio-")
        beside = Path(folder) / (Path(path).stem + ".wav")
        write_audio(beside, audio, sample_rate)
    except OSError:
        return "no other folder takes it either, and it is lost"
    return f"it is kept in {beside}"
