"""The codec and the tokenizer of a model folder, loaded and checked, as data.py needs them.

What this is: waveforms to codes in batches, words to ids, and the errors for folders whose parts do
not fit each other. What this is not: what a clip's codes are in a grid (data.Encoder, which this
serves).

Shapes: B waveforms of N samples (24 kHz, float32, -1 .. 1), T frames of 80 ms, K = 8 codebooks.
"""
from pathlib import Path

import torch

import mimi
import stream
from stream import K
from workshop import codec_files, model_files, shards, sound_file
from workshop.manifests import DataError

FRAME = 1920          # samples
ENCODED_AT_ONCE = 16


def find(model):
    """A model folder as it is; a Hub id -> the folder of its download. Raises LoadError."""
    return model_files.resolve(model, ["config.json", "tokenizer.json", *codec_files.WANTED])


class ModelFolder:
    """Codec, tokenizer and special ids of a model folder.

    hearing: a folder with another codec for what is heard, of the same codebooks. Raises DataError
    where tokenizer and model, or the two codecs, do not fit each other."""

    def __init__(self, folder, device="cpu", hearing=None):
        self.device = device
        self.ids = stream.Ids.of(model_files.read_config(folder))
        self.tokenizer = read_tokenizer(folder)
        self.codec = codec_files.load(folder, device, K)
        self.hearing = self.codec
        if hearing:
            self.hearing = codec_files.load(hearing, device, K)
            if not torch.equal(codebooks(self.codec), codebooks(self.hearing)):
                raise DataError(f"{hearing} has other codebooks than {folder}: what is heard must "
                                "be written in the same codes")

    def words(self, text):
        """A text -> a list of ids."""
        return self.tokenizer.encode(text).ids

    def encode(self, waves, codec=None):
        """A list of B waveforms [N] of whole frames -> a list of B codes [T, K].

        Waveforms of about one length are encoded together. The codec is causal, so the padding
        behind a waveform changes none of its codes."""
        codec = codec or self.codec
        order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
        codes = [None] * len(waves)
        for start in range(0, len(order), ENCODED_AT_ONCE):
            chunk = order[start:start + ENCODED_AT_ONCE]
            tensors = [torch.from_numpy(waves[i]) for i in chunk]
            batch = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)[:, None]  # [B, 1, N]
            encoded = codec.encode(batch.to(self.device)).transpose(1, 2).cpu()          # [B, T, K]
            for i, row in zip(chunk, encoded):
                codes[i] = row[:len(waves[i]) // FRAME]
        return codes

    def decode(self, codes):
        """Codes [T, K] -> a waveform [N]."""
        batch = codes.T[None].to(self.device)  # [1, K, T]
        return self.codec.decode(batch)[0, 0].cpu().numpy()

    def read_codes(self, recording):
        """Codes [T, K] of a .npy file, as tiny/replay.py writes them, or None for a recording."""
        if isinstance(recording, sound_file.Part) or Path(recording).suffix != ".npy":
            return None
        return shards.read_codes(recording, self.codec.config.codebook_size)

    def read_clip(self, recording):
        """A recording, or the sound of a .npy file of codes -> a waveform [N]. Raises
        ValueError."""
        codes = self.read_codes(recording)
        if codes is not None:
            return self.decode(codes)
        return sound_file.read_audio(recording).numpy()


def codebooks(codec):
    """All entries of a codec's codebooks, in one tensor."""
    parts = [part.entries for part in codec.modules() if isinstance(part, mimi.Codebook)]
    return torch.cat(parts)


def read_tokenizer(folder):
    """The tokenizer of a model folder. Raises LoadError, and DataError where it has ids that its
    model lacks."""
    path = Path(folder) / "tokenizer.json"
    tokenizer = model_files.read_tokenizer(folder)
    config = model_files.read_config(folder)
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise DataError(f"{path} is another model's: its ids go up to {largest}, "
                        f"config.json's to {config.vocab_size - 1}")
    # The release's config.json names no <asr> and <answer>, which then take the last rows.
    values = model_files.read_json(Path(folder) / "config.json")
    keys = values.keys() | values["mm_token_info"].keys()
    for name, key, row in (("<asr>", "text_asr_token_id", config.asr_token),
                           ("<answer>", "text_answer_token_id", config.answer_token)):
        if key not in keys and tokenizer.id_to_token(row):
            raise DataError(f"{name} has no row of its own: config.json names no {key}, and the "
                            f"last rows are words of {path}; name a free row there")
    return tokenizer
