"""Trains the miniature codec: spectral losses, a quantizer that learns by running averages, and CTC
on codebook 0.

What this is: the recipe of tiny/model/mimi.safetensors. Mimi's first codebook is phonetic because
it is distilled from a speech model. Here the words are known, because the speech is synthetic. So a
CTC loss on characters, read from codebook 0 alone, serves the same end. What this is not: the
codec; that is mimi.py, whose modules run here unchanged.

    python tiny/make.py --only codec
    python tiny/make.py --only hearing

Decision: only the model's voice is ever decoded in a conversation. So the last steps hold encoder
and codebooks still, and with them every code, and teach the decoder that voice alone. The decoder
has most of the codec's parameters. They made what it says clearer (LOG.md), and eight convolutions
at 100 Hz cost a listener little.
Decision: users are encoded with noise and at any level. They are decoded clean and at the level
they came in: only what is said has to survive the codec, and noise would use up codes.
Decision: the codec that ships has an encoder that learned to hear. Codebooks and decoder are held
still. From a clip in louder noise, a room or another microphone, it makes what the encoder before
it makes of the clean clip. From the last stage's second helping on, the model hears by this
encoder. Its own voice stays in the codes of the encoder before; LOG.md says what the other way
leads to.

Shapes: B clips of a batch, N samples, T frames, K = 8 codebooks; M vectors, L the letters of
LETTERS and a blank.
"""
import json
import math
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
from workshop import acoustics, codec_files, rooms
from workshop.files import replacing

FRAMES = 44       # of a clip: 3.52 s
# Of a batch all clips are encoded. Only the first DECODED are decoded too: of users it matters only
# what they say.
MODEL_CLIPS = 4
USER_CLIPS = 8
DECODED = 6
BATCH = MODEL_CLIPS + USER_CLIPS
POLISHED = 8      # clips of the model's voice in a batch of the last steps
LEARNING_RATE = 1.5e-3
HEARING_RATE = 6e-4
POLISHING_RATE = 8e-4
WARMUP = 100      # steps
QUANTIZE_FROM = 0.15  # share of the steps before the quantizer begins
DECAY = 0.98      # of the codebooks' running averages
WEIGHTS = {  # of the losses
    "spectral": 1, "ctc": 0.3, "commitment": 0.1, "choice": 1, "semantic": 0.2, "acoustic": 2,
}
# While the encoder learns to hear: the share of users without disturbance; of the others, the share
# with another microphone and the share in a room; dB of a user above the noise.
UNDISTURBED = 0.27
MUFFLED = 0.4
IN_ROOM = 0.5
SNR = (-2, 35)
SCALES = (2048, 1024, 512, 256)  # windows of the spectral losses, in samples
LETTERS = " abcdefghijklmnopqrstuvwxyz'"


def spelled(text):
    """A text's letters as numbers from 1 on; 0 is CTC's blank."""
    return [LETTERS.index(letter) + 1 for letter in text.lower() if letter in LETTERS]


class Clips:
    """The recordings of the manifest train.jsonl, in memory; draws batches of (input, target,
    letters)."""

    def __init__(self, work):
        self.audio = []        # int16 [N] each
        self.letters = []      # of each
        self.model_clips = []  # numbers of clips
        self.user_clips = []
        places = set()
        rows = [json.loads(line) for line in open(work / "train.jsonl")]
        turns = [turn for row in rows for turn in row["turns"]]
        for turn in tqdm(turns, desc="reading", unit="clip"):
            for path, text, clips in ((turn["heard"], turn["transcript"], self.user_clips),
                                      (turn["spoken"], turn["response"], self.model_clips)):
                if path in places:
                    continue
                places.add(path)
                clips.append(len(self.audio))
                audio, _ = soundfile.read(work / path, dtype="int16")
                self.audio.append(audio)
                self.letters.append(spelled(text))

    def batch(self, rng, model_clips=MODEL_CLIPS, hearing=False):
        """input, target [B, 1, N]; letters: a list of B lists, empty where the clip is cut.

        The first `model_clips` are the model's. hearing: whether users get rooms and louder
        noise."""
        n = FRAMES * 1920
        dirty = np.zeros((BATCH, n), np.float32)
        clean = np.zeros((BATCH, n), np.float32)
        letters = []
        for b in range(BATCH):
            is_user = b >= model_clips
            i = rng.choice(self.user_clips if is_user else self.model_clips)
            clip = self.audio[i].astype(np.float32) / 32768
            start = rng.integers(0, max(1, n - len(clip)))
            is_whole = len(clip) + start <= n
            letters.append(self.letters[i] if is_whole else [])
            decibels = rng.uniform(-24, 5) if is_user else rng.uniform(-3, 1)
            clip = clip[:n - start] * 10 ** (decibels / 20)
            clean[b, start:start + len(clip)] = clip
            dirty[b, start:start + len(clip)] = clip
            if is_user and hearing:
                dirty[b] = disturbed(dirty[b], clip, random)
            elif is_user and rng.random() < 0.6:
                noise = rng.standard_normal(n, np.float32)
                dirty[b] += noise * 10 ** (rng.uniform(-75, -40) / 20)
        return torch.from_numpy(dirty)[:, None], torch.from_numpy(clean)[:, None], letters


def disturbed(wave, clip, rng):
    """A waveform [N] with a clip inside, in a room, as data.py has it. The noise is drawn by its
    distance from the clip's loudness."""
    if rng.random() < UNDISTURBED:
        return wave
    n = len(wave)
    if rng.random() < MUFFLED:
        wave = acoustics.microphone(wave, rooms.MICROPHONE, rng)
    if rng.random() < IN_ROOM:
        wave = rooms.room(wave, rng)[:n]
    level = data.loudness(clip) - rng.uniform(*SNR)
    return (wave + data.noise(n, rng, levels=(level, level))).clip(-1, 1)


def magnitudes(x, window):
    """x [B, N] -> magnitudes of its short-time spectrum. On a CPU this is faster than abs() of
    complex numbers."""
    shape = torch.hann_window(window, device=x.device)
    spectrum = torch.stft(x, window, window // 4, window=shape, return_complex=True)
    power = torch.view_as_real(spectrum).square().sum(-1)
    return power.add(1e-7).sqrt()


def spectral_loss(decoded, target):
    """Mean over two scales, drawn at random, of log-magnitude and magnitude distances. decoded,
    target [B, N]"""
    total = 0
    scales = random.sample(SCALES, 2)
    for window in scales:
        a = magnitudes(decoded, window)
        b = magnitudes(target, window)
        floor = 0.02 * math.sqrt(window / 1024)
        total = total + F.l1_loss((a + floor).log(), (b + floor).log())
        total = total + (a - b).abs().mean() / (b.abs().mean() + 0.02)
    return total / len(scales) / 2


def move_codebook(book, x, codes, decay=DECAY):
    """One step of the running averages: x [M, codebook_dim] were assigned to `codes` [M]. Unused
    entries are replaced."""
    size = len(book.cluster_usage)
    counts = torch.bincount(codes, minlength=size)
    book.cluster_usage.mul_(decay).add_(counts, alpha=1 - decay)
    book.embedding_sum.mul_(decay).index_add_(0, codes, x, alpha=1 - decay)
    dead = (book.cluster_usage < 0.02 * len(x) / size).nonzero()[:, 0]
    if len(dead):
        chosen = x[torch.randint(len(x), (len(dead),), device=x.device)]
        book.embedding_sum[dead] = chosen * len(x) / size
        book.cluster_usage[dead] = len(x) / size


def quantize(vq, latent, n):
    """Quantize with a straight-through gradient and move the codebooks. latent [B, D, T] -> ([B, T,
    codebook_dim], loss)"""
    x = vq.input_proj(latent).transpose(1, 2)
    residual = x.detach()
    total = 0
    loss = 0
    for book in vq.codebooks[:n]:
        codes = book.nearest(residual)
        chosen = F.embedding(codes, book.entries)
        loss = loss + F.mse_loss(x, (total + chosen).detach())
        move_codebook(book, residual.flatten(0, 1), codes.flatten())
        total = total + chosen
        residual = residual - chosen
    return x + (total - x).detach(), loss / n


def forward(codec, ctc_head, dirty, clean, letters, quantized):
    """One batch's losses, by the names of WEIGHTS."""
    latent = codec.to_latent(dirty)
    first = codec.quantizer.rvq_first
    rest = codec.quantizer.rvq_rest
    if quantized:
        semantic, commit_first = quantize(first, latent, 1)
        acoustic, commit_rest = quantize(rest, latent, codec.config.n_q_used - 1)
        commit = commit_first + commit_rest
    else:
        semantic = first.input_proj(latent).transpose(1, 2)
        acoustic = rest.input_proj(latent).transpose(1, 2)
        commit = latent.new_zeros(())
    latent = first.output_proj(semantic.transpose(1, 2))
    latent = latent + rest.output_proj(acoustic.transpose(1, 2))
    decoded = codec.from_latent(latent[:DECODED])[:, 0]
    return dict(spectral=without_lag(codec, decoded, clean[:DECODED]),
                ctc=ctc_loss(ctc_head, semantic, letters), commitment=commit)


def without_lag(codec, decoded, clean):
    """The spectral loss of `decoded` [B, N], which trails `clean` [B, 1, N] by the codec's lag."""
    lag = codec.config.lag
    return spectral_loss(decoded[:, lag:], clean[:, 0, :-lag])


def ctc_loss(ctc_head, semantic, letters):
    """How well the letters of the whole clips are read from codebook 0, semantic [B, T,
    codebook_dim], two letters a frame."""
    logits = ctc_head(semantic).unflatten(-1, (2, -1)).flatten(1, 2)      # [B, 2 T, L]
    whole = [b for b, spelling in enumerate(letters) if spelling]
    scores = logits.log_softmax(-1)[whole].transpose(0, 1)
    targets = torch.tensor(sum((letters[b] for b in whole), []))
    steps = torch.full((len(whole),), logits.shape[1])
    lengths = torch.tensor([len(letters[b]) for b in whole])
    return F.ctc_loss(scores, targets, steps, lengths, zero_infinity=True)


def hear(codec, teacher, dirty, clean):
    """How far what the codebooks get of disturbed clips [B, 1, N] is from what the teacher gives
    them of the clean ones.

    choice: codebook 0's, in nats. semantic, acoustic: mean squares, the first in units of codebook
    0's own error, the second in units of the variance."""
    first = teacher.quantizer.rvq_first
    rest = teacher.quantizer.rvq_rest
    latent = codec.to_latent(dirty)
    target = teacher.to_latent(clean)
    x = first.input_proj(latent).transpose(1, 2)                          # [B, T, codebook_dim]
    true_x = first.input_proj(target).transpose(1, 2)
    semantic = (x - true_x).square().sum(-1).mean()
    acoustic_x = rest.input_proj(latent).transpose(1, 2)
    true_acoustic = rest.input_proj(target).transpose(1, 2)
    acoustic = (acoustic_x - true_acoustic).square().sum(-1).mean()
    book = first.codebooks[0]
    chosen = book.nearest(true_x)                                         # [B, T]
    error = (true_x - F.embedding(chosen, book.entries)).square().sum(-1).mean()
    closeness = -torch.cdist(x, book.entries).square() / (2 * error)      # [B, T, codebook_size]
    return dict(choice=F.cross_entropy(closeness.flatten(0, 1), chosen.flatten()),
                semantic=semantic / error,
                acoustic=acoustic / true_acoustic.var((0, 1)).sum())


def polish(codec, clean):
    """The spectral loss of the decoder on the codes of clips [B, 1, N] of the model's voice."""
    decoded = codec.from_latent(codec.quantizer.decode(codec.encode(clean)))[:, 0]
    return dict(spectral=without_lag(codec, decoded, clean))


def learning_rate(rate, share):
    """A cosine from `rate` to a fiftieth of it, at a share of a part's steps."""
    return rate * (0.02 + 0.49 * (1 + math.cos(math.pi * share)))


def run(name, checkpoint, steps, learn, seed, **parts):
    """Steps of training, which go on from the file `checkpoint`.

    learn: step, random generator -> learning rate and losses; parts: what has a state, "optimizer"
    among it."""
    step = resume(name, checkpoint, parts)
    optimizer = parts["optimizer"]
    started = time.time()
    average = {}
    while step < steps:
        random.seed(f"{seed} {step}")
        torch.manual_seed(step)
        rate, losses = learn(step, np.random.default_rng((seed, step)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        sum(WEIGHTS[key] * loss for key, loss in losses.items()).backward()
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        for key, loss in losses.items():
            average[key] = 0.95 * average.get(key, loss.item()) + 0.05 * loss.item()
        if step % 20 == 0:
            seconds = (time.time() - started) / 20
            terms = "  ".join(f"{key} {value:.3f}" for key, value in average.items())
            print(f"{name} step {step}/{steps}  {terms}  {seconds:.1f} s a step  "
                  f"left {seconds * (steps - step) / 60:.0f} min", flush=True)
            started = time.time()
        if step % 200 == 0 or step == steps:
            states = {key: part.state_dict() for key, part in parts.items()}
            with replacing(checkpoint) as beside:
                torch.save(states | {"step": step}, beside)


def resume(name, checkpoint, parts):
    """Load the states of `parts` where there is a checkpoint -> the number of steps so far"""
    if not checkpoint.exists():
        return 0
    states = torch.load(checkpoint, map_location="cpu")
    for key, part in parts.items():
        part.load_state_dict(states[key])
    print(f"{name}: resumed at step {states['step']}")
    return states["step"]


def train(work, out, steps, polishing_steps, device="cpu", seed=0):
    """Train everything for `steps` and the decoder for `polishing_steps`, resuming from
    work/codec.pt, and write the codec to the folder `out`."""
    torch.manual_seed(seed)
    clips = Clips(work)
    codec = mimi.Mimi(mimi.PRESETS["tiny"]).to(device)
    ctc_head = nn.Linear(codec.config.codebook_dim, 2 * (len(LETTERS) + 1)).to(device)
    weights = [*codec.parameters(), *ctc_head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.8, 0.95), weight_decay=1e-3)

    def learn(step, rng):
        if step >= steps:
            _, clean, _ = clips.batch(rng, POLISHED)
            rate = learning_rate(POLISHING_RATE, (step - steps) / polishing_steps)
            return rate, polish(codec, clean[:POLISHED].to(device))
        dirty, clean, letters = clips.batch(rng)
        rate = learning_rate(LEARNING_RATE, step / steps)
        if step < WARMUP:
            rate = LEARNING_RATE * (step + 1) / WARMUP
        quantized = step >= QUANTIZE_FROM * steps
        losses = forward(codec, ctc_head, dirty.to(device), clean.to(device), letters, quantized)
        return rate, losses
    run("codec", work / "codec.pt", steps + polishing_steps, learn, seed,
        codec=codec, ctc=ctc_head, optimizer=optimizer)
    # Half the size; data is encoded with these rounded weights.
    codec_files.save(codec.half().cpu(), out)


def train_hearing(work, start, out, steps, device="cpu", seed=0):
    """Teach the encoder of the folder `start` to hear, resuming from work/hearing.pt, and write the
    codec to the folder `out`."""
    clips = Clips(work)
    teacher = codec_files.load(start, device)
    codec = codec_files.load(start, device)
    for part in (codec.encoder, codec.encoder_transformer, codec.downsample):
        part.requires_grad_(True)
    weights = [weight for weight in codec.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=HEARING_RATE, betas=(0.9, 0.95), weight_decay=1e-3)

    def learn(step, rng):
        dirty, clean, _ = clips.batch(rng, 1, hearing=True)
        losses = hear(codec, teacher, dirty.to(device), clean.to(device))
        return learning_rate(HEARING_RATE, step / steps), losses
    run("hearing", work / "hearing.pt", steps, learn, seed, codec=codec, optimizer=optimizer)
    codec_files.save(codec.half().cpu(), out)
