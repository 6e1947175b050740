"""Checkpoints of a training run: writing them, going on from one, and making a model folder of one.

What this is: a folder OUT/checkpoints/step-00000100 for each checkpoint, with weights and optimizer
in shards of PyTorch's distributed format, and run.json with the settings. It serves train.py. What
this is not: the model folder that chat.py reads, although `export` writes one.

    python train.py export runs/ft2 somewhere/model      # at any time, also while the run goes on

Unusual here:
- The step is all that a checkpoint knows of random numbers and of the place in the data: both
  follow from the seed and the step (workshop/batches.py).
- A checkpoint is written in the background, in a folder named step-....part, and renamed when
  whole. Neither a kill nor a full disk costs an older one.
- A checkpoint of 8 processes can be read by 2, or by one.
- It holds what is trained and no more. With adapters or frozen parts (workshop/lora.py) the rest
  comes from the model that the run started from, and a fingerprint tells whether it is still that.
"""
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_state_dict, set_state_dict)

import flm
from workshop import beside, config_files, lora, model_files, processes, starting

# PyTorch says so whenever a run in one process writes or reads a checkpoint.
warnings.filterwarnings("ignore", "torch.distributed is disabled")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message is one sentence."""


# What is not trained is in no checkpoint.
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)

# CheckpointException is no Exception.
FAILURES = (Exception, dcp.api.CheckpointException)


def reason(failure):
    """The first line of what went wrong, also where several processes report."""
    failures = getattr(failure, "failures", {}).values()
    first = [inner for inner, _ in failures] or failure
    return str(first).splitlines()[0]


# --- writing ---

# A run may go on from a checkpoint with these settings changed; all else must be as it was.
MAY_CHANGE = {
    "out", "beside", "paper", "valid", "valid_every", "micro", "device", "bfloat16", "recompute",
    "compile", "save_every", "keep",
}


def describe(settings, config, batches, base):
    """What a checkpoint says of its run, as JSON has it: method, config, beside. settings:
    train.Settings; base: the fingerprint of weights that are not in the checkpoint, or None."""
    method = {}
    for field in fields(settings):
        if field.name not in MAY_CHANGE:
            method[field.name] = getattr(settings, field.name)
    method["samples"] = len(batches.grids)
    method["base"] = base
    about = {"method": method, "config": config_files.to_json(config), "beside": settings.beside}
    return json.loads(json.dumps(about, default=str))


class Checkpoints:
    """The checkpoints of one run, in OUT/checkpoints. keep: how many of the newest stay."""

    def __init__(self, out, keep):
        self.folder = Path(out) / "checkpoints"
        self.keep = keep
        self.writing = None    # the future of the checkpoint that is being written
        self.folder.mkdir(parents=True, exist_ok=True)
        self.background = ThreadPoolExecutor(1)
        self.group = None      # a group of its own: the background must not meet the gradients
        if dist.is_initialized():
            self.group = dist.new_group(backend="gloo")

    def newest(self):
        """The path of the newest whole checkpoint, or None."""
        whole = list_checkpoints(self.folder)
        return whole[-1] if whole else None

    def remove_parts(self):
        """Remove what a kill left half written."""
        for part in self.folder.glob("*.part"):
            shutil.rmtree(part)

    def save(self, model, optimizer, step, about):
        """Begin to write; all processes call this at the same step. about: what run.json says
        beside the step. Raises CheckpointError where the checkpoint before this one could not be
        written."""
        self.close()
        weights, moments = get_state_dict(model, optimizer, options=TRAINED)
        part = self.folder / f"step-{step:08d}.part"
        state = {"model": weights, "optimizer": moments}
        shards = dcp.async_save(state, checkpoint_id=part, process_group=self.group)
        about = {"step": step, **about}
        self.writing = self.background.submit(self._finish, shards, part, about)

    def _finish(self, shards, part, about):
        """In the background: wait for the shards, name the checkpoint, remove the oldest."""
        whole = part.with_suffix("")
        try:
            shards.result()
            if processes.rank() == 0:
                (part / "run.json").write_text(json.dumps(about))
                os.replace(part, whole)
                for old in list_checkpoints(self.folder)[:-self.keep]:
                    shutil.rmtree(old)
        except FAILURES as failure:
            shutil.rmtree(part, ignore_errors=True)
            free = shutil.disk_usage(self.folder).free / 1e9
            raise CheckpointError(
                f"the checkpoint {whole} cannot be written, with {free:.1f} GB free there "
                f"({reason(failure)}); the ones before it are kept, and the same command goes on "
                "from the last") from None

    def check(self):
        """Raise CheckpointError if the last checkpoint has failed by now. Does not wait."""
        if self.writing and self.writing.done():
            self.close()

    def close(self):
        """Wait until the checkpoint that is being written is whole. Raises CheckpointError."""
        if self.writing:
            self.writing.result()


def list_checkpoints(folder):
    """The paths of the whole checkpoints in a folder, oldest first."""
    paths = [file.parent for file in Path(folder).glob("step-*/run.json")]
    return sorted(path for path in paths if path.suffix != ".part")


# --- reading ---

def load(path, state, no_dist=False):
    """Fill a state dict from a checkpoint, in place. Raises CheckpointError."""
    try:
        dcp.load(state, checkpoint_id=path, no_dist=no_dist)
    except FAILURES:
        raise CheckpointError(f"the checkpoint {path} is damaged or of another model: without it, "
                              "the run goes on from the one before") from None


def resume(path, model, optimizer, method, settings_class):
    """Load a checkpoint into model and optimizer -> its step.

    method: the settings that must be those of the checkpoint; settings_class: train.Settings, whose
    defaults a checkpoint had that is older than a setting. Raises CheckpointError that names the
    settings that differ."""
    defaults = {field.name: field.default for field in fields(settings_class)}
    about = json.loads((path / "run.json").read_text())
    before = json.loads(json.dumps(defaults)) | about["method"]
    differing = ", ".join(name for name in method if method[name] != before.get(name))
    if differing:
        raise CheckpointError(f"{path} was made with another {differing}: choose another --out, or "
                              "remove it")
    weights, moments = get_state_dict(model, optimizer, options=TRAINED)
    load(path, {"model": weights, "optimizer": moments})
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments,
                   options=TRAINED)
    return about["step"]


def export(source, folder, dtype=torch.float32, beside_it=None):
    """A checkpoint, or the newest of a run's folder -> a model folder in the release's format, with
    tokenizer and codec beside it, of the folder or Hub id `beside_it` or those of the run. Raises
    CheckpointError, model_files.LoadError or OSError."""
    source = Path(source)
    path = source
    if not (source / "run.json").exists():
        whole = list_checkpoints(source / "checkpoints")
        if not whole:
            raise CheckpointError(f"{source} is no checkpoint, and no run's folder that has one")
        path = whole[-1]
    about = json.loads((path / "run.json").read_text())
    method = about["method"]
    model = whole_model(path, about)
    folders = beside.sources(beside_it, about["beside"], method["init"], method["qwen"])
    model_files.save(model.to(dtype), folder)
    beside.lay(folders, folder)
    missing = beside.lacking([Path(folder)])
    if missing:
        print(f"note: {folder} has no {' and no '.join(missing)} and cannot talk: give a folder "
              "that has, with train.py export --beside")


def whole_model(path, about):
    """The flm.FLM of a checkpoint; about: what its run.json says. Adapters are merged. Raises
    CheckpointError or model_files.LoadError."""
    method = about["method"]
    # chat.py remembers as many frames as a row of training held, and no more.
    config = config_files.from_json(about["config"] | {"trained_frames": method["length"]})
    trained = lora.Trained.of(method)
    if trained.everything:
        model = flm.FLM(config).to_empty(device="cpu")
        load(path, {"model": model.state_dict()}, no_dist=True)
        return model
    start = method["qwen"] or method["init"]
    model = starting.starting_model(method["init"], method["qwen"], method["seed"])
    if lora.fingerprint(model) != method["base"]:
        raise CheckpointError(f"{path} holds what was trained beside the weights of {start}, and "
                              "other weights are there now: put those of the run's start back")
    lora.adapt(model, trained)
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    load(path, {"model": weights}, no_dist=True)
    lora.merge(model)
    model.config = config
    return model
