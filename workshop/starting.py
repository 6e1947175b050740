"""The model that a run of training starts from.

What this is: a folder's model, a preset or a config.json with fresh weights or with those of a
Qwen, and what of it a run keeps as it is; the same in every process. It serves train.py and
checkpoints.py. What this is not: reading files (model_files.py, qwen_files.py), adapters (lora.py),
or the sharding over processes (processes.py).

    python train.py run grids/pt1 --init 0.5b --qwen Qwen/Qwen2.5-0.5B --beside release --out runs/1
"""
from dataclasses import replace
from pathlib import Path

import torch

import flm
from workshop import lora, model_files, processes, qwen_files


class StartError(ValueError):
    """A model that a run cannot start from; the message is one sentence."""


def fresh_config(init, beside=None):
    """The flm.Config of a model that starts with fresh weights: a preset's, or that of a
    config.json, given as a file or in a folder without weights. None where `init` has weights.

    A preset takes the special ids of the model folder `beside`, since the grids are encoded with
    its ids. Raises StartError or LoadError."""
    if init in flm.PRESETS:
        return with_ids_of(beside, flm.PRESETS[init])
    path = Path(init)
    if path.is_file():
        return model_files.read_config(path.parent, path.name)
    if path.is_dir() and not model_files.files_of_model(path):
        return model_files.read_config(path)
    return None


def config_of(init, beside=None, wanted=model_files.WANTED):
    """The flm.Config of what a run starts from, without its weights. wanted: what is fetched of a
    Hub id. Raises StartError or LoadError."""
    config = fresh_config(init, beside)
    if config is None:
        config = model_files.read_config(model_files.resolve(init, wanted))
    return config


def shared_config(settings):
    """The same of some train.Settings, in every process; only the first reads files."""
    config = None
    if processes.rank() == 0:
        config = config_of(settings.init, settings.beside)
    return processes.from_first(config)


def with_ids_of(beside, config):
    """A preset with the special ids of a model folder, where its config.json names any: that of a
    codec or of a Qwen names none."""
    if not beside:
        return config
    folder = model_files.resolve(beside)
    file = folder / "config.json"
    if not file.exists() or "mm_token_info" not in model_files.read_json(file):
        return config
    other = model_files.read_config(folder)
    names = ("wait_token", "asr_token", "answer_token", "pad_token", "empty_token")
    try:
        return replace(config, **{name: getattr(other, name) for name in names})
    except ValueError as error:
        raise StartError(f"the special ids of {file} do not fit the preset: {error}") from None


def starting_model(init, qwen, seed, beside=None):
    """The model that a run starts from -> flm.FLM: that of a folder or Hub id `init`; or one of
    `fresh_config` with the weights of a `qwen`, and with fresh ones, which follow from the seed,
    where there are no others. Raises StartError or LoadError."""
    torch.manual_seed(seed)
    config = fresh_config(init, beside)
    if qwen and config is None:
        raise StartError(f"--qwen fills a model without weights, and --init {init} has its own: "
                         f"take a preset ({', '.join(flm.PRESETS)}) or a folder with a config.json "
                         "alone")
    if qwen:
        return qwen_files.from_qwen(qwen, config)
    if config:
        return flm.init_weights(flm.FLM(config))
    return model_files.load(init)


def model_to_train(settings):
    """The starting model of some train.Settings, with adapters where they ask for them -> (flm.FLM,
    a fingerprint of what it was before, or None where all weights are trained). Only the first
    process reads files, and only there the model has values. Raises LoadError or StartError."""
    selection = lora.Selection.of(vars(settings))
    is_fresh = not settings.qwen and fresh_config(settings.init) is not None
    if is_fresh and not selection.everything:
        raise StartError(f"--init {settings.init} has random weights, and --lora and --freeze keep "
                         "weights as they are: give a trained model, or --qwen")
    model = None
    config = None
    base = None
    if processes.rank() == 0:
        model = starting_model(settings.init, settings.qwen, settings.seed, settings.beside)
        config = model.config
        if not selection.everything:
            base = lora.fingerprint(model)
    config, base = processes.from_first((config, base))
    if model is None:
        model = flm.FLM(config)
    lora.adapt(model, selection, settings.bfloat16)
    return model, base
