"""Training: one of the paper's four stages, from grids on disk to a model that writes them, on one process or many.

What this is: equation 3 (section 3.1) with its four weights, Table 3, FSDP, and checkpoints from which a run
goes on as if it had never stopped. What this is not: the formats (stream.py), the encoding (data.py), packing
(batch.py), the arithmetic of costs (cost.py), or the order of the stages for the small model (tiny/make.py).

    python train.py run grids/ft2 --init tiny/model --out runs/ft2 --stage fine-tuning-2
    torchrun --nproc-per-node 8 train.py run grids/pt1 --init 7b --qwen Qwen/Qwen2.5-7B --out runs/pt1 --paper --device cuda
    python train.py export runs/ft2 somewhere/model      # at any time

Unusual here:
- The terms of equation 3 are means over the whole global batch: each process sums its tokens, and the sums are divided
  by counts of all rows. So neither the number of processes nor the size of a forward pass changes a gradient.
- Every random choice depends on seed, step and row alone (batch.py): the step of a checkpoint is its random state and its place in
  the data, whatever number of processes goes on from it.

Shapes: B rows, L frames of a row, K = 8 codebooks, D model width, C the audio vocabulary, N frames with loss on codes.
"""
import argparse
import json
import math
import os
import shutil
import signal
import sys
import time
import warnings
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

from workshop import command

if __name__ == "__main__":
    command.stop_while_loading("train.py")

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_model_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

import cost
import data
import flm
from batch import Batches, collate
from stream import FRAME_RATE, Ids, Loss
from workshop import model_files

WEIGHTS = {Loss.SEMANTIC: 1.0, Loss.ACOUSTIC: 0.5, Loss.MONOLOGUE: 1.0, Loss.WAIT: 0.01}  # equation 3, section 3.1
PAPER_BATCH, PAPER_LENGTH = 256, 8192   # rows a step, Table 3; frames a row, section 3.1
# Decision: the paper names neither optimizer settings nor a warm-up; these are the usual ones for a transformer.
BETAS, WEIGHT_DECAY, CLIP, WARMUP = (0.9, 0.95), 0.1, 1.0, 0.02
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # dcp's, of a run in one process


class TrainError(ValueError):
    """A run that cannot be started or goes wrong; the message is one sentence."""


# formats: of stream.py. epochs. lr: the learning rate at the start and at the end of the cosine.
# mixture: how often an epoch reads the recordings of each kind of transcript; `run` takes it as
# FOLDER:WEIGHT.
Stage = namedtuple("Stage", "formats epochs lr mixture", defaults=({},))
STAGES = {  # Table 3; the mixture of post-training 2 is section 3.1's
    "post-training-1": Stage(("tts", "asr"), 3.3, (2e-4, 1e-5)),
    "post-training-2": Stage(("tts", "asr"), 1, (1e-5, 8e-6),
                             {"transcribed by a program": 0.5, "by people": 5}),
    "fine-tuning-1": Stage(("asr-response-tts",), 2, (1e-5, 8e-6)),
    "fine-tuning-2": Stage(("response-tts", "response-tts-free"), 6, (8e-6, 7e-6)),
}


# --- settings: one dataclass, from which the command line is made ---

def option(group, help, default=None, **more):
    """A field of Settings that is an option of `run` too; `more` is argparse's."""
    return field(default=default, metadata=dict(group=group, help=help, **more))


# A run may go on with these changed; all else must be as it was.
MAY_CHANGE = {"out", "beside", "paper", "valid", "valid_every", "micro", "device", "bfloat16", "recompute", "compile", "save_every", "keep"}


# What makes sense of a setting: its smallest and largest value.
LIMITS = {
    "batch": (1, math.inf), "length": (2, math.inf), "micro": (1, math.inf), "save_every": (1, math.inf),
    "valid_every": (1, math.inf), "keep": (1, math.inf), "epochs": (1e-9, 1e9), "lr": (0, 1e3),
    "wait_weight": (0, 1e6), "semantic_weight": (0, 1e6),
    "depth_share": (0, 1), "repeats": (0, 1), "hide": (0, 1), "hold_out": (0, 1),
}


def option_name(name):
    """A field of Settings as it is written on the command line."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Settings:
    """One run. None: the value follows from the stage or from the model's size, see `resolve`. Raises TrainError."""
    grids: tuple = option("what", "folders that data.py made; FOLDER:WEIGHT reads it WEIGHT times an epoch", (), nargs="*")
    init: str = option("what", f"model folder or Hub id to start from, or a preset with fresh weights: {', '.join(flm.PRESETS)}")
    out: str = option("what", "folder for checkpoints, log and trained model")
    qwen: str = option("what", "Qwen2.5, or Qwen2.5-VL, that fills the preset's backbone: folder or Hub id")
    beside: str = option("what", "folder with tokenizer and codec to lay beside the trained model (default: that of --qwen or --init)")
    stage: str = option("method", "column of Table 3, which gives epochs and rates", "post-training-1", choices=STAGES)
    epochs: float = option("method", "instead of the stage's", type=float)
    lr: tuple = option("method", "instead of the stage's", type=float, nargs=2, metavar=("START", "END"))
    paper: bool = option("method", f"the paper's {PAPER_BATCH} x {PAPER_LENGTH} frames a step, one row a forward pass", False)
    batch: int = option("method", "rows a step, over all processes (default: what a laptop bears)", type=int)
    length: int = option("method", "frames a row, 12.5 a second (default: what a laptop bears)", type=int)
    wait_weight: float = option("method", "gamma of equation 3; more makes the model slower to speak", WEIGHTS[Loss.WAIT], type=float)
    semantic_weight: float = option("method", "alpha 1 of equation 3", WEIGHTS[Loss.SEMANTIC], type=float)
    depth_share: float = option("method", "share of the spoken frames that train the depth transformer", 1.0, type=float)
    repeats: float = option("method", "factor on --depth-share for frames whose codes repeat those of the frame before", 1.0, type=float)
    hide: float = option("method", "share of the heard codes that are hidden, so that each draw of few recordings looks new", 0.0, type=float)
    seed: int = option("method", "of every random choice", 0, type=int)
    valid: tuple = option("validation", "folders of grids for the validation loss", (), nargs="+")
    hold_out: float = option("validation", "or a share of the samples kept for it; a recording may be in others too", 0.0, type=float)
    valid_every: int = option("validation", "steps between validations", 200, type=int)
    micro: int = option("machine", "rows a forward pass; the rest of a batch accumulates (default: all)", type=int)
    device: str = option("machine", "torchrun starts a process for each GPU", "cpu", choices=("cpu", "cuda"))
    bfloat16: bool = option("machine", "compute in bfloat16; weights and optimizer stay float32", False)
    recompute: bool = option("machine", "activation checkpointing: less memory, a third more work", False)
    compile: bool = option("machine", "torch.compile each block; on a CPU this needs a C++ compiler", False)
    save_every: int = option("checkpoints", "steps between them", 100, type=int)
    keep: int = option("checkpoints", "the newest so many stay", 2, type=int)

    def __post_init__(self):
        for field in fields(self):
            self._check_numbers(field)
        for name in ("init", "out"):
            if not getattr(self, name):
                raise TrainError(f"{option_name(name)} must be given")
        if self.qwen and self.init not in flm.PRESETS:
            raise TrainError(f"--qwen starts a preset ({', '.join(flm.PRESETS)}), and --init is {self.init}")

    def _check_numbers(self, field):
        """Raise TrainError where a number is none, or outside what makes sense of it."""
        value = getattr(self, field.name)
        lowest, highest = LIMITS.get(field.name, (-math.inf, math.inf))
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        for number in numbers:
            if type(number) not in (int, float):
                continue
            if not math.isfinite(number) or not lowest <= number <= highest:
                bounds = f"{lowest} or more"
                if highest < math.inf:
                    bounds = f"from {lowest} to {highest:g}"
                elif lowest == -math.inf:
                    bounds = "a finite number"
                raise TrainError(f"{option_name(field.name)} must be {bounds}, not {number}")

    def resolve(self, config):
        """The same with every None of the method filled in for a model of this flm.Config."""
        # Decision: on a laptop, what keeps a step of the tiny preset near a second, and the larger ones within memory.
        batch, length = (PAPER_BATCH, PAPER_LENGTH) if self.paper else (8, 512) if config.hidden_size <= 256 else (2, 256)
        return replace(self, epochs=self.epochs or STAGES[self.stage].epochs, lr=tuple(self.lr or STAGES[self.stage].lr),
                       batch=self.batch or batch, length=self.length or length, micro=self.micro or (1 if self.paper else None))


# --- equation 3 ---

class Equation3(nn.Module):
    """A model and its loss: the root that FSDP shards, so that all heads run within one forward pass."""

    def __init__(self, model):
        super().__init__()
        self.flm, self.blocks = model, [*model.model.layers, *model.aud_output_layers.transformer["h"]]  # a list registers nothing

    def forward(self, text, speak, listen, loss):
        """text [B, L], speak and listen [B, L, K], loss [B, L, 1 + K] -> cross-entropy summed over each class of Loss, [5].
        Row t predicts text and speak of row t + 1. Heads run on the frames that carry loss. Where none does they run on
        one frame even so: with FSDP every process must pass through every block."""
        h, classes = self.flm.hidden(text[:, :-1], speak[:, :-1], listen[:, :-1]), loss[:, 1:]  # [B, L - 1, D]
        written, spoken = classes[..., 0] != Loss.NONE, (classes[..., 1:] != Loss.NONE).any(-1)  # [B, L - 1]
        for mask in (written, spoken):
            mask[0, 0] |= ~mask.any()
        words, codes = text[:, 1:][written], speak[:, 1:][spoken]                               # [frames], [N, K]
        logits = self.flm.depth_logits(h[spoken], codes[:, :-1])                                # [N, K, C]
        ce = torch.cat([F.cross_entropy(self.flm.text_logits(h[written]).float(), words, reduction="none"),
                        F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten(), reduction="none")])
        classes = torch.cat([classes[..., 0][written], classes[..., 1:][spoken].flatten()])
        return torch.stack([(ce * (classes == kind)).sum() for kind in Loss])


def summed(values):
    """A CPU tensor, summed over all processes in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def counted(micro):
    """Tokens of each class in the micro-batches of all processes, float64 [5]; a row's first frame is not predicted."""
    return summed(sum(torch.bincount(loss[:, 1:].flatten(), minlength=len(Loss)) for *_, loss in micro).double())


def gradients(equation, micro, weights):
    """Add the gradient of equation 3 over the micro-batches of all processes, weights [5] by class -> (terms, counts) [5].

    Decision: each term averages over its own tokens of the global batch, the plain reading of equation 3.
    Decision: with FSDP gradients are reduced after every micro-batch and not once at the end. At thousands of frames the
    network hides behind the arithmetic, and no process holds the gradient of the whole model."""
    counts, sums = counted(micro), torch.zeros(len(Loss), dtype=torch.float64)
    scale = weights / counts.clamp(min=1) * (dist.get_world_size() if dist.is_initialized() else 1)  # FSDP averages
    for batch in micro:
        found = equation(*(x.to(equation.flm.lm_head.weight.device) for x in batch))
        (found * scale.to(found)).sum().backward()
        sums += found.detach().cpu()
    return summed(sums) / counts.clamp(min=1), counts


def validation(equation, batches, weights):
    """Equation 3 by format, on the folders of `valid` or else on what is held out: {format: loss}."""
    found = {}
    for name, rows in batches.valid.items():
        micro = batches.micro(batches.valid_grids, rows)
        with torch.no_grad():
            sums = summed(sum(equation(*(x.to(equation.flm.lm_head.weight.device) for x in batch)).cpu().double() for batch in micro))
        found[name] = (weights * sums / counted(micro).clamp(min=1)).sum().item()
    if dist.is_initialized():
        equation.reshard()  # without a backward pass the root stays gathered
    return found


# --- processes, model, optimizer ---

def connect(device):
    """Join the other processes of a torchrun -> (rank, processes, torch.device). A lone GPU is a group too: FSDP's precision."""
    device, launched = torch.device(device), "RANK" in os.environ
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainError("--device cuda was asked for, and PyTorch sees no GPU")
    if not dist.is_initialized() and (launched or device.type == "cuda"):
        alone = {} if launched else dict(store=dist.HashStore(), rank=0, world_size=1)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **alone)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return (dist.get_rank(), dist.get_world_size(), device) if dist.is_initialized() else (0, 1, device)


def build(settings, rank, device):
    """The Equation3 to train, whole in one process or sharded over all. Only the first process reads the files."""
    source, preset = None, flm.PRESETS.get(settings.init)
    torch.manual_seed(settings.seed)
    if rank == 0 and settings.qwen:
        source = model_files.from_qwen(settings.qwen, preset)
    elif rank == 0:
        source = flm.init_weights(flm.FLM(preset)) if preset else model_files.load(settings.init)
    config = [source and source.config]
    if dist.is_initialized():
        dist.broadcast_object_list(config, src=0)
    equation = Equation3(flm.FLM(config[0]) if dist.is_initialized() else source)
    for block in equation.blocks:  # within what FSDP wraps around a block
        if settings.compile:
            block.forward = torch.compile(block.forward)  # blocks of a kind share one compilation
        if settings.recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if not dist.is_initialized():
        if settings.bfloat16:
            equation.forward = torch.autocast(device.type, torch.bfloat16)(equation.forward)
        return equation.to(device)
    precision = MixedPrecisionPolicy(*((torch.bfloat16, torch.float32) if settings.bfloat16 else ()))  # to compute, to reduce
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in [*equation.blocks, equation]:
        fully_shard(part, mesh=mesh, mp_policy=precision)
    equation.to_empty(device=device)
    set_model_state_dict(equation.flm, source.state_dict() if source else {},
                         options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return equation


def make_optimizer(model):
    """AdamW; norms and biases do not decay."""
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == decays], "weight_decay": WEIGHT_DECAY * decays}
              for decays in (True, False)]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS)


def learning_rate(step, steps, lr):
    """Linear warm-up, then a cosine from lr[0] to lr[1] (Table 3)."""
    warmup, (start, end) = max(1, round(WARMUP * steps)), lr
    if step < warmup:
        return start * (step + 1) / warmup
    return end + (start - end) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


# --- checkpoints ---

class Checkpoints:
    """out/checkpoints/step-00000100: weights and optimizer in shards, and run.json. A checkpoint is written in the
    background under the name step-....part and renamed when whole: no kill and no full disk costs an older one."""

    def __init__(self, out, keep):
        self.folder, self.keep, self.pending = Path(out) / "checkpoints", keep, None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.background = ThreadPoolExecutor(1)
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None  # the background talks apart

    def save(self, equation, optimizer, step, about):
        """Begin to write; all processes call this at the same step."""
        self.close()
        weights, moments = get_state_dict(equation.flm, optimizer)
        part = self.folder / f"step-{step:08d}.part"
        written = dcp.async_save({"model": weights, "optimizer": moments}, checkpoint_id=part, process_group=self.group)
        self.pending = self.background.submit(self._finish, written, part, {"step": step, **about})

    def _finish(self, written, part, about):
        try:
            written.result()
            if not self.group or dist.get_rank() == 0:
                (part / "run.json").write_text(json.dumps(about))
                os.replace(part, part.with_suffix(""))
                for old in checkpoints(self.folder)[:-self.keep]:
                    shutil.rmtree(old)
        except (Exception, dcp.api.CheckpointException) as failed:  # the latter is no Exception
            why = str([failure for failure, _ in getattr(failed, "failures", {}).values()] or failed).splitlines()[0]
            shutil.rmtree(part, ignore_errors=True)
            raise TrainError(f"the checkpoint {part.with_suffix('')} cannot be written, with {shutil.disk_usage(self.folder).free / 1e9:.1f} GB "
                             f"free there ({why}); the ones before it are kept, and the same command goes on from the last") from None

    def close(self):
        """Wait until the checkpoint that is being written is whole. Raises TrainError where it cannot be written."""
        if self.pending:
            self.pending.result()


def checkpoints(folder):
    """The whole checkpoints of a folder, oldest first."""
    return sorted(file.parent for file in Path(folder).glob("step-*/run.json") if file.parent.suffix != ".part")


def load_checkpoint(state, found, no_dist=False):
    try:
        dcp.load(state, checkpoint_id=found, no_dist=no_dist)
    except (Exception, dcp.api.CheckpointException):  # the latter is no Exception
        raise TrainError(f"the checkpoint {found} is damaged or of another model: without it, the run goes on from the one before") from None


def resume(found, equation, optimizer, method):
    """Load a checkpoint into model and optimizer -> its step. Raises TrainError that names the settings that differ."""
    about = json.loads((found / "run.json").read_text())
    before = {f.name: f.default for f in fields(Settings)} | about["method"]  # a checkpoint older than a setting had its default
    if changed := [name for name in method if method[name] != before.get(name)]:
        raise TrainError(f"{found} was made with another {', '.join(changed)}: choose another --out, or remove it")
    weights, moments = get_state_dict(equation.flm, optimizer)
    load_checkpoint({"model": weights, "optimizer": moments}, found)
    set_state_dict(equation.flm, optimizer, model_state_dict=weights, optim_state_dict=moments)
    return about["step"]


def export(source, folder, dtype=torch.float32):
    """A checkpoint, or the newest of a run's folder -> a model folder in the release's format, tokenizer and codec beside."""
    source = Path(source)
    found = source if (source / "run.json").exists() else next(reversed(checkpoints(source / "checkpoints")), None)
    if found is None:
        raise TrainError(f"{source} is no checkpoint, and no run's folder that has one")
    about = json.loads((found / "run.json").read_text())
    # chat.py remembers as many frames as these rows held, and no more.
    config = about["config"] | {"trained_frames": about["method"]["length"]}
    model = flm.FLM(flm.Config.from_json(config)).to_empty(device="cpu")
    load_checkpoint({"model": model.state_dict()}, found, no_dist=True)
    model_files.save(model.to(dtype), folder)
    beside = about["beside"] or about["method"]["qwen"] or about["method"]["init"]
    for file in [] if beside in flm.PRESETS else [model_files.resolve(beside) / name for name in model_files.BESIDE]:
        if file.exists() and file.parent.resolve() != Path(folder).resolve():
            shutil.copy(file, folder)


# --- the run ---

@contextmanager
def interruptible():
    """Within, Ctrl-C and SIGTERM set the yielded list instead of striking: an update half made could not be resumed exactly."""
    asked = []
    before = {number: signal.signal(number, lambda *_: asked.append(True)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(line, log, steps):
    """One step's numbers, a dict: to the screen in short, to log.jsonl whole."""
    print(json.dumps(line), file=log, flush=True)
    shown = {"loss": "{:.3f}", **{kind.name.lower(): "{:.3f}" for kind in WEIGHTS}, "lr": "{:.1e}", "norm": "{:.2f}", "frames/s": "{:.0f}",
             "times_real_time": "{:.0f}", "mfu": "{:.1%}", "gigabytes": "{:.1f}", "minutes_left": "{:.1f}"}
    print(f"step {line['step']}/{steps}  " + "  ".join(f"{name.replace('_', ' ')} {how.format(line[name])}" for name, how in shown.items() if name in line)
          + "  ".join(f"valid {name} {loss:.3f}" for name, loss in line.get("valid", {}).items()), flush=True)


def train(settings):
    """Run a stage from `init`, or from the newest checkpoint in `out`, and write the model to `out`, in the release's format.
    All processes of a torchrun call this. Raises ValueError or OSError, one sentence."""
    rank, world, device = connect(settings.device)
    if rank == 0 and settings.beside:
        model_files.resolve(settings.beside)  # a wrong path is found out now, and not when all is trained
    equation, out = build(settings, rank, device), Path(settings.out)
    config = equation.flm.config
    settings = settings.resolve(config)
    batches, optimizer, peak = Batches(settings, config, rank, world), make_optimizer(equation), cost.peak(device)
    chosen = {**WEIGHTS, Loss.SEMANTIC: settings.semantic_weight, Loss.WAIT: settings.wait_weight}
    weights = torch.tensor([0.0, *chosen.values()], dtype=torch.float64)  # by class
    method = {name: value for name, value in vars(settings).items() if name not in MAY_CHANGE} | {"samples": len(batches.grids)}
    about = json.loads(json.dumps({"method": method, "config": config.to_json(), "beside": settings.beside}, default=str))
    saved, step, steps = Checkpoints(out, settings.keep), 0, batches.steps
    if found := checkpoints(saved.folder):
        step = resume(found[-1], equation, optimizer, about["method"])
    first, began, stopping, screen, log = step, time.time(), False, lambda *_: None, open(os.devnull, "w")
    if rank == 0:
        for part in saved.folder.glob("*.part"):
            shutil.rmtree(part)  # a kill's
        data.write_lines(out / "log.jsonl", cost.read_log(out, step))  # steps after the checkpoint come again
        screen, log = report, open(out / "log.jsonl", "a")
        if strange := set(batches.grids.formats) - {*STAGES[settings.stage].formats, "unknown"}:
            print(f"note: Table 3 has no {', '.join(sorted(strange))} in {settings.stage}")
        print(f"{len(batches.grids)} samples, {sum(batches.grids.lengths):,} frames, {batches.steps_per_epoch} steps an epoch, "
              f"{steps} steps, {world} processes" + (f", resumed at step {step}" if step else ""))
    with log, closing(saved), interruptible() as asked, ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(batches.step, step)
        while step < steps and not stopping:
            started, micro = time.time(), upcoming.result()
            upcoming = reader.submit(batches.step, min(step + 1, steps - 1))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, settings.lr)
            optimizer.zero_grad()
            terms, counts = gradients(equation, micro, weights)
            norm = nn.utils.clip_grad_norm_(equation.parameters(), CLIP)
            loss, norm = (weights * terms).sum().item(), (norm.full_tensor() if world > 1 or device.type == "cuda" else norm).item()
            if not math.isfinite(loss + norm):
                raise TrainError(f"step {step + 1} has loss {loss} and gradient norm {norm}: lower --lr, or look at the grids with "
                                 "stream.py; the checkpoints before it are kept")
            optimizer.step()
            step += 1
            stopping = summed(torch.tensor([len(asked)])).item() > 0  # all processes stop at the same step
            seconds, frames = time.time() - started, counts[Loss.MONOLOGUE].item() + counts[Loss.WAIT].item()
            line = {"step": step, "loss": loss, **{kind.name.lower(): terms[kind].item() for kind in WEIGHTS if counts[kind]},
                    "lr": group["lr"], "norm": norm, "frames": frames, "frames/s": frames / seconds,
                    "times_real_time": frames / seconds / FRAME_RATE, "gigabytes": cost.memory(device) / 1e9,
                    "minutes_left": (time.time() - began) / (step - first) * (steps - step) / 60}
            if peak:
                line["mfu"] = cost.flops(config, frames, settings.length, counts[Loss.SEMANTIC].item()) / seconds / world / peak
            screen(line, log, steps)
            if step % settings.save_every == 0 or step == steps or stopping:
                saved.save(equation, optimizer, step, about)
            elif saved.pending and saved.pending.done():
                saved.close()  # raises where it failed
            if batches.valid and (step % settings.valid_every == 0 or step == steps):
                screen({"step": step, "valid": validation(equation, batches, weights)}, log, steps)
    if step < steps:
        raise TrainError(f"stopped at step {step}; the same command goes on from there")
    if rank == 0:
        export(out, out)
    summed(torch.zeros(1))  # nobody leaves before the model is written


def bench(init, length, steps, settings):
    """Print frames/s on a packed row, against `straightforward` with a row for each of the same samples: forward and backward
    pass, and on a GPU the update. On a CPU the larger models' optimizer would not fit in memory."""
    _, _, device = connect(settings.device)
    equation = build(replace(settings, init=init), 0, device)
    config, ids, peak = equation.flm.config, Ids.of(equation.flm.config), cost.peak(device)
    rows, optimizer, weights = cost.made_up_pairs(config, length), make_optimizer(equation), torch.tensor([0.0, *WEIGHTS.values()])
    frames, longest = sum(map(len, rows)), max(map(len, rows))
    print(f"{init}: {len(rows)} samples of at most {longest} frames, {frames} frames in all, on {device}")
    plain = partial(cost.straightforward, equation.flm)
    if settings.bfloat16 and not dist.is_initialized():
        plain = torch.autocast(device.type, torch.bfloat16)(plain)  # as build does with the forward pass that this replaces
    for name, forward, batch in (("straightforward", plain, collate([[row] for row in rows], longest, ids)),
                                 ("train.py", equation.forward, collate([rows], length, ids))):
        equation.forward = forward
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for i in range(1 + steps):
            began = time.time() if i < 2 else began  # the first compiles, allocates and warms up
            terms, counts = gradients(equation, [batch], weights)
            if device.type == "cuda":
                optimizer.step()
                torch.cuda.synchronize()
            optimizer.zero_grad()
        seconds = (time.time() - began) / steps
        mfu = f", MFU {cost.flops(config, frames, length, counts[Loss.SEMANTIC].item()) / seconds / peak:.1%}" if peak else ""
        held = f", {cost.memory(device) / 1e9:.1f} GB at most" * (device.type == "cuda")  # a process tells only its maximum so far
        print(f"  {name:<15} {frames / seconds:8.1f} frames/s, loss {(weights * terms).sum():.4f}{held}{mfu}", flush=True)


# --- command line ---

def main(arguments=None):
    parser = argparse.ArgumentParser(description="Train FLM-Audio, one stage of Table 3 at a time. COMMAND --help says more.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train one stage", description="Train one stage. The same command again goes on from the newest checkpoint.",
                              epilog="Then: python chat.py --model OUT --in question.wav --out answer.wav. On many GPUs: torchrun --nproc-per-node 8 "
                                     "train.py run ... --device cuda --bfloat16 --recompute --compile")
    export_ = commands.add_parser("export", help="a checkpoint as a model folder for chat.py")
    commands.add_parser("plot", help="a run's curves as curves.png; needs matplotlib").add_argument("folder", help="of the run")
    bench_ = commands.add_parser("bench", help="how fast this machine trains", epilog="On a GPU: python train.py bench 0.5b 1.5b "
                                 f"--length {PAPER_LENGTH} --device cuda --bfloat16 --recompute --compile")
    groups = {}
    for f in fields(Settings):
        group, about = f.metadata["group"], {key: value for key, value in f.metadata.items() if key != "group"}
        groups[group] = groups.get(group) or run.add_argument_group(group)
        if f.default is False:
            about["action"] = "store_true"
        elif f.default not in (None, ()):
            about["help"] += " (default: %(default)s)"
        for target in [groups[group]] + [bench_] * (f.name in ("device", "bfloat16", "recompute", "compile")):
            target.add_argument(f.name if f.name == "grids" else f"--{f.name.replace('_', '-')}", default=f.default, **about)
    before = run.add_argument_group("before anybody pays for it")
    before.add_argument("--plan", action="store_true", help="print parameters, memory, tokens and days of this run, and start nothing")
    before.add_argument("--hours", type=float, help="of audio, where there are no grids yet")
    before.add_argument("--gpu", choices=cost.GPUS, default="H100", help="planned for (default: %(default)s)")
    before.add_argument("--gpus", type=int, default=8, help="how many of them (default: %(default)s)")
    export_.add_argument("checkpoint", help="a checkpoint, or a run's folder for its newest")
    export_.add_argument("folder", help="for the model, with tokenizer and codec beside")
    export_.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="the release has bfloat16 (default: %(default)s)")
    bench_.add_argument("init", nargs="*", default=["tiny", "0.5b"], help="presets, with random weights (default: tiny 0.5b)")
    bench_.add_argument("--length", type=int, default=512, help="frames a step (default: %(default)s)")
    bench_.add_argument("--steps", type=int, default=3, help="that are timed (default: %(default)s)")
    args = parser.parse_args(arguments)
    given = {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}
    try:
        for name in ("gpus", "steps"):
            if getattr(args, name, 1) < 1:
                raise TrainError(f"--{name} must be 1 or more, not {getattr(args, name)}")
        if args.command == "export":
            export(args.checkpoint, args.folder, getattr(torch, args.dtype))
        elif args.command == "plot":
            cost.plot(args.folder, Path(args.folder) / "curves.png")
        elif args.command == "bench":
            for init in args.init:
                bench(init, args.length, args.steps, Settings(**given | {"init": init, "out": "-", "length": None}))
        elif args.plan:
            print(cost.plan(Settings(**given | {"out": args.out or "-"}), args.hours, args.gpu, args.gpus))
        else:
            train(Settings(**given))
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError, KeyboardInterrupt) as error:
        sys.exit(f"train.py: {str(error) or 'stopped before the first step'}")
    except torch.OutOfMemoryError:
        sys.exit("train.py: the GPU's memory is full: take --recompute, a smaller --micro or --length, or more GPUs")
    except RuntimeError as error:
        if not (dist.is_initialized() and any(word in str(error).lower() for word in ("gloo", "nccl", "peer", "timed out"))):
            raise
        sys.exit("train.py: another process of this run died or cannot be reached; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    command.run("train.py", main)
