"""Checkpoints of a training run: writing them, going on from one, and making a model folder of one.

What this is: a folder OUT/checkpoints/step-00000100 for each checkpoint, with weights and optimizer
in shards of PyTorch's distributed format, and run.json with the settings. It serves train.py. What
this is not: the model folder that chat.py reads, although `export` writes one.

    python train.py export runs/ft2 somewhere/model      # at any time, also while the run goes on

Unusual here:
- The step is all that a checkpoint knows of random numbers and of the place in the data: both
  follow from the seed and the step (workshop/batches.py).
- A checkpoint is written in the background, in a folder named step-....part, and renamed when it
  is whole and on the disk. Neither a kill, a power cut nor a full disk costs an older one.
- A checkpoint that is damaged even so is set aside, and the run goes on from the one before. One of
  another model, or one that cannot be read at the moment, is not damaged: the run ends.
- A checkpoint of 8 processes can be read by 2, or by one.
- It holds what is trained and no more. With adapters or frozen parts (workshop/lora.py) the rest
  comes from the model that the run started from, and a fingerprint tells whether it is still that.
"""
import json
import math
import os
import shutil
import sys
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
from workshop import adapter_files, beside, config_files, lora, model_files, processes, starting
from workshop import training_set
from workshop.files import error_line, replacing, sync

# PyTorch says so whenever a run in one process writes or reads a checkpoint.
warnings.filterwarnings("ignore", "torch.distributed is disabled")

# What is not trained is in no checkpoint.
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)

# A checkpoint is spoilt whose steps had a mean loss above a multiple of the lowest of those before
# it, plus some. A run that goes astray (too high a rate) is far above within tens of steps.
SPOILT_TIMES = 1.5
SPOILT_PLUS = 0.1


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message is one sentence."""


class Damaged(CheckpointError):
    """A checkpoint whose files are not what was written."""


# CheckpointException is no Exception.
FAILURES = (Exception, dcp.api.CheckpointException)


def errors_in(failure):
    """What went wrong, also where several processes report -> a list of errors"""
    failures = getattr(failure, "failures", {}).values()
    return [inner for inner, _ in failures] or [failure]


def option_name(name):
    """A field of Settings as it is written on the command line."""
    return "--" + name.replace("_", "-")


# --- what a checkpoint says of its run ---

# A run may go on from a checkpoint with these settings changed; all else must be as it was, but for
# a learning rate, which may be lower.
MAY_CHANGE = {
    "out", "beside", "paper", "valid", "valid_every", "speak", "forget", "patience", "micro",
    "device", "bfloat16", "recompute", "compile", "save_every", "keep", "tensorboard",
}


def describe(settings, config, batches, base):
    """What a checkpoint says of its run, as JSON has it: method, config, beside. settings:
    train.Settings; base: the fingerprint of weights that are not in the checkpoint, or None."""
    method = {}
    for field in fields(settings):
        if field.name not in MAY_CHANGE:
            method[field.name] = getattr(settings, field.name)
    method["data"] = batches.grids.fingerprints()
    method["base"] = base
    about = {"method": method, "config": config_files.to_json(config), "beside": settings.beside}
    return json.loads(json.dumps(about, default=str))


def read_about(path):
    """run.json of a checkpoint: step, method, config, beside. Raises Damaged, and OSError where it
    cannot be read."""
    try:
        about = json.loads((path / "run.json").read_text())
        missing = {"step", "method", "config", "beside"} - about.keys()
    except (FileNotFoundError, ValueError, AttributeError):
        missing = {"everything"}
    if missing:
        raise Damaged(f"{path / 'run.json'} is empty or damaged, so that {path} is no checkpoint "
                      "that a run can go on from")
    for name, size in about.get("files", {}).items():
        file = path / name
        if not file.exists() or file.stat().st_size != size:
            raise Damaged(f"{file} is missing, or not as long as it was when it was written")
    return about


def check_same(path, before, about, settings_class):
    """Raise CheckpointError where a run differs from what the checkpoint `path` says of its own.

    before, about: as `describe` makes them, of the checkpoint and of the run; settings_class:
    train.Settings, whose defaults a checkpoint had that is older than a setting."""
    check_same_model(path, before["config"], about["config"])
    method = with_plain_folders(about["method"])
    defaults = {field.name: field.default for field in fields(settings_class)}
    defaults = json.loads(json.dumps(defaults))
    before = with_plain_folders({"data": method["data"], **defaults, **before["method"]})
    other_names = [name for name in method if method[name] != before.get(name)]
    if "lr" in other_names and all(now <= then for now, then in zip(method["lr"], before["lr"])):
        other_names.remove("lr")
        if processes.rank() == 0:
            print(f"note: the learning rate was {before['lr']}, and is {method['lr']} from here on")
    if other_names == ["data"]:
        other = [folder for folder, fingerprint in method["data"].items()
                 if before["data"].get(folder) != fingerprint]
        raise CheckpointError(f"{path} was made with other grids than those that are now in "
                              f"{', '.join(other)}: choose another --out, or put the grids back")
    if other_names == ["base"]:
        start = method["qwen"] or method["init"]
        raise CheckpointError(f"{path} was trained beside other weights than those that are now in "
                              f"{start}: choose another --out, or put the weights back")
    options = [option_name(name) for name in other_names if name not in ("grids", "data", "base")]
    if {"grids", "data"} & {*other_names}:
        options.insert(0, "grids")
    if options:
        raise CheckpointError(f"{path} was made with other settings ({', '.join(options)}): choose "
                              "another --out, or remove it")


def check_same_model(path, before, now):
    """The same, of the model's shape and ids: what config.json says, as a dict."""
    try:
        before = vars(config_files.from_json(before))
    except ValueError as error:
        raise CheckpointError(f"{path / 'run.json'} describes a model that cannot be trained here: "
                              f"{error}") from None
    now = vars(config_files.from_json(now))
    before["trained_frames"] = now["trained_frames"]  # of what came before, and without effect
    other = [f"{name} {before[name]} and not {now[name]}"
             for name in now if before[name] != now[name]]
    if other:
        raise CheckpointError(f"{path} is of another model than that of --init (or --beside) now, "
                              f"with {', '.join(other)}: choose another --out, or put config.json "
                              "back")


def with_plain_folders(method):
    """The same method, with folders as pathlib writes them: "grids/" is no other than "grids"."""
    plain = {}
    for name in ("init", "qwen"):
        if method[name]:
            plain[name] = str(Path(method[name]))
    sources = map(training_set.parse_source, method["grids"])
    plain["grids"] = [(str(folder), weight) for folder, weight in sources]
    return {**method, **plain}


# --- writing ---

class Checkpoints:
    """The checkpoints of one run, in OUT/checkpoints. keep: how many of the newest stay. Raises
    CheckpointError where another run has this folder."""

    def __init__(self, out, keep):
        self.folder = Path(out) / "checkpoints"
        self.keep = keep
        self.steps = set()     # those of this run's checkpoints, as far as validation may choose
        self.losses = []       # of the steps since the last checkpoint
        self.writing = None    # the future of the checkpoint that is being written
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = None
        if processes.rank() == 0:
            self.lock = lock(Path(out))
        self.background = ThreadPoolExecutor(1)
        self.group = None      # a group of its own: the background must not meet the gradients
        if dist.is_initialized():
            self.group = dist.new_group(backend="gloo")

    def resume(self, model, optimizer, about, settings_class):
        """Load the newest checkpoint that is whole -> its step, 0 where there is none. One that is
        damaged is set aside, and said. All processes call this together. Raises CheckpointError
        where all are damaged, or the newest is of another run or cannot be read; see check_same."""
        if processes.rank() == 0:
            self.remove_parts()
        paths = list_checkpoints(self.folder)
        for path in reversed(paths):
            step = 0
            damage = None
            try:
                before = read_about(path)
                check_same(path, before, about, settings_class)
                load_training(path, model, optimizer)
                step = before["step"]
            except Damaged as error:
                damage = error
            is_damaged = processes.sum_over_processes(torch.tensor([float(damage is not None)]))
            if not is_damaged.item():
                self.steps = {step_of(path) for path in paths if step_of(path) <= step}
                return step
            if processes.rank() == 0:
                aside = set_aside(path)
                print(f"WARNING: {damage}; it stands in {aside} now, and the run goes on from the "
                      "checkpoint before it", file=sys.stderr)
        if paths:
            raise CheckpointError(f"no checkpoint in {self.folder} is whole: the same command "
                                  "begins at the first step again")
        return 0

    def remove_parts(self):
        """Remove what a kill left half written."""
        for part in self.folder.glob("*.part"):
            shutil.rmtree(part)

    def save(self, model, optimizer, step, about, best=None):
        """Begin to write; all processes call this at the same step. about: what run.json says
        beside the step; best: the step of a checkpoint that stays, however old. Raises
        CheckpointError where the checkpoint before this one could not be written."""
        self.wait()
        self.steps.add(step)
        weights, moments = get_state_dict(model, optimizer, options=TRAINED)
        part = self.folder / f"step-{step:08d}.part"
        state = {"model": weights, "optimizer": moments}
        shards = dcp.async_save(state, checkpoint_id=part, process_group=self.group)
        loss = None
        if self.losses:
            loss = sum(self.losses) / len(self.losses)
        self.losses = []
        about = {"step": step, "loss": loss, "best": best, **about}
        self.writing = self.background.submit(self._finish, shards, part, about)

    def write_model(self, best):
        """Write the model of the run to its folder: that of the step `best`, or of the newest
        checkpoint where it is None. run.json of the newest says so from here on, since a run that
        goes on with another rule for the best may end without another step."""
        newest = list_checkpoints(self.folder)[-1]
        about = read_about(newest)
        if about.get("best") != best:
            with replacing(newest / "run.json") as part:
                part.write_text(json.dumps(about | {"best": best}))
        export(self.folder.parent, self.folder.parent)

    def _finish(self, shards, part, about):
        """In the background: wait for the shards, name the checkpoint, remove the oldest."""
        whole = self.path(about["step"])
        try:
            shards.result()  # the shards are on the disk then
            if processes.rank() == 0:
                about["files"] = {file.name: file.stat().st_size for file in part.iterdir()}
                (part / "run.json").write_text(json.dumps(about))
                sync(part / "run.json")
                sync(part)
                if whole.exists():
                    shutil.rmtree(whole)
                os.replace(part, whole)
                sync(self.folder)
                for old in self._superfluous(about["best"]):
                    shutil.rmtree(old)
        except FAILURES as failure:
            shutil.rmtree(part, ignore_errors=True)
            free = shutil.disk_usage(self.folder).free / 1e9
            reason = error_line(errors_in(failure)[0])
            raise CheckpointError(
                f"the checkpoint {whole} cannot be written, with {free:.1f} GB free there "
                f"({reason}); the ones before it are kept, and the same command goes on from the "
                "last") from None

    def _superfluous(self, best):
        """The checkpoints that need not stay. The newest does, and the newest `keep` of those that
        are not spoilt, and that of the step `best`."""
        paths = list_checkpoints(self.folder)
        good, _ = self._good_and_spoilt(paths)
        stay = {paths[-1], *good[-self.keep:], self.path(best or 0)}
        return [path for path in paths if path not in stay]

    def _good_and_spoilt(self, paths):
        """Some checkpoints, oldest first -> those whose steps had a usual loss; those whose had
        not. The damaged ones are in neither."""
        good = []
        spoilt = []
        lowest = math.inf
        for path in paths:
            try:
                loss = read_about(path).get("loss")
            except Damaged:
                continue
            except OSError:
                loss = None  # perhaps it is whole, and it stays
            if loss is None or loss <= SPOILT_TIMES * lowest + SPOILT_PLUS:
                good.append(path)
            else:
                spoilt.append(path)
            if loss is not None:
                lowest = min(lowest, loss)
        return good, spoilt

    def path(self, step):
        """Where the checkpoint of a step stands."""
        return self.folder / f"step-{step:08d}"

    def advice(self):
        """How to go on when the newest steps were useless, the end of a sentence."""
        self.wait()
        good, spoilt = self._good_and_spoilt(list_checkpoints(self.folder))
        if not good:
            return "nothing is saved yet, so the same command with a lower --lr starts again"
        newer = [str(path) for path in spoilt if path > good[-1]]
        how = f"the same command with a lower --lr goes on from {good[-1]}"
        if newer:
            how = f"remove {' '.join(newer)}, whose loss is spoilt already, and then {how}"
        return how

    def check(self, loss):
        """After a step with this loss: raise CheckpointError if the last checkpoint has failed by
        now. Does not wait."""
        self.losses.append(loss)
        if self.writing and self.writing.done():
            self.wait()

    def wait(self):
        """Wait until the checkpoint that is being written is whole. Raises CheckpointError."""
        if self.writing:
            self.writing.result()

    def close(self):
        """Wait for the last checkpoint, and leave the folder to others. Raises CheckpointError."""
        try:
            self.wait()
        finally:
            if self.lock:
                self.lock.close()


def lock(out):
    """Take a run's folder for this process -> an open file; the operating system gives it back when
    it is closed, or when the process is gone. Raises CheckpointError where another has it."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    file = open(out / ".lock", "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise CheckpointError(f"another run (process {owner}) writes to {out}: wait until it ends, "
                              "or choose another --out") from None
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def list_checkpoints(folder):
    """The paths of the whole checkpoints in a folder, oldest first."""
    paths = [file.parent for file in Path(folder).glob("step-*/run.json")]
    return sorted(path for path in paths if path.suffix != ".part")


def step_of(path):
    """The step of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def set_aside(path):
    """Give a damaged checkpoint a name under which no run looks for one, and which no older one has
    -> the new path."""
    aside = path.with_name(f"damaged-{path.name}")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"damaged-{count}-{path.name}")
    path.rename(aside)
    return aside


# --- reading ---

def load(path, state, no_dist=False):
    """Fill a state dict from a checkpoint, in place. Raises Damaged, or CheckpointError where it is
    whole for all that is known."""
    try:
        dcp.FileSystemReader(path).read_metadata()  # in dcp.load every failure looks like damage
        dcp.load(state, checkpoint_id=path, no_dist=no_dist)
    except FAILURES as failure:
        raise what_failed(path, errors_in(failure)) from None


def what_failed(path, errors):
    """Errors of PyTorch while it read a checkpoint -> Damaged or CheckpointError"""
    for error in errors:
        sentence = error_line(error)
        if is_passing(error):
            return CheckpointError(f"{path} cannot be read now ({sentence}): it is left as it is, "
                                   "and the same command tries again")
        if sentence.startswith(("Missing key", "Size mismatch")):
            return CheckpointError(f"{path} is of another model: {sentence}")
    return Damaged(f"the checkpoint {path} is damaged ({error_line(errors[0])})")


def is_passing(error):
    """Whether a file that could not be read may still be whole: full memory, a disk or network
    without answer, no permission."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return processes.is_full_memory(error)


def load_training(path, model, optimizer):
    """Load a checkpoint into model and optimizer. Raises Damaged or CheckpointError."""
    weights, moments = get_state_dict(model, optimizer, options=TRAINED)
    load(path, {"model": weights, "optimizer": moments})
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments,
                   options=TRAINED)


def check_target(source, folder, adapters=False):
    """Raise CheckpointError where an export would write over another model than that of the run
    that is exported. adapters: they alone are written."""
    folder = Path(folder)
    run = Path(source).resolve()
    if run.parent.name == "checkpoints":
        run = run.parent.parent
    if adapters:
        there = adapter_files.files_in(folder)
    else:
        there = model_files.files_of_model(folder)
        there += [folder / name for name in ("config.json", *model_files.BESIDE)
                  if (folder / name).exists()]
    if there and folder.resolve() != run:
        raise CheckpointError(f"{there[0]} is there, and would be written over: choose another "
                              "folder, or give --overwrite")


def export(source, folder, dtype=torch.float32, beside_it=None):
    """A checkpoint, or the best or else the newest of a run's folder -> a model folder in the
    release's format, with tokenizer and codec beside it, of the folder or Hub id `beside_it` or
    those of the run. Adapters are merged. Raises CheckpointError, LoadError or OSError."""
    path, about = chosen_checkpoint(source)
    method = about["method"]
    model = model_of(path, about)
    lora.merge(model)
    folders = beside.sources(beside_it, about["beside"], method["init"], method["qwen"])
    save_model(model.to(dtype), folder, folders)


def export_adapters(source, folder, dtype=torch.float32):
    """The same, but only what was trained, for who has the model that the run started from. Raises
    CheckpointError, LoadError or OSError."""
    path, about = chosen_checkpoint(source)
    if lora.Selection.of(about["method"]).everything:
        raise CheckpointError(f"{source} has no adapters: in its run all weights were trained")
    adapter_files.save(model_of(path, about), about["method"], folder, dtype)


def export_merged(source, base, folder, dtype=torch.float32, beside_it=None):
    """What `export_adapters` wrote and the model `base` -> a model folder, as of `export`. Raises
    LoadError or OSError."""
    if not adapter_files.is_here(source):
        raise CheckpointError(f"{source} holds no adapters: --base goes with what train.py export "
                              "--adapters wrote")
    model = adapter_files.load(source, base)
    save_model(model.to(dtype), folder, beside.sources(beside_it, base))


def save_model(model, folder, folders):
    """Write a model, and beside it what some folders have of tokenizer and codec."""
    model_files.save(model, folder)
    beside.lay(folders, folder)
    missing = beside.lacking([Path(folder)])
    if missing:
        print(f"note: {folder} has no {' and no '.join(missing)} and cannot talk: give a folder "
              "that has, with train.py export --beside")


def chosen_checkpoint(source):
    """A checkpoint, or a run's folder -> the checkpoint's path, what its run.json says."""
    path = Path(source)
    if not (path / "run.json").exists():
        path = best_checkpoint(path)
    return path, read_about(path)


def best_checkpoint(out):
    """The checkpoint of a run's folder that is its model: the one that validation chose, where it
    did, and else the newest. Raises CheckpointError."""
    folder = Path(out) / "checkpoints"
    paths = list_checkpoints(folder)
    if not paths:
        raise CheckpointError(f"{out} is no checkpoint, and no run's folder that has one")
    best = read_about(paths[-1]).get("best")
    chosen = folder / f"step-{best or 0:08d}"
    return chosen if chosen in paths else paths[-1]


def model_of(path, about):
    """The flm.FLM of a checkpoint, with adapters where its run has them. about: what its run.json
    says. Raises CheckpointError or LoadError."""
    method = about["method"]
    # chat.py remembers as many frames as a sequence of training held, and no more.
    config = config_files.from_json(about["config"] | {"trained_frames": method["length"]})
    selection = lora.Selection.of(method)
    if selection.everything:
        model = flm.FLM(config).to_empty(device="cpu")
        load(path, {"model": model.state_dict()}, no_dist=True)
        return model
    model = starting.starting_model(method["init"], method["qwen"], method["seed"],
                                    about["beside"])
    if lora.fingerprint(model) != method["base"]:
        start = method["qwen"] or method["init"]
        raise CheckpointError(f"{path} holds what was trained beside the weights of {start}, and "
                              "other weights are there now: put those of the run's start back")
    lora.adapt(model, selection)
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    load(path, {"model": weights}, no_dist=True)
    model.config = config
    return model
