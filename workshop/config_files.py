"""The release's config.json: to an flm.Config and back.

What this is: how the release groups and names a model's settings, which of its keys are without
effect here, what a file may only say in one way, and the ways in which files of Qwen speak of RoPE.
What this is not: the settings (flm.py), or a check of their values (config_checks.py). Serves
flm.py, stream.py and model_files.py.

    config = config_files.from_json(json.loads(Path("tiny/model/config.json").read_text()))
    values = config_files.to_json(config)

The release's own configuration class takes certain keys in its two groups and stops at any other
there. At the top level it ignores what it does not know. So what we have to say beyond the release
stands at the top level: the ids of <asr> and <answer>, and the frames of a sequence of training.
"""
from dataclasses import MISSING, fields

import flm

# config.json nests two groups, whose keys are fields of flm.Config like all others.
GROUPS = {
    "mm_token_info": {
        "text_wait_token_id": "wait_token",
        "aud_pad_token_id": "pad_token",
        "aud_emp_token_id": "empty_token",
    },
    "aud_depthgpt": {
        "n_layer": "depth_layers",
        "n_head": "depth_heads",
        "n_embd": "depth_dim",
        "bias": "depth_bias",
        "use_cmlp": "depth_cmlp",
        "use_rmsnorm": "depth_rmsnorm",
        "use_swiglu": "depth_swiglu",
    },
}
# Keys of ours at the top level. Older folders of ours have them in mm_token_info.
OURS = {
    "text_asr_token_id": "asr_token",
    "text_answer_token_id": "answer_token",
}
# mrope is plain RoPE here: without images its three position ids are equal.
ROPE_TYPES = ("mrope", "default")
# What a file may say in these ways only. Tied heads are refused, since a start from Qwen copies the
# embedding into a head of its own.
ONLY = {
    "aud_channel": (flm.K,),
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "use_sliding_window": (False,),
    "rope_type": ROPE_TYPES,
}
# Bookkeeping of the transformers library, and sizes that follow from others.
WITHOUT_EFFECT = {
    "model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "auto_map",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout",
    "initializer_range", "sliding_window", "max_window_layers", "layer_types", "_name_or_path",
    "mrope_section", "aud_depthgpt.dropout", "aud_depthgpt.block_size", "aud_depthgpt.vocab_size",
    "aud_depthgpt.main_hidden_size", "aud_depthgpt.pad_token_id",
}


def from_json(values):
    """The release's config.json, as a dict -> flm.Config. Raises ValueError that names unknown,
    missing or impossible keys."""
    values = flat_settings(values)
    for key, allowed in ONLY.items():
        value = values.pop(key, allowed[0])
        if value not in allowed:
            raise ValueError(f"{key} must be {' or '.join(map(repr, allowed))}, not {value!r}")
    settings = {key: value for key, value in values.items() if key not in WITHOUT_EFFECT}
    names = {field.name for field in fields(flm.Config)}
    unknown = settings.keys() - names
    if unknown:
        raise ValueError(f"unknown model setting(s) {', '.join(sorted(unknown))}")
    required = [field.name for field in fields(flm.Config) if field.default is MISSING]
    missing = [name for name in required if name not in settings]
    if missing:
        raise ValueError(f"missing model setting(s) {', '.join(missing)}")
    return flm.Config(**settings)


def to_json(config):
    """An flm.Config -> the release's config.json as a dict; from_json gives this Config again."""
    flat = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None:
            flat[field.name] = value
    values = {"model_type": "FLMAudio", "architectures": ["FLMAudioForCausalLM"],
              "aud_channel": flm.K, "hidden_act": "silu", "tie_word_embeddings": False}
    for group, keys in GROUPS.items():
        values[group] = {key: flat.pop(name) for key, name in keys.items() if name in flat}
    values["aud_depthgpt"]["dropout"] = 0.0
    for key, name in OURS.items():
        values[key] = flat.pop(name)
    return values | flat


def flat_settings(values):
    """The release's config.json without its groups -> a dict by names of flm.Config's fields, or
    "group.key" for keys of a group that are none. Raises ValueError where a group is no object."""
    if not isinstance(values, dict):
        raise ValueError(f"a configuration is an object of settings, not {values!r}")
    flat = rope_settings(values)
    for key, value in values.items():
        if key in ("rope_scaling", "rope_parameters"):
            continue
        if key in GROUPS:
            if not isinstance(value, dict):
                raise ValueError(f"{key} must be an object of settings, not {value!r}")
            names = GROUPS[key] | OURS
            for inner_key, inner in value.items():
                flat[names.get(inner_key, f"{key}.{inner_key}")] = inner
        elif value is not None or key not in flat:
            flat[OURS.get(key, key)] = value
    return flat


def rope_settings(values):
    """What a config.json says of RoPE, in the older group (rope_scaling) or the newer one
    (rope_parameters), as one dict with `rope_type`. Raises ValueError where a group is no
    object."""
    settings = {"rope_type": "default"}
    for group in ("rope_scaling", "rope_parameters"):
        inner = values.get(group)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            raise ValueError(f"{group} must be an object of settings, not {inner!r}")
        inner = dict(inner)
        older_name = inner.pop("type", "default")
        kind = inner.pop("rope_type", older_name)
        if kind != "default":
            settings["rope_type"] = kind
        settings |= inner
    return settings
