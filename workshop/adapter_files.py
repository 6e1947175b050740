"""What a run with --lora or --freeze has trained, as a small folder of its own.

What this is: adapters.safetensors with the weights that were trained, adapters.json with what they
belong to, and the way back to a whole model beside the weights of the start. It serves
checkpoints.py. What this is not: the adapters (lora.py), or a checkpoint, which has the optimizer's
moments too and can be trained on.

    python train.py export runs/lora to-share --adapters
    python train.py export to-share somewhere/model --base CofeAI/FLM-Audio
"""
import json
from pathlib import Path

import torch

from workshop import config_files, lora, model_files
from workshop.files import LoadError, replacing

WEIGHTS = "adapters.safetensors"
ABOUT = "adapters.json"


def save(model, method, folder, dtype=torch.float32):
    """Write what is trained of a model with adapters. method: that of a checkpoint, as a dict.
    Raises OSError."""
    from safetensors.torch import save_file
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: parameter.detach().to(dtype).contiguous()
               for name, parameter in model.named_parameters() if parameter.requires_grad}
    selection = lora.Selection.of(method)
    about = {"lora": selection.rank, "lora_full_audio": selection.full_audio,
             "freeze": list(selection.freeze), "base": method["base"],
             "config": config_files.to_json(model.config)}
    with replacing(folder / WEIGHTS) as beside:
        save_file(weights, beside)
    with replacing(folder / ABOUT) as beside:
        beside.write_text(json.dumps(about, indent=1))


def is_here(folder):
    """Whether a folder is one that `save` wrote."""
    return (Path(folder) / ABOUT).exists()


def files_in(folder):
    """The files of a folder that `save` writes."""
    return [file for file in (Path(folder) / WEIGHTS, Path(folder) / ABOUT) if file.exists()]


def load(folder, base):
    """The flm.FLM of what a folder holds, merged with the model of `base`, a folder or Hub id.
    Raises LoadError."""
    folder = Path(folder)
    about = model_files.read_json(folder / ABOUT)
    model = model_files.load(base)
    if lora.fingerprint(model) != about.get("base"):
        raise LoadError(f"{folder} was trained beside other weights than those of {base}: give the "
                        "model that its run started from with --base")
    lora.adapt(model, lora.Selection.of(about))
    shapes = {name: parameter for name, parameter in model.named_parameters()
              if parameter.requires_grad}
    for file, name, tensor in model_files.tensors_in([folder / WEIGHTS]):
        if name not in shapes:
            raise LoadError(f"{file} has a tensor {name} that its {ABOUT} does not speak of")
        model_files.check_tensor(file, name, tensor, shapes[name].shape)
        shapes.pop(name).data = tensor.float()
    if shapes:
        raise LoadError(f"{folder / WEIGHTS} lacks the tensor {min(shapes)}")
    lora.merge(model)
    model.config = config_files.from_json(about["config"])
    return model
