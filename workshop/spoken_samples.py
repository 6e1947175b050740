"""What a model says in the middle of its training, to be listened to: `train.py run --speak N`.

What this is: at each validation the model hears N held-out samples and answers them, frame by
frame, and each talk becomes a sound file with the words of both beside it. What this is not: a
measure (eval.py, also of a run that is not over: `eval.py --model RUN`), or the fast loop with its
sampler (chat.py). Serves train.py.

    python train.py run grids/ft2 --init tiny/model --out runs/ft2 --hold-out 0.02 --speak 3

    OUT/spoken/step-000100-1.wav     left what is heard, right what the model says
    OUT/spoken/step-000100.txt       what was to be written and what the model wrote, of each

Shapes: T frames, K = 8 codebooks.
"""
import itertools
from pathlib import Path

import soundfile
import torch

import flm
import stream
from stream import K
from workshop import beside, codec_files, model_files, processes
from workshop.files import replacing

LONGEST = 250       # frames of a sample that are heard, 20 s
TEMPERATURE = 0.5   # of the codes; of words the likeliest is taken


class SpokenSamples:
    """The samples that a run speaks at each validation, and what they need. batches: Batches.

    Raises ValueError where there is none to hear, where no tokenizer or codec lies beside the
    model, and where several processes share the model."""

    def __init__(self, settings, config, batches):
        if processes.count() > 1:
            raise ValueError("--speak works in one process: eval.py --model RUN measures a run of "
                             "several, while it trains")
        self.ids = stream.Ids.of(config)
        self.folder = Path(settings.out) / "spoken"
        folders = beside.sources(settings.beside, settings.init)
        missing = beside.lacking(folders)
        if missing:
            raise ValueError(f"--speak needs a {missing[0]} beside the model: name a folder that "
                             "has one, with --beside")
        files = beside.files_of_kinds(folders)
        self.tokenizer = model_files.read_tokenizer(files["tokenizer"][0].parent)
        self.codec = codec_files.load(files["codec"][0].parent, codebooks=K)
        self.samples = []     # grids as the model reads them
        self.user_audio = []  # what is heard in the first LONGEST rows of each, [N]
        for sequences in batches.valid.values():
            self.choose(batches.valid_grids, sequences, settings.speak)
        if not self.samples:
            raise ValueError("--speak needs held-out samples in which somebody is heard and the "
                             "model speaks: --hold-out or --valid, and a format of dialogs")

    def choose(self, grids, sequences, most):
        """Take samples of sequences, lists of numbers of grids, until there are `most`."""
        for i in itertools.chain(*sequences):
            if len(self.samples) == most:
                return
            grid = grids[i]
            is_heard = (grid.listen != self.ids.empty).any()
            is_spoken = (grid.loss[:, 1] == stream.Loss.SEMANTIC).any()
            if is_heard and is_spoken:
                rows = stream.delay(grid, self.ids)
                self.samples.append(rows)
                self.user_audio.append(self.decode(rows.listen[:LONGEST]))

    def write(self, model, step):
        """Let the model answer the samples, and write files named after the step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, (rows, user_audio) in enumerate(zip(self.samples, self.user_audio), 1):
            listen = rows.listen[:LONGEST]
            text, speak = answer(model, listen, self.ids, TEMPERATURE, seed=number)
            sound = torch.stack([user_audio, self.decode(speak)], 1)
            path = self.folder / f"step-{step:06d}-{number}.wav"
            with replacing(path) as file:
                soundfile.write(file, sound.numpy(), self.codec.config.sample_rate, format="WAV")
            lines += [path.name, f"  to be written: {self.words(rows.text[:LONGEST])}",
                      f"  written:       {self.words(text)}"]
        with replacing(self.folder / f"step-{step:06d}.txt") as file:
            file.write_text("\n".join(lines) + "\n")

    def decode(self, rows):
        """Codes of rows [T + 1, K] -> their sound, float32 [N]. What is no code is silence."""
        codes = stream.advance_columns(rows, 1)                         # [T, K]
        size = self.codec.config.codebook_size
        sound = self.codec.decode(codes.clamp(max=size - 1).T[None])[0, 0]
        is_sound = (codes < size).all(1)
        return sound * is_sound.repeat_interleave(self.codec.config.frame_size)

    def words(self, text):
        """Text ids [T + 1] -> the words."""
        ids = [token for token in text.tolist() if token != self.ids.wait]
        return self.tokenizer.decode(ids, skip_special_tokens=False)


@torch.no_grad()
def answer(model, listen, ids, temperature, seed):
    """What a model writes and says beside what it hears: listen, rows [T, K] -> text [T] and speak
    [T, K], rows. temperature: of the codes; 0: the likeliest."""
    device = model.lm_head.weight.device
    dtype = model.lm_head.weight.dtype
    cache = flm.KVCache(model.config, 1, len(listen), device, dtype)
    depth_cache = flm.depth_cache(model.config, 1, device, dtype)
    generator = torch.Generator().manual_seed(seed)
    text = torch.full((len(listen),), ids.wait)
    speak = torch.full((len(listen), K), ids.pad)
    # The blocks of a run may be compiled, for whole sequences.
    with torch.compiler.set_stance("force_eager"):
        for t in range(len(listen) - 1):
            row = [values[t][None, None].to(device) for values in (text, speak, listen)]
            h = model.hidden(*row, cache)                               # [1, 1, D]
            text[t + 1] = model.text_logits(h)[0, 0].argmax().cpu()
            codes = torch.zeros(1, 0, dtype=torch.long, device=device)
            for _ in range(K):
                logits = model.depth_logits(h[0], codes, depth_cache)[0, 0]
                code = logits.argmax(-1, keepdim=True)                  # [1]
                if temperature:
                    chances = (logits.float() / temperature).softmax(-1).cpu()
                    code = torch.multinomial(chances, 1, generator=generator).to(device)
                codes = torch.cat([codes, code[None]], 1)
            speak[t + 1] = codes[0].cpu()
    return text, speak
