"""Model folders on disk: reading and writing a language model's weights.

What this is: the release's files (config.json, model.safetensors or its shards) to an FLM and back,
tensor by tensor, so that a model is never held twice; Hub ids to folders. What this is not: the
network (flm.py), the files of other language models (qwen_files.py) or the codec's
(codec_files.py). Serves every root file that needs a model.

    from workshop import model_files
    model = model_files.load("tiny/model")                # a folder or a Hub id
    model_files.save(model, "somewhere")
"""
import json
import re
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

import flm
from workshop import config_files
from workshop.files import LoadError, error_line, replacing

# What stands beside the weights in a model folder, and is carried along with them (beside.py).
KINDS = {
    "tokenizer": ("tokenizer.json",),
    "sampling": ("sampling.json",),
    "codec": ("mimi.json", "mimi.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors"),
}
BESIDE = tuple(name for names in KINDS.values() for name in names)
SHIPPED = Path(__file__).parent.parent / "tiny" / "model"  # the model that this repository holds
WANTED = ["config.json", "model*.safetensors", "model.safetensors.index.json", *BESIDE]
INDEX = "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")  # names of weight files


# --- folders ---

def resolve(path, wanted=WANTED):
    """A folder as it is; a Hub id (owner/name) -> the folder of its download, which is only fetched
    once. wanted: patterns of the files to fetch. Raises LoadError."""
    if Path(path).is_dir():
        return Path(path)
    if Path(path).exists():
        raise LoadError(f"{path} is a file, and a model is a folder with config.json and "
                        "model.safetensors")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        raise LoadError(f"{path} does not exist, and is no Hub id (owner/name) either")
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(str(path), allow_patterns=wanted))
    except Exception as error:  # no connection, no such repository: they share no base class
        raise LoadError(f"{path} is no folder here and could not be had from the Hub: "
                        f"{error_line(error)}") from None


def read_json(file):
    """What a JSON file holds. Raises LoadError."""
    try:
        return json.loads(file.read_text())
    except OSError:
        if (file.parent / "checkpoints").is_dir():
            raise LoadError(f"{file.parent} is a run of train.py that has no model yet: let it "
                            "end, or write its newest checkpoint as one, by `python train.py "
                            f"export {file.parent} FOLDER`") from None
        raise LoadError(f"{file} is missing or cannot be read") from None
    except ValueError as error:
        raise LoadError(f"{file} is not JSON: {error}") from None


def read_tokenizer(folder):
    """The tokenizer.json of a folder -> tokenizers.Tokenizer. Raises LoadError."""
    from tokenizers import Tokenizer
    file = Path(folder) / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise LoadError(f"{file} cannot be read: {error}") from None


def weight_files(folder):
    """The files that hold a folder's weights. Raises LoadError where the index is damaged or lists
    what is not there."""
    index = folder / INDEX
    files = [folder / "model.safetensors"]
    if index.exists():
        try:
            names = set(read_json(index)["weight_map"].values())
            files = sorted(folder / name for name in names)
        except (AttributeError, KeyError, TypeError):
            raise LoadError(f"{index} has no weight_map that says which file holds which tensor"
                            ) from None
    for file in files:
        if not file.exists():
            listed = f", and {INDEX} lists it" if index.exists() else ""
            raise LoadError(f"{file} is missing{listed}")
    return files


def files_of_model(folder):
    """The files that a model's weights have in a folder: those with the usual names, the index, and
    what it lists. Others may have names that begin alike, and are not the model's."""
    folder = Path(folder)
    names = {file.name for file in folder.glob("model*") if WEIGHTS.fullmatch(file.name)}
    if (folder / INDEX).exists():
        names.add(INDEX)
        try:
            names |= {file.name for file in weight_files(folder) if file.parent == folder}
        except LoadError:  # it cannot be read, or lists what is not there
            pass
    return [folder / name for name in sorted(names)]


# --- tensors ---

def is_finite(tensor):
    """Whether a tensor holds neither NaN nor infinity, in one pass and without a copy. True for one
    without values (meta)."""
    if tensor.is_meta or not tensor.numel():
        return True
    low, high = tensor.aminmax()  # NaN wins over every number
    return bool(low.isfinite() & high.isfinite())


def tensors_in(files):
    """(file, name, tensor) of safetensors files, each tensor mapped from disk when its turn comes.
    Raises LoadError."""
    from safetensors import SafetensorError, safe_open
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():
                    yield file, name, opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise LoadError(f"{file} cannot be read as safetensors, it is damaged or cut short: "
                            f"{error}") from None


def check_tensor(file, name, tensor, shape):
    """Raise LoadError for a tensor of another shape or kind than a weight's, or with values that
    are no numbers."""
    if tensor.shape != shape:
        raise LoadError(f"{file}: tensor {name} is {list(tensor.shape)} and should be "
                        f"{list(shape)}")
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise LoadError(f"{file}: tensor {name} is {tensor.dtype}, and weights are floating point "
                        "of 16 bits or more")
    if not is_finite(tensor):
        raise LoadError(f"{file}: tensor {name} holds values that are no finite numbers: these "
                        "weights are spoilt")


def fill(model, tensors, where, device, dtype, optional=(), convert=None):
    """Assign (file, name, tensor) of each to the model. Each is mapped from disk and cast alone, so
    the weights are never held twice. where: the file that an error names for what is lacking;
    optional: names that may be absent; convert: as of `load`. Raises LoadError."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    lacking = shapes.keys() - set(optional)
    for file, name, tensor in tensors:
        if name not in shapes:
            raise LoadError(f"{file} has a tensor {name} that this model does not")
        check_tensor(file, name, tensor, shapes[name])
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        setattr(owner, attribute, nn.Parameter(tensor.to(device=device, dtype=dtype)))
        lacking.discard(name)
        is_whole = not any(parameter.is_meta for parameter in owner.parameters())
        if convert and isinstance(owner, nn.Linear) and is_whole:
            model.set_submodule(path, convert(path, owner))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise LoadError(f"{where} lacks the tensor {min(lacking)}{more}")


# --- reading ---

def read_config(folder, name="config.json"):
    """The flm.Config of a folder's config.json. Raises LoadError."""
    file = Path(folder) / name
    values = read_json(file)
    try:
        return config_files.from_json(values)
    except ValueError as error:
        raise LoadError(f"{file}: {error}") from None


def load(path, device="cpu", dtype=torch.float32, convert=None):
    """The FLM of a folder or Hub id, ready to use; dtype None keeps the file's. The files are the
    release's. convert: (name, Linear) -> module replaces each Linear as it arrives, so that memory
    peaks at what that makes and one layer.

    Raises LoadError, one sentence, where config or weights are missing, unknown, misshapen, spoilt
    or damaged."""
    folder = resolve(path)
    model = flm.FLM(read_config(folder))
    files = weight_files(folder)
    where = folder / INDEX if (folder / INDEX).exists() else files[0]
    fill(model, tensors_in(files), where, device, dtype, convert=convert)
    return model


# --- writing ---

def save(model, folder, max_shard_bytes=5 * 10**9):
    """Write config.json and model.safetensors, or shards of at most `max_shard_bytes` (or one
    tensor) and their index.

    Everything is written beside and then renamed, so a full disk costs no older checkpoint. Raises
    ValueError for weights that are not finite, OSError where they cannot be written; one sentence
    each."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    folder = Path(folder)
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(f"the model is not written to {folder}: its tensor {name} holds "
                             "values that are no finite numbers")
    texts = {"config.json": config_files.to_json(model.config)}
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_bytes)
    if split.is_sharded:
        texts[INDEX] = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    shards = split.filename_to_tensors
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = files_of_model(folder)
        with ExitStack() as files:  # all are renamed when all are written
            for name, members in shards.items():
                beside = files.enter_context(replacing(folder / name))
                shard = {key: tensors[key].contiguous() for key in members}
                save_file(shard, beside, metadata={"format": "pt"})
            for name, values in texts.items():
                beside = files.enter_context(replacing(folder / name))
                beside.write_text(json.dumps(values, indent=1))
        for old in before:
            if old.name not in (*shards, *texts):
                # It is of a save with other shards: an old index would be read in place of the new.
                old.unlink()
    except (OSError, SafetensorError) as error:
        raise OSError(f"the model cannot be written to {folder}: {error}") from None
