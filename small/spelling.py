"""Teaches the codec to spell: codebook 0 learns any English, not the words of a small world.

What this is: the encoder and codebook 0 of tiny/model go on learning, by CTC on characters that are
read from codebook 0 alone, on open sentences by many voices; the acoustic codebooks stand still and
the encoder keeps giving them what they had. Then the decoder learns the model's voice in the new
codes. What this is not: the codec, which is mimi.py's, nor its first training, which is
tiny/codec.py's; the losses that both need are taken from there.

    python small/make.py --only spelling     # goes on from its checkpoint
    python small/make.py --only voice        # the decoder, last

    dirty audio --encoder--> latent --input_proj--> x --nearest--> code 0
                                |                   |
                                |                   +--half of the clips: x itself (Decision 2)
                                |                   v
                                |              two readers --> characters: CTC
                                +--input_proj of the others--> as the teacher's of clean audio

Decision 1: two readers. A linear one makes each code name what it stands for, two characters a
frame, as in tiny/codec.py. One that sees four frames to either side, three characters a frame, is
nearer to what the language model can do, which reads a whole sentence before it writes; the error
that is reported is this one's.
Decision 2: half of the clips are not quantized, as Moshi trains (arXiv 2410.00037, section 3.3.2),
so that the encoder gets a gradient that the codebook does not blur.
Decision 3: before the encoder moves, the readers alone learn, on tiny/model's codes as they are.
Their error then is what codebook 0 tells of open English before anything is changed.
"""
import json
import random
import time
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import nn

import codec as tiny_codec  # tiny/codec.py
from workshop import codec_files, measures
from workshop.files import replacing

LETTERS = tiny_codec.LETTERS
FRAMES = 76                 # of a clip at most: 6.1 s
MODEL_CLIPS, USER_CLIPS = 2, 10
WORLD_SHARE = 0.2           # of the users, drawn from the recordings of the small model's world
ANCHORED = 4                # clips of a batch whose acoustic codes are held, the model's among them
QUANTIZED_SHARE = 0.5
DECAY = 0.99                # of the codebook's running averages
RATE = 1e-3                 # of the encoder
READER_RATE = 2e-3
VOICE_RATE = 8e-4
WARMUP = 100
AFTER = 4                   # frames of silence: the last characters may come late
LATEST_START = 12_000       # samples
COOLING = 0.3               # share of the steps, at the end, in which the rate falls to a fiftieth
WEIGHTS = {"linear": 0.5, "reader": 0.5, "commitment": 0.1, "acoustic": 1.0}
# Of the users; tiny/codec.py's `disturbed` leaves some of the others without noise and rooms, too.
CLEAN_SHARE = 0.4
# Manifests: held-out sentences by held-out voices, by users like those of training, and questions
# of the small model's world by held-out voices.
TESTS = ("test-voices", "test-sentences", "test-world")
LOG_EVERY, SAVE_EVERY = 50, 250


class Reader(nn.Module):
    """Characters of quantized frames: [B, T, codebook_dim] -> logits [B, per_frame T, 1 + letters],
    the blank first. reach: frames to either side that count"""

    def __init__(self, width, per_frame, reach=0, hidden=256):
        super().__init__()
        self.per_frame = per_frame
        letters = len(LETTERS) + 1
        if reach:
            kernel = reach + 1
            self.layers = nn.Sequential(
                nn.Conv1d(width, hidden, kernel, padding=reach // 2), nn.GELU(),
                nn.Conv1d(hidden, hidden, kernel, padding=reach // 2), nn.GELU(),
                nn.Conv1d(hidden, per_frame * letters, 1))
        else:
            self.layers = nn.Conv1d(width, per_frame * letters, 1)

    def forward(self, x):
        logits = self.layers(x.transpose(1, 2)).transpose(1, 2)  # [B, T, per_frame letters]
        return logits.unflatten(2, (self.per_frame, -1)).flatten(1, 2)


def readers(codebook_dim):
    return nn.ModuleDict({"linear": Reader(codebook_dim, 2), "reader": Reader(codebook_dim, 3, 4)})


def greedy(logits):
    """CTC's best path as a text. logits [steps, letters]"""
    best = logits.argmax(-1).tolist()
    kept = [a for a, before in zip(best, [0, *best]) if a and a != before]
    return "".join(LETTERS[a - 1] for a in kept)


# --- recordings ---

class Clips:
    """The recordings of a manifest of pairs, read when they are drawn. A manifest that grows is
    read again by `refresh`. Raises ValueError for one that is empty."""

    def __init__(self, file):
        self.file = file
        self.refresh()
        if not self.entries:
            raise ValueError(f"{file} lists no recordings yet: run --only open-speech first")

    def refresh(self):
        lines = self.file.read_text().splitlines(keepends=True)
        self.entries = [json.loads(line) for line in lines if line.endswith("\n")]

    def read(self, i):
        """(samples [N], text) of the recording i"""
        entry = self.entries[i]
        audio, _ = soundfile.read(self.file.parent / entry["audio"], dtype="float32")
        return audio, entry["text"]


@dataclass
class Batch:
    dirty: torch.Tensor     # [B, 1, N] what the encoder gets
    clean: torch.Tensor     # [B, 1, N]
    texts: list             # B lists of letters, empty where the clip was cut
    frames: torch.Tensor    # [B] frames until the end of the clip, and a few more


def draw_batch(sources, step):
    """The batch of a step: recordings that begin at random times, the model's first.

    sources: {"model", "users", "world": Clips}"""
    rng = np.random.default_rng((21, step))
    chance = random.Random(step)
    n = FRAMES * 1920
    B = MODEL_CLIPS + USER_CLIPS
    dirty = np.zeros((B, n), np.float32)
    clean = np.zeros((B, n), np.float32)
    texts, frames = [], []
    for b in range(B):
        is_model = b < MODEL_CLIPS
        source = "model" if is_model else "world" if rng.random() < WORLD_SHARE else "users"
        clips = sources[source]
        clip, text = clips.read(rng.integers(len(clips.entries)))
        start = rng.integers(0, LATEST_START)
        end = min(n, start + len(clip))
        texts.append(tiny_codec.spelled(text) if start + len(clip) <= n else [])
        frames.append(min(FRAMES, -(-end // 1920) + AFTER))
        level = rng.uniform(-3, 1) if is_model else rng.uniform(-24, 5)
        clean[b, start:end] = clip[:end - start] * 10 ** (level / 20)
        dirty[b] = clean[b]
        if not is_model and rng.random() > CLEAN_SHARE:
            dirty[b] = tiny_codec.disturbed(dirty[b], clean[b, start:end], chance)
    n = max(frames) * 1920  # no batch is longer than its longest clip
    return Batch(torch.from_numpy(dirty[:, None, :n]), torch.from_numpy(clean[:, None, :n]), texts,
                 torch.tensor(frames))


# --- losses ---

def losses_of(codec, teacher, heads, batch, learns):
    """The losses of a batch, by the names of WEIGHTS. learns: whether encoder and codebook move."""
    first = codec.quantizer.rvq_first
    rest = codec.quantizer.rvq_rest
    book = first.codebooks[0]
    with torch.set_grad_enabled(learns):
        latent = codec.to_latent(batch.dirty)
        x = first.input_proj(latent).transpose(1, 2)              # [B, T, codebook_dim]
    spoken = torch.arange(x.shape[1]) < batch.frames[:, None]         # [B, T]
    codes = book.nearest(x.detach())
    chosen = F.embedding(codes, book.entries)
    losses = {}
    read = chosen
    if learns:
        tiny_codec.move_codebook(book, x.detach()[spoken], codes[spoken], DECAY)
        losses["commitment"] = F.mse_loss(x[spoken], chosen[spoken])
        quantized = torch.rand(len(x), 1, 1) < QUANTIZED_SHARE
        straight_through = x + (chosen - x).detach()
        read = torch.where(quantized, straight_through, x)
        with torch.no_grad():
            wanted = rest.input_proj(teacher.to_latent(batch.clean[:ANCHORED]))
        error = (rest.input_proj(latent[:ANCHORED]) - wanted).square().mean((0, 2)).sum()
        losses["acoustic"] = error / wanted.var((0, 2)).sum()
    whole = [b for b, text in enumerate(batch.texts) if text]
    targets = torch.tensor([letter for b in whole for letter in batch.texts[b]])
    target_lengths = torch.tensor([len(batch.texts[b]) for b in whole])
    for name, head in heads.items():
        log_probabilities = head(read[whole]).log_softmax(-1)
        steps = batch.frames[whole] * head.per_frame
        losses[name] = F.ctc_loss(log_probabilities.transpose(0, 1), targets, steps, target_lengths,
                                  zero_infinity=True)
    return losses


# --- what is read from codebook 0 ---

def transcripts(codec, heads, clips):
    """(text, transcript read from codebook 0 alone) of every recording, without noise."""
    pairs = []
    book = codec.quantizer.rvq_first.codebooks[0]
    for i in range(len(clips.entries)):
        audio, text = clips.read(i)
        audio = F.pad(torch.from_numpy(audio), (1920, 4 * 1920))
        with torch.no_grad():
            codes = codec.encode(audio[None, None])[:, 0]          # [1, T]
            logits = heads["reader"](book.lookup(codes))[0]
        pairs.append((text, greedy(logits)))
    return pairs


def error_rates(pairs):
    """Character and word error rates of transcripts, capitals and punctuation aside."""
    letters = words = letter_errors = word_errors = 0
    for text, transcript in pairs:
        text = "".join(c for c in text.lower().replace("-", " ") if c in LETTERS)
        letters += len(text)
        letter_errors += measures.word_errors(list(transcript), list(text))
        words += len(text.split())
        word_errors += measures.word_errors(transcript.split(), text.split())
    return {"cer": letter_errors / letters, "wer": word_errors / words}


def evaluate(codec, heads, work):
    """Error rates and an example of each of TESTS."""
    report = {}
    for name in TESTS:
        pairs = transcripts(codec, heads, Clips(work / f"{name}.jsonl"))
        rates = error_rates(pairs)
        report[name] = {key: round(value, 4) for key, value in rates.items()}
        report[name]["example"] = pairs[0]
    return report


# --- training ---

def rate_at(step, steps, rate):
    """Up over WARMUP steps, level, and down in a straight line over the last COOLING of all."""
    down = (steps - step) / (COOLING * steps)
    return rate * min(1, (step + 1) / WARMUP) * min(1, max(0.02, down))


class Learner:
    """What learns and what it learns from, with a checkpoint on disk."""

    def __init__(self, start):
        self.codec = codec_files.load(start)
        self.teacher = codec_files.load(start)
        first = self.codec.quantizer.rvq_first
        for part in (self.codec.encoder, self.codec.encoder_transformer, self.codec.downsample,
                     first.input_proj):
            part.requires_grad_(True)
        torch.manual_seed(0)
        self.heads = readers(self.codec.config.codebook_dim)
        learning = [p for p in self.codec.parameters() if p.requires_grad]
        groups = [{"params": learning}, {"params": self.heads.parameters()}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), weight_decay=1e-3)
        self.step = 0

    def parts(self):
        return {"codec": self.codec, "heads": self.heads, "optimizer": self.optimizer}

    def load(self, file):
        saved = torch.load(file)
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])
        self.step = saved["step"]

    def save(self, file):
        state = {name: part.state_dict() for name, part in self.parts().items()}
        with replacing(file) as beside:
            torch.save(state | {"step": self.step}, beside)

    def learn(self, batch, steps, probing):
        """One step. Returns its losses by name."""
        torch.manual_seed(self.step)
        learns = self.step >= probing
        losses = losses_of(self.codec, self.teacher, self.heads, batch, learns)
        encoder_rate = rate_at(self.step - probing, steps - probing, RATE) if learns else 0
        codec_group, reader_group = self.optimizer.param_groups
        codec_group["lr"] = encoder_rate
        reader_group["lr"] = rate_at(self.step, steps, READER_RATE)
        self.optimizer.zero_grad()
        sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}


def train(work, start, out, steps, probing, evaluate_every):
    """Train the readers alone for `probing` steps, then everything up to `steps`; a checkpoint goes
    on, also up to more steps than before. Writes work/spelling.jsonl (losses and error rates by
    step) and the codec to the folder `out`."""
    learner = Learner(start)
    checkpoint = work / "spelling.pt"
    if checkpoint.exists():
        learner.load(checkpoint)
        print(f"spelling: goes on from step {learner.step}", flush=True)
    sources = {name: Clips(work / f"{name}.jsonl") for name in ("model", "users", "world")}
    average = {}
    began = time.time()
    log = open(work / "spelling.jsonl", "a")
    while learner.step < steps:
        losses = learner.learn(draw_batch(sources, learner.step), steps, probing)
        for name, loss in losses.items():
            average[name] = 0.98 * average.get(name, loss) + 0.02 * loss
        step = learner.step
        if step % SAVE_EVERY == 0 or step == steps:
            learner.save(checkpoint)
        if step % LOG_EVERY and step != steps:
            continue
        for clips in sources.values():
            clips.refresh()
        line = {"step": step, "seconds": round((time.time() - began) / LOG_EVERY, 2),
                "clips": len(sources["users"].entries)}
        line |= {name: round(value, 3) for name, value in average.items()}
        if step == probing or step % evaluate_every == 0 or step == steps:
            line |= evaluate(learner.codec, learner.heads, work)
        print(json.dumps(line), file=log, flush=True)
        print(json.dumps(line), flush=True)
        began = time.time()
    log.close()
    codec_files.save(learner.codec.half(), out)


def train_voice(work, start, out, steps):
    """Teach the decoder of the folder `start` the model's voice in the codes of its new encoder,
    going on from work/voice.pt, and write the codec to the folder `out`."""
    codec = codec_files.load(start)
    codec.requires_grad_(True)  # encoding has no gradient, so the decoder's side alone learns
    optimizer = torch.optim.AdamW(codec.parameters(), lr=VOICE_RATE, betas=(0.9, 0.95),
                                  weight_decay=1e-3)
    model = Clips(work / "model.jsonl")

    def learn(step, rng):
        clean = np.zeros((tiny_codec.POLISHED, 1, tiny_codec.FRAMES * 1920), np.float32)
        for row in clean:
            clip, _ = model.read(rng.integers(len(model.entries)))
            clip = clip[:row.shape[-1]]
            row[0, :len(clip)] = clip
        loss = tiny_codec.polish(codec, torch.from_numpy(clean))
        return tiny_codec.learning_rate(VOICE_RATE, step / steps), loss

    tiny_codec.run("voice", work / "voice.pt", steps, learn, 0, codec=codec, optimizer=optimizer)
    codec_files.save(codec.half(), out)
