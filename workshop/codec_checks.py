"""Whether the settings of a codec make sense: a check of mimi.Config.

What this is: the kind, the range and the agreement of the settings, each refusal in one sentence
that names the setting. A file may hold anything. What this is not: the settings (mimi.py), or the
files they stand in (codec_files.py). Serves mimi.py.

    mimi.Config(n_q_used=1)      # ValueError: n_q_used 1 must be above 1 and at most n_q_total 32
"""
import math
from dataclasses import fields


def check(config):
    """Raise ValueError, one sentence, where a codec cannot be built from this mimi.Config."""
    for field in fields(config):
        check_kind(field.name, getattr(config, field.name), field.type)
    if config.ends not in ("seanet", "stft"):
        raise ValueError(f"ends must be 'seanet' or 'stft', not {config.ends!r}")
    if config.dimension % (2 * config.num_heads):
        raise ValueError(f"dimension {config.dimension} must be a multiple of twice num_heads "
                         f"({config.num_heads})")
    if not 1 < config.n_q_used <= config.n_q_total:
        raise ValueError(f"n_q_used {config.n_q_used} must be above 1 and at most n_q_total "
                         f"{config.n_q_total}")
    step = math.prod(config.ratios) if config.ends == "seanet" else 4 * config.hop
    if 2 * step != config.frame_size:
        raise ValueError(f"two steps of {step} samples do not make a frame of {config.frame_size}")


def check_kind(name, value, kind):
    """Raise ValueError for a value of the wrong kind."""
    if kind is tuple:
        if not isinstance(value, (tuple, list)) or not value:
            raise ValueError(f"{name} must be a list of whole numbers, not {value!r}")
        for number in value:
            check_kind(name, number, int)
    elif kind is str:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a text, not {value!r}")
    else:
        kinds = (int,) if kind is int else (int, float)
        if type(value) not in kinds or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number above 0, not {value!r}")
