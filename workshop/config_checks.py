"""Whether the settings of a language model make sense: a check of flm.Config.

What this is: the kind, the range and the agreement of the settings, each refusal in one sentence
that names the setting. A file may hold anything. What this is not: the settings (flm.py), or the
form they have in a file (config_files.py). Serves flm.py.

    flm.Config(..., num_attention_heads=3)      # ValueError: hidden_size 32 must be a multiple ...
"""
import math
from dataclasses import fields

# Special tokens, by the setting that says how many rows their vocabulary has.
TOKENS = {
    "vocab_size": ("wait_token", "asr_token", "answer_token"),
    "aud_vocab_size": ("pad_token", "empty_token"),
}


def check(config):
    """Raise ValueError, one sentence, where a model cannot be built from this flm.Config."""
    for field in fields(config):
        check_kind(field, getattr(config, field.name))
    check_multiple(config, "num_attention_heads", "num_key_value_heads")
    check_multiple(config, "depth_dim", "depth_heads")
    head_dim = config.head_dim
    if head_dim is None:
        check_multiple(config, "hidden_size", "num_attention_heads")
        head_dim = config.hidden_size // config.num_attention_heads
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} must be even, because RoPE turns pairs")
    for size, tokens in TOKENS.items():
        for name in tokens:
            check_token(config, name, size)
    text_tokens = [getattr(config, name) for name in TOKENS["vocab_size"]]
    rows = [token for token in text_tokens if token is not None]
    if len(set(rows)) < len(rows):
        raise ValueError(f"{', '.join(TOKENS['vocab_size'])} must be different ids, not "
                         f"{', '.join(map(str, text_tokens))}")
    if config.vocab_size < len(text_tokens):
        raise ValueError(f"vocab_size {config.vocab_size} has no room for <wait>, <asr> and "
                         "<answer>")


def check_kind(field, value):
    """Raise ValueError for a value of the wrong kind."""
    if value is None and field.default is None:
        return
    if field.type in (int, int | None):
        lowest = 0 if field.name.endswith("_token") else 1
        if type(value) is not int or value < lowest:
            bound = "0 or more" if lowest == 0 else "above 0"
            raise ValueError(f"{field.name} must be a whole number {bound}, not {value!r}")
    elif field.type is float:
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{field.name} must be a number above 0, not {value!r}")
    elif type(value) is not bool:
        raise ValueError(f"{field.name} must be true or false, not {value!r}")


def check_multiple(config, size, parts):
    if getattr(config, size) % getattr(config, parts):
        raise ValueError(f"{size} {getattr(config, size)} must be a multiple of "
                         f"{parts} {getattr(config, parts)}")


def check_token(config, name, size):
    token = getattr(config, name)
    if token is not None and token >= getattr(config, size):
        raise ValueError(f"{name} must be an id below {size} {getattr(config, size)}, not {token}")
