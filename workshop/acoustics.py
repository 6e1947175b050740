"""What a microphone, a room and a telephone do to a sound, and a noise made of numbers.

What this is: three filters and a noise, each with its numbers as arguments. What this is not: how
often and how much of each is used (data.py, which this serves, and rooms.py draw that).

Shapes: N samples of a waveform at SAMPLE_RATE.
"""
import numpy as np

from workshop.sound_file import SAMPLE_RATE

SIXTY_DECIBELS = 6.9     # e ** -6.9 is -60 dB
OCTAVES = np.arange(-8, 1)  # octaves from 12 kHz downwards at which a microphone has a gain


def amplitude(decibels):
    """A gain in dB as a factor."""
    return 10 ** (float(decibels) / 20)


def spectrum_size(length):
    """A power of two in which a filter of so many samples does not wrap around."""
    return 1 << length.bit_length()


def microphone(audio, deviation, rng):
    """audio [N] through a microphone that favours some octaves: a random gain at each of the
    OCTAVES, of so many dB standard deviation, and a line between them."""
    gains = [rng.gauss(0, deviation) for _ in OCTAVES]
    size = spectrum_size(len(audio))
    frequencies = np.arange(1, size // 2 + 2) / (size // 2)  # as shares of 12 kHz
    response = 10 ** (np.interp(np.log2(frequencies), OCTAVES, gains) / 20)
    sound = np.fft.irfft(np.fft.rfft(audio, size) * response, size)
    return sound[:len(audio)].astype(np.float32)


def room(audio, seconds, gain, seed):
    """audio [N] and its echo, [N + echo]. The room's response is a noise that decays by 60 dB
    within so many seconds. gain: amplitude of the echo beside its source."""
    n = round(seconds * SAMPLE_RATE)
    decay = np.exp(-SIXTY_DECIBELS * np.arange(n, dtype=np.float32) / n)
    response = np.random.default_rng(seed).standard_normal(n, np.float32) * decay
    response /= np.linalg.norm(response)
    length = len(audio) + n
    size = spectrum_size(length)
    echo = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[:length]
    return np.pad(audio, (0, n)) + (gain * echo).astype(np.float32)


def band(audio, lowest, highest):
    """audio [N] with the frequencies from lowest to highest (Hz) alone."""
    size = spectrum_size(len(audio))
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum = np.fft.rfft(audio, size)
    spectrum[(frequencies < lowest) | (frequencies > highest)] = 0
    return np.fft.irfft(spectrum, size)[:len(audio)].astype(np.float32)


def coloured_noise(n, steepness, seed):
    """n samples of noise. steepness 0: white, all octaves of one amplitude; 1: brown."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(n, np.float32))
    spectrum *= np.arange(1, n // 2 + 2, dtype=np.float32) ** -steepness
    return np.fft.irfft(spectrum, n).astype(np.float32)
