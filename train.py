"""One stage of training: grids on disk become a model that writes them.

What this is: equation 3 (section 3.1) with its four weights, the learning rates of Table 3, packing, and checkpoints
from which a stopped run goes on as if it had not stopped. What this is not: the formats (stream.py), the encoding
(data.py), or the order of the four stages for the small model, which is tiny/make.py.

    python train.py grids/ft2 --init tiny/model --out runs/ft2 --stage fine-tuning-2

Unusual here:
- Whole samples are packed into rows of `--length` frames with plain causal attention, so that a later sample sees the
  earlier ones. Decision: a live session is one long stream of turns too, and the paper concatenates pairs (section 3.1).
- The depth transformer is half of a small model's work, and most frames are silence. It is trained on a random share
  of the frames, `--depth-share`, and of those that repeat the codes of the frame before on `--repeats` of that; text on all.

Shapes: B rows, L frames of a row, N frames that carry loss on their codes.
"""
import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import flm
import stream
from stream import Ids, Loss

WEIGHTS = {Loss.SEMANTIC: 1.0, Loss.ACOUSTIC: 0.5, Loss.MONOLOGUE: 1.0, Loss.WAIT: 0.01}  # equation 3, section 3.1
# Decision: the paper names neither optimizer settings nor a warm-up; these are the usual ones for a transformer.
BETAS, WEIGHT_DECAY, CLIP, WARMUP = (0.9, 0.95), 0.1, 1.0, 0.02
SIDE_FILES = ("tokenizer.json", "sampling.json", "mimi.json", "mimi.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors")


class TrainError(ValueError):
    """A run that cannot be started or resumed; the message is one sentence."""


@dataclass(frozen=True)
class Stage:
    """A row of Table 3: epochs, and the learning rate at the start and at the end of the cosine."""
    epochs: float
    lr: float
    lr_end: float


STAGES = {  # Table 3; batch size 256 samples throughout
    "post-training-1": Stage(3.3, 2e-4, 1e-5),
    "post-training-2": Stage(1, 1e-5, 8e-6),
    "fine-tuning-1": Stage(2, 1e-5, 8e-6),
    "fine-tuning-2": Stage(6, 8e-6, 7e-6),
}


# --- packing ---

def pack(rows, length, rng):
    """Delayed grids in random order, each into the first open row that has room -> lists of indices, one list a row."""
    packed, open_rows = [], []  # an open row: [frames left, indices]
    for i in rng.sample(range(len(rows)), len(rows)):
        if len(rows[i]) > length:
            raise TrainError(f"a sample of {len(rows[i])} frames does not fit rows of {length}: raise --length")
        row = next((r for r in open_rows if r[0] >= len(rows[i])), None)
        if row is None:
            row = [length, []]
            open_rows.append(row)
            if len(open_rows) > 16:  # the fullest closes
                fullest = min(open_rows, key=lambda r: r[0])
                open_rows = [r for r in open_rows if r is not fullest]
                packed.append(fullest[1])
        row[0] -= len(rows[i])
        row[1].append(i)
    packed += [indices for _, indices in open_rows]
    rng.shuffle(packed)
    return packed


def collate(rows, packed, length, ids):
    """Some lists of indices -> text [B, L], speak and listen [B, L, K], loss [B, L, 1 + K]; rows are filled up with pads
    that carry no loss."""
    B = len(packed)
    text = torch.full((B, length), ids.wait)
    speak, listen = torch.full((2, B, length, stream.K), ids.pad)
    loss = torch.zeros(B, length, 1 + stream.K, dtype=torch.uint8)
    for b, indices in enumerate(packed):
        start = 0
        for i in indices:
            span = slice(start, start + len(rows[i]))
            text[b, span], speak[b, span], listen[b, span], loss[b, span] = rows[i].text, rows[i].speak, rows[i].listen, rows[i].loss
            start = span.stop
    return text, speak, listen, loss


# --- equation 3 ---

def losses(model, text, speak, listen, loss, depth_share=1.0, repeats=1.0):
    """Mean cross-entropy of each class that occurs, a dict {Loss: scalar}; the sum weighted by WEIGHTS is equation 3.

    text [B, L], speak and listen [B, L, K], loss [B, L, 1 + K]. Row t predicts text and speak of row t + 1.
    Decision: each term averages over its own tokens, the plain reading of equation 3."""
    h = model.hidden(text[:, :-1], speak[:, :-1], listen[:, :-1])                       # [B, L - 1, D]
    classes, found = loss[:, 1:], {}
    written = classes[..., 0] != Loss.NONE
    ce = F.cross_entropy(model.text_logits(h[written]).float(), text[:, 1:][written], reduction="none")
    for kind in (Loss.MONOLOGUE, Loss.WAIT):
        found[kind] = ce[classes[..., 0][written] == kind]
    spoken = (classes[..., 1:] != Loss.NONE).any(-1)                                    # [B, L - 1]
    if depth_share * repeats < 1:
        same = (speak[:, 1:] == speak[:, :-1]).all(-1)
        spoken &= torch.rand(same.shape).to(same.device) < depth_share * torch.where(same, repeats, 1.0)
    codes, classes = speak[:, 1:][spoken], classes[..., 1:][spoken]                     # [N, K]
    if len(codes):
        logits = model.depth_logits(h[spoken], codes[:, :-1])                           # [N, K, C]
        ce = F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten(), reduction="none")
        for kind in (Loss.SEMANTIC, Loss.ACOUSTIC):
            found[kind] = ce[classes.flatten() == kind]
    return {kind: ce.mean() for kind, ce in found.items() if len(ce)}


# --- the run ---

def learning_rate(step, steps, stage):
    """Linear warm-up, then a cosine from stage.lr to stage.lr_end (Table 3)."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    return stage.lr_end + (stage.lr - stage.lr_end) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def make_optimizer(model):
    """AdamW; norms and biases do not decay."""
    decays = {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY}
    stays = {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decays, stays], lr=0.0, betas=BETAS)


def save_checkpoint(file, **state):
    """Beside and then renamed: a full disk costs no older checkpoint."""
    try:
        torch.save(state, f"{file}.part")
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        Path(f"{file}.part").unlink(missing_ok=True)
        raise TrainError(f"the checkpoint {file} cannot be written: {error}; the one before it is kept") from None
    os.replace(f"{file}.part", file)


def start_model(init, qwen, device):
    """--init and --qwen -> FLM"""
    if init in flm.PRESETS:
        config = flm.PRESETS[init]
        return flm.from_qwen(qwen, config, device) if qwen else flm.init_weights(flm.FLM(config), device)
    if qwen:
        raise TrainError(f"--qwen starts a preset ({', '.join(flm.PRESETS)}), and --init is {init}")
    return flm.load(init, device)


@contextmanager
def interruptible():
    """Within, Ctrl-C sets the yielded list instead of striking: an update half made could not be resumed exactly."""
    asked = []
    before = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def report(line, log, steps, seconds_left):
    """One step's numbers, a dict: to the screen in short, to log.jsonl whole."""
    log.write(json.dumps(line) + "\n")
    log.flush()
    terms = "  ".join(f"{kind.name.lower()} {line[kind.name.lower()]:.3f}" for kind in WEIGHTS if kind.name.lower() in line)
    print(f"step {line['step']}/{steps}  loss {line['loss']:.3f}  {terms}  lr {line['lr']:.1e}  norm {line['norm']:.2f}  "
          f"{line['ms']:.0f} ms  {line['frames'] / line['ms'] * 1000:.0f} frames/s  left {seconds_left / 60:.1f} min", flush=True)


def train(folders, init, out, stage, batch=8, length=512, depth_share=1.0, repeats=1.0, wait_weight=WEIGHTS[Loss.WAIT], seed=0,
          save_every=100, device="cpu", bfloat16=False, compiled=False, qwen=None):
    """Run a Stage over the grids of `folders`, from `init` or from out/checkpoint.pt where there is one; write the model
    to the folder `out` in the release's format. Raises ValueError or OSError, one sentence."""
    out, torch_device = Path(out), torch.device(device)
    checkpoint = out / "checkpoint.pt"
    torch.manual_seed(seed)
    model = start_model(init, qwen, device)
    for block in [*model.model.layers, *model.aud_output_layers.transformer["h"]] if compiled else []:
        block.compile()  # each block by itself: all of a kind share one compilation
    ids = Ids.of(model.config)
    rows = [stream.delay(grid, ids) for grid in data.load(folders)]
    settings = dict(folders=[str(f) for f in folders], samples=len(rows), init=str(init), stage=vars(stage), batch=batch,
                    length=length, depth_share=depth_share, repeats=repeats, wait_weight=wait_weight, seed=seed)
    optimizer, step, weights = make_optimizer(model), 0, {**WEIGHTS, Loss.WAIT: wait_weight}
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        if saved["settings"] != settings:
            changed = [name for name in settings if settings[name] != saved["settings"].get(name)]
            raise TrainError(f"{checkpoint} was made with another {', '.join(changed)}: choose another --out, or remove it")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
        print(f"resumed at step {step}")
    log_file = out / "log.jsonl"
    logged = log_file.read_text().splitlines()[:step] if log_file.exists() else []  # steps after the checkpoint come again
    log_file.write_text("".join(line + "\n" for line in logged))

    steps_per_epoch = math.ceil(len(pack(rows, length, random.Random(f"{seed} 0"))) / batch)
    steps, epoch, order, first, began = math.ceil(stage.epochs * steps_per_epoch), None, None, step, time.time()
    print(f"{len(rows)} samples, {sum(map(len, rows)):,} frames, {steps_per_epoch} steps an epoch, {steps} steps")
    with open(log_file, "a") as log, interruptible() as asked_to_stop:
        while step < steps and not asked_to_stop:
            started = time.time()
            if epoch != step // steps_per_epoch:
                epoch = step // steps_per_epoch
                order = pack(rows, length, random.Random(f"{seed} {epoch}"))
            at = step % steps_per_epoch * batch % len(order)  # packings of later epochs may be a row shorter
            tensors = [x.to(device) for x in collate(rows, order[at:at + batch], length, ids)]
            torch.manual_seed(seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, stage)
            with torch.autocast(torch_device.type, torch.bfloat16, enabled=bfloat16):
                terms = losses(model, *tensors, depth_share, repeats)
            total = sum(weights[kind] * value for kind, value in terms.items())
            optimizer.zero_grad()
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            step += 1
            line = dict(step=step, loss=total.item(), **{kind.name.lower(): value.item() for kind, value in terms.items()},
                        lr=group["lr"], norm=norm.item(), frames=tensors[0].numel(), ms=1000 * (time.time() - started))
            report(line, log, steps, (time.time() - began) / (step - first) * (steps - step))
            if step % save_every == 0 or step == steps or asked_to_stop:
                save_checkpoint(checkpoint, model=model.state_dict(), optimizer=optimizer.state_dict(), step=step, settings=settings)
    if step < steps:
        raise TrainError(f"stopped at step {step}; the same command goes on from there")
    flm.save(model, out)
    if init not in flm.PRESETS:
        source = flm.resolve(init)
        for name in SIDE_FILES:  # what chat.py needs beside the weights
            if (source / name).exists():
                shutil.copy(source / name, out / name)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Train one stage. A stopped run goes on where its last checkpoint was.",
                                     epilog="Then: python chat.py --model OUT --in question.wav --out answer.wav")
    parser.add_argument("grids", nargs="+", help="folders that data.py made")
    parser.add_argument("--init", required=True,
                        help=f"model folder or Hub id to start from, or a preset with fresh weights: {', '.join(flm.PRESETS)}")
    parser.add_argument("--qwen", help="Qwen2.5 checkpoint that fills the preset's backbone")
    parser.add_argument("--out", required=True, help="folder for checkpoint, log and trained model")
    parser.add_argument("--stage", choices=STAGES, default="post-training-1", help="row of Table 3 (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="instead of the stage's")
    parser.add_argument("--lr", type=float, nargs=2, metavar=("START", "END"), help="instead of the stage's")
    parser.add_argument("--batch", type=int, default=8, help="rows a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="frames a row (default: %(default)s; the paper has 8192)")
    parser.add_argument("--depth-share", type=float, default=1.0,
                        help="share of the spoken frames that train the depth transformer (default: %(default)s)")
    parser.add_argument("--repeats", type=float, default=1.0,
                        help="and of that share, for frames that repeat the frame before (default: %(default)s)")
    parser.add_argument("--wait-weight", type=float, default=WEIGHTS[Loss.WAIT],
                        help="gamma of equation 3; more makes the model slower to speak (default: the paper's %(default)s)")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="autocast to bfloat16, for accelerators and processors with AMX")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks; on a CPU this needs a C++ compiler")
    args = parser.parse_args(arguments)
    stage = STAGES[args.stage]
    stage = Stage(args.epochs or stage.epochs, *(args.lr or (stage.lr, stage.lr_end)))
    try:
        train(args.grids, args.init, args.out, stage, args.batch, args.length, args.depth_share, args.repeats,
              args.wait_weight, args.seed, args.save_every, args.device, args.bfloat16, args.compile, args.qwen)
    except (OSError, ValueError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
