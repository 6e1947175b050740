"""When a waveform sounds, and noise that is so much softer than a voice.

What this is: the stretches of sound in a waveform, and the noise in which eval.py asks again. What
this is not: the noise that training lays under what is heard (data.py). Serves eval.py.

    spans(audio) -> [[1.0, 3.0], [3.6, 4.0]]     # seconds

Decision: the paper does not say when a sound begins or ends.
"""
import numpy as np
import torch

from workshop import sound_file
from workshop.sound_file import SAMPLE_RATE

AUDIBLE = 0.01        # root mean square, of full scale, above which a window of sound is heard
WINDOW = 0.02         # seconds of a window
GAP = 0.5             # seconds of silence that end a stretch of speech


def spans(audio):
    """Where a waveform [N] sounds: [[start, end]] in seconds."""
    size = round(WINDOW * SAMPLE_RATE)
    windows = audio[:len(audio) // size * size].view(-1, size)
    level = windows.square().mean(1).sqrt()
    stretches = []
    for i in (level > AUDIBLE).nonzero()[:, 0].tolist():
        end = round((i + 1) * WINDOW, 2)
        if stretches and i * WINDOW - stretches[-1][1] < GAP:
            stretches[-1][1] = end
        else:
            stretches.append([round(i * WINDOW, 2), end])
    return stretches


def noise_below(voice, snr, n, recordings, rng):
    """n samples of noise, `snr` dB below a voice [N]: one of some recordings, again and again or,
    without any, pink noise (3 dB less an octave)."""
    if recordings:
        noise = sound_file.read_audio(rng.choice(recordings)).numpy()
    else:
        noise = pink(n, rng.getrandbits(64))
    noise = torch.from_numpy(np.resize(noise, n).astype(np.float32))
    as_loud = (voice.square().mean() / noise.square().mean()).sqrt()
    return noise * 10 ** (-snr / 20) * as_loud


def pink(n, seed):
    """Pink noise [n]: white noise whose power falls with the frequency."""
    white = np.fft.rfft(np.random.default_rng(seed).standard_normal(n))
    return np.fft.irfft(white / np.sqrt(np.arange(1, len(white) + 1)), n)
