"""Teaches the codec's decoder another voice: the first half of giving the model one.

What this is: a copy of a model folder, whose decoder turns the codes of a voice into that voice.
What this is not: the second half. The language model speaks the codes of its old voice until it is
trained on answers by the new one (README.md, "A new voice").

    python tiny/new_voice.py voice/audio start     # wavs of one voice; a stopped run goes on

The codec is an encoder, codebooks and a decoder. tiny/codec.py trained all of them on many users
and its decoder, at last, on the model's voice alone. So the encoder gives codes of any voice, and
the decoder makes one voice of them. Here encoder and codebooks stay as they are: every code that
the language model ever heard or spoke keeps its meaning, and grids stay valid.

Shapes: N samples, T frames, K = 8 codebooks.
"""
import argparse
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import chat  # noqa: E402
import codec as tiny_codec  # noqa: E402
from workshop import codec_files, model_files, sound_file  # noqa: E402
from workshop.encoding import recordings  # noqa: E402
from workshop.model_folder import FRAME  # noqa: E402

STEPS = 900
WARMUP = 30        # steps
RATE = tiny_codec.POLISHING_RATE
LEAST = 30         # seconds of the voice; less is refused
CHECKPOINT = "new_voice.pt"


class Recordings:
    """The recordings of a voice and their codes, in memory. A short one is followed by silence.
    Raises ValueError for too little of the voice."""

    def __init__(self, paths, codec):
        self.audio = []  # [N] each, N whole frames, at least those of a clip
        self.codes = []  # [K, T] each
        seconds = 0.0
        for path in tqdm(paths, desc="encoding", unit="file"):
            audio = sound_file.read_audio(path)
            seconds += len(audio) / codec.config.sample_rate
            frames = max(tiny_codec.FRAMES, -(-len(audio) // FRAME))
            audio = F.pad(audio, (0, frames * FRAME - len(audio)))
            self.audio.append(audio)
            self.codes.append(codec.encode(audio[None, None])[0])
        if seconds < LEAST:
            raise ValueError(f"{seconds:.0f} s of the voice are too few: {LEAST} at least, and ten "
                             "minutes are better")

    def batch(self, rng):
        """Clips of random recordings -> codes [B, K, T], audio [B, 1, N]."""
        codes = []
        audio = []
        for i in rng.integers(len(self.audio), size=tiny_codec.POLISHED):
            start = int(rng.integers(self.codes[i].shape[1] - tiny_codec.FRAMES + 1))
            stop = start + tiny_codec.FRAMES
            codes.append(self.codes[i][:, start:stop])
            audio.append(self.audio[i][start * FRAME:stop * FRAME])
        return torch.stack(codes), torch.stack(audio)[:, None]


def rate_at(step, steps):
    """A short warm-up, then the cosine of tiny/codec.py."""
    return min(1, (step + 1) / WARMUP) * tiny_codec.learning_rate(RATE, step / steps)


def teach(paths, model, out, steps, seed=0):
    """Train the decoder of the folder `model` on the recordings `paths` of one voice, going on from
    out/new_voice.pt, and write the folder `out`: `model` with this decoder. Raises ValueError or
    OSError."""
    model = model_files.resolve(model)
    codec = codec_files.load(model)
    recordings = Recordings(paths, codec)
    decoder = [codec.upsample, codec.decoder_transformer, codec.decoder]
    for part in decoder:
        part.requires_grad_(True)
    weights = [weight for part in decoder for weight in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.95), weight_decay=1e-3)

    def learn(step, rng):
        codes, audio = recordings.batch(rng)
        with torch.no_grad():
            latent = codec.quantizer.decode(codes)
        decoded = codec.from_latent(latent)[:, 0]
        return rate_at(step, steps), dict(spectral=tiny_codec.without_lag(codec, decoded, audio))

    tiny_codec.run("voice", out / CHECKPOINT, steps, learn, seed, codec=codec, optimizer=optimizer)
    for pattern in model_files.WANTED:
        for file in model.glob(pattern):
            shutil.copy(file, out)
    codec_files.save(codec.half(), out)
    (out / CHECKPOINT).unlink()


def check_target(out):
    """Raise ValueError where a folder holds other things than an unfinished voice."""
    if out.exists() and any(out.iterdir()) and not (out / CHECKPOINT).exists():
        raise ValueError(f"{out} holds other things than a new voice: choose another folder")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Teach the codec's decoder another voice. The language model learns to speak "
                    "with it afterwards.")
    parser.add_argument("recordings", type=Path, metavar="FOLDER",
                        help="recordings of one voice: clean, and ten minutes or more")
    parser.add_argument("out", type=Path, help="a model folder with the new decoder")
    parser.add_argument("--model", default=chat.SHIPPED,
                        help="folder or Hub id to begin from (default: the shipped model)")
    parser.add_argument("--steps", type=int, default=STEPS,
                        help="of training (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        check_target(args.out)
        args.out.mkdir(parents=True, exist_ok=True)
        teach(recordings([args.recordings]), args.model, args.out, args.steps)
    except (OSError, ValueError) as error:
        sys.exit(f"new_voice.py: {error}")
    except KeyboardInterrupt:
        sys.exit("new_voice.py: stopped; the same command goes on")
    print(f"{args.out}: a model whose decoder knows the voice; its language model does not yet")


if __name__ == "__main__":
    main()
