"""Training: equation 3 and the four stages of Table 3, from a language model to one that talks.

    L = alpha_1 CE(speaking, semantic) + alpha_2 CE(speaking, acoustic)
        + beta CE(mono) + gamma CE(wait)                                                 (3)

    weight          option               mean over
    alpha_1  1      --semantic-weight    code 0 of each frame of the speaking channel, silence too
    alpha_2  0.5    --acoustic-weight    codes 1 to 7 of these frames
    beta     1      --monologue-weight   text tokens but <wait>: words, <asr> and <answer>
    gamma    0.01   --wait-weight        <wait>, the text token of a frame without a word

No loss: codes heard, empty and pad tokens, and of a sample's first frame the word and code 0; its
codes 1 to 7 count.

What this is: the method of training (sections 3.1, 3.2.2, 3.3): the loss and its weights, the
stages, the optimizer, the loop. What this is not: what stands in a grid (stream.py), how recordings
become grids (data.py), how grids become batches (workshop/batches.py); checkpoints, processes,
costs, adapters, the log and the options stand in workshop/ files of their own.

    python train.py run grids/ft2 --init tiny/model --out runs/ft2 --stage fine-tuning-2
    python train.py export runs/ft2 somewhere/model      # at any time

From a language model, on many GPUs behind `torchrun --nproc-per-node 8`; flm.py tells how `start`
and the grids are made:

    python train.py run grids/tts grids/asr --init start --qwen Qwen/Qwen2.5-0.5B \\
        --out runs/pt1 --stage post-training-1 --paper --device cuda --bfloat16 --recompute \\
        --compile

Why these weights. Section 3.1 observed them to be effective and derives none. What they do:
- Each CE is a mean over its own tokens. So a kind of token weighs the same whether it is rare or
  frequent; of a rare kind, each token weighs more.
- Words and semantic codes carry what is said, and weigh alike. An acoustic code weighs a
  fourteenth of the semantic code of its frame: half the weight, over seven times the tokens.
- gamma decides when a word is written: a small one makes a missed word cost far more than a
  missed <wait>. In one frame the true chances are p for a word and w = 1 - p for <wait>. Let
  `words` and `waits` be the numbers of these tokens in the data. Each CE is a mean, so one word
  weighs beta / words, and one <wait> weighs gamma / waits. The loss is lowest for a model that
  gives the two in the ratio (p beta / words) : (w gamma / waits). For this model the word is the
  likelier one as soon as

      p > w * (gamma / beta) * (words / waits)

  With gamma 0.01 and ten frames of <wait> for each word, this is a chance of one in a thousand. So
  a small gamma makes the model quick to speak: it waits only where it is almost sure that nothing
  is to be written. This is our reading; the paper gives no reason for so small a gamma. A small
  model is never that sure, and speaks into the question (tiny/LOG.md, "fine-tuning 1, equation 3
  as it stands"). For this reason tiny/make.py gives its last stage gamma 1.

Why Moshi's weights differ: gamma 0.5, alpha_1 100, alpha_2 1. Section 3.1 says only that its gamma
weighs word-level <pad> tokens; the rest here follows from how Moshi works.
- Moshi's <pad> is another token than <wait>. It stands between the words of a sentence and holds
  each word until it sounds, so that the model decides between it and a word several times a second.
  <wait> comes in long runs between sentences, and one decision ends a run.
- In Moshi's loss the weights of the codes are divided by their sum. So its 100 sets the semantic
  code against the acoustic codes, and not against the words.
- Moshi hides some text tokens of its input in training, and has an optimizer of its own for the
  depth transformer. The paper does without both.

Unusual here:
- The means are over the whole global batch: each process sums its tokens, and the sums are divided
  by the counts of all processes. So neither the number of processes nor the size of a forward pass
  changes a gradient.
- Every random choice follows from seed, step and place in the batch. The step of a checkpoint is
  its random state and its place in the data, and a run goes on as if it had never stopped.

A batch has B sequences. Each holds samples packed one behind the other, T positions in all. At each
position stands what stream.py calls a row, and what this file calls a frame.

Shapes: B sequences, T frames of a sequence, K = 8 codebooks, D model width, V and C the text and
audio vocabularies; beside them M positions with loss on text and N positions with loss on codes.
"""
import math
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from workshop import command

if __name__ == "__main__":
    command.stop_while_loading("train.py")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from stream import FORMATS, Loss
from workshop import checkpoints, costs, model_files, processes, starting
from workshop import training_notes, training_options, training_set
from workshop.batches import Batches
from workshop.checkpoints import Checkpoints
from workshop.processes import Stopped, TrainError, sum_over_processes
from workshop.spoken_samples import SpokenSamples
from workshop.training_log import Log, read_log
from workshop.validation import History, Validation

# Equation 3, section 3.1. Decision: section 3.1 gives equation 3 and these weights for
# post-training, and section 3.2 gives no other loss, so that all four stages use them.
ALPHA_1 = 1.0   # semantic codes
ALPHA_2 = 0.5   # acoustic codes
BETA = 1.0      # monologue
GAMMA = 0.01    # <wait>

# Decision: Table 3 says "256" and no unit; these are sequences of one step, over all processes.
PAPER_BATCH = 256    # Table 3
PAPER_LENGTH = 8192  # frames of a sequence, section 3.1

# Decision: Table 3 names learning rates and the cosine, the paper no optimizer and no warm-up.
# These are the usual ones for a transformer.
BETAS = (0.9, 0.95)   # of AdamW
WEIGHT_DECAY = 0.1    # of matrices; norms and biases do not decay
CLIP = 1.0            # the largest norm of a gradient
WARMUP = 0.02         # share of the steps


# --- the four stages ---

@dataclass(frozen=True)
class Stage:
    """A column of Table 3. Raises ValueError for a format that stream.py does not know."""
    formats: tuple   # names of stream.FORMATS
    epochs: float
    lr: tuple        # learning rate at the start and at the end of the cosine
    mixture: dict    # the paper's sources, and how often an epoch reads each; to be shown, since
                     # the command line does the mixing (FOLDER:5)

    def __post_init__(self):
        for name in self.formats:
            if name not in FORMATS:
                raise ValueError(f"stream.FORMATS has no {name!r}, which a stage names")


# A stage starts from the model that the one before it made (--init), and reads the folders of grids
# that its command line names: FOLDER:0.5 is a random half of FOLDER in each epoch. A new stage is a
# new line here. A new format is a new line of stream.FORMATS, and more if it has a step of its own
# (STAGES.md).
# Decision: each sample of each format is read once an epoch; the paper names no mix of formats.
# Decision: all weights are trained in all stages; the paper names none that stay as they are.
STAGES = {
    "post-training-1": Stage(
        formats=("tts", "asr"), epochs=3.3, lr=(2e-4, 1e-5),
        mixture={"transcribed by a program": 1}),
    # Section 3.1 mixes two sources: half of the corpus of post-training-1, and five times the ASR
    # sets that people annotated. So the finer annotation counts more than a program's transcripts:
    #     train.py run grids/tts:0.5 grids/asr:0.5 grids/annotated-tts:5 grids/annotated-asr:5 ...
    "post-training-2": Stage(
        formats=("tts", "asr"), epochs=1, lr=(1e-5, 8e-6),
        mixture={"transcribed by a program": 0.5, "transcribed by people": 5}),
    "fine-tuning-1": Stage(
        formats=("asr-response-tts",), epochs=2, lr=(1e-5, 8e-6),
        mixture={"synthesized dialogs": 1}),
    # The same dialogs. A transcript no longer stands between question and response, and in the
    # second format the user is free to interrupt.
    "fine-tuning-2": Stage(
        formats=("response-tts", "response-tts-free"), epochs=6, lr=(8e-6, 7e-6),
        mixture={"synthesized dialogs": 1}),
}


# --- settings ---

@dataclass(frozen=True)
class Settings(training_options.Options):
    """One run: the method here, the rest in workshop/training_options.py, which has the help of
    all. None: the value follows from the stage or from the model's size; see `resolve`. Raises
    SettingError."""
    stage: str = "post-training-1"
    epochs: float | None = None
    lr: tuple | None = None      # start and end
    batch: int | None = None     # sequences a step, over all processes
    length: int | None = None    # frames a sequence
    paper: bool = False          # batch and length of the paper
    semantic_weight: float = ALPHA_1
    acoustic_weight: float = ALPHA_2
    monologue_weight: float = BETA
    wait_weight: float = GAMMA
    depth_share: float = 1.0     # of the frames with codes
    repeats: float = 1.0         # factor on depth_share for frames that repeat the one before
    hide: float = 0.0            # share of the codes heard
    seed: int = 0

    def resolve(self, config):
        """The same with every None of the method filled in for a model of this flm.Config.

        Decision: grids that hold each recording six times, drawn anew (data.py encode --draws 6),
        count as six epochs."""
        stage = STAGES[self.stage]
        # Decision: without --paper for a laptop: a step of the tiny preset takes about a second,
        # and the larger presets stay within memory.
        if self.paper:
            batch, length, micro = PAPER_BATCH, PAPER_LENGTH, 1
        elif config.hidden_size <= 256:
            batch, length, micro = 8, 512, None
        else:
            batch, length, micro = 2, 256, None
        return replace(
            self,
            epochs=self.epochs or stage.epochs / training_set.mean_draws(self.grids),
            lr=tuple(self.lr or stage.lr),
            batch=self.batch or batch,
            length=self.length or length,
            micro=self.micro or micro,
        )

    def weights(self):
        """The weights of equation 3 by class of stream.Loss -> float64 [5]"""
        by_class = {
            Loss.NONE: 0.0,
            Loss.SEMANTIC: self.semantic_weight,
            Loss.ACOUSTIC: self.acoustic_weight,
            Loss.MONOLOGUE: self.monologue_weight,
            Loss.WAIT: self.wait_weight,
        }
        return torch.tensor([by_class[kind] for kind in Loss], dtype=torch.float64)


# --- equation 3 ---

class Equation3(nn.Module):
    """A model and its loss, as one module, so that all heads run within one forward pass of FSDP.

    The classes of stream.Loss say which of the four CE a token counts in. stream.py sets them, and
    says there why silence, <asr> and <answer> count as they do."""

    def __init__(self, model):
        super().__init__()
        self.flm = model
        # What FSDP gathers one at a time. A plain list: nn.Module does not register them twice.
        self.blocks = [*model.model.layers, *model.aud_output_layers.transformer["h"]]

    def forward(self, text, speak, listen, loss):
        """Cross-entropy, summed over the tokens of each class.

        text [B, T], speak and listen [B, T, K], loss [B, T, 1 + K] -> [5], by class of stream.Loss.
        Position t predicts text and codes of position t + 1. A head runs only on the positions that
        carry loss for it."""
        h = self.flm.hidden(text[:, :-1], speak[:, :-1], listen[:, :-1])        # [B, T - 1, D]
        next_text = text[:, 1:]                                                 # [B, T - 1]
        next_codes = speak[:, 1:]                                               # [B, T - 1, K]
        text_class = loss[:, 1:, 0]                                             # [B, T - 1]
        code_class = loss[:, 1:, 1:]                                            # [B, T - 1, K]
        on_text = at_least_one(text_class != Loss.NONE)                         # [B, T - 1], M true
        on_codes = at_least_one((code_class != Loss.NONE).any(-1))              # [B, T - 1], N true

        codes = next_codes[on_codes]                                            # [N, K]
        code_logits = self.flm.depth_logits(h[on_codes], codes[:, :-1]).float() # [N, K, C]
        text_logits = self.flm.text_logits(h[on_text]).float()                  # [M, V]
        text_ce = F.cross_entropy(text_logits, next_text[on_text], reduction="none")
        code_ce = F.cross_entropy(code_logits.flatten(0, 1), codes.flatten(), reduction="none")

        ce = torch.cat([text_ce, code_ce])                                      # [M + N K]
        classes = torch.cat([text_class[on_text], code_class[on_codes].flatten()])
        return torch.stack([(ce * (classes == kind)).sum() for kind in Loss])


def device_of(equation):
    return equation.flm.lm_head.weight.device


def at_least_one(mask):
    """mask [B, T] -> the same, with its first element set where none is. With FSDP every process
    must pass through every block, also with a batch of pads alone; these add no loss even so."""
    first = torch.zeros_like(mask)
    first[0, 0] = ~mask.any()
    return mask | first


def count_tokens(micro_batches):
    """Tokens of each class in the micro-batches of all processes -> float64 [5]. The first frame of
    a sequence is not predicted."""
    counts = torch.zeros(len(Loss), dtype=torch.float64)
    for batch in micro_batches:
        counts += torch.bincount(batch.loss[:, 1:].flatten(), minlength=len(Loss))
    return sum_over_processes(counts)


def gradients(equation, micro_batches, weights):
    """Add the gradient of equation 3 over the micro-batches of all processes to the parameters.

    weights [5] by class -> the four CE of equation 3 and the tokens of each, float64 [5] by class.

    Decision: each CE averages over its own tokens of the global batch, the plain reading of
    equation 3.
    Decision: with FSDP, gradients are reduced after every micro-batch and not once at the end. With
    thousands of frames the network hides behind the arithmetic, and no process holds the gradient
    of the whole model."""
    counts = count_tokens(micro_batches)
    scale = weights / counts.clamp(min=1) * processes.count()  # FSDP averages over processes
    sums = torch.zeros(len(Loss), dtype=torch.float64)
    for batch in micro_batches:
        batch_sums = equation(*batch.to(device_of(equation)))
        (batch_sums * scale.to(batch_sums)).sum().backward()
        sums += batch_sums.detach().cpu()
    return sum_over_processes(sums) / counts.clamp(min=1), counts


# --- the model to train, and its optimizer ---

def build(settings, device):
    """The Equation3 to train, whole in one process or sharded over all, and a fingerprint of the
    weights that it starts from, or None where all of them are trained. Raises LoadError."""
    model, base = starting.model_to_train(settings)
    equation = Equation3(model)
    for block in equation.blocks:  # within what FSDP wraps
        if settings.compile:
            block.forward = torch.compile(block.forward)  # blocks of a kind share one compilation
        if settings.recompute:
            # There is no dropout, so no random numbers have to be drawn again.
            block.forward = partial(recompute, block.forward, use_reentrant=False,
                                    preserve_rng_state=False)
    if dist.is_initialized():
        processes.shard(equation, equation.blocks, equation.flm, device, settings.bfloat16)
        return equation, base
    if settings.bfloat16:
        equation.forward = torch.autocast(device.type, torch.bfloat16)(equation.forward)
    return equation.to(device), base


def make_optimizer(equation):
    """AdamW over all weights that are trained.

    Decision: each stage starts with a fresh optimizer and a warm-up of its own. The paper does not
    say what becomes of AdamW's moments between stages; a stage starts from a model folder, as
    anybody's run from the released model must. Backbone and depth transformer share it: section 3.1
    found Moshi's two optimizers unnecessary."""
    trained = [p for p in equation.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = None  # PyTorch's own choice
    if device_of(equation).type == "cuda":
        fused = True  # one pass over weights and moments, and no copies of either
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=fused)


def learning_rate(step, steps, lr):
    """Linear warm-up, then a cosine from lr[0] to lr[1] (Table 3)."""
    start, end = lr
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return start * (step + 1) / warmup
    angle = math.pi * (step - warmup) / max(1, steps - warmup)  # from 0 to pi
    return end + (start - end) * (1 + math.cos(angle)) / 2


# --- the loop ---

@dataclass
class Run:
    """What one process of a run works with."""
    settings: Settings         # without None
    equation: Equation3
    optimizer: torch.optim.Optimizer
    batches: Batches
    checkpoints: Checkpoints
    about: dict                # what a checkpoint says of the run
    step: int                  # the number of steps so far, with those of the checkpoint
    history: History           # of validations
    log: Log | None = None     # of the first process
    samples: SpokenSamples | None = None  # to be answered at each validation


def train(settings):
    """Run a stage from `init`, or from the newest checkpoint in `out`, and write the model to
    `out`, in the release's format. All processes of a torchrun call this. Raises ValueError or
    OSError, one sentence."""
    device = processes.connect(settings.device, alone=settings.lora is not None)
    with closing(Checkpoints(settings.out, settings.keep)) as store:
        run = start(settings, device, store)
        take_steps(run)
        store.wait()
        if run.step < run.batches.steps and not run.history.reason_to_stop():
            raise Stopped(f"stopped at step {run.step}; the same command goes on from there")
        if processes.rank() == 0:
            store.write_model(run.history.best(store.steps))
            training_notes.conclude(run)
        sum_over_processes(torch.zeros(1))  # nobody leaves before the model is written


def start(settings, device, store):
    """Settings -> the Run of this process, at its first step or where its newest checkpoint is."""
    rank = processes.rank()
    if rank == 0 and settings.beside:
        model_files.resolve(settings.beside)  # a wrong path shows now, and not when all is trained
    config = starting.shared_config(settings)
    batches = Batches(settings.resolve(config), config, rank, processes.count())
    equation, base_fingerprint = build(settings, device)
    settings = batches.settings  # those that were resolved
    optimizer = make_optimizer(equation)
    about = checkpoints.describe(settings, config, batches, base_fingerprint)
    step = store.resume(equation.flm, optimizer, about, Settings)
    lines = processes.from_first(read_log(settings.out, step))
    history = History(lines, settings.forget, settings.patience)
    run = Run(settings, equation, optimizer, batches, store, about, step, history)
    if rank == 0:
        training_notes.announce(run, STAGES)
        meter = costs.Meter(config, settings, device)
        run.log = Log(settings, step, batches.steps, meter)
    if settings.speak:
        run.samples = SpokenSamples(settings, config, batches)
    return run


def take_steps(run):
    """Train from `run.step` to the last step, or to the one at which the run is asked to stop or
    validation ends it; log, checkpoints and validation in between."""
    settings = run.settings
    weights = settings.weights()
    steps = run.batches.steps
    if run.step == 0 and not run.history.all:
        validate(run)
    stopping = run.history.reason_to_stop() is not None
    with closing(run.batches.upcoming(run.step)) as upcoming, processes.StopRequest() as stop:
        while run.step < steps and not stopping:
            began = time.time()
            micro_batches = next(upcoming)
            rate = learning_rate(run.step, steps, settings.lr)
            run.step += 1
            result = update(run, micro_batches, weights, rate)
            run.checkpoints.check(result.loss)
            if run.log:
                run.log.add_step(run.step, result, time.time() - began)
            is_last = run.step == steps
            if is_last or run.step % run.batches.valid_every == 0:
                validate(run)
            is_asked_to = stop.anywhere()  # all processes stop at the same step
            stopping = is_asked_to or run.history.reason_to_stop() is not None
            best = run.history.best(run.checkpoints.steps | {run.step})
            is_due = best == run.step or run.step % settings.save_every == 0
            if is_last or stopping or is_due:
                run.checkpoints.save(run.equation.flm, run.optimizer, run.step, run.about, best)


@torch.no_grad()
def validate(run):
    """Compute equation 3 on what is held out, or on the folders of `valid`, for history and log."""
    batches = run.batches
    if not batches.valid:
        return
    terms = {}  # of each source
    for name, sequences in batches.valid.items():
        micro_batches = batches.micro_batches(batches.valid_grids, sequences)
        sums = torch.zeros(len(Loss), dtype=torch.float64)
        for batch in micro_batches:
            sums += run.equation(*batch.to(device_of(run.equation))).cpu()
        terms[name] = sum_over_processes(sums) / count_tokens(micro_batches).clamp(min=1)
    losses = Validation.of(run.step, terms, run.settings.weights())
    run.history.add(losses)
    if run.log:
        run.log.add_validation(losses)
    if run.samples:
        run.samples.write(run.equation.flm, run.step)
    if dist.is_initialized():
        run.equation.reshard()  # without a backward pass the root stays gathered until here


@dataclass
class Update:
    """What a step did."""
    loss: float            # equation 3
    terms: torch.Tensor    # its four CE, float64 [5] by class of stream.Loss
    counts: torch.Tensor   # the tokens of each, [5]
    norm: float            # of the gradient, before it was clipped
    rate: float            # learning rate


def update(run, micro_batches, weights, rate):
    """Step `run.step`: the gradient of equation 3, clipped, to AdamW -> Update

    Raises TrainError, before any weight has changed, where loss or gradient is not finite."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad()
    terms, counts = gradients(run.equation, micro_batches, weights)
    norm = nn.utils.clip_grad_norm_(run.equation.parameters(), CLIP)
    norm = processes.gather(norm).item()
    loss = (weights * terms).sum().item()
    if not math.isfinite(loss + norm):
        raise TrainError(f"step {run.step} has loss {loss} and gradient norm {norm}: "
                         f"{run.checkpoints.advice()}; or look at the grids with stream.py")
    run.optimizer.step()
    return Update(loss, terms, counts, norm, rate)


# --- command line ---

def main(arguments=None):
    bench = partial(costs.bench, build, make_optimizer, gradients)
    training_options.main(arguments, Settings, STAGES, PAPER_LENGTH, train, bench)


if __name__ == "__main__":
    command.run("train.py", main)
