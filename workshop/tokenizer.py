"""A folder to start a new model from: tokenizer, config.json and codec, and no weights yet.

What this is: a tokenizer of bytes, learned from texts in one's own language or taken from another
language model, with <wait>, <asr> and <answer> in rows of their own, and the config.json that fits
it and the codec. What this is not: the training (train.py), which fills such a folder with fresh
weights (--init FOLDER), or with those of the language model (--qwen). Serves train.py.

    python train.py tokenizer texts.txt dialogs.jsonl start
    python data.py encode pairs.jsonl grids/tts --format tts --model start
    python train.py run grids/tts --init start --out runs/pt1

    python train.py tokenizer SmolLM2-135M-Instruct.Q4_1.gguf start
    python train.py run grids/tts --init start --qwen SmolLM2-135M-Instruct.Q4_1.gguf --out runs/pt1
"""
import json
from dataclasses import replace
from pathlib import Path

import flm
from workshop import (beside, codec_files, config_files, gguf_files, model_files, parameters,
                      qwen_files)
from workshop.files import LoadError, replacing
from workshop.manifests import read_lines, text_lines
from workshop.model_files import SHIPPED

SPECIAL = {"wait_token": "<wait>", "asr_token": "<asr>", "answer_token": "<answer>"}
BYTES = 256  # rows that a tokenizer of bytes has at least, beside the special ones
SIZE = 4096  # ids of a tokenizer of texts
# In a manifest, what is text; see workshop/manifests.py.
TEXT_KEYS = ("text", "transcript", "response")


class TokenizerError(ValueError):
    """A folder to start from that cannot be made; the message is one sentence."""


# --- texts ---

def texts_of(value):
    """All texts within a line of a manifest, however deep."""
    if isinstance(value, list):
        for inner in value:
            yield from texts_of(inner)
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in TEXT_KEYS and isinstance(inner, str):
                yield inner
            else:
                yield from texts_of(inner)


def read_texts(paths):
    """The texts of .jsonl files, as data.py reads and writes them, and the lines of all others.
    Raises DataError."""
    for path in paths:
        if Path(path).suffix == ".jsonl":
            for _, row in read_lines(path):
                yield from texts_of(row)
        else:
            for _, line in text_lines(path):
                yield line


def learn(texts, size):
    """Texts -> a tokenizers.Tokenizer of at most `size` ids, the special ones first. It merges
    bytes, as Qwen's does, so that no text is unknown to it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    gguf_files.cut_words(tokenizer, "qwen2")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL.values()), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# --- another model's ---

def is_checkpoint(path):
    """Whether a source is a language model, and not a file of texts."""
    return Path(path).suffix == ".gguf" or not Path(path).is_file()


def tokenizer_of(source):
    """The tokenizer of a qwen_files.Source. Raises LoadError."""
    if source.gguf:
        return source.gguf.tokenizer()
    return model_files.read_tokenizer(source.file.parent)


def lay_special(tokenizer):
    """Give <wait>, <asr> and <answer> the rows behind the tokenizer's last id, where it does not
    have them. Raises TokenizerError."""
    from tokenizers import AddedToken
    for name in SPECIAL.values():
        if tokenizer.token_to_id(name) is None:
            free = max(tokenizer.get_vocab().values()) + 1
            tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
            if tokenizer.token_to_id(name) != free:
                raise TokenizerError(f"the tokenizer leaves rows out, and {name} would take the "
                                     f"row {tokenizer.token_to_id(name)}, which is another's")


# --- the folder ---

def with_codec(config, codec):
    """A flm.Config with the audio vocabulary of a codec's folder: its entries and one empty id."""
    weights, settings = codec_files.files_in(model_files.resolve(codec, codec_files.WANTED))
    if not weights.exists():
        raise LoadError(f"{weights} is missing, and {codec} is no codec without it")
    entries = settings.codebook_size
    return replace(config, aud_vocab_size=entries + 1, pad_token=entries, empty_token=entries)


def make(sources, folder, size, shape=None, codec=SHIPPED):
    """Write tokenizer.json, config.json and the codec's files to a folder -> its flm.Config

    sources: files of texts, or one language model; size: ids of a tokenizer of texts, or None;
    shape: the preset whose shape the model has, or around a language model, whose depth transformer
    it has. Raises TokenizerError, DataError or LoadError before anything is written, and OSError
    where it cannot be written; the same command then writes the rest."""
    folder = Path(folder)
    for name in ("tokenizer.json", "config.json"):
        if (folder / name).exists():
            raise TokenizerError(f"{folder / name} is there already: choose another folder")
    if is_checkpoint(sources[0]) and len(sources) == 1:
        if size is not None:
            raise TokenizerError(f"--size is for a tokenizer of texts, and that of {sources[0]} "
                                 "has its own: leave --size out")
        source = qwen_files.open_source(sources[0])
        tokenizer = tokenizer_of(source)
        lay_special(tokenizer)
        rows = max(source.settings["vocab_size"], max(tokenizer.get_vocab().values()) + 1)
        settings = source.settings | {"vocab_size": rows}
        preset = flm.PRESETS[shape or "0.5b"]
    else:
        size = size or SIZE
        if size < BYTES + len(SPECIAL):
            raise TokenizerError(f"--size must be {BYTES + len(SPECIAL)} or more, not {size}: a "
                                 "tokenizer of bytes has so many rows before it has learned any")
        texts = [text for text in read_texts(sources) if text.strip()]
        if not texts:
            raise TokenizerError(f"there is no text in {', '.join(map(str, sources))}")
        tokenizer = learn(texts, size)
        settings = {"vocab_size": tokenizer.get_vocab_size()}
        preset = flm.PRESETS[shape or "tiny"]
    ids = {name: tokenizer.token_to_id(token) for name, token in SPECIAL.items()}
    config = replace(with_codec(preset, codec), **qwen_files.shape_of(settings), **ids)
    folder.mkdir(parents=True, exist_ok=True)
    if not has_codec(folder):
        lay_codec(codec, folder)
    with replacing(folder / "tokenizer.json") as words, replacing(folder / "config.json") as file:
        tokenizer.save(str(words))
        file.write_text(json.dumps(config_files.to_json(config), indent=1))
    return config


def has_codec(folder):
    """Whether a folder has a codec's settings and its weights."""
    try:
        weights, _ = codec_files.files_in(folder)
    except LoadError:
        return False
    return weights.exists()


def lay_codec(codec, folder):
    """Copy a codec's files to a folder. transformers' Mimi, whose files have the names of a
    language model's, is written as mimi.json and mimi.safetensors. Raises LoadError or OSError."""
    files = beside.files_of_kinds([model_files.resolve(codec, codec_files.WANTED)])
    if "codec" in files:
        beside.copy(files["codec"], folder)
    else:
        codec_files.save(codec_files.load(codec, codebooks=flm.K), folder)


# --- command line ---

def add_command(commands):
    """Add `tokenizer` to the commands of an argparse parser."""
    command = commands.add_parser(
        "tokenizer", help="a folder to start a new model from: tokenizer, config.json, codec",
        description="Learn a tokenizer from texts in your language, or take that of a language "
                    "model, and lay config.json and codec beside it. Then: data.py encode ... "
                    "--model FOLDER, train.py run ... --init FOLDER.")
    command.add_argument("sources", nargs="+", help="files of texts, a line each, or .jsonl with "
                         "text, transcript or response; or one language model: a folder, Hub id or "
                         "GGUF file")
    command.add_argument("folder", help="to be made")
    command.add_argument("--size", type=int,
                         help=f"ids of a tokenizer of texts (default: {SIZE})")
    command.add_argument("--shape", choices=flm.PRESETS,
                         help="the model's shape; around a language model, that of its depth "
                              "transformer (default: tiny; 0.5b around a language model)")
    command.add_argument("--codec", default=SHIPPED,
                         help="folder or Hub id of the codec, such as kyutai/mimi "
                              "(default: that of the shipped model)")


def run_command(args):
    """Do what the command line asks for."""
    config = make(args.sources, args.folder, args.size, args.shape, args.codec)
    size = sum(parameters.count_parameters(flm.FLM(config)).values())
    ids = ", ".join(f"{token} {getattr(config, name)}" for name, token in SPECIAL.items())
    print(f"{args.folder}: {config.vocab_size:,} text ids ({ids}), {config.aud_vocab_size:,} audio "
          f"ids, a model of {size / 1e6:,.1f} M parameters without weights")
