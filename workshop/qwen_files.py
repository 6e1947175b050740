"""A start from a language model that others trained: Qwen2.5, or one that computes alike.

What this is: the text embeddings, layers, norm and text head of a checkpoint under fresh audio
embeddings and a fresh depth transformer (section 2.1: the language part of Qwen2.5-VL); which
checkpoints compute as flm.py does, and why others are refused. What this is not: files of ours
(model_files.py). Serves starting.py and tokenizer.py.

    python train.py run grids/pt1 --init 0.5b --qwen Qwen/Qwen2.5-0.5B --beside release --out runs/1
    python train.py run grids/pt1 --init start --qwen SmolLM2-135M.Q4_1.gguf --out runs/2

A checkpoint is a folder or Hub id in the format of transformers, or a GGUF file. Its vocabulary may
be smaller than the model's; rows that it does not have begin with random values.
"""
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import flm
from workshop import config_files, gguf_files, model_files
from workshop.files import LoadError

# The kinds of checkpoint that compute as flm.py does, by the model_type of their config.json.
QWEN = ("qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text")
LLAMA = ("llama",)  # plain ones, as SmolLM2: they are Qwen2 without biases
# Why others are refused. They have the names and shapes of Qwen2, in part, and would run.
REASONS = {
    "qwen3": "it normalizes queries and keys in each head (q_norm, k_norm), which this model does "
             "not",
    "mistral": "its layers may have a window of their own, and this model attends to all that it "
               "remembers",
    "gemma": "it scales its embeddings and norms in its own way",
    "phi": "its projections are laid together in its own way",
}
# Settings in which a checkpoint must be what the model to be started is.
SAME = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "attention_bias",
        "mlp_bias")
# What transformers takes where a config.json is silent.
SILENT = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "mlp_bias": False, "hidden_act": "silu"}


@dataclass
class Source:
    """A checkpoint: the file with its settings, these settings, and (file, name, tensor) of each
    of its tensors, read when its turn comes."""
    file: Path
    settings: dict
    tensors: object
    gguf: gguf_files.Checkpoint | None = None  # where it is a GGUF file


def open_source(path):
    """A folder, a Hub id or a GGUF file -> Source. Raises LoadError for one that computes otherwise
    than this model, or that cannot be read."""
    if Path(path).suffix == ".gguf":
        if not Path(path).is_file():
            raise LoadError(f"{path} does not exist")
        checkpoint = gguf_files.Checkpoint(path)
        tensors = ((path, name, tensor) for name, tensor in checkpoint.tensors())
        settings = check_settings(checkpoint.settings, path)
        return Source(Path(path), settings, tensors, checkpoint)
    folder = model_files.resolve(path)
    if not (folder / "config.json").exists():
        for file in folder.glob("*.gguf"):
            raise LoadError(f"{folder} has no config.json: name the GGUF file itself, {file}")
    file = folder / "config.json"
    settings = check_settings(language_settings(model_files.read_json(file), file), file)
    tensors = model_files.tensors_in(model_files.weight_files(folder))
    return Source(file, settings, tensors)


def language_settings(values, file):
    """A config.json's settings of the language model alone. Raises LoadError."""
    if not isinstance(values, dict):
        raise LoadError(f"{file} is no configuration: it must be an object of settings")
    if "text_config" not in values:
        return values
    inner = values["text_config"]
    if not isinstance(inner, dict):
        raise LoadError(f"{file} is no configuration: text_config must be an object of settings")
    # The vision-language model of newer transformers nests its language part, and says outside
    # whether its text head is the embedding.
    tied = values.get("tie_word_embeddings") or inner.get("tie_word_embeddings")
    model_type = inner.get("model_type", values.get("model_type"))
    return inner | {"tie_word_embeddings": bool(tied), "model_type": model_type}


def check_settings(values, file):
    """A checkpoint's settings -> the same with what follows from silence. Raises LoadError for one
    that computes otherwise than this model."""
    kind = values.get("model_type") or "qwen2"
    if kind not in QWEN + LLAMA:
        known = "Qwen2, Qwen2.5 and Llama without biases can be started from"
        reason = next((why for name, why in REASONS.items() if str(kind).startswith(name)), None)
        raise LoadError(f"{file} is a model of type {kind}: {reason or 'it is not known here'}; "
                        f"{known}")
    try:
        rope = config_files.rope_settings(values)
    except ValueError as error:
        raise LoadError(f"{file}: {error}") from None
    if rope["rope_type"] not in config_files.ROPE_TYPES:
        raise LoadError(f"{file} has RoPE of type {rope['rope_type']}, which turns every position "
                        "by other angles: only plain RoPE can be started from")
    layer_types = values.get("layer_types") or ["full_attention"]
    if values.get("use_sliding_window") or set(layer_types) != {"full_attention"}:
        raise LoadError(f"{file} has use_sliding_window, or layers with a window of their own, and "
                        "this model attends to all that it remembers")
    present = {key: value for key, value in values.items() if value is not None}
    settings = SILENT | rope | present
    if settings["hidden_act"] != "silu":
        raise LoadError(f"{file} has hidden_act {settings['hidden_act']}, and this model has silu")
    missing = [name for name in (*SAME[:4], "vocab_size") if type(settings.get(name)) is not int]
    if missing:
        raise LoadError(f"{file} is no configuration of a language model: it has no "
                        f"{', '.join(missing)}")
    if kind in QWEN:
        settings["attention_bias"] = True  # always there, and not a setting of theirs
    settings.setdefault("attention_bias", False)
    heads = settings["num_attention_heads"]
    settings.setdefault("num_key_value_heads", heads)
    settings.setdefault("head_dim", settings["hidden_size"] // heads)
    settings["disable_att_o_bias"] = kind in QWEN
    return settings


def same(ours, theirs):
    """Whether two settings are equal; a file may hold a number in 32 bits."""
    if type(ours) is float and type(theirs) in (int, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return ours == theirs


def shape_of(settings):
    """What of a checkpoint's settings is a setting of flm.Config, by name: its shape."""
    names = (*SAME, "vocab_size", "max_position_embeddings", "disable_att_o_bias")
    return {name: settings[name] for name in names if name in settings}


def our_name(name):
    """A checkpoint's name of a tensor -> ours, or None for what belongs to the vision tower."""
    name = re.sub(r"^model\.language_model\.", "model.", name)
    if name.startswith(("visual.", "model.visual.")):
        return None
    if name == "model.embed_tokens.weight":
        return "model.embed_tokens.text_embeddings.weight"
    return name


def with_rows(tensors, rows):
    """(file, name, tensor) of a checkpoint -> the same by our names, and with so many rows of the
    text embeddings and of the text head."""
    for file, name, tensor in tensors:
        name = our_name(name)
        if name is None:
            continue
        if name in ("lm_head.weight", "model.embed_tokens.text_embeddings.weight"):
            more = torch.empty(max(0, rows - len(tensor)), tensor.shape[-1])
            more = more.normal_(0, 0.02)  # as init_weights
            tensor = torch.cat([tensor, more.to(tensor.dtype)])
        yield file, name, tensor


def from_qwen(path, config, device="cpu", dtype=torch.float32):
    """An FLM whose text embeddings, layers, norm and text head are those of a checkpoint (section
    2.1); audio embeddings and depth transformer are fresh from the current seed.

    Raises LoadError where the checkpoint is not of the config's shape, or as `load` does."""
    source = open_source(path)
    settings = source.settings
    for name in SAME:
        if not same(getattr(config, name), settings[name]):
            raise LoadError(f"{source.file} has {name} {settings[name]!r}, and the model to be "
                            f"started has {getattr(config, name)!r}")
    if settings["vocab_size"] > config.vocab_size:
        raise LoadError(f"{source.file} has vocab_size {settings['vocab_size']}, and the model to "
                        f"be started has {config.vocab_size}, which are too few")
    model = flm.FLM(config)
    optional = [name for name, _ in model.named_parameters() if "aud_" in name]
    if settings.get("tie_word_embeddings") is True:
        optional.append("lm_head.weight")
    tensors = with_rows(source.tensors, config.vocab_size)
    model_files.fill(model, tensors, source.file, device, dtype, optional)
    if model.lm_head.weight.is_meta:
        embedding = model.model.embed_tokens.text_embeddings.weight
        model.lm_head.weight = nn.Parameter(embedding.detach().clone())
    return flm.init_weights(model, device, dtype)
