"""From manifests to token grids: recordings and their words become what train.py reads.

What this is: joining turns with random silences (section 3.1), what is done to the user's sound
(sections 3.2.1 and 3.2.2), interruptions, and how sound becomes codes and a grid. What this is not:
manifests (workshop/manifests.py and its neighbours, whose commands are here too), the formats
(stream.py), the files of grids (workshop/encoding.py, workshop/shards.py).

    python data.py encode pairs.jsonl grids/tts --format tts --join 1 4
    python data.py encode dialogs.jsonl grids/ft2 --format response-tts-free --join 1 4

A sample is one or more turns, with a random silence before, between and after them. Two turns:

    user_audio  ~~~~~~~~~~[question 1]~~~~~~~~~~~~~~~~~~~~~~~~[question 2]~~~~~~~~~~~~~~~~~~~~~~
    speak       000000000000000000000000[answer 1]00000000000000000000000000[answer 2]0000000000
                |silence |            |c|         |silence   |            |c|         |silence  |

`~` is noise, `0` are the codes of digital silence, and `c` is CLOSING_SILENCE, behind which the
model may write; its sound begins two frames after its first word (stream.SPEECH_DELAY), which the
drawing leaves out. What each format has in its two channels:

    tts, word-aligned  heard: nothing (empty codes)      spoken: the pairs, silence between them
    asr                heard: the pairs, in noise        spoken: nothing (empty codes)
    stereo             heard: one channel, in noise      spoken: the other channel
    all others         heard: the questions, in noise    spoken: the answers, silence between them

`GridMaker` makes a grid in five steps:

    read_turn       a turn of the manifest -> Exchange: its clips, its codes, its length in frames
    free_user       (response-tts-free)       some questions interrupt, some users say "uh-huh"
    write_script    exchanges              -> stream.Script: which frame has which words and clips
    lay_user_audio  script and clips       -> user_audio [T * FRAME], with noise and leakage
    grids           all of it              -> stream.Grid: text, speak and listen

What is heard is one waveform, silence and noise included, and is encoded whole. Decision: what is
spoken is encoded clip by clip, each from the start of a frame on. So a clip has one set of codes
wherever it stands, and is encoded once for many samples.

Shapes: N samples of a waveform (24 kHz, float32, -1 .. 1), T frames of 80 ms, K = 8 codebooks.
"""
import math
import random
import zlib
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

import stream
from stream import Turn
from workshop import acoustics, data_commands, encoding, model_folder, rooms, sound_file
from workshop.acoustics import amplitude
from workshop.encoding import recordings
from workshop.model_folder import FRAME, ModelFolder
from workshop.sound_file import SAMPLE_RATE, loudness

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
# the model may write. Without it equation 3, in which all <wait> together weigh a hundredth of all
# words, rewards speaking into every pause. A turn of the manifest may ask for another ("patience",
# in seconds).
CLOSING_SILENCE = 2              # frames


@dataclass(frozen=True)
class Settings:
    """What decides the contents of grids, beside the manifest and the model. Raises ValueError.

    Grids of the same settings are the same to the byte, within one VERSION of this file."""
    format: str                 # of stream.FORMATS
    join: tuple = (1, 1)        # fewest and most lines of the manifest in a sample
    draws: int = 1              # samples that each line is in; silence, level and noise differ
    seed: int = 0
    shuffled: bool = True       # random order of the lines, or the manifest's
    noise: tuple = ()           # folders of recordings; without any the noise is synthetic
    backchannels: tuple = ()    # folders of recordings of "uh-huh" and the like
    leakage: bool = False       # the microphone may hear the model; see `leaks`
    rooms: bool = False         # what workshop/rooms.py does to what is heard
    speeds: tuple = (1, 1)      # slowest and fastest at which what is heard is played
    hearing: Path | None = None  # folder of another codec for what is heard
    reaction: float = stream.REACTION_DELAY  # seconds from an interruption to the model's silence
    longest_silence: float = LONG_SILENCE[1] / stream.FRAME_RATE  # seconds
    long_silences: float = LONG_SILENCE_PROBABILITY  # share of silences as long as LONG_SILENCE
    longest_sample: int | None = None  # frames; the last turns of a longer sample are left out

    def __post_init__(self):
        encoding.check_settings(self)

    @property
    def leaks(self):
        """Whether the microphone may hear what the model says.

        Decision: the paper tells of leakage in its paragraph on free user input (section 3.2.2), so
        that format has it always. Plain Response-TTS and the formats before it have it only where
        asked for."""
        return self.leakage or self.format == "response-tts-free"


# --- a sample: turns, and the silences around them ---

def join(line_count, settings):
    """The number of lines of a manifest -> (order, starts): order has line numbers, sample after
    sample; sample i is order[starts[i]:starts[i + 1]].

    Each of the `draws` passes over the manifest has an order and a grouping of its own. The last
    sample of a pass takes the lines that are left."""
    fewest, most = settings.join
    orders = []
    starts = []
    for draw in range(settings.draws):
        # RandomState gives the same numbers in every version of numpy.
        rng = np.random.RandomState(zlib.crc32(f"{settings.seed} {draw}".encode()))
        order = np.arange(line_count, dtype=np.uint32)
        if settings.shuffled:
            rng.shuffle(order)
        orders.append(order)
        ends = np.cumsum(rng.randint(fewest, most + 1, line_count))
        first = draw * line_count
        starts.append(first + np.concatenate([[0], ends[ends < line_count]]))
    return np.concatenate(orders), np.concatenate([*starts, [settings.draws * line_count]])


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


def random_gain(audio, rng):
    """An utterance [N] at a random level, and not below LOUDNESS_FLOOR unless it would clip
    (section 3.2.1).

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
            colour = rng.uniform(0, 1)  # from white noise to brown
            segment = acoustics.coloured_noise(missing, colour, rng.getrandbits(64))
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


# --- recordings -> codes ---

# The codes of a clip depend on what stands before it. In a grid that is silence: so much of it is
# encoded before a clip, and dropped.
SILENCE_BEFORE = 4  # frames
# Decision: a recording's last sound still rings in the codec after its last sample. So many frames
# of it belong to the clip.
RINGING = 1         # frames


class Encoder(ModelFolder):
    """Sounds -> codes, with the codec of a model folder. Its arguments are ModelFolder's."""

    def __init__(self, folder, device="cpu", hearing=None):
        super().__init__(folder, device, hearing)
        quiet = np.zeros(50 * FRAME, np.float32)
        self.silence = self.encode([quiet])[0][-1]  # [K]: the codes that digital silence settles at
        # One clip of the model is in many samples.
        self.speak_codes = lru_cache(maxsize=20_000)(self.encode_clip)
        self.model_audio = lru_cache(maxsize=2_000)(self.read_clip)

    def encode_clip(self, recording):
        """A clip that the model speaks -> its codes [T, K], as they follow silence. Raises
        ValueError."""
        codes = self.read_codes(recording)
        if codes is not None:
            return codes
        audio = self.read_clip(recording)
        to_whole_frames = -len(audio) % FRAME
        padded = np.pad(audio, (SILENCE_BEFORE * FRAME, to_whole_frames + RINGING * FRAME))
        return self.encode([padded])[0][SILENCE_BEFORE:]


# --- samples -> grids ---

# Decision: the paper does not say into how many responses the user says "uh-huh". A response that
# is shorter than the back-channel that was drawn for it gets none.
BACKCHANNEL_PROBABILITY = 0.8


@dataclass
class Clip:
    """A recording of the user, as it will be heard from the start of its span on."""
    audio: np.ndarray   # [N], which begins within the first frame and ends with a room's echo
    frames: int         # until its voice ends

    @property
    def onset(self):
        """Frames of quiet before its first sound."""
        level = np.abs(self.audio)
        return int(np.argmax(level > 0.1 * level.max())) // FRAME


@dataclass
class Exchange:
    """A turn and what it sounds like; what its format lacks is None."""
    turn: Turn                                # lengths and words, of which stream.py makes a script
    user_clip: Clip | None = None             # the question
    speak_codes: torch.Tensor | None = None   # [T, K], the answer
    recording: Path | sound_file.Part | None = None  # of the answer
    backchannel: Clip | None = None           # of the user, which may fall into the answer


@dataclass
class Plan:
    """A sample before what is heard of it is encoded."""
    script: stream.Script
    turns_left_out: int                     # of the sample, by --longest-sample
    speak: torch.Tensor | None = None       # [T, K]; None where nothing is spoken
    user_audio: np.ndarray | None = None    # [T * FRAME]; None where nothing is heard


class GridMaker:
    """Makes grids of samples: one encoder, one set of settings."""

    def __init__(self, encoder, settings):
        self.encoder = encoder
        self.settings = settings
        self.noises = recordings(settings.noise)
        self.backchannels = recordings(settings.backchannels)

    def grids(self, samples, rngs):
        """Samples (lists of turns of the manifest), each with its random numbers ->
        encoding.Outcome. A sample with a broken recording is left out."""
        plans = []
        problems = {}
        for i, (sample, rng) in enumerate(zip(samples, rngs)):
            try:
                plans.append(self.plan(sample, rng))
            except ValueError as error:
                problems[i] = str(error)
        listens = [None] * len(plans)
        if self.settings.format in stream.LISTENS:
            waves = [plan.user_audio for plan in plans]
            listens = self.encoder.encode(waves, self.encoder.hearing)
        grids = [plan.script.grid(plan.speak, listen) for plan, listen in zip(plans, listens)]
        return encoding.Outcome(grids, problems, sum(plan.turns_left_out for plan in plans))

    def plan(self, sample, rng):
        """One sample, a list of turns of the manifest -> Plan. Raises ValueError for a broken
        recording, or a turn that does not fit."""
        exchanges = [self.read_turn(entry, rng) for entry in sample]
        if self.settings.format == "response-tts-free":
            self.free_user(exchanges, rng)
        script, exchanges = self.write_script(exchanges, rng)
        plan = Plan(script, len(sample) - len(exchanges))
        if self.settings.format in stream.SPEAKS:
            clips = []
            for exchange, (start, stop) in zip(exchanges, script.speak_spans):
                clips.append(exchange.speak_codes[:stop - start])  # an interruption cuts it
            plan.speak = stream.place(script.speak_spans, clips, self.encoder.silence, len(script))
        if self.settings.format in stream.LISTENS:
            plan.user_audio = self.lay_user_audio(script, exchanges, rng)
        return plan

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
            exchange.recording = entry["spoken"]
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
        if settings.rooms and rng.random() < rooms.PAUSE_PROBABILITY:
            audio, _ = rooms.hesitate(audio, rng.uniform(*rooms.PAUSE), rng)
        late = rng.randrange(FRAME)  # samples; people do not begin on a frame
        frames = math.ceil((late + len(audio)) / FRAME)
        if settings.rooms:
            audio = rooms.from_afar(audio, rng)
        audio = random_gain(audio, rng)
        return Clip(np.pad(audio, (late, 0)), frames)

    def free_user(self, exchanges, rng):
        """Section 3.2.2, free user input: some questions interrupt the answer before them, and some
        answers are heard with a back-channel. Changes the exchanges.

        stream.draw_interruptions draws which, and from which frame on. The recording of such a
        question is laid over the answer. The answer's words and codes end `reaction` seconds after
        the question's first sound (stream.Script.cut); a back-channel changes nothing of the
        answer."""
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
        it: all, unless the settings ask for shorter samples, which leave out the last ones)."""
        settings = self.settings
        turns = [exchange.turn for exchange in exchanges]
        silences = [random_silence(settings, rng) for _ in range(len(turns) + 1)]
        if settings.longest_sample:
            turns, silences = encoding.fit(turns, silences, settings, self.encoder.ids)
        script = stream.write(settings.format, turns, silences, self.encoder.ids)
        return script, exchanges[:len(turns)]

    def lay_user_audio(self, script, exchanges, rng):
        """What the user's microphone hears in a sample -> user_audio [T * FRAME].

        It is noise, the clips in their spans, and perhaps what the model says."""
        levels = rooms.NOISE_LOUDNESS if self.settings.rooms else NOISE_LOUDNESS
        user_audio = noise(len(script) * FRAME, rng, self.noises, levels)
        clips = []
        for exchange in exchanges:
            clips.append(exchange.user_clip.audio)
            if exchange.turn.backchannel:
                clips.append(exchange.backchannel.audio)
        lay(user_audio, script.listen_spans, clips)
        leakage = None
        if self.settings.leaks:
            leakage = draw_leak(rng)
        if leakage and script.speak_spans:
            model_audio = np.zeros_like(user_audio)
            answers = [self.encoder.model_audio(exchange.recording) for exchange in exchanges]
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
VERSION = 3


def encode(manifest, out, model, settings, device="cpu", workers=1, part="1/1"):
    """Encode a manifest into shards under `out`, with codec and tokenizer of the folder `model`.

    Shards that are there stay. part "I/N": every N-th shard, from the I-th on. Returns an
    encoding.RunReport. Raises ValueError or OSError, one sentence."""
    model = model_folder.find(model)
    constants = encoding.constants_of(globals(), vars(stream), vars(acoustics), vars(rooms))
    run = encoding.Run(Path(manifest), Path(out), model, settings, constants, SAMPLES_PER_SHARD,
                       device, workers, part)
    samples = run.samples(join)
    work = partial(make_grids, samples=samples, model=model, device=device, settings=settings)
    return run.make_shards(samples, work)


@lru_cache(maxsize=1)
def grid_maker(model, device, settings):
    """The one GridMaker of a process."""
    return GridMaker(Encoder(model, device, settings.hearing), settings)


def make_grids(numbers, samples, model, device, settings):
    """Samples, by their numbers -> GridMaker.grids of them. Each has random numbers of its own."""
    if parent_process():  # one of several processes, which have a core each
        torch.set_num_threads(1)
    rngs = [random.Random(f"{settings.seed} {settings.format} {i}") for i in numbers]
    return grid_maker(model, device, settings).grids([samples[i] for i in numbers], rngs)


def main(arguments=None):
    data_commands.main(arguments, Settings, encode)


if __name__ == "__main__":
    command.run("data.py", main, "stopped; the same command goes on from what is finished")
