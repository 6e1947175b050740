"""The answer to a sound file: written where it was asked for, and what its owner is told of it.

What this is: the end of `chat.py --in question.wav --out answer.wav`. It serves chat.py. What this
is not: the formats of sound (sound_file.py), or when the answer is over (answer_end.py).

    python chat.py --in examples/question.wav --out answer.wav
"""
import sys

import torch

from workshop import pace, sound_file
from workshop.answer_end import SILENT


def save(args, user_audio, model_audio, sample_rate):
    """Write the answer, with --stereo both voices; elsewhere, where --out takes it no more. Raises
    OSError that says where."""
    audio = torch.stack([user_audio, model_audio], 1) if args.stereo else model_audio
    try:
        sound_file.write_audio(args.target, audio, sample_rate)
    except OSError as error:
        rescue = sound_file.rescue_audio(args.target, audio, sample_rate)
        raise OSError(f"{error}; {rescue}") from None


def report(target, model_audio, seconds, config, tail=None):
    """Print how long the conversation was, and what is odd about the answer.

    seconds: what each frame took; config: the codec's; tail: seconds of silence after the file, as
    asked for, or None."""
    length = len(model_audio) / config.sample_rate
    speed_up = length / sum(seconds)
    slowest = 1000 * max(seconds)
    print(f"{length:.1f} s of conversation in {sum(seconds):.1f} s ({speed_up:.1f} x real time, "
          f"slowest frame {slowest:.0f} of {1000 / config.frame_rate:.0f} ms) -> {target}")
    if model_audio.abs().max() <= SILENT:
        why = "is there speech in the file?"
        if tail is not None:
            why = f"a --tail longer than {tail:g} leaves it time to answer"
        print(f"chat.py: note: the model said nothing: {why}", file=sys.stderr)
    elif model_audio[-config.sample_rate // 4:].abs().max() > SILENT:
        print("chat.py: note: the file ended while the model was speaking: "
              "a longer --tail lets it finish", file=sys.stderr)
    warning = pace.too_slow(sum(seconds) / len(seconds), 1 / config.frame_rate)
    if warning:
        print(warning)
