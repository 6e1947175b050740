"""From manifests to token grids: recordings and their words become what train.py reads.

What this is: joining turns with random silences (section 3.1), augmenting what the user's
microphone hears (sections 3.2.1 and 3.2.2), encoding, and the files that hold the grids. What this
is not: manifests (workshop/manifests.py and its neighbours, whose commands are here too), the
formats (stream.py), or the reading of a training set (workshop/training_set.py).

    python data.py encode pairs.jsonl grids/tts --format tts --join 1 4
    python data.py encode dialogs.jsonl grids/ft2 --format response-tts-free --join 1 4

A sample is one or more turns, with a random silence before, between and after them. Two turns:

    user_audio  ~~~~~~~~~~[question 1]~~~~~~~~~~~~~~~~~~~~~~~~[question 2]~~~~~~~~~~~~~~~~~~~~~~
    speak       000000000000000000000000[answer 1]00000000000000000000000000[answer 2]0000000000
                |silence |            |c|         |silence   |            |c|         |silence  |

`~` is noise, `0` are the codes of digital silence, and `c` is CLOSING_SILENCE, behind which the
model may write. `GridMaker` makes a grid in five steps:

    read_turn       a turn of the manifest -> Exchange: its clips, its codes, its length in frames
    free_user       (response-tts-free)       some questions interrupt, some users say "uh-huh"
    write_script    exchanges              -> stream.Script: which frame has which words and clips
    lay_user_audio  script and clips       -> user_audio [T * FRAME], with noise and leakage
    grids           all of it              -> stream.Grid: text, speak and listen

Unusual here:
- What is heard is one continuous waveform, silence and noise included, and is encoded whole.
- Decision: what is spoken is encoded clip by clip, each from the start of a frame on. So a clip has
  one set of codes wherever it stands, and is encoded once for many samples.
- A shard depends on the settings and on its number alone. A stopped run goes on, and any number of
  processes make the same shards.

Shapes: N samples of a waveform (24 kHz, float32, -1 .. 1), T frames of 80 ms, K = 8 codebooks,
B clips.
"""
import argparse
import json
import math
import random
import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import parent_process
from pathlib import Path

from workshop import command

if __name__ == "__main__":
    command.stop_while_loading("data.py")

import numpy as np
import soxr
import torch

import mimi
import stream
from stream import Turn
from workshop import check, encoding, importers, shards, sound_file, synthesis
from workshop.encoding import recordings
from workshop.manifests import DataError, read_manifest
from workshop.sound_file import loudness
from workshop.training_set import read_index

SAMPLE_RATE = 24_000  # Hz
FRAME = 1920          # samples

# Decision: the paper separates pairs "by random silence" and says no more. Short silences are
# common; long ones are rare but present, because a model that never met ten quiet seconds starts to
# talk in them.
SILENCE_MEAN = 6                 # frames
LONG_SILENCE = (25, 125)         # frames
LONG_SILENCE_PROBABILITY = 0.15
# Decision: a person may think for a minute before the next question. Where --longest-silence allows
# more than LONG_SILENCE, this share of all silences is longer than it.
VERY_LONG_SILENCE_PROBABILITY = 0.05
# Decision: only silence tells that an utterance is over, so each ends with this much of it before
# the model may write. Without it equation 3, in which a <wait> weighs a hundredth of a word,
# rewards speaking into every pause. A turn of the manifest may ask for another ("patience", in
# seconds).
CLOSING_SILENCE = 2              # frames


@dataclass(frozen=True)
class Settings:
    """What decides the contents of grids, beside the manifest and the model. Raises DataError.

    Grids of the same settings are the same to the byte, within one VERSION of this file."""
    format: str                 # of stream.FORMATS
    join: tuple = (1, 1)        # fewest and most lines of the manifest in a sample
    draws: int = 1              # samples that each line is in; silence, level and noise differ
    seed: int = 0
    shuffled: bool = True       # random order of the lines, or the manifest's
    noise: tuple = ()           # folders of recordings; without any the noise is synthetic
    backchannels: tuple = ()    # folders of recordings of "uh-huh" and the like
    leakage: bool = False       # the microphone may hear the model; see `leaks`
    rooms: bool = False         # rooms, microphones, pauses and louder noise
    speeds: tuple = (1, 1)      # slowest and fastest at which what is heard is played
    hearing: Path | None = None  # folder of another codec for what is heard
    reaction: float = stream.REACTION_DELAY  # seconds from an interruption to the model's silence
    longest_silence: float = LONG_SILENCE[1] / stream.FRAME_RATE  # seconds
    long_silences: float = LONG_SILENCE_PROBABILITY  # share of silences as long as LONG_SILENCE
    longest_sample: int | None = None  # frames; the last turns of a longer sample are left out

    def __post_init__(self):
        if self.format not in stream.FORMATS:
            raise DataError(f"there is no format {self.format}, only {', '.join(stream.FORMATS)}")
        fewest, most = self.join
        slowest, fastest = self.speeds
        if not 1 <= fewest <= most or self.draws < 1 or not 0.1 <= slowest <= fastest <= 10:
            raise DataError("--join takes FEWEST and MOST from 1 on, --draws 1 or more, "
                            "--speeds SLOWEST and FASTEST from 0.1 to 10")
        if not 0 <= self.reaction < 60:
            raise DataError(f"--reaction must be 0 .. 60 seconds, not {self.reaction:g}")
        least = LONG_SILENCE[1] / stream.FRAME_RATE
        if not least <= self.longest_silence < 3600:
            raise DataError(f"--longest-silence must be {least:g} seconds or more, "
                            f"not {self.longest_silence:g}")
        if not 0 <= self.long_silences <= 1:
            raise DataError(f"--long-silences must be a share, 0 .. 1, not {self.long_silences:g}")

    @property
    def leaks(self):
        """Whether the microphone may hear what the model says.

        Decision: the paper tells of leakage in its paragraph on free user input (section 3.2.2), so
        that format has it always. Plain Response-TTS and the formats before it have it only where
        asked for."""
        return self.leakage or self.format == "response-tts-free"


# --- a sample: turns, and the silences around them ---

def join(dialogs, settings):
    """Lists of turns, one for each line of a manifest -> samples, lists of the turns of some lines.

    Each of the `draws` passes over the manifest has an order and a grouping of its own."""
    fewest, most = settings.join
    samples = []
    for draw in range(settings.draws):
        rng = random.Random(f"{settings.seed} {draw}")
        order = list(dialogs)
        if settings.shuffled:
            rng.shuffle(order)
        start = 0
        while start < len(order):
            stop = start + rng.randint(fewest, most)
            samples.append([turn for dialog in order[start:stop] for turn in dialog])
            start = stop
    return samples


def random_silence(settings, rng):
    """Frames of a random silence."""
    longest = round(settings.longest_silence * stream.FRAME_RATE)
    if longest > LONG_SILENCE[1] and rng.random() < VERY_LONG_SILENCE_PROBABILITY:
        return rng.randint(LONG_SILENCE[1], longest)
    if rng.random() < settings.long_silences:
        return rng.randint(*LONG_SILENCE)
    return 1 + min(round(rng.expovariate(1 / SILENCE_MEAN)), LONG_SILENCE[0])


# --- what the paper does to what is heard: level, noise, leakage ---
#
# Decision: the paper describes noise and gain with the data for fine-tuning (section 3.2.1). Here
# the ASR-style pairs of stage 1 have them too: a model that learned to hear clean sound alone would
# have to learn to hear again in stage 2.

GAIN_PROBABILITY = 0.6        # of an utterance, section 3.2.1
GAIN = (-24, 20)              # dB, section 3.2.1
LOUDNESS_FLOOR = -40          # dB of an utterance in the end, section 3.2.1
NOISE_LOUDNESS = (-70, -40)   # dB of a segment of noise, section 3.2.1
NO_NOISE_PROBABILITY = 0.3    # that a segment is silence instead, section 3.2.1
# Decision: a segment of a recording begins anywhere in it but in its last second.
SHORTEST_NOISE = 1            # second
LEAKAGE_PROBABILITY = 0.3     # of a sample, section 3.2.2
LEAKAGE_GAIN = (0, 0.2)       # amplitude, section 3.2.2
LEAKAGE_DELAY = (0.1, 0.5)    # seconds, section 3.2.2


def amplitude(decibels):
    """A gain in dB as a factor."""
    return 10 ** (float(decibels) / 20)


def random_gain(audio, rng):
    """An utterance [N] at a random level, and never below LOUDNESS_FLOOR (section 3.2.1).

    Decision: a gain that would clip is lowered until the peak is 1, because no file is louder than
    full scale. So a recording of one click in digital silence stays below the floor."""
    gain = 0.0
    if rng.random() < GAIN_PROBABILITY:
        gain = rng.uniform(*GAIN)
    gain = max(gain, LOUDNESS_FLOOR - loudness(audio))
    peak = max(np.abs(audio).max(), 1e-6)
    return audio * min(amplitude(gain), 1 / float(peak))


def noise(n, rng, paths=(), levels=NOISE_LOUDNESS):
    """n samples of noise: random segments of recordings, one after the other (section 3.2.1).

    Each segment has a random loudness within `levels` (dB), or is silence. Decision: where there
    are no recordings, one synthetic noise stands for them."""
    segments = []
    missing = n
    while missing > 0:
        if paths:
            segment = recorded_noise(missing, rng, paths)
        else:
            segment = synthetic_noise(missing, rng)
        gain = amplitude(rng.uniform(*levels) - loudness(segment))
        if rng.random() < NO_NOISE_PROBABILITY:
            gain = 0.0
        segments.append(gain * segment)
        missing -= len(segment)
    return np.concatenate(segments)


read_noise = lru_cache(maxsize=64)(sound_file.read_audio)  # recordings of noise that stay in memory


def recorded_noise(most, rng, paths):
    """At most `most` samples of a recording, from a random place on."""
    audio = read_noise(rng.choice(paths)).numpy()
    start = rng.randrange(max(1, len(audio) - SHORTEST_NOISE * SAMPLE_RATE))
    return audio[start:start + most]


def synthetic_noise(n, rng):
    """n samples of noise of a random colour, from white (all octaves of one amplitude) to brown."""
    steepness = rng.uniform(0, 1)
    generator = np.random.default_rng(rng.getrandbits(64))
    spectrum = np.fft.rfft(generator.standard_normal(n, np.float32))
    spectrum *= np.arange(1, n // 2 + 2, dtype=np.float32) ** -steepness
    return np.fft.irfft(spectrum, n).astype(np.float32)


def draw_leak(rng):
    """Whether the microphone hears what the model says (section 3.2.2) -> None, or (gain, delay in
    samples)."""
    if rng.random() >= LEAKAGE_PROBABILITY:
        return None
    gain = rng.uniform(*LEAKAGE_GAIN)
    delay = round(rng.uniform(*LEAKAGE_DELAY) * SAMPLE_RATE)
    return gain, delay


def leak(user_audio, model_audio, gain, delay):
    """Add what the model says to what is heard, `delay` samples later. Both [N]; changes
    `user_audio`."""
    user_audio[delay:] += gain * model_audio[:-delay]


# --- what clean recordings lack: pauses, a microphone, a room, a telephone (--rooms) ---
#
# Decision: the recordings of the paper bring their rooms and hesitations along. Where clean speech
# stands for them, some of what is heard gets what it lacks, and noise may be louder.

PAUSE_PROBABILITY = 0.35
PAUSE = (0.2, 1.0)                  # seconds
QUIET = 0.1                         # share of a recording's samples that count as its quiet places
MICROPHONE_PROBABILITY = 0.5
MICROPHONE = 4                      # dB, standard deviation of its response from octave to octave
ROOM_PROBABILITY = 0.4
ROOM_DECAY = (0.1, 0.6)             # seconds until the echo is 60 dB down
ROOM_DIRECT = (0, 15)               # dB of direct over echoed sound
ROOM_NOISE_LOUDNESS = (-70, -30)    # dB
# A telephone carries 300 to 3,400 Hz. Recordings of 8 kHz are as narrow at the upper end, and often
# not at the lower.
TELEPHONE_PROBABILITY = 0.15
TELEPHONE_LOWEST = (20, 300)        # Hz
TELEPHONE_HIGHEST = (3_300, 4_000)  # Hz


def hesitate(audio, seconds, rng):
    """audio [N] with a pause at one of its quiet places -> (audio, the sample at which the pause
    begins).

    Decision: any quiet place is drawn. The quietest is always the first of several gaps, and a
    model would never learn that a list may go on before its last word."""
    window = SAMPLE_RATE // 50
    first = len(audio) // 8
    last = len(audio) - len(audio) // 10
    power = np.convolve(audio ** 2, np.ones(window, np.float32), "same")[first:last]
    quiet_places = np.flatnonzero(power <= np.quantile(power, QUIET))
    start = first + int(rng.choice(quiet_places))
    pause = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    return np.concatenate([audio[:start], pause, audio[start:]]), start


def microphone(audio, rng):
    """audio [N] through a microphone that favours some octaves: a random gain at each of the eight
    below 12 kHz, and a line between them."""
    octaves = np.arange(-8, 1)
    gains = [rng.gauss(0, MICROPHONE) for _ in octaves]  # dB
    size = 1 << len(audio).bit_length()
    frequencies = np.arange(1, size // 2 + 2) / (size // 2)  # as shares of 12 kHz
    response = 10 ** (np.interp(np.log2(frequencies), octaves, gains) / 20)
    return np.fft.irfft(np.fft.rfft(audio, size) * response, size)[:len(audio)].astype(np.float32)


def room(audio, rng):
    """audio [N] as a microphone across a room hears it, [N + echo]: the room's response is a noise
    that decays exponentially."""
    n = round(rng.uniform(*ROOM_DECAY) * SAMPLE_RATE)
    direct = rng.uniform(*ROOM_DIRECT)
    generator = np.random.default_rng(rng.getrandbits(64))
    decay = np.exp(-6.9 * np.arange(n, dtype=np.float32) / n)  # e ** -6.9 is -60 dB
    response = generator.standard_normal(n, np.float32) * decay
    response /= np.linalg.norm(response)
    length = len(audio) + n
    size = 1 << length.bit_length()
    echo = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[:length]
    return np.pad(audio, (0, n)) + (amplitude(-direct) * echo).astype(np.float32)


def telephone(audio, rng):
    """audio [N] as a telephone or a file of 8 kHz carries it: a random band of its frequencies."""
    lowest = rng.uniform(*TELEPHONE_LOWEST)
    highest = rng.uniform(*TELEPHONE_HIGHEST)
    size = 1 << len(audio).bit_length()
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum = np.fft.rfft(audio, size)
    spectrum[(frequencies < lowest) | (frequencies > highest)] = 0
    return np.fft.irfft(spectrum, size)[:len(audio)].astype(np.float32)


def from_afar(audio, rng):
    """audio [N] with a random choice of microphone, room and telephone, [N + echo]."""
    if rng.random() < MICROPHONE_PROBABILITY:
        audio = microphone(audio, rng)
    if rng.random() < ROOM_PROBABILITY:
        audio = room(audio, rng)
    if rng.random() < TELEPHONE_PROBABILITY:
        audio = telephone(audio, rng)
    return audio


# --- a model folder's codec and tokenizer ---

ENCODED_AT_ONCE = 16
# The codes of a clip depend on what stands before it. In a grid that is silence: so much of it is
# encoded before a clip, and dropped.
SILENCE_BEFORE = 4  # frames
# Decision: a recording's last sound still rings in the codec after its last sample. So many frames
# of it belong to the clip.
RINGING = 1         # frames


class Encoder:
    """Sounds -> codes and words -> ids, with codec, tokenizer and special ids of a model folder.

    hearing: a folder with another codec for what is heard, of the same codebooks. Raises DataError
    where tokenizer and model, or the two codecs, do not fit each other."""

    def __init__(self, folder, device="cpu", hearing=None):
        self.device = device
        self.ids = stream.Ids.read(folder)
        self.tokenizer = read_tokenizer(folder)
        self.codec = mimi.load(folder, device)
        self.hearing = self.codec
        if hearing:
            self.hearing = mimi.load(hearing, device)
            if not torch.equal(codebooks(self.codec), codebooks(self.hearing)):
                raise DataError(f"{hearing} has other codebooks than {folder}: what is heard must "
                                "be written in the same codes")
        quiet = np.zeros(50 * FRAME, np.float32)
        self.silence = self.encode([quiet])[0][-1]  # [K]: the codes that digital silence settles at
        # One clip of the model is in many samples.
        self.speak_codes = lru_cache(maxsize=20_000)(self.read_speak_codes)
        self.model_audio = lru_cache(maxsize=2_000)(self.read_model_audio)

    def words(self, text):
        """A text -> a list of ids."""
        return self.tokenizer.encode(text).ids

    def encode(self, waves, codec=None):
        """A list of B waveforms [N] of whole frames -> a list of B codes [T, K].

        Waveforms of about one length are encoded together. The codec is causal, so the padding
        behind a waveform changes none of its codes."""
        codec = codec or self.codec
        order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
        codes = [None] * len(waves)
        for start in range(0, len(order), ENCODED_AT_ONCE):
            chunk = order[start:start + ENCODED_AT_ONCE]
            tensors = [torch.from_numpy(waves[i]) for i in chunk]
            batch = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)[:, None]  # [B, 1, N]
            encoded = codec.encode(batch.to(self.device)).transpose(1, 2).cpu()          # [B, T, K]
            for i, row in zip(chunk, encoded):
                codes[i] = row[:len(waves[i]) // FRAME]
        return codes

    def read_speak_codes(self, path):
        """Codes [T, K] of a clip that the model speaks, as they follow silence. `path` is a
        recording, or a .npy file of codes [T, K], as tiny/replay.py writes them. Raises
        ValueError."""
        if Path(path).suffix == ".npy":
            return shards.read_codes(path, self.codec.config.codebook_size)
        audio = sound_file.read_audio(path).numpy()
        to_whole_frames = -len(audio) % FRAME
        padded = np.pad(audio, (SILENCE_BEFORE * FRAME, to_whole_frames + RINGING * FRAME))
        return self.encode([padded])[0][SILENCE_BEFORE:]

    def read_model_audio(self, path):
        """The same clip as a waveform [N]."""
        if Path(path).suffix != ".npy":
            return sound_file.read_audio(path).numpy()
        codes = self.speak_codes(path).T[None].to(self.device)  # [1, K, T]
        return self.codec.decode(codes)[0, 0].cpu().numpy()


def codebooks(codec):
    """All entries of a codec's codebooks, in one tensor."""
    parts = [part.entries for part in codec.modules() if isinstance(part, mimi.Codebook)]
    return torch.cat(parts)


def read_tokenizer(folder):
    """The tokenizer of a model folder. Raises DataError where it has ids that its model lacks."""
    from tokenizers import Tokenizer
    path = Path(folder) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise DataError(f"{path} cannot be read: {error}") from None
    largest = max(tokenizer.get_vocab().values())
    size = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    if largest >= size:
        raise DataError(f"{path} is another model's: its ids go up to {largest}, "
                        f"config.json's to {size - 1}")
    return tokenizer


# --- samples -> grids ---

# Decision: the paper does not say into how many responses the user says "uh-huh". A response that
# is shorter than the back-channel that was drawn for it gets none.
BACKCHANNEL_PROBABILITY = 0.8


@dataclass
class Clip:
    """A recording of the user, as it will be heard from the start of its span on.

    audio: [N], which begins within the first frame and ends with a room's echo; frames: until its
    voice ends."""
    audio: np.ndarray
    frames: int

    @property
    def onset(self):
        """Frames of quiet before its first sound."""
        level = np.abs(self.audio)
        return int(np.argmax(level > 0.1 * level.max())) // FRAME


@dataclass
class Exchange:
    """A turn and what it sounds like; what its format lacks is None.

    turn: its lengths and words, of which stream.py makes the script; user_clip: the question;
    speak_codes [T, K]: the answer; model_path: its recording; backchannel: a clip of the user that
    may fall into the answer."""
    turn: Turn
    user_clip: Clip | None = None
    speak_codes: torch.Tensor | None = None
    model_path: Path | None = None
    backchannel: Clip | None = None


@dataclass
class Plan:
    """A sample before what is heard of it is encoded.

    speak_codes: [T, K] of each span of script.speak_spans; user_audio: [T * FRAME], None where
    nothing is heard."""
    script: stream.Script
    speak_codes: list
    user_audio: np.ndarray | None


class GridMaker:
    """Makes grids of samples: one encoder, one set of settings."""

    def __init__(self, encoder, settings):
        self.encoder = encoder
        self.settings = settings
        self.noises = recordings(settings.noise)
        self.backchannels = recordings(settings.backchannels)

    def grids(self, samples, rngs):
        """Samples (lists of turns of the manifest), each with its random numbers -> (list of Grid,
        list of problems). A problem is a sentence about a sample with a broken recording, which is
        left out."""
        plans = []
        problems = []
        for sample, rng in zip(samples, rngs):
            try:
                plans.append(self.plan(sample, rng))
            except ValueError as error:
                problems.append(str(error))
        listens = [None] * len(plans)
        if self.settings.format in stream.LISTENS:
            waves = [plan.user_audio for plan in plans]
            listens = self.encoder.encode(waves, self.encoder.hearing)
        grids = []
        for plan, listen in zip(plans, listens):
            speak = None
            if self.settings.format in stream.SPEAKS:
                script = plan.script
                silence = self.encoder.silence
                speak = stream.place(script.speak_spans, plan.speak_codes, silence, len(script))
            grids.append(plan.script.grid(speak, listen))
        return grids, problems

    def plan(self, sample, rng):
        """One sample, a list of turns of the manifest -> Plan. Raises ValueError for a broken
        recording."""
        exchanges = [self.read_turn(entry, rng) for entry in sample]
        if self.settings.format == "response-tts-free":
            self.free_user(exchanges, rng)
        script, exchanges = self.write_script(exchanges, rng)
        speak_codes = []
        for exchange, (start, stop) in zip(exchanges, script.speak_spans):
            speak_codes.append(exchange.speak_codes[:stop - start])  # an interruption cuts it
        user_audio = None
        if self.settings.format in stream.LISTENS:
            user_audio = self.lay_user_audio(script, exchanges, rng)
        return Plan(script, speak_codes, user_audio)

    def read_turn(self, entry, rng):
        """A turn of the manifest, a dict of workshop/manifests.py -> Exchange."""
        words = self.encoder.words
        exchange = Exchange(Turn(reaction=self.settings.reaction))
        turn = exchange.turn
        turn.transcript = words(entry.get("transcript", ""))
        turn.response = words(entry.get("response", ""))
        turn.words = self.timed_words(entry.get("words", ()))
        if "heard" in entry:
            exchange.user_clip = self.read_user_clip(entry["heard"], rng)
            closing = CLOSING_SILENCE
            if entry.get("patience") is not None:
                closing = round(entry["patience"] * stream.FRAME_RATE)
            if self.settings.format == "stereo":
                closing = 0  # nothing waits for the end of a whole channel
            turn.listen_frames = exchange.user_clip.frames + closing
            turn.onset = exchange.user_clip.onset
        if "spoken" in entry:
            exchange.model_path = entry["spoken"]
            exchange.speak_codes = self.encoder.speak_codes(entry["spoken"])
            turn.speak_frames = len(exchange.speak_codes)
        return exchange

    def timed_words(self, words):
        """[(word, start, end)] in seconds -> [(frame in which it begins, its ids)]."""
        timed = []
        for word, start, _ in words:
            space = " " if timed else ""
            timed.append((int(start * stream.FRAME_RATE), self.encoder.words(space + word)))
        return timed

    def read_user_clip(self, path, rng):
        """A recording of the user -> Clip, at a random speed, place within a frame, and level."""
        settings = self.settings
        audio = sound_file.read_audio(path).numpy()
        if settings.format == "stereo":
            # A whole channel keeps its time: it runs beside the other one.
            return Clip(random_gain(audio, rng), math.ceil(len(audio) / FRAME))
        if settings.speeds != (1, 1):
            # The pitch changes with the speed: one recorded speaker becomes several.
            speed = rng.uniform(*settings.speeds)
            audio = soxr.resample(audio, SAMPLE_RATE, SAMPLE_RATE / speed)
        if settings.rooms and rng.random() < PAUSE_PROBABILITY:
            audio, _ = hesitate(audio, rng.uniform(*PAUSE), rng)
        late = rng.randrange(FRAME)  # samples; people do not begin on a frame
        frames = math.ceil((late + len(audio)) / FRAME)
        if settings.rooms:
            audio = from_afar(audio, rng)
        audio = random_gain(audio, rng)
        return Clip(np.pad(audio, (late, 0)), frames)

    def free_user(self, exchanges, rng):
        """Section 3.2.2, free user input: some questions interrupt the answer before them, and some
        answers are heard with a back-channel. Changes the exchanges."""
        lengths = []
        for exchange in exchanges:
            if self.backchannels and rng.random() < BACKCHANNEL_PROBABILITY:
                exchange.backchannel = self.read_user_clip(rng.choice(self.backchannels), rng)
                lengths.append(exchange.backchannel.frames)
            else:
                lengths.append(0)
        stream.draw_interruptions([exchange.turn for exchange in exchanges], lengths, rng)

    def write_script(self, exchanges, rng):
        """Exchanges, with random silences around them -> (stream.Script, the exchanges that are in
        it).

        The last exchanges of a sample that is longer than `longest_sample` are left out. Where the
        first alone is too long, its longest silence is made shorter."""
        longest = self.settings.longest_sample
        silences = [random_silence(self.settings, rng) for _ in range(len(exchanges) + 1)]
        script = self._script(exchanges, silences)
        if longest is None:
            return script, exchanges
        while len(script) > longest and len(exchanges) > 1:
            exchanges = exchanges[:-1]
            silences = silences[:len(exchanges)] + silences[-1:]
            script = self._script(exchanges, silences)
        excess = len(script) - longest
        if excess > 0:
            i = silences.index(max(silences))
            silences[i] = max(0, silences[i] - excess)
            script = self._script(exchanges, silences)
        return script, exchanges

    def _script(self, exchanges, silences):
        turns = [exchange.turn for exchange in exchanges]
        return stream.write(self.settings.format, turns, silences, self.encoder.ids)

    def lay_user_audio(self, script, exchanges, rng):
        """What the user's microphone hears in a sample -> user_audio [T * FRAME].

        It is noise, the clips in their spans, and perhaps what the model says."""
        levels = ROOM_NOISE_LOUDNESS if self.settings.rooms else NOISE_LOUDNESS
        user_audio = noise(len(script) * FRAME, rng, self.noises, levels)
        clips = []
        for exchange in exchanges:
            clips.append(exchange.user_clip.audio)
            if exchange.turn.murmur:
                clips.append(exchange.backchannel.audio)
        lay(user_audio, script.listen_spans, clips)
        leakage = None
        if self.settings.leaks:
            leakage = draw_leak(rng)
        if leakage and script.speak_spans:
            model_audio = np.zeros_like(user_audio)
            answers = [self.encoder.model_audio(exchange.model_path) for exchange in exchanges]
            lay(model_audio, script.speak_spans, answers)
            leak(user_audio, model_audio, *leakage)
        return user_audio.clip(-1, 1)


def lay(audio, spans, clips):
    """Add clips [N] to audio [T * FRAME], each from the first sample of its span of frames to the
    last that the span has room for. Changes `audio`."""
    for (start, stop), clip in zip(spans, clips, strict=True):
        first = start * FRAME
        last = min(first + len(clip), stop * FRAME, len(audio))
        audio[first:last] += clip[:last - first]


# --- grids -> shards ---

SAMPLES_PER_SHARD = 64
# Counts the versions of this file that drew other random numbers for the same settings: a folder of
# grids that another version began is read, but not continued.
VERSION = 2


@dataclass(frozen=True)
class Job:
    """A shard to be made: its file, the number of its first sample among all, and its samples."""
    path: Path
    first: int
    samples: list


def encode(manifest, out, model, settings, device="cpu", workers=1, part="1/1"):
    """Encode a manifest into shards under `out`, with codec and tokenizer of the folder `model`.

    Shards that are there stay. part "I/N": every N-th shard, from the I-th on. Returns how many
    samples there are, and how many were left out now. Raises ValueError or OSError, one
    sentence."""
    number, parts = encoding.parse_part(part)
    mimi.check_device(device)
    out = Path(out)
    samples = join(read_manifest(manifest, settings.format), settings)
    encoding.write_about(out, manifest, model, settings, VERSION)
    jobs = []
    for first in range(0, len(samples), SAMPLES_PER_SHARD):
        path = out / f"shard-{first // SAMPLES_PER_SHARD:05d}.safetensors"
        jobs.append(Job(path, first, samples[first:first + SAMPLES_PER_SHARD]))
    jobs = jobs[number - 1::parts]
    work = partial(encode_shard, model=model, device=device, settings=settings)
    left_out = encoding.make_shards(work, jobs, workers, out.name)
    total = sum(len(job.samples) for job in jobs)
    if any(job.path.exists() for job in jobs):
        read_index(out)  # which writes it
    elif jobs:
        raise DataError(f"nothing was encoded: all {total} samples were left out")
    return total - left_out, left_out


@lru_cache(maxsize=1)
def grid_maker(model, device, settings):
    """The one GridMaker of a process."""
    return GridMaker(Encoder(model, device, settings.hearing), settings)


def encode_shard(job, model, device, settings):
    """Make one shard -> (its samples, its hours of audio, a sentence for each sample left out)."""
    if parent_process():  # one of several processes, which have a core each
        torch.set_num_threads(1)
    rngs = []
    for i in range(len(job.samples)):
        rngs.append(random.Random(f"{settings.seed} {settings.format} {job.first + i}"))
    grids, problems = grid_maker(model, device, settings).grids(job.samples, rngs)
    if grids:
        shards.save(grids, job.path)
    hours = sum(len(grid) for grid in grids) / stream.FRAME_RATE / 3600
    return len(job.samples), hours, problems


# --- command line ---

def main(arguments=None):
    parser = argparse.ArgumentParser(description="From recordings to token grids.",
                                     epilog="More: python data.py COMMAND --help")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    importers.add_command(commands)
    synthesis.add_command(commands)
    check.add_command(commands)
    encoding.add_command(commands, Settings, encode)
    args = parser.parse_args(arguments)
    try:
        print(args.run(args))
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError) as error:
        sys.exit(f"data.py: {error}")
    except KeyboardInterrupt:
        sys.exit("data.py: stopped; the same command goes on from what is finished")


if __name__ == "__main__":
    command.run("data.py", main)
