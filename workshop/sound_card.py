"""A microphone and a loudspeaker, as frames of the model.

What this is: what `python chat.py` hears and speaks through when no file is given. It serves
chat.py. Two streams are bridged, each at a rate and with channels that its own device takes, such
as a Bluetooth microphone of 16 kHz beside a loudspeaker of 48 kHz.
What this is not: the conversation itself (chat.py), or a page in a browser (server.py).

    microphone --> blocks [N, channels] --> queue --> one channel --> model's rate --> frames
    loudspeaker <-- blocks [N, channels] <-- every channel <-- queue <-- device's rate <-- frames

    python chat.py --list-devices
    python chat.py --input-device 4 --output-device 1

Unusual here:
- The clocks of two devices differ, and a model can be late. Neither may grow a lag. No more than
  LAG frames wait to be played: the oldest are skipped. No more than PILE seconds wait to be
  listened to: then all of them are skipped, and counted in `lost`. A loudspeaker that is ahead
  plays silence.
- The devices' threads only move blocks. The model's thread mixes and resamples.
"""
import queue
import sys
import threading
from collections import deque

import numpy as np
import torch

from workshop.pace import Pace

PATIENCE = 5.0     # seconds without sound after which a microphone has gone
GLANCE = 0.1       # seconds after which a microphone that gives nothing is looked at
PILE = 10.0        # seconds that may wait to be listened to
LAG = 3            # frames that may wait to be played
BLOCK = 0.04       # seconds of a device's block: whole samples at 11.025, 16, 22.05, 44.1, 48 kHz
COMMON = (48_000, 44_100, 16_000)  # Hz, where a device refuses the rate that it states itself
MEMORY = 0.98      # of a channel's power, from one block to the next: about two seconds
DEAD = 1e-3        # a channel with this share of the loudest one's power, 30 dB less, has no signal
NOUN = {"input": "microphone", "output": "loudspeaker"}


def sound_system():
    """The sounddevice package. Raises ValueError, one sentence, where it or PortAudio is missing or
    does not start."""
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise ValueError("a microphone needs the sounddevice package: "
                         "pip install sounddevice, or give --in and --out") from None
    except Exception as error:  # OSError without PortAudio; a class of the package where it fails
        raise ValueError(f"no sound system here ({error}): install PortAudio "
                         "(Debian: libportaudio2), or give --in and --out") from None
    return sounddevice


def list_devices():
    """Print the sound devices with their numbers. Raises ValueError where there are none."""
    sounddevice = sound_system()
    devices = sounddevice.query_devices()
    if not len(devices):
        raise ValueError("there are no sound devices here: connect one, or give --in and --out")
    print(devices)


def describe(sounddevice, number, kind):
    """A device's entry in sounddevice's list. number: of --list-devices, or None for the system's
    own choice; kind: "input" or "output".

    Raises ValueError, one sentence, where there is none or it is of the other kind."""
    noun = NOUN[kind]
    option = f"--{kind}-device"
    if number is None:
        try:
            return sounddevice.query_devices(None, kind)
        except (ValueError, sounddevice.PortAudioError):
            raise ValueError(f"no {noun} here: "
                             f"connect one, choose with {option}, or give --in and --out") from None
    count = len(sounddevice.query_devices())
    if not 0 <= number < count:
        raise ValueError(f"{option} {number} is no sound device, "
                         f"there are {count}: --list-devices numbers them from 0")
    entry = sounddevice.query_devices(number)
    if entry[f"max_{kind}_channels"] < 1:
        raise ValueError(f"{option} {number} ({entry['name']}) is no {noun}: "
                         "--list-devices shows how many channels a device has in and out")
    return entry


def check_devices(input_device, output_device):
    """Raise ValueError, one sentence, where a device is missing or of the other kind.

    chat.py asks before it loads a model."""
    sounddevice = sound_system()
    describe(sounddevice, input_device, "input")
    describe(sounddevice, output_device, "output")


def settings(entry, kind, rate):
    """Rates and numbers of channels that are worth a try, best first.

    Decision: the model's own rate comes first, since a system that takes it resamples as well as
    this file does; then the rate that the device states. Two channels come before one: some systems
    play one channel on the left alone, and take only the first of two microphones."""
    most = entry[f"max_{kind}_channels"]
    native = round(entry["default_samplerate"])
    rates = dict.fromkeys((rate, native, *COMMON))
    channels = dict.fromkeys(count for count in (2, 1, most) if count <= most)
    return [(hertz, count) for hertz in rates if hertz > 0 for count in channels]


def open_stream(sounddevice, number, kind, rate, callback):
    """A stream of one direction that is not started yet -> (stream, its rate, its channels).

    Raises ValueError, one sentence, where the device is none, or takes no settings of the list."""
    entry = describe(sounddevice, number, kind)
    if kind == "input":
        check, Stream = sounddevice.check_input_settings, sounddevice.InputStream
    else:
        check, Stream = sounddevice.check_output_settings, sounddevice.OutputStream
    for hertz, channels in settings(entry, kind, rate):
        try:
            check(device=number, channels=channels, dtype="float32", samplerate=hertz)
            stream = Stream(device=number, channels=channels, dtype="float32", samplerate=hertz,
                            blocksize=round(hertz * BLOCK), callback=callback)
        except sounddevice.PortAudioError as error:
            reason = error
        else:
            return stream, hertz, channels
    raise ValueError(f"the {NOUN[kind]} {entry['name']!r} cannot be opened ({reason}): "
                     "end the program that uses it, or choose another of --list-devices")


class Mixer:
    """Blocks [N, channels] of a microphone -> one channel [N], the mean of those with a signal.

    A mean of all would halve the voice where one side is dead. Any mean would silence it where the
    sides are of opposite phase; then the loudest channel is taken alone."""

    def __init__(self, channels):
        self.power = np.zeros(channels)  # of each channel, over the last seconds
        self.mixed = 0.0                 # of the mean of those that have a signal

    def __call__(self, block):
        if block.shape[1] == 1:
            return block[:, 0]
        self.power = MEMORY * self.power + (1 - MEMORY) * np.square(block).mean(0)
        loudest = self.power.argmax()
        mean = block[:, self.power >= DEAD * self.power[loudest]].mean(1)
        self.mixed = MEMORY * self.mixed + (1 - MEMORY) * np.square(mean).mean()
        if self.mixed < 0.05 * self.power[loudest]:
            return block[:, loudest]
        return mean


def resampler(source, target):
    """A function from samples at one rate to samples at the other, which remembers what it took."""
    if source == target:
        return lambda samples: samples
    import soxr
    return soxr.ResampleStream(source, target, 1, dtype="float32").resample_chunk


class Microphone:
    """Iterating gives frames, float32 tensors [size] at `rate`, and raises ValueError when no more
    come."""

    def __init__(self, sounddevice, number, rate, size):
        self.rate, self.size = rate, size
        self.blocks = queue.Queue(round(PILE / BLOCK))
        self.lost = 0.0      # seconds that were skipped, because too much waited
        self.samples = np.zeros(0, np.float32)  # of the frame that is not whole yet
        stream, native, channels = open_stream(sounddevice, number, "input", rate, self.take)
        self.stream = stream
        self.native = native
        self.mix = Mixer(channels)
        self.resample = resampler(native, rate)

    def take(self, indata, *_):
        """What the device calls with each block [N, channels]."""
        if self.blocks.full():
            self.skip()
        self.blocks.put_nowait(indata.copy())

    def skip(self):
        """Forget what waits: a talk that is PILE seconds behind is none."""
        try:
            while True:
                self.lost += len(self.blocks.get_nowait()) / self.native
        except queue.Empty:
            pass

    def behind(self):
        """Seconds that wait to be listened to."""
        return self.blocks.qsize() * BLOCK + len(self.samples) / self.rate

    def next_block(self):
        """The oldest block that waits. Raises ValueError when none comes, since the device has
        stopped, or hangs."""
        for _ in range(round(PATIENCE / GLANCE)):
            try:
                return self.blocks.get(timeout=GLANCE)
            except queue.Empty:
                if not self.stream.active:
                    break
        raise ValueError("the microphone gives nothing any more: connect it and start again")

    def __iter__(self):
        while True:
            while len(self.samples) < self.size:
                mixed = self.mix(self.next_block())
                samples = self.resample(np.ascontiguousarray(mixed))
                self.samples = np.concatenate([self.samples, samples])
            frame = self.samples[:self.size]
            self.samples = self.samples[self.size:]
            yield torch.from_numpy(frame)


class Loudspeaker:
    """`play` takes frames, float32 tensors [size] at the model's rate; the device plays them on all
    its channels."""

    def __init__(self, sounddevice, number, rate, size):
        self.frames = deque()   # of the device's rate
        self.skipped = 0        # frames that were not played, because too many waited
        self.lock = threading.Lock()
        self.stream, native, _ = open_stream(sounddevice, number, "output", rate, self.fill)
        self.resample = resampler(rate, native)

    def play(self, frame):
        samples = self.resample(frame.numpy())
        with self.lock:
            self.frames.append(samples)
            while len(self.frames) > LAG:
                self.frames.popleft()
                self.skipped += 1

    def fill(self, outdata, *_):
        """What the device calls for each block [N, channels]: what waits, then silence."""
        outdata.fill(0)
        place = 0
        with self.lock:
            while self.frames and place < len(outdata):
                samples = self.frames.popleft()
                count = min(len(samples), len(outdata) - place)
                outdata[place:place + count] = samples[:count, None]
                place += count
                if count < len(samples):
                    self.frames.appendleft(samples[count:])


class SoundCard:
    """A microphone and a loudspeaker that run between `with` and its end. Iterating gives the
    microphone's frames.

    Raises ValueError, one sentence, where a device is missing, of the other kind, taken, or goes
    away."""

    def __init__(self, rate, size, input_device=None, output_device=None):
        sounddevice = sound_system()
        self.error = sounddevice.PortAudioError
        self.microphone = Microphone(sounddevice, input_device, rate, size)
        self.loudspeaker = Loudspeaker(sounddevice, output_device, rate, size)

    def __enter__(self):
        try:
            self.loudspeaker.stream.start()
            self.microphone.stream.start()
        except self.error as error:
            self.__exit__()
            raise ValueError(f"the sound devices cannot be started ({error}): end the program that "
                             "uses them, or choose others of --list-devices") from None
        return self

    def __exit__(self, *_):
        for end in (self.microphone, self.loudspeaker):
            try:
                end.stream.close()
            except self.error:  # it went away, and what the user needs to know is said already
                pass

    def __iter__(self):
        for frame in self.microphone:
            if not self.loudspeaker.stream.active:
                raise ValueError("the loudspeaker has gone: connect it and start again")
            yield frame


def level(samples):
    """A frame's meter, eight signs for 60 dB."""
    signs = round(8 + torch.log10(samples.square().mean() + 1e-9).item() * 10 / 7.5)
    return f"{'#' * max(0, min(8, signs)):.<8}"


def status(card, pace, user_audio, model_audio, words):
    """The line that shows how the talk goes: who speaks, milliseconds of a frame, what is late, the
    words so far."""
    parts = [f"you {level(user_audio)} model {level(model_audio)} "
             f"{1000 * pace.last:3.0f} of {1000 * pace.budget:.0f} ms, {pace.late} late"]
    if card.microphone.behind() > 0.2:
        parts.append(f"{card.microphone.behind():.1f} s behind")
    if card.microphone.lost:
        parts.append(f"{card.microphone.lost:.1f} s not heard")
    return ", ".join(parts) + "  " + words[-40:]


def show(card, talk, monologue, budget):
    """Play and print a talk until it ends. talk: (user_audio, model_audio, seconds that it took) of
    each frame; budget: seconds that a frame lasts.

    On a terminal the status is one line, updated in place, and each sentence that is whole stays
    above it. In a file or a pipe only sentences stand. A machine that is too slow is told once."""
    terminal = sys.stdout.isatty()
    clear = "\r\033[K" if terminal else ""
    pace = Pace(budget)
    lost = 0.0
    for user_audio, model_audio, seconds in talk:
        card.loudspeaker.play(model_audio)
        warning = pace.add(seconds)
        if warning:
            print(f"{clear}{warning}", flush=True)
        if card.microphone.lost > lost:
            lost = card.microphone.lost
            print(f"{clear}the talk was {PILE:g} s behind: what waited was not listened to",
                  flush=True)
        while len(monologue.lines) > (1 if monologue.ids else 0):
            start, sentence = monologue.lines.pop(0)
            print(f"{clear}{start:7.2f} s  {sentence}", flush=True)
        if terminal:
            words = monologue.lines[-1][1] if monologue.lines else ""
            print(clear + status(card, pace, user_audio, model_audio, words), end="", flush=True)
