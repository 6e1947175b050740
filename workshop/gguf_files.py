"""Language models in GGUF files: settings, weights and tokenizer, as a folder of transformers has
them.

What this is: a reader of Qwen2 and Llama files, quantized or not, for a start from them
(qwen_files.from_qwen). It needs the `gguf` package (pip install gguf), which nothing else here
needs. What this is not: a writer, or a way to run quantized weights: they become float32. Serves
qwen_files.py and tokenizer.py.

    source = gguf_files.Checkpoint("SmolLM2-135M-Instruct.Q4_1.gguf")
    source.settings                       # {"model_type": "llama", "hidden_size": 576, ...}
    for name, tensor in source.tensors(): ...      # "model.layers.0.self_attn.q_proj.weight", ...
    source.tokenizer().save("tokenizer.json")

Unusual here: Llama files hold the rows of q and k in another order. Their RoPE turns neighbouring
rows; that of transformers, and ours, turns row i with row i + d / 2. `half_split` puts them back.
Qwen2 files hold them as they are.
"""
import importlib
import re
from pathlib import Path

import torch

from workshop.files import LoadError, error_line

ARCHITECTURES = ("qwen2", "llama")
# Settings of transformers, by what stands behind "qwen2." or "llama." in the file.
SETTINGS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
TENSORS_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# How a text is cut before pairs of bytes are merged, by the file's name for it. From the
# tokenizer.json of each model.
QWEN_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
              r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PRETOKENIZERS = ("qwen2", "smollm", "gpt-2")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4   # types of tokens


def package():
    """The gguf package. Raises LoadError where it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise LoadError("a GGUF file is read with the package gguf (pip install gguf); or give the "
                        "folder of transformers from which the file was made") from None


def tensor_name(name):
    """A file's name of a tensor -> that of transformers, or None for one that it does not have."""
    stem, _, kind = name.rpartition(".")      # "blk.3.attn_q", "weight"
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer and layer[2] in TENSORS_OF_LAYER:
        return f"model.layers.{layer[1]}.{TENSORS_OF_LAYER[layer[2]]}.{kind}"
    if stem in TENSORS:
        return f"{TENSORS[stem]}.{kind}"
    return None


def half_split(weight, heads):
    """Rows of q or k in a Llama file, pairs side by side -> rows whose pairs stand d / 2 apart.

        file    0 0' 1 1' 2 2'        ours    0 1 2 0' 1' 2'

    weight [heads * d, ...] -> [heads * d, ...]"""
    pairs = weight.view(heads, -1, 2, *weight.shape[1:])    # [heads, d / 2, 2, ...]
    return pairs.transpose(1, 2).reshape(weight.shape)


class Checkpoint:
    """A GGUF file. settings: what the config.json of transformers would say. Raises LoadError for a
    file that cannot be read, or whose model computes otherwise than Qwen2 or Llama."""

    def __init__(self, file):
        self.file = Path(file)
        self.gguf = package()
        try:
            self.reader = self.gguf.GGUFReader(self.file)
        except Exception as error:  # the package raises many kinds
            raise LoadError(f"{self.file} cannot be read as GGUF, it is damaged or cut short: "
                            f"{error_line(error)}") from None
        self.architecture = self.value("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise LoadError(f"{self.file} holds a model of architecture {self.architecture}, and "
                            f"only {' and '.join(ARCHITECTURES)} can be started from")
        self.settings = self._settings()

    def value(self, key, default=None):
        """A value of the file's header."""
        field = self.reader.get_field(key)
        return default if field is None else field.contents()

    def _settings(self):
        settings = {"model_type": self.architecture, "hidden_act": "silu"}
        for key, name in SETTINGS.items():
            value = self.value(f"{self.architecture}.{key}")
            if value is not None:
                settings[name] = value
        settings.setdefault("num_key_value_heads", settings.get("num_attention_heads"))
        settings.setdefault("rope_theta", 10_000.0)
        shapes = {tensor.name: tensor.shape.tolist() for tensor in self.reader.tensors}
        if "token_embd.weight" not in shapes:
            raise LoadError(f"{self.file} lacks the tensor token_embd.weight")
        settings["vocab_size"] = shapes["token_embd.weight"][-1]
        settings["tie_word_embeddings"] = "output.weight" not in shapes
        settings["attention_bias"] = "blk.0.attn_q.bias" in shapes
        scaling = self.value(f"{self.architecture}.rope.scaling.type", "none")
        if scaling != "none" or "rope_freqs.weight" in shapes:
            kind = "llama3" if "rope_freqs.weight" in shapes else scaling
            settings["rope_scaling"] = {"rope_type": kind}
        return settings

    def tensors(self):
        """(name of transformers, float32 tensor) of each, dequantized when its turn comes. Raises
        LoadError for a tensor, or a kind of quantization, that is not known."""
        heads = {"q": self.settings["num_attention_heads"],
                 "k": self.settings["num_key_value_heads"]}
        for entry in self.reader.tensors:
            name = tensor_name(entry.name)
            if name is None:
                raise LoadError(f"{self.file} has a tensor {entry.name} that neither Qwen2 nor "
                                "Llama has")
            try:
                values = self.gguf.dequantize(entry.data, entry.tensor_type)
            except NotImplementedError:
                raise LoadError(f"{self.file}: tensor {entry.name} is quantized as "
                                f"{entry.tensor_type.name}, which the package gguf cannot undo"
                                ) from None
            # A copy, because the file is mapped for reading only.
            tensor = torch.tensor(values).view(entry.shape.tolist()[::-1])
            projection = re.search(r"self_attn\.([qk])_proj", name)
            if projection and self.architecture == "llama":
                tensor = half_split(tensor, heads[projection[1]])
            yield name, tensor

    def tokenizer(self):
        """The file's tokenizer -> tokenizers.Tokenizer. Raises LoadError for one that is not of
        bytes, or that cuts words in a way that is not known here."""
        from tokenizers import AddedToken, Tokenizer, models
        kind = self.value("tokenizer.ggml.model")
        words = self.value("tokenizer.ggml.pre")
        if kind != "gpt2" or words not in PRETOKENIZERS:
            raise LoadError(f"{self.file} has a tokenizer of kind {kind}, {words}; known are those "
                            f"of kind gpt2 that cut words as {', '.join(PRETOKENIZERS)} do: lay "
                            "the model's own tokenizer.json beside instead")
        tokens = self.value("tokenizer.ggml.tokens")
        types = self.value("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
        special_rows = [i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
        # Tokens of another type are unused: rows of the embedding that no text reaches.
        vocabulary = {tokens[i]: i for i, kind in enumerate(types) if kind == NORMAL}
        vocabulary |= {tokens[i]: i for i in special_rows}
        merges = [tuple(pair.split(" ")) for pair in self.value("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        cut_words(tokenizer, words)
        for i in special_rows:
            special = AddedToken(tokens[i], special=types[i] == CONTROL, normalized=False)
            tokenizer.add_special_tokens([special])
        return tokenizer


def cut_words(tokenizer, words):
    """Let a tokenizer of bytes cut its text as one of PRETOKENIZERS does."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers
    if words == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        cutting = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cutting, letters])
    elif words == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
