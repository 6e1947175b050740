"""What clean recordings lack: pauses, a microphone, a room, a telephone (`data.py encode --rooms`).

What this is: how often some of what is heard gets each of these, and how much of it. What this is
not: the paper's method, which data.py has, or the filters themselves (acoustics.py). Serves data.py
and eval.py.

Decision: the recordings of the paper bring their rooms and hesitations along. Where clean speech
stands for them, some of what is heard gets what it lacks, and noise may be louder.

Shapes: N samples of a waveform at SAMPLE_RATE.
"""
import numpy as np

from workshop import acoustics
from workshop.acoustics import amplitude
from workshop.sound_file import SAMPLE_RATE

PAUSE_PROBABILITY = 0.35
PAUSE = (0.2, 1.0)                  # seconds
QUIET = 0.1                         # share of a recording's samples that count as its quiet places
MICROPHONE_PROBABILITY = 0.5
MICROPHONE = 4                      # dB, standard deviation of its response from octave to octave
ROOM_PROBABILITY = 0.4
ROOM_DECAY = (0.1, 0.6)             # seconds until the echo is 60 dB down
ROOM_DIRECT = (0, 15)               # dB of direct over echoed sound
NOISE_LOUDNESS = (-70, -30)         # dB of a segment of noise
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


def room(audio, rng):
    """audio [N] as a microphone across a room hears it, [N + echo]."""
    decay = rng.uniform(*ROOM_DECAY)
    direct = rng.uniform(*ROOM_DIRECT)
    return acoustics.room(audio, decay, amplitude(-direct), rng.getrandbits(64))


def from_afar(audio, rng):
    """audio [N] with a random choice of microphone, room and telephone, [N + echo]."""
    if rng.random() < MICROPHONE_PROBABILITY:
        audio = acoustics.microphone(audio, MICROPHONE, rng)
    if rng.random() < ROOM_PROBABILITY:
        audio = room(audio, rng)
    if rng.random() < TELEPHONE_PROBABILITY:
        lowest = rng.uniform(*TELEPHONE_LOWEST)
        audio = acoustics.band(audio, lowest, rng.uniform(*TELEPHONE_HIGHEST))
    return audio
