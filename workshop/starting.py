"""The model that a run of training starts from.

What this is: a folder's model, a preset with fresh weights or with those of a Qwen, and what of it
a run keeps as it is; the same in every process. It serves train.py and checkpoints.py. What this is
not: reading files (model_files.py), adapters (lora.py), or the sharding over processes
(processes.py).

    python train.py run grids/pt1 --init 0.5b --qwen Qwen/Qwen2.5-0.5B --beside release --out runs/1
"""
import torch

import flm
from workshop import lora, model_files, processes, qwen_files


class StartError(ValueError):
    """A model that a run cannot start from; the message is one sentence."""


def starting_model(init, qwen, seed):
    """The model that a run starts from -> flm.FLM: that of a folder or Hub id `init`; or the preset
    `init` with the weights of a `qwen`, and with fresh ones, which follow from the seed, where
    there are no others. Raises LoadError."""
    torch.manual_seed(seed)
    preset = flm.PRESETS.get(init)
    if qwen:
        return qwen_files.from_qwen(qwen, preset)
    if preset:
        return flm.init_weights(flm.FLM(preset))
    return model_files.load(init)


def model_to_train(settings):
    """The starting model of some train.Settings, with adapters where they ask for them -> (flm.FLM,
    a fingerprint of what it was before, or None where all weights are trained). Only the first
    process reads files, and only there the model has values. Raises LoadError or StartError."""
    trained = lora.Trained.of(vars(settings))
    is_fresh = settings.init in flm.PRESETS and not settings.qwen
    if is_fresh and not trained.everything:
        raise StartError(f"--init {settings.init} has random weights, and --lora and --freeze keep "
                         "weights as they are: give a trained model, or --qwen")
    model = None
    config = None
    base = None
    if processes.rank() == 0:
        model = starting_model(settings.init, settings.qwen, settings.seed)
        config = model.config
        if not trained.everything:
            base = lora.fingerprint(model)
    config, base = processes.from_first((config, base))
    if model is None:
        model = flm.FLM(config)
    lora.adapt(model, trained, settings.bfloat16)
    return model, base
