"""The codec's files: reading and writing its weights and settings.

What this is: mimi.json and mimi.safetensors, the file that Moshi publishes, and a checkpoint of
transformers' Mimi, each to a mimi.Mimi; and a codec back to mimi.json and mimi.safetensors. What
this is not: the network (mimi.py), the checks of settings (codec_checks.py), or the language
model's files (model_files.py). Serves every root file that needs a codec.

    from workshop import codec_files
    codec = codec_files.load("tiny/model")               # a folder, a file or a Hub id
    codec_files.save(codec, "somewhere")

The network's parameters have the names of Moshi's checkpoint, so its tensors load as they are.
transformers names them otherwise, and pairs RoPE's numbers otherwise.
"""
import json
import re
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path

import torch

import mimi
from workshop import devices, model_files
from workshop.files import LoadError, replacing

MOSHI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
# What is fetched of a Hub id.
WANTED = ["mimi.*", MOSHI_FILE, "config.json", "model.safetensors"]

# transformers' names of Mimi's tensors -> Moshi's, as patterns applied one after the other.
# STRIDES stands for the places of the decoder's transposed convolutions.
RENAMES = [
    (r"semantic_residual_vector_quantizer", "rvq_first"),
    (r"acoustic_residual_vector_quantizer", "rvq_rest"),
    (r"^decoder\.layers\.(STRIDES)\.conv\.", r"decoder.model.\1.convtr.convtr."),
    (r"^(encoder|decoder)\.layers\.(.+)\.conv\.(weight|bias)$", r"\1.model.\2.conv.conv.\3"),
    (r"^downsample\.conv\.", "downsample.conv.conv.conv."),
    (r"^upsample\.conv\.", "upsample.convtr.convtr.convtr."),
    (r"transformer\.layers", "transformer.transformer.layers"),
    (r"o_proj", "out_proj"),
    (r"mlp\.fc", "linear"),
    (r"input_layernorm", "norm1"),
    (r"post_attention_layernorm", "norm2"),
    (r"self_attn_layer_scale", "layer_scale_1"),
    (r"mlp_layer_scale", "layer_scale_2"),
    (r"(rvq_\w+)\.layers\.(\d+)\.codebook\.", r"\1.vq.layers.\2._codebook."),
    (r"embed_sum$", "embedding_sum"),
    (r"_codebook\.initialized$", "_codebook._initialized"),
]
# transformers' settings of Mimi -> ours.
TRANSFORMERS_SETTINGS = {
    "num_filters": "n_filters",
    "upsampling_ratios": "ratios",
    "hidden_size": "dimension",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "dim_feedforward",
    "sliding_window": "context",
    "codebook_size": "codebook_size",
    "vector_quantization_hidden_dimension": "codebook_dim",
    "num_quantizers": "n_q_total",
}


def moshi_name(name, config):
    """transformers' name of a tensor -> Moshi's."""
    places = range(2, 3 * len(config.ratios), 3)  # 2, 5, 8, 11
    strides = "|".join(str(place) for place in places)
    for pattern, replacement in RENAMES:
        name = re.sub(pattern.replace("STRIDES", strides), replacement, name)
    return name


def from_transformers(tensors, config):
    """Tensors of transformers' MimiModel -> Moshi's, by name. transformers' RoPE pairs halves and
    Moshi's neighbours, so the rows of queries and keys change places; Moshi keeps q, k and v in one
    matrix."""
    renamed = {}
    projections = {}  # name of a fused matrix -> its parts
    for theirs, tensor in tensors.items():
        name = moshi_name(theirs, config)
        part = re.fullmatch(r"(.+)\.([qkv])_proj\.weight", name)
        if part is None:
            renamed[name] = tensor
            continue
        if part[2] in "qk":
            heads = tensor.unflatten(0, (config.num_heads, 2, -1))
            tensor = heads.transpose(1, 2).flatten(0, 2)
        projections.setdefault(f"{part[1]}.in_proj_weight", {})[part[2]] = tensor
    for name, parts in projections.items():
        renamed[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return renamed


def settings_in(file):
    """A JSON file of settings, as a dict. Raises LoadError."""
    values = model_files.read_json(file)
    if not isinstance(values, dict):
        raise LoadError(f"{file} must be an object of settings")
    return values


def from_settings(values):
    """mimi.json, as a dict -> mimi.Config. Raises ValueError that names unknown or impossible
    settings."""
    unknown = values.keys() - {field.name for field in fields(mimi.Config)}
    if unknown:
        raise ValueError(f"unknown codec setting(s) {', '.join(sorted(unknown))}")
    return mimi.Config(**values)


def from_transformers_settings(values):
    """transformers' config.json of Mimi, as a dict -> mimi.Config. Raises ValueError, and KeyError
    for a setting that is not there."""
    values = {"num_quantizers": 32} | values
    settings = {ours: values[theirs] for theirs, ours in TRANSFORMERS_SETTINGS.items()}
    return mimi.Config(**settings)


def files_in(folder):
    """A folder -> (weights file, mimi.Config). Raises LoadError."""
    settings = folder / "mimi.json"
    try:
        if settings.exists():
            return folder / "mimi.safetensors", from_settings(settings_in(settings))
        if (folder / MOSHI_FILE).exists():
            return folder / MOSHI_FILE, mimi.PRESETS["released"]
        settings = folder / "config.json"
        if settings.exists():
            values = settings_in(settings)
            if values.get("model_type") == "mimi":
                return folder / "model.safetensors", from_transformers_settings(values)
    except LoadError:
        raise
    except KeyError as error:
        raise LoadError(f"{settings} lacks the setting {error}") from None
    except (ValueError, ZeroDivisionError) as error:
        raise LoadError(f"{settings}: {error}") from None
    raise LoadError(f"{folder} holds no codec: neither mimi.json, nor {MOSHI_FILE}, "
                    "nor transformers' Mimi")


def check_tensors(file, tensors, expected):
    """Raise LoadError where tensors are not what a codec expects: {name: shape}."""
    for name in expected.keys() | tensors.keys():
        if name not in tensors:
            raise LoadError(f"{file} lacks the tensor {name}")
        if name not in expected:
            raise LoadError(f"{file} has a tensor {name} that this codec does not")
        model_files.check_tensor(file, name, tensors[name], expected[name])


def check_fit(file, config, codebooks):
    """Raise LoadError where a codec does not make what a language model reads: frames of 80 ms at
    24 kHz, of so many codes."""
    released = mimi.PRESETS["released"]
    required = {"n_q_used": codebooks, "sample_rate": released.sample_rate,
                "frame_rate": released.frame_rate}
    for name, value in required.items():
        if getattr(config, name) != value:
            raise LoadError(f"{file.parent}: the codec has {name} {getattr(config, name)} and the "
                            f"language model needs {value}: take the codec that the model was "
                            "trained with")


def load(path, device="cpu", codebooks=None):
    """The codec of a folder, of a .safetensors file of the released Mimi, or of a Hub id -> Mimi,
    ready to use.

    codebooks: how many of them the language model beside it reads (flm.K); None: the codec is used
    alone, and may be any. Raises LoadError, one sentence that names file and tensor or setting,
    where something is missing, extra, misshapen, broken, or does not fit the language model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    if Path(path).is_file():
        file = Path(path)
        config = mimi.PRESETS["released"]
    else:
        file, config = files_in(model_files.resolve(path, WANTED))
    if codebooks is not None:
        check_fit(file, config, codebooks)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{file} cannot be read as safetensors, it is missing or damaged: "
                        f"{error}") from None
    if any(".q_proj." in name for name in tensors):
        tensors = from_transformers(tensors, config)
    codec = mimi.Mimi(config)
    expected = {name: tensor.shape for name, tensor in codec.state_dict().items()}
    check_tensors(file, tensors, expected)
    codec.load_state_dict(tensors)
    devices.convolve_exactly()
    return codec.eval().requires_grad_(False).to(device)


def save(codec, folder):
    """Write mimi.json and mimi.safetensors, beside and then renamed."""
    from safetensors.torch import save_file
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in codec.state_dict().items()}
    with ExitStack() as files:
        weights = files.enter_context(replacing(folder / "mimi.safetensors"))
        settings = files.enter_context(replacing(folder / "mimi.json"))
        save_file(tensors, weights)
        settings.write_text(json.dumps(asdict(codec.config), indent=1))
