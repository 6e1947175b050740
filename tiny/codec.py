"""Trains the miniature codec: spectral losses, a quantizer that learns by running averages, and CTC on codebook 0.

What this is: the recipe of tiny/model/mimi.safetensors. Mimi's first codebook is phonetic because it is distilled from
a speech model; here the words are known (the speech is synthetic), so a CTC loss on characters, read from codebook 0
alone, serves the same end. What this is not: the codec; that is mimi.py, whose modules run here unchanged.

    python tiny/make.py --only codec
    python tiny/make.py --only hearing

Decision: only the model's voice is ever decoded in a conversation, so the last steps hold encoder and codebooks still, and
with them every code, and teach the decoder that voice alone. It has most of the codec's parameters: what it says became
clearer with them (LOG.md), and eight convolutions at 100 Hz cost a listener little.
Decision: users are encoded with noise and at any level, and decoded clean and at the level they came in: only what is
said has to survive the codec, and noise would otherwise spend codes.
Decision: the codec that ships has an encoder that learned to hear: codebooks and decoder held still, it makes of a clip in
louder noise, a room, another microphone what the encoder before it makes of the clean clip. What the model hears, it hears by
this one, from the last stage's second helping on; its own voice is written in the codes of the one before (LOG.md says what comes
of the other way).
"""
import json
import math
import os
import random
import time

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import data
import mimi
from workshop import acoustics, codec_files

FRAMES = 44                             # of a clip: 3.52 s
MODEL_CLIPS, USER_CLIPS = 4, 8          # in a batch; all are encoded,
DECODED = 6                             # only the first ones decoded: users matter for what they say
BATCH = MODEL_CLIPS + USER_CLIPS
POLISHED = 8                            # clips of the model's voice in a batch of the last steps
LEARNING_RATE, HEARING_RATE, POLISHING_RATE, WARMUP = 1.5e-3, 6e-4, 8e-4, 100
QUANTIZE_FROM = 0.15                    # share of the steps before the quantizer begins
DECAY = 0.98
WEIGHTS = {"spectral": 1, "ctc": 0.3, "commitment": 0.1, "choice": 1, "semantic": 0.2, "acoustic": 2}  # of the losses
# While it learns to hear: the share of users without disturbance, and of the others that with a microphone and in a room; dB.
UNDISTURBED, MUFFLED, IN_ROOM, SNR = 0.27, 0.4, 0.5, (-2, 35)
SCALES = (2048, 1024, 512, 256)         # windows of the spectral losses, in samples
LETTERS = " abcdefghijklmnopqrstuvwxyz'"


def spelled(text):
    """A text's letters as numbers from 1 on; 0 is CTC's blank."""
    return [LETTERS.index(c) + 1 for c in text.lower() if c in LETTERS]


class Clips:
    """The recordings of the manifest train.jsonl, in memory; draws batches of (input, target, letters)."""

    def __init__(self, work):
        self.audio, self.letters, self.model_clips, self.user_clips, seen = [], [], [], [], set()
        rows = [json.loads(line) for line in open(work / "train.jsonl")]
        for turn in tqdm([t for row in rows for t in row["turns"]], desc="reading", unit="clip"):
            for file, text, clips in ((turn["heard"], turn["transcript"], self.user_clips),
                                      (turn["spoken"], turn["response"], self.model_clips)):
                if file not in seen:
                    seen.add(file)
                    clips.append(len(self.audio))
                    self.audio.append(soundfile.read(work / file, dtype="int16")[0])
                    self.letters.append(spelled(text))

    def batch(self, rng, model_clips=MODEL_CLIPS, hearing=False):
        """input, target [B, 1, N]; letters: a list of B lists, empty where the clip is cut. The first `model_clips` are the
        model's. hearing: whether users get rooms and louder noise."""
        n = FRAMES * 1920
        dirty, clean, letters = np.zeros((BATCH, n), np.float32), np.zeros((BATCH, n), np.float32), []
        for b in range(BATCH):
            user = b >= model_clips
            i = rng.choice(self.user_clips if user else self.model_clips)
            clip = self.audio[i].astype(np.float32) / 32768
            start = rng.integers(0, max(1, n - len(clip)))
            letters.append(self.letters[i] if len(clip) + start <= n else [])
            clip = clip[:n - start] * 10 ** (rng.uniform(-24, 5) / 20 if user else rng.uniform(-3, 1) / 20)
            clean[b, start:start + len(clip)] = dirty[b, start:start + len(clip)] = clip
            if user and hearing:
                dirty[b] = disturbed(dirty[b], clip, random)
            elif user and rng.random() < 0.6:
                dirty[b] += rng.standard_normal(n, np.float32) * 10 ** (rng.uniform(-75, -40) / 20)
        return torch.from_numpy(dirty)[:, None], torch.from_numpy(clean)[:, None], letters


def disturbed(wave, clip, rng):
    """A waveform [N] with a clip inside as data.py's rooms have it, the noise by its distance from the clip's loudness."""
    if rng.random() < UNDISTURBED:
        return wave
    n = len(wave)
    if rng.random() < MUFFLED:
        wave = acoustics.microphone(wave, data.MICROPHONE, rng)
    if rng.random() < IN_ROOM:
        wave = data.room(wave, rng)[:n]
    level = data.loudness(clip) - rng.uniform(*SNR)
    return (wave + data.noise(n, rng, levels=(level, level))).clip(-1, 1)


def spectral_loss(decoded, target):
    """Mean over two scales, drawn afresh, of log-magnitude and magnitude distances. decoded, target [B, N]"""
    total, scales = 0, random.sample(SCALES, 2)
    for window in scales:
        shape = torch.hann_window(window, device=target.device)
        a, b = (torch.view_as_real(torch.stft(x, window, window // 4, window=shape, return_complex=True))
                .square().sum(-1).add(1e-7).sqrt() for x in (decoded, target))  # faster on a CPU than abs() of complex numbers
        floor = 0.02 * math.sqrt(window / 1024)
        total = total + F.l1_loss((a + floor).log(), (b + floor).log()) + (a - b).abs().mean() / (b.abs().mean() + 0.02)
    return total / len(scales) / 2


def _move_codebook(book, x, codes):
    """One step of the running averages: x [M, codebook_dim] were assigned to `codes` [M]. Unused entries are replaced."""
    size = len(book.cluster_usage)
    book.cluster_usage.mul_(DECAY).add_(torch.bincount(codes, minlength=size), alpha=1 - DECAY)
    book.embedding_sum.mul_(DECAY).index_add_(0, codes, x, alpha=1 - DECAY)
    dead = (book.cluster_usage < 0.02 * len(x) / size).nonzero()[:, 0]
    if len(dead):
        book.embedding_sum[dead] = x[torch.randint(len(x), (len(dead),), device=x.device)] * len(x) / size
        book.cluster_usage[dead] = len(x) / size


def quantize(vq, latent, n):
    """Quantize with a straight-through gradient and move the codebooks. latent [B, D, T] -> ([B, T, codebook_dim], loss)"""
    x = vq.input_proj(latent).transpose(1, 2)
    residual, summed, loss = x.detach(), 0, 0
    for book in vq.codebooks[:n]:
        codes = book.nearest(residual)
        chosen = F.embedding(codes, book.entries)
        loss = loss + F.mse_loss(x, (summed + chosen).detach())
        _move_codebook(book, residual.flatten(0, 1), codes.flatten())
        summed, residual = summed + chosen, residual - chosen
    return x + (summed - x).detach(), loss / n


def forward(codec, ctc_head, dirty, clean, letters, quantized):
    """One batch's losses, by the names of WEIGHTS."""
    latent = codec.to_latent(dirty)
    first, rest = codec.quantizer.rvq_first, codec.quantizer.rvq_rest
    if quantized:
        semantic, commit_first = quantize(first, latent, 1)
        acoustic, commit_rest = quantize(rest, latent, codec.config.n_q_used - 1)
        commit = commit_first + commit_rest
    else:
        semantic, acoustic = first.input_proj(latent).transpose(1, 2), rest.input_proj(latent).transpose(1, 2)
        commit = latent.new_zeros(())
    summed = first.output_proj(semantic.transpose(1, 2)) + rest.output_proj(acoustic.transpose(1, 2))
    decoded, lag = codec.from_latent(summed[:DECODED])[:, 0], codec.config.lag
    spectral = spectral_loss(decoded[:, lag:], clean[:DECODED, 0, :-lag])
    logits = ctc_head(semantic).unflatten(-1, (2, -1)).flatten(1, 2).log_softmax(-1)      # [B, 2 T, letters]: two a frame
    whole = [b for b, x in enumerate(letters) if x]
    ctc = F.ctc_loss(logits[whole].transpose(0, 1), torch.tensor(sum((letters[b] for b in whole), [])),
                     torch.full((len(whole),), logits.shape[1]), torch.tensor([len(letters[b]) for b in whole]), zero_infinity=True)
    return dict(spectral=spectral, ctc=ctc, commitment=commit)


def hear(codec, teacher, dirty, clean):
    """How far what the codebooks get of disturbed clips [B, 1, N] is from what the teacher gives them of the clean ones: codebook 0's
    choice in nats; mean squares, the semantic ones in units of codebook 0's own error, the acoustic ones in units of their variance."""
    split = teacher.quantizer.rvq_first, teacher.quantizer.rvq_rest
    found, true = ([vq.input_proj(latent).transpose(1, 2) for vq in split]                 # two of [B, T, codebook_dim] each
                   for latent in (codec.to_latent(dirty), teacher.to_latent(clean)))
    semantic, acoustic = ((a - b).square().sum(-1).mean() for a, b in zip(found, true))
    entries, chosen = split[0].codebooks[0].entries, split[0].codebooks[0].nearest(true[0])
    error = (true[0] - F.embedding(chosen, entries)).square().sum(-1).mean()
    closeness = -torch.cdist(found[0], entries).square() / (2 * error)                      # [B, T, codebook_size]
    return dict(choice=F.cross_entropy(closeness.flatten(0, 1), chosen.flatten()), semantic=semantic / error,
                acoustic=acoustic / true[1].var((0, 1)).sum())


def polish(codec, clean):
    """The spectral loss of the decoder on the codes of clips [B, 1, N] of the model's voice."""
    decoded, lag = codec.from_latent(codec.quantizer.decode(codec.encode(clean)))[:, 0], codec.config.lag
    return dict(spectral=spectral_loss(decoded[:, lag:], clean[:, 0, :-lag]))


def learning_rate(rate, share):
    """A cosine from `rate` to a fiftieth of it, at a share of a part's steps."""
    return rate * (0.02 + 0.49 * (1 + math.cos(math.pi * share)))


def run(name, checkpoint, steps, learn, seed, **kept):
    """Steps of training, resuming from the file `checkpoint`. learn: step, random generator -> learning rate and losses; kept: what
    has a state, "optimizer" among it."""
    step, started, average = 0, time.time(), {}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu")
        for key, thing in kept.items():
            thing.load_state_dict(saved[key])
        step = saved["step"]
        print(f"{name}: resumed at step {step}")
    while step < steps:
        random.seed(f"{seed} {step}"), torch.manual_seed(step)
        rate, losses = learn(step, np.random.default_rng((seed, step)))
        for group in kept["optimizer"].param_groups:
            group["lr"] = rate
        kept["optimizer"].zero_grad()
        sum(WEIGHTS[key] * loss for key, loss in losses.items()).backward()
        nn.utils.clip_grad_norm_([p for group in kept["optimizer"].param_groups for p in group["params"]], 1.0)
        kept["optimizer"].step()
        step += 1
        average = {key: 0.95 * average.get(key, loss.item()) + 0.05 * loss.item() for key, loss in losses.items()}
        if step % 20 == 0:
            spent = time.time() - started
            print(f"{name} step {step}/{steps}  " + "  ".join(f"{key} {value:.3f}" for key, value in average.items()) +
                  f"  {spent / 20:.1f} s a step  left {spent / 20 * (steps - step) / 60:.0f} min", flush=True)
            started = time.time()
        if step % 200 == 0 or step == steps:
            torch.save({key: thing.state_dict() for key, thing in kept.items()} | {"step": step}, f"{checkpoint}.part")
            os.replace(f"{checkpoint}.part", checkpoint)


def train(work, out, steps, polishing_steps, device="cpu", seed=0):
    """Train everything for `steps` and the decoder for `polishing_steps`, resuming from work/codec.pt, and write the codec
    to the folder `out`."""
    torch.manual_seed(seed)
    clips, codec = Clips(work), mimi.Mimi(mimi.PRESETS["tiny"]).to(device)
    ctc_head = nn.Linear(codec.config.codebook_dim, 2 * (len(LETTERS) + 1)).to(device)
    optimizer = torch.optim.AdamW([*codec.parameters(), *ctc_head.parameters()], lr=LEARNING_RATE, betas=(0.8, 0.95), weight_decay=1e-3)

    def learn(step, rng):
        if step >= steps:
            clean = clips.batch(rng, POLISHED)[1][:POLISHED]
            return learning_rate(POLISHING_RATE, (step - steps) / polishing_steps), polish(codec, clean.to(device))
        dirty, clean, letters = clips.batch(rng)
        rate = LEARNING_RATE * (step + 1) / WARMUP if step < WARMUP else learning_rate(LEARNING_RATE, step / steps)
        return rate, forward(codec, ctc_head, dirty.to(device), clean.to(device), letters, quantized=step >= QUANTIZE_FROM * steps)
    run("codec", work / "codec.pt", steps + polishing_steps, learn, seed, codec=codec, ctc=ctc_head, optimizer=optimizer)
    codec_files.save(codec.half().cpu(), out)  # half the size; data is encoded with these rounded weights


def train_hearing(work, start, out, steps, device="cpu", seed=0):
    """Teach the encoder of the folder `start` to hear, resuming from work/hearing.pt, and write the codec to the folder `out`."""
    clips, teacher, codec = Clips(work), codec_files.load(start, device), codec_files.load(start, device)
    for part in (codec.encoder, codec.encoder_transformer, codec.downsample):
        part.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in codec.parameters() if p.requires_grad], lr=HEARING_RATE, betas=(0.9, 0.95), weight_decay=1e-3)

    def learn(step, rng):
        dirty, clean, _ = clips.batch(rng, 1, hearing=True)
        return learning_rate(HEARING_RATE, step / steps), hear(codec, teacher, dirty.to(device), clean.to(device))
    run("hearing", work / "hearing.pt", steps, learn, seed, codec=codec, optimizer=optimizer)
    codec_files.save(codec.half().cpu(), out)
