"""Where in a recording somebody speaks, by its level alone.

What this is: spans of sound between silences, and the cutting of a long recording into pieces for a
recogniser. What this is not: a detector of voices; music and steady noise count as sound. Serves
check.py and transcription.py.

    speech_spans(audio) -> [(0.52, 1.96), (2.44, 3.1)]    # seconds
"""
import numpy as np

from workshop.sound_file import SAMPLE_RATE

WINDOW = 0.02         # seconds whose level is one number
# Decision: sound is what is at most this much quieter than the loud places of its recording, and
# louder than QUIETEST. A voice's weakest consonants are about 35 dB below its vowels.
RANGE = 35            # dB
LOUD = 95             # the percentile of levels that counts as a loud place
QUIETEST = -60        # dB
SHORTEST = 0.1        # seconds; a shorter sound is a click
PAUSE = 0.2           # seconds; a shorter silence is part of a word
MARGIN = 0.15         # seconds of silence that stay on each side of a piece


def levels(audio, rate=SAMPLE_RATE):
    """audio [N] -> the level of each WINDOW, in dB."""
    size = round(WINDOW * rate)
    padded = np.pad(audio, (0, -len(audio) % size))
    power = np.square(padded.reshape(-1, size), dtype=np.float64).mean(1)
    return 10 * np.log10(power + 1e-12)


def speech_spans(audio, rate=SAMPLE_RATE):
    """audio [N] -> [(start, end)] in seconds: where it sounds."""
    level = levels(audio, rate)
    threshold = max(QUIETEST, np.percentile(level, LOUD) - RANGE)
    sounds = np.concatenate([[False], level > threshold, [False]])
    edges = np.flatnonzero(sounds[1:] != sounds[:-1])
    spans = []
    for first, last in edges.reshape(-1, 2):
        start, end = first * WINDOW, last * WINDOW
        if spans and start - spans[-1][1] < PAUSE:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    seconds = len(audio) / rate
    return [(start, min(end, seconds)) for start, end in spans if end - start >= SHORTEST]


def pieces(audio, silence, longest):
    """audio [N] -> [(start, end)] in seconds: the recording cut where it is silent.

    silence: seconds after which a piece ends; longest: no piece is longer. A sound that is longer
    is cut at its quietest places."""
    seconds = len(audio) / SAMPLE_RATE
    level = levels(audio)
    spans = []
    for start, end in speech_spans(audio):
        spans += cut(level, start, end, longest - 2 * MARGIN)
    groups = []
    for start, end in spans:
        is_near = groups and start - groups[-1][1] < silence
        if is_near and end - groups[-1][0] <= longest - 2 * MARGIN:
            groups[-1] = (groups[-1][0], end)
        else:
            groups.append((start, end))
    with_margins = []
    before = 0.0
    for i, (start, end) in enumerate(groups):
        after = groups[i + 1][0] if i + 1 < len(groups) else seconds
        last = min(end + MARGIN, (end + after) / 2, seconds)
        with_margins.append((max(start - MARGIN, before), last))
        before = last
    return with_margins


def cut(level, start, end, longest):
    """A sound from one second to another -> spans of at most `longest` seconds. Each cut is at the
    quietest window in the second half of the piece that it ends."""
    spans = []
    while end - start > longest:
        first = round((start + longest / 2) / WINDOW)
        last = round((start + longest) / WINDOW)
        middle = (first + int(np.argmin(level[first:last]))) * WINDOW
        spans.append((start, middle))
        start = middle
    return [*spans, (start, end)]
