"""What training costs: operations and memory of a step, days of a run before anybody pays for it, curves afterwards.

What this is: arithmetic on a model's shape, a reader of log.jsonl, and made-up samples to time. What this is not: a
command; `train.py run --plan`, `train.py bench` and `train.py plot` print and draw what stands here.

Shapes: K = 8 codebooks, D model width, V and C the text and audio vocabularies, n the depth transformer's width.
"""
import json
import math
import random
import resource
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import flm
import stream
from data import Grids
from flm import K
from stream import FRAME_RATE, Loss
from workshop import model_files

EXPECTED_MFU = 0.45  # what a plan reckons with; `train.py bench` measures it
GPUS = {"A100": (80, 312), "H100": (80, 989), "H200": (141, 989), "B200": (180, 2250)}  # GB; dense bfloat16 TFLOP/s, data sheets


class CostError(ValueError):
    """A plan or a drawing that cannot be made; the message is one sentence."""


def flops(config, frames, length, spoken):
    """Floating-point operations of forward and backward pass over frames in rows of `length`, `spoken` of them with codes.

    Work that serves the result: pads, frames computed again and the masked half of attention do not count."""
    D, n, heads = config.hidden_size, config.depth_dim, config.num_attention_heads * config.head_dim
    block = 2 * D * (heads + config.num_key_value_heads * config.head_dim) + 3 * D * config.intermediate_size
    block += heads * length  # scores and values, of length / 2 frames in the mean
    mlp = 3 * n * int(8 * n / 3) if config.depth_swiglu else 8 * n * n
    depth = K * (n * D + config.depth_layers * (4 * n * n + mlp) + n * config.aud_vocab_size)
    return 6 * (frames * (config.num_hidden_layers * block + D * config.vocab_size) + spoken * depth)


def peak(device):
    """FLOP/s of a torch.device, or None where GPUS does not know it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((1e12 * tera for gpu, (_, tera) in GPUS.items() if gpu in name), None)


def memory(device):
    """The most bytes that this process has held on a torch.device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes


def plan(settings, hours, gpu, gpus):
    """What the run of some train.Settings would take, as text; nothing is started. hours: of audio, where there are no grids
    yet. Memory is an estimate: the tensors named here, all frames with loss, no fragmentation. Raises CostError."""
    preset = flm.PRESETS.get(settings.init)
    model = flm.FLM(preset) if preset else model_files.load(settings.init, "meta")
    s, config, counts = settings.resolve(model.config), model.config, flm.count_parameters(model)
    if not s.grids and not hours:
        raise CostError("--plan needs grids, or --hours of audio")
    frames = s.epochs * (sum(Grids(s.grids).lengths) if s.grids else hours * 3600 * FRAME_RATE)
    D, P, (gigabytes, tera), rows = config.hidden_size, sum(counts.values()), GPUS[gpu], s.micro or math.ceil(s.batch / gpus)
    layers = [sum(p.numel() for p in block.parameters()) for block in (*model.model.layers, *model.aud_output_layers.transformer["h"])]
    # bytes a frame, bfloat16: what a block hands on, and what stands within it, in the backbone and in the depth transformer
    between, depth_between = 2 * D, 2 * K * config.depth_dim
    within, depth_within = 8 * between + 6 * config.intermediate_size, 16 * depth_between
    kept = config.num_hidden_layers * (between if s.recompute else within) + config.depth_layers * (depth_between if s.recompute else depth_within)
    parts = {"weights, gradients and two moments in float32, sharded": 16 * P / gpus,
             "root and two blocks gathered in bfloat16, their gradients": 8 * (P - sum(layers) + 2 * max(layers)),
             f"activations of {rows} x {s.length} frames": rows * s.length * (kept + (within + depth_within) * s.recompute),
             "logits and their gradients": rows * s.length * 10 * (config.vocab_size + K * config.aud_vocab_size)}
    total, steps, work = sum(parts.values()), math.ceil(frames / (s.batch * s.length)), flops(config, frames, s.length, frames)
    return "\n".join([
        f"{P / 1e9:.3f} G parameters: " + ", ".join(f"{part} {count / 1e6:,.0f} M" for part, count in counts.items()),
        f"{s.stage}: {s.epochs:g} epochs, {steps:,} steps of {s.batch} x {s.length} frames, {frames / FRAME_RATE / 3600:,.1f} h of audio, "
        f"{frames / 1e6:,.1f} M frames, {frames * (1 + 2 * K) / 1e6:,.1f} M tokens",
        f"memory of each of {gpus} {gpu}, estimated, in GB of {gigabytes}:",
        *(f"{size / 1e9:9.1f}  {what}" for what, size in parts.items()),
        f"{total / 1e9:9.1f}  in all" + (": too much; more GPUs, --recompute or a smaller --micro" if total > gigabytes * 1e9 else ""),
        f"{work:.2e} FLOP: {work / (gpus * tera * 1e12 * EXPECTED_MFU) / 86400:,.2f} days at {EXPECTED_MFU:.0%} MFU"])


def made_up_pairs(config, length):
    """Delayed grids of post-training that fill a row of `length` frames: half TTS, half ASR, of one to ten seconds."""
    rng, ids, rows, left = random.Random(0), stream.Ids.of(config), [], length
    while left >= 0:
        frames, format = round(FRAME_RATE * 10 ** rng.random()), ("tts", "asr")[len(rows) % 2]
        words = [rng.randrange(4, 1000) for _ in range(frames // 4)]  # section 2.2: 3 to 4 tokens a second
        script = stream.write(format, [stream.Turn(frames, frames, words, words)], [2, 2], ids)
        codes = torch.randint(0, config.empty_token, (len(script), K))
        rows.append(stream.delay(script.grid(*((codes, None) if format == "tts" else (None, codes))), ids))
        left -= len(rows[-1])
    return rows[:-1]


def straightforward(model, text, speak, listen, loss):
    """What train.Equation3 computes, without its economies: every head on every frame. `bench` measures against it."""
    h, codes = model.hidden(text[:, :-1], speak[:, :-1], listen[:, :-1]).flatten(0, 1), speak[:, 1:].flatten(0, 1)
    words = F.cross_entropy(model.text_logits(h).float(), text[:, 1:].flatten(), reduction="none")
    sounds = F.cross_entropy(model.depth_logits(h, codes[:, :-1]).float().flatten(0, 1), codes.flatten(), reduction="none")
    ce = torch.cat([words[:, None], sounds.view(-1, K)], 1)
    return torch.stack([(ce * (loss[:, 1:].flatten(0, 1) == kind)).sum() for kind in Loss])


def read_log(folder, steps=math.inf):
    """The lines of a run's log.jsonl up to a step, as dicts; a line that a kill cut short is left out."""
    lines, file = [], Path(folder) / "log.jsonl"
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return [line for line in lines if line["step"] <= steps]


def plot(folder, file):
    """A run's log.jsonl -> a PNG: loss, its terms, learning rate with gradient norm, speed. Raises CostError."""
    steps, valid = ([line for line in read_log(folder) if key in line] for key in ("loss", "valid"))
    if not steps:
        raise CostError(f"{folder} has no log.jsonl with steps to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CostError("plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(11, 7), layout="constrained")
    for panel, names in zip(figure.subplots(2, 2).flat, (["loss"], ["semantic", "acoustic", "monologue", "wait"], ["lr", "norm"],
                                                         ["times_real_time", "mfu"])):
        drawn = [name for name in names if any(name in line for line in steps)]
        for i, name in enumerate(drawn):
            axis = panel.twinx() if i and names[0] in ("lr", "times_real_time") else panel  # of another unit
            axis.plot(*zip(*[(line["step"], line[name]) for line in steps if name in line]), f"C{i}", linewidth=1)
            axis.set_ylabel(name.replace("_", " "), color=f"C{i}", loc=("bottom", "center", "top")[i % 3])
        for name in sorted({name for line in valid for name in line["valid"]}) if names == ["loss"] else []:
            panel.plot(*zip(*[(line["step"], line["valid"][name]) for line in valid if name in line["valid"]]), "o-", label=f"valid, {name}")
            panel.legend()
        panel.set_xlabel("step")
    figure.savefig(file, dpi=120)
