"""What training costs: operations and memory of a step, a run's days before it starts, a bench.

What this is: arithmetic on a model's shape, and made-up samples to time. It serves train.py.
What this is not: the log of a run and its curves (workshop/training_log.py).

    python train.py run --init 7b --paper --recompute --plan --hours 1e6 --gpu H100 --gpus 64
    python train.py bench tiny 0.5b

Shapes: B sequences of T frames, K = 8 codebooks, D model width, V and C the text and audio
vocabularies, n the depth transformer's width.
"""
import math
import random
import re
import resource
import sys
import time
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F

import flm
import stream
from stream import FRAME_RATE, K, Loss
from workshop import lora, parameters, processes, starting, training_notes
from workshop.batches import collate
from workshop.training_set import Grids

EXPECTED_MFU = 0.45  # what a plan reckons with; `train.py bench` measures it
GPUS = {  # gigabytes; dense bfloat16 TFLOP/s; of the data sheets
    "A100": (80, 312),
    "H100": (80, 989),
    "H200": (141, 989),
    "B200": (180, 2250),
    "3090": (24, 71),
    "4090": (24, 165),
}
FLOAT32 = 4   # bytes
BFLOAT16 = 2  # bytes
# Bytes of a logit at the peak, in the middle of the backward pass: log-softmax, its gradient, the
# logit's own, all in float32. Measured as 12.0 to 12.2 by the growth of a process, for words and
# for codes, in float32, bfloat16 and autocast.
LOGIT = 12


class CostError(ValueError):
    """A plan or a bench that cannot be made; the message is one sentence."""


# --- a step ---

def flops(config, frames, length, code_frames, selection=lora.Selection()):
    """Floating-point operations of forward and backward pass over `frames` in sequences of
    `length`, `code_frames` of them with loss on codes.

    Work that serves the result: pads, frames computed again and the masked half of attention do not
    count. A product with a matrix of m entries costs 2 m forward and 4 m backward, half of it for
    the gradient of the matrix, which one that stays as it is does not need. Adapters count as
    nothing beside their matrices."""
    D = config.hidden_size
    n = config.depth_dim
    query_width = config.num_attention_heads * config.head_dim
    key_width = config.num_key_value_heads * config.head_dim
    block = 2 * D * query_width + 2 * D * key_width + 3 * D * config.intermediate_size
    scores = query_width * length  # scores and values, of length / 2 frames in the mean
    mlp = 8 * n * n
    if config.depth_swiglu:
        mlp = 3 * n * int(8 * n / 3)
    depth_blocks = K * config.depth_layers * (4 * n * n + mlp)
    depth_ends = K * (n * D + n * config.aud_vocab_size)
    layers = config.num_hidden_layers
    backbone = passes(selection, "model.layers.") * layers * block + 6 * layers * scores
    backbone += passes(selection, "lm_head.") * D * config.vocab_size
    depth = passes(selection, lora.DEPTH_BLOCKS) * depth_blocks + 6 * depth_ends
    return frames * backbone + code_frames * depth


def passes(selection, name):
    """Operations of each entry of the matrices whose names begin so: 6, or 4 where they stay."""
    return 6 if selection.is_whole(name) else 4


def peak(device):
    """FLOP/s of a torch.device, or None where GPUS does not know it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for gpu, (_, tera) in GPUS.items():
        if re.search(rf"\b{gpu}\b", name):
            return 1e12 * tera
    return None


def memory(device):
    """The most bytes that this process has had in use on a torch.device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Meter:
    """How fast a run of some train.Settings is, with a model of this flm.Config."""

    def __init__(self, config, settings, device):
        self.config = config
        self.length = settings.length
        self.selection = lora.Selection.of(vars(settings))
        self.device = device
        self.peak = peak(device)

    def read(self, counts, seconds):
        """counts: tokens of a step by class, [5]; seconds: how long it took -> dict for the log"""
        frames = (counts[Loss.MONOLOGUE] + counts[Loss.WAIT]).item()  # with loss; pads have none
        numbers = {
            "frames": frames,
            "frames/s": frames / seconds,
            "times_real_time": frames / seconds / FRAME_RATE,
            "gigabytes": memory(self.device) / 1e9,
        }
        if self.peak:
            code_frames = counts[Loss.SEMANTIC].item()
            work = flops(self.config, frames, self.length, code_frames, self.selection)
            numbers["mfu"] = work / seconds / processes.count() / self.peak
        return numbers


# --- a run, before it starts ---

def plan(settings, hours, gpu, gpus):
    """What the run of some train.Settings would take, as text; nothing is started.

    hours: of audio, where there are no grids yet; gpu: a name of GPUS; gpus: how many. Memory is an
    estimate: the tensors named in `memory_plan`, all frames with loss, no fragmentation.
    Raises CostError."""
    config = starting.config_of(settings.init, wanted=["config.json"])
    model = flm.FLM(config)
    settings = settings.resolve(config)
    selection = lora.Selection.of(vars(settings))
    if settings.grids:
        frames_an_epoch = Grids(settings.grids).frames_an_epoch
    elif hours:
        frames_an_epoch = hours * 3600 * FRAME_RATE
    else:
        raise CostError("--plan needs grids, or --hours of audio")
    frames = settings.epochs * frames_an_epoch * (1 - settings.hold_out)
    steps = math.ceil(frames / (settings.batch * settings.length))
    counts = parameters.count_parameters(model)
    lora.adapt(model, selection, bfloat16=True)
    parts = memory_plan(model, settings, gpus)
    total = sum(parts.values())
    gigabytes, tera = GPUS[gpu]
    work = flops(config, frames, settings.length, frames, selection)
    days = work / (gpus * tera * 1e12 * EXPECTED_MFU) / 86_400
    by_part = ", ".join(f"{part} {count / 1e6:,.0f} M" for part, count in counts.items())
    verdict = ""
    if total > gigabytes * 1e9:
        verdict = ": too much; more GPUs, --recompute or a smaller --micro"
    lines = [
        f"{sum(counts.values()) / 1e9:.3f} G parameters: {by_part}",
        f"{settings.stage}: {settings.epochs:g} epochs, "
        f"{steps:,} steps of {settings.batch} x {settings.length} frames, "
        f"{frames / FRAME_RATE / 3600:,.1f} h of audio, {frames / 1e6:,.1f} M frames, "
        f"{frames * (1 + 2 * K) / 1e6:,.1f} M tokens",
        f"memory of each of {gpus} {gpu} with --device cuda --bfloat16, estimated, in GB of "
        f"{gigabytes}:",
    ]
    if not selection.everything:
        lines.insert(1, training_notes.trained_parameters(model))
    lines += [f"{size / 1e9:9.1f}  {what}" for what, size in parts.items()]
    lines.append(f"{total / 1e9:9.1f}  in all{verdict}")
    lines.append(disk_plan(model, settings))
    lines.append(f"{work:.2e} FLOP: {days:,.2f} days at {EXPECTED_MFU:.0%} MFU")
    return "\n".join(lines)


def disk_plan(model, settings):
    """What a run writes, as a line of text."""
    trained_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for name, p in model.named_parameters() if ".lora_" not in name)
    checkpoint = 3 * FLOAT32 * trained_count  # weights and two moments
    at_once = settings.keep + 3         # one in the making, one spoilt, the best
    return (f"disk: {checkpoint / 1e9:,.1f} GB a checkpoint, {settings.keep} to {at_once} of them "
            f"({checkpoint * at_once / 1e9:,.1f} GB), and {FLOAT32 * whole / 1e9:,.1f} GB for the "
            "model")


def memory_plan(model, settings, gpus):
    """Bytes on each GPU by what takes them, a dict. settings: train.Settings without None."""
    config = model.config
    D = config.hidden_size
    n = config.depth_dim
    blocks = [*model.model.layers, *model.aud_output_layers.transformer["h"]]
    trained_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.itemsize for p in model.parameters() if not p.requires_grad)
    if gpus == 1 and settings.lora:  # what is trained is read in 16 bits, and nothing is gathered
        copies = "copies in bfloat16 of what is trained"
        copied = BFLOAT16 * trained_count
    else:
        sizes = [gathered_bytes(block) for block in blocks]
        copies = "root and two blocks gathered in bfloat16, their gradients"
        copied = gathered_bytes(model) - sum(sizes) + 2 * max(sizes)
    sequences = settings.micro or math.ceil(settings.batch / gpus)
    frames = sequences * settings.length
    # Bytes a frame in bfloat16: what a block hands on, and what stands within it until the
    # backward pass.
    between = BFLOAT16 * D
    within = 8 * between + 3 * BFLOAT16 * config.intermediate_size
    depth_between = BFLOAT16 * K * n
    depth_within = 16 * depth_between
    if settings.recompute:  # between all blocks, and within the one that is computed again
        activations = config.num_hidden_layers * between + config.depth_layers * depth_between
        activations += within + depth_within
    else:
        activations = config.num_hidden_layers * within + config.depth_layers * depth_within
    logits = config.vocab_size + K * config.aud_vocab_size
    moments = 4 * FLOAT32 * trained_count / gpus
    parts = {"weights, gradients and two moments in float32, sharded": moments}
    if frozen:
        parts["weights that stay, sharded"] = frozen / gpus
    return parts | {
        copies: copied,
        f"activations of {sequences} x {settings.length} frames": frames * activations,
        "logits and their gradients": frames * LOGIT * logits,
    }


def gathered_bytes(module):
    """What a module takes while FSDP has it gathered: its weights in bfloat16; and of what is
    trained, gradients in bfloat16 and in float32."""
    size = 0
    for parameter in module.parameters():
        each = BFLOAT16
        if parameter.requires_grad:
            each += BFLOAT16 + FLOAT32
        size += each * parameter.numel()
    return size


# --- the bench ---

def made_up_pairs(config, length):
    """Delayed grids of post-training that fill a sequence of `length` frames: half TTS-style, half
    ASR-style, of one to ten seconds, with random words and codes. Raises CostError."""
    rng = random.Random(0)
    ids = stream.Ids.of(config)
    grids = []
    room = length
    while True:
        frames = round(FRAME_RATE * 10 ** rng.random())
        format = ("tts", "asr")[len(grids) % 2]
        words = [rng.randrange(4, 1000) for _ in range(frames // 4)]  # section 2.2: 3 to 4 a second
        turn = stream.Turn(frames, frames, words, words)
        script = stream.write(format, [turn], [2, 2], ids)
        codes = torch.randint(0, config.empty_token, (len(script), K))
        if format == "tts":
            grid = script.grid(codes, None)
        else:
            grid = script.grid(None, codes)
        grid = stream.delay(grid, ids)
        room -= len(grid)
        if room < 0:
            break
        grids.append(grid)
    if not grids:
        raise CostError(f"--length {length} is too short for the bench: take 300 or more")
    return grids


def straightforward(model, text, speak, listen, loss):
    """What train.Equation3 computes, without its economies: every head on every frame. `bench` and
    tests measure against it. text [B, T], speak and listen [B, T, K], loss [B, T, 1 + K] -> sums by
    class, [5]"""
    h = model.hidden(text[:, :-1], speak[:, :-1], listen[:, :-1]).flatten(0, 1)         # [N, D]
    codes = speak[:, 1:].flatten(0, 1)                                                  # [N, K]
    text_logits = model.text_logits(h).float()                                          # [N, V]
    code_logits = model.depth_logits(h, codes[:, :-1]).float()                          # [N, K, C]
    text_ce = F.cross_entropy(text_logits, text[:, 1:].flatten(), reduction="none")     # [N]
    code_ce = F.cross_entropy(code_logits.flatten(0, 1), codes.flatten(), reduction="none")
    ce = torch.cat([text_ce[:, None], code_ce.view(-1, K)], 1)                          # [N, 1 + K]
    classes = loss[:, 1:].flatten(0, 1)
    return torch.stack([(ce * (classes == kind)).sum() for kind in Loss])


def seconds_a_step(step, batch, steps, device):
    """The mean time of `step`, a function of a Batch, over so many steps after a first one, which
    compiles, allocates and warms up -> (seconds, what the last step returned)"""
    result = step(batch)
    began = time.time()
    for _ in range(steps):
        result = step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.time() - began) / steps, result


def bench(build, make_optimizer, gradients, name, length, steps, settings):
    """Print how fast this machine trains a preset: forward and backward pass over one packed
    sequence of so many frames, and on a GPU the update. On a CPU the larger models' optimizer would
    not fit in memory. Then the same with `straightforward` in place of the forward pass, and a
    sequence for each of the same samples, where a GPU has memory for it. build, make_optimizer,
    gradients: of train.py."""
    device = processes.connect(settings.device)
    equation, _ = build(replace(settings, init=name), device)
    optimizer = make_optimizer(equation)
    weights = settings.weights()

    def step(batch):
        terms, counts = gradients(equation, [batch], weights)
        if device.type == "cuda":
            optimizer.step()
        optimizer.zero_grad()
        return (weights * terms).sum().item(), counts
    config = equation.flm.config
    samples = made_up_pairs(config, length)
    frames = sum(len(sample) for sample in samples)
    longest = max(len(sample) for sample in samples)
    ids = stream.Ids.of(config)
    print(f"{name}: {len(samples)} samples of at most {longest} frames, {frames} frames in all, "
          f"on {device}")

    def every_head_on_every_frame(*batch):
        return straightforward(equation.flm, *batch)
    plain = every_head_on_every_frame
    if settings.bfloat16 and not dist.is_initialized():
        plain = torch.autocast(device.type, torch.bfloat16)(plain)  # as train.build does
    one_sequence = collate([samples], length, ids)
    sequence_for_each = collate([[sample] for sample in samples], longest, ids)
    variants = [("train.py", equation.forward, one_sequence),
                ("straightforward", plain, sequence_for_each)]
    for variant, forward, batch in variants:
        equation.forward = forward
        torch.compiler.reset()  # for another length it would compile for any length
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            seconds, (loss, counts) = seconds_a_step(step, batch, steps, device)
        except torch.OutOfMemoryError:
            print(f"  {variant:<15} needs more memory than this GPU has", flush=True)
            return
        parts = [f"  {variant:<15} {frames / seconds:8.1f} frames/s", f"loss {loss:.4f}"]
        if device.type == "cuda":  # on a CPU a process tells only its maximum so far
            parts.append(f"{memory(device) / 1e9:.1f} GB at most")
        if peak(device):
            width = batch.text.shape[1]  # frames of its sequences
            work = flops(config, frames, width, counts[Loss.SEMANTIC].item())
            parts.append(f"MFU {work / seconds / peak(device):.1%}")
        print(", ".join(parts), flush=True)
