"""FLM, the language model: a Qwen2 backbone over 17 channels, and a depth transformer that writes a frame's 8 codes.

What this is: the network of FLM-Audio (section 2.1), exact against the released weights; its caches for one frame at a
time; loading and saving; the start from a Qwen2.5 checkpoint (section 2.1: the language part of Qwen2.5-VL).
What this is not: a sampler (chat.py), a loss or an optimizer (train.py), or the meaning of channels and delays (stream.py).

    text  [T]    --embed--+
    speak [T, K] --embed--+--sum--> backbone --> h_t --text head--> next text token
    listen[T, K] --embed--+                       |
                                                  +--depth--> code 0 -> code 1 -> ... -> code 7

Unusual here:
- A position is the sum of 17 embeddings, and the depth transformer sees h_t alone, never the other frames.
- With `depth_cmlp` the depth transformer's position c has an MLP, an embedding and a head of its own; attention is shared.
- Parameter names are the release's, so its files load without renaming, tensor by tensor, never held twice.

    python flm.py 0.5b          # parameters by part, of a preset, a folder or a Hub id

Shapes: B batch, T frames, K = 8 codebooks, D model width, V text vocabulary, C = card, the audio vocabulary,
N = B * T frames for the depth transformer; beside them H heads, d a head's width, n the depth transformer's width.
"""
import argparse
import json
import math
import re
import sys
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from workshop.files import replacing

K = 8


class LoadError(ValueError):
    """A model folder that cannot be used. The message is one sentence that names the file and the tensor."""


# --- configuration ---

def rope_settings(values):
    """What a config.json says of RoPE, in the older group (rope_scaling) or the newer (rope_parameters), as one dict with
    `rope_type`. Raises ValueError where a group is no object."""
    settings = {"rope_type": "default"}
    for group in ("rope_scaling", "rope_parameters"):
        inner = values.get(group)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            raise ValueError(f"{group} must be an object of settings, not {inner!r}")
        inner = dict(inner)
        older_name = inner.pop("type", "default")
        kind = inner.pop("rope_type", older_name)
        if kind != "default":
            settings["rope_type"] = kind
        settings |= inner
    return settings


# config.json nests two groups; here they are fields like all others. Key in the file -> field.
_GROUPS = {
    "mm_token_info": {"text_wait_token_id": "wait_token", "text_asr_token_id": "asr_token", "text_answer_token_id": "answer_token",
                      "aud_pad_token_id": "pad_token", "aud_emp_token_id": "empty_token"},
    "aud_depthgpt": {"n_layer": "depth_layers", "n_head": "depth_heads", "n_embd": "depth_dim", "bias": "depth_bias",
                     "use_cmlp": "depth_cmlp", "use_rmsnorm": "depth_rmsnorm", "use_swiglu": "depth_swiglu"},
}
# What a file may say in these ways only. mrope is plain RoPE here: without images its three position ids are equal.
# Tied heads are refused, since from_qwen copies the embedding into a head of its own.
_FIXED = {"aud_channel": (K,), "hidden_act": ("silu",), "tie_word_embeddings": (False,), "use_sliding_window": (False,),
          "rope_type": ("mrope", "default")}
# Bookkeeping of the transformers library, and sizes that follow from others: accepted, without effect.
_IGNORED = {
    "model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "auto_map", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id", "attention_dropout", "initializer_range", "sliding_window", "max_window_layers",
    "layer_types", "_name_or_path", "rope_scaling", "rope_parameters", "mrope_section",
    *(f"aud_depthgpt.{name}" for name in ("dropout", "block_size", "vocab_size", "main_hidden_size", "pad_token_id")),
}


@dataclass(frozen=True)
class Config:
    """One model's architecture and special ids. Fields without a default must be given. Raises ValueError, one sentence."""
    vocab_size: int                     # V
    aud_vocab_size: int                 # C: the codec's entries and one empty id
    hidden_size: int                    # D
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int            # H
    num_key_value_heads: int
    max_position_embeddings: int        # frames
    wait_token: int                     # text id: nothing is being said
    pad_token: int                      # audio id of all channels before the first frame
    empty_token: int                    # audio id of a channel that carries nothing; also codebook 0's depth input
    depth_layers: int
    depth_heads: int
    depth_dim: int                      # n
    asr_token: int | None = None        # text ids that open a transcript and an answer; the release has none
    answer_token: int | None = None
    head_dim: int | None = None         # d; None: hidden_size / heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    attention_bias: bool = True         # of q, k, v
    disable_att_o_bias: bool = True     # o has none even so
    mlp_bias: bool = False
    use_mup: bool = False
    input_mult: float = 1.0             # embeddings x input_mult, text logits x output_mult / mup_scale_factor, with use_mup
    output_mult: float = 1.0
    mup_scale_factor: float = 1.0
    depth_bias: bool = False
    depth_cmlp: bool = True             # an MLP for each codebook
    depth_rmsnorm: bool = False         # these two are on in every preset; off is what the release takes where a file is silent
    depth_swiglu: bool = False
    trained_frames: int | None = None   # frames of the rows it was trained on; ours, at the top level of the file: the release
    #                                     has no such key and ignores it. Distances beyond it were never seen in training.

    def __post_init__(self):
        self._check_kinds()
        whole = [("num_attention_heads", "num_key_value_heads"), ("depth_dim", "depth_heads")]
        if self.head_dim is None:
            whole.append(("hidden_size", "num_attention_heads"))
        for size, parts in whole:
            if getattr(self, size) % getattr(self, parts):
                raise ValueError(f"{size} {getattr(self, size)} must be a multiple of {parts} {getattr(self, parts)}")
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even, because RoPE turns pairs")
        for name, size in (("wait_token", "vocab_size"), ("asr_token", "vocab_size"), ("answer_token", "vocab_size"),
                           ("pad_token", "aud_vocab_size"), ("empty_token", "aud_vocab_size")):
            token = getattr(self, name)
            if token is not None and not 0 <= token < getattr(self, size):
                raise ValueError(f"{name} must be an id below {size} {getattr(self, size)}, not {token}")

    def _check_kinds(self):
        """Raise ValueError where a value is of the wrong kind: what a file says may be anything that JSON can hold."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.type in (int, int | None):
                lowest = 0 if field.name.endswith("_token") else 1
                if type(value) is not int or value < lowest:
                    above = "0 or more" if lowest == 0 else "above 0"
                    raise ValueError(f"{field.name} must be a whole number {above}, not {value!r}")
            elif field.type is float:
                if type(value) not in (int, float) or not 0 < value < math.inf:
                    raise ValueError(f"{field.name} must be a number above 0, not {value!r}")
            elif type(value) is not bool:
                raise ValueError(f"{field.name} must be true or false, not {value!r}")

    @classmethod
    def from_json(cls, values):
        """The release's config.json, as a dict, -> Config. Raises ValueError that names unknown, missing or impossible keys."""
        if not isinstance(values, dict):
            raise ValueError(f"a configuration is an object of settings, not {values!r}")
        rope = rope_settings(values)
        values = {**rope, **{key: value for key, value in values.items() if value is not None or key not in rope}}
        known = {f.name: f.name for f in fields(cls)}  # key in the file, or group.key -> field
        for group, keys in _GROUPS.items():
            known |= {f"{group}.{key}": known.pop(name) for key, name in keys.items()}
            inner = values.pop(group, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{group} must be an object of settings, not {inner!r}")
            values |= {f"{group}.{key}": inner[key] for key in inner}
        for key, allowed in _FIXED.items():
            if values.get(key, allowed[0]) not in allowed:
                raise ValueError(f"{key} must be {' or '.join(map(repr, allowed))}, not {values[key]!r}")
        if unknown := values.keys() - known.keys() - _FIXED.keys() - _IGNORED:
            raise ValueError(f"unknown model setting(s) {', '.join(sorted(unknown))}")
        flat = {known[key]: value for key, value in values.items() if key in known}
        if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in flat]:
            raise ValueError(f"missing model setting(s) {', '.join(missing)}")
        return cls(**flat)

    def to_json(self):
        """The release's config.json as a dict; from_json gives this Config again."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        values = {"model_type": "FLMAudio", "architectures": ["FLMAudioForCausalLM"], "aud_channel": K, "hidden_act": "silu",
                  "tie_word_embeddings": False}
        for group, keys in _GROUPS.items():
            values[group] = {key: flat.pop(name) for key, name in keys.items() if name in flat}
        values["aud_depthgpt"]["dropout"] = 0.0
        return values | flat


def _qwen(hidden, intermediate, layers, heads, kv_heads, vocab=151_936):
    # Decision: the paper gives no size for the depth transformer; this is the default of the release's code.
    # Decision: <wait>, <asr> and <answer> take the first rows that Qwen's tokenizer leaves free; the paper names no ids.
    return Config(vocab_size=vocab, aud_vocab_size=2049, hidden_size=hidden, intermediate_size=intermediate,
                  num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                  max_position_embeddings=32_768, wait_token=151_665, asr_token=151_666, answer_token=151_667,
                  pad_token=2048, empty_token=2048, depth_layers=6, depth_heads=16, depth_dim=1024,
                  depth_rmsnorm=True, depth_swiglu=True)


PRESETS = {
    "tiny": Config(vocab_size=1024, aud_vocab_size=513, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
                   num_key_value_heads=2, max_position_embeddings=8192, rope_theta=10_000.0, wait_token=1, asr_token=2, answer_token=3,
                   pad_token=512, empty_token=512, depth_layers=3, depth_heads=4, depth_dim=128, depth_rmsnorm=True, depth_swiglu=True),
    "0.5b": _qwen(896, 4864, 24, 14, 2),
    "1.5b": _qwen(1536, 8960, 28, 12, 2),
    "3b": _qwen(2048, 11_008, 36, 16, 2),
    "7b": _qwen(3584, 18_944, 28, 28, 4, vocab=152_064),
}


# --- primitives ---

def rope(config, position):
    """position [...] -> cos and sin, float32 [..., d]; the first half of sin is negated, as `rotate` wants it.

    Angles are float64, exact after days of conversation (MPS has float32 alone)."""
    d, exact = config.head_dim, torch.float32 if position.device.type == "mps" else torch.float64
    speed = config.rope_theta ** (-torch.arange(0, d, 2, device=position.device) / d)  # [d / 2], radians per frame
    angle = position[..., None].to(exact) * speed.to(exact)
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x, cos, sin):
    """RoPE, half-split: dimension i and i + d / 2 turn together.  x [B, H, T, d], cos and sin [T, d] or [B, 1, T, d]"""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)  # rolling by half swaps the halves


class SwiGLU(nn.Module):
    def __init__(self, width, inside, bias):
        super().__init__()
        self.gate_proj = nn.Linear(width, inside, bias)
        self.up_proj = nn.Linear(width, inside, bias)
        self.down_proj = nn.Linear(inside, width, bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


# --- the cache of the backbone ---

class KVCache:
    """Keys and values of the last `length` frames of B conversations: a ring. For inference: use it under torch.no_grad().

        length 4, frame 6 comes:   rows [4|5|6|3]    RoPE knows differences alone, so their order is free

    `position` [B], on the device, counts each conversation's frames; one whose `active` is 0 stands still, and its row is
    written again. `filled`, on the host, lets a CPU read written rows only; `fixed`: all are read, so that shapes stay."""

    def __init__(self, config, batch, length, device="cpu", dtype=torch.float32):
        if not 0 < length <= config.max_position_embeddings:
            raise ValueError(f"a cache of {length} frames does not fit the model's {config.max_position_embeddings} positions")
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
        self.k, self.v = (torch.zeros(shape, device=device, dtype=dtype) for _ in "kv")
        self.position = torch.zeros(batch, device=device, dtype=torch.long)
        self.active = torch.ones_like(self.position)
        self.length, self.filled, self.fixed = length, 0, self.position.device.type != "cpu"

    def advance(self, T):
        """Take the next T rows: sets `rows` [B, T], `span` (rows that attention reads), `mask` (None or [B, 1, T, span]);
        returns positions [B, 1, T]. Raises ValueError when several frames do not fit before the ring turns."""
        if not torch.compiler.is_compiling():  # compiled code sees no count on the host, and takes single frames
            if T > 1 and self.filled + T > self.length:
                raise ValueError(f"the cache is full: it holds {self.filled} of {self.length} frames, and {T} more go in one by one")
            self.filled = min(self.filled + T, self.length)
        positions = self.position[:, None] + torch.arange(T, device=self.position.device)
        self.rows = positions % self.length
        self.position += T * self.active
        self.span = self.length if self.fixed else self.filled
        alone = T == len(positions) == 1 and not self.fixed  # one query that may see every row needs no mask
        self.mask = None if alone else torch.arange(self.span, device=positions.device) <= positions[:, None, :, None]
        return positions[:, None]

    def append(self, layer, k, v):
        """Write k, v [B, H_kv, T, d] to the rows taken; return all that the layer's attention reads, [B, H_kv, span, d] each."""
        batch = torch.arange(len(k), device=k.device)[:, None]
        self.k[layer][batch, :, self.rows] = k.transpose(1, 2)
        self.v[layer][batch, :, self.rows] = v.transpose(1, 2)
        return self.k[layer, :, :, :self.span], self.v[layer, :, :, :self.span]


# --- backbone: Qwen2, in its own names ---

class Attention(nn.Module):
    """Grouped-query attention: H query heads share H_kv key and value heads."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.d, self.heads, self.kv_heads = layer, config.head_dim, config.num_attention_heads, config.num_key_value_heads
        D, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(D, self.heads * self.d, bias)
        self.k_proj = nn.Linear(D, self.kv_heads * self.d, bias)
        self.v_proj = nn.Linear(D, self.kv_heads * self.d, bias)
        self.o_proj = nn.Linear(self.heads * self.d, D, bias and not config.disable_att_o_bias)

    def forward(self, x, cos, sin, cache=None):
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.d).transpose(1, 2)  # [B, H, T, d], and twice [B, H_kv, T, d]
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # [B, H_kv, span, d]
            if T == 1:  # a group's heads as queries of the one head they share: its keys and values are not copied
                q = q.reshape(B, self.kv_heads, -1, self.d)
        y = F.scaled_dot_product_attention(q, k, v, cache and cache.mask, is_causal=cache is None, enable_gqa=True)
        return self.o_proj(y.reshape(B, self.heads, T, -1).transpose(1, 2).reshape(B, T, -1))  # [B, T, H d] -> [B, T, D]


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, config.mlp_bias)

    def forward(self, x, cos, sin, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


# --- depth transformer: one frame's 8 codes, each from h_t and the codes before it ---

def depth_cache(config, N, device="cpu", dtype=torch.float32):
    """Keys and values of the 8 positions of N frames in the making: [layers, 2, N, H, K, d]. Starting again at c = 0 needs
    no reset: position c reads positions 0 .. c, and each has been written by then."""
    d = config.depth_dim // config.depth_heads
    return torch.zeros(config.depth_layers, 2, N, config.depth_heads, K, d, device=device, dtype=dtype)


class DepthAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.depth_heads
        self.c_attn = nn.Linear(config.depth_dim, 3 * config.depth_dim, config.depth_bias)
        self.c_proj = nn.Linear(config.depth_dim, config.depth_dim, config.depth_bias)

    def forward(self, x, c=0, cache=None):  # [N, S, n]: positions c .. c + S - 1; cache: of this layer
        N, S, n = x.shape
        q, k, v = (y.view(N, S, self.heads, -1).transpose(1, 2) for y in self.c_attn(x).split(n, -1))  # [N, H, S, d]
        if cache is not None:
            cache[..., c:c + S, :] = torch.stack([k, v])
            k, v = cache[..., :c + S, :]  # [N, H, c + 1, d]: all that position c may see
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        return self.c_proj(y.transpose(1, 2).reshape(N, S, n))


def _depth_norm(config):
    return nn.RMSNorm(config.depth_dim, 1e-6) if config.depth_rmsnorm else nn.LayerNorm(config.depth_dim, 1e-5, bias=config.depth_bias)


def _depth_mlp(config):
    n, bias = config.depth_dim, config.depth_bias
    if config.depth_swiglu:
        return SwiGLU(n, int(8 * n / 3), bias)
    return nn.Sequential(OrderedDict(c_fc=nn.Linear(n, 4 * n, bias), gelu=nn.GELU(), c_proj=nn.Linear(4 * n, n, bias)))


class DepthBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.ln_2 = _depth_norm(config), _depth_norm(config)
        self.attn = DepthAttention(config)
        self.cmlp = config.depth_cmlp
        mlps = nn.ModuleList(_depth_mlp(config) for _ in range(K if self.cmlp else 1))
        self.add_module("mlps" if self.cmlp else "mlp", mlps if self.cmlp else mlps[0])

    def forward(self, x, c=0, cache=None):  # [N, S, n]: positions c .. c + S - 1
        x = x + self.attn(self.ln_1(x), c, cache)
        y = self.ln_2(x)
        if not self.cmlp:
            return x + self.mlp(y)
        # a loop: stacking the weights for one batched product was no faster, measured on a CPU at N = 2000
        return x + torch.stack([self.mlps[c + i](y[:, i]) for i in range(x.shape[1])], 1)


class Depth(nn.Module):
    """Moshi's RQ-Transformer, which section 2.1 follows. Position c holds code c - 1 and predicts code c.

        in    empty  code 0  code 1 ... code 6     (each + position + its own view of h_t)
        out   code 0 code 1  code 2 ... code 7
    """

    def __init__(self, config):
        super().__init__()
        self.n = n = config.depth_dim
        C = config.aud_vocab_size
        self.linear_in = nn.Linear(config.hidden_size, K * n, bias=False)
        self.transformer = nn.ModuleDict({
            "wtes": nn.ModuleList(nn.Embedding(C, n) for _ in range(K)),
            "wpe": nn.Embedding(K, n),
            "h": nn.ModuleList(DepthBlock(config) for _ in range(config.depth_layers)),
            "ln_f": _depth_norm(config),
        })
        self.lm_heads = nn.ModuleList(nn.Linear(n, C, bias=False) for _ in range(K))

    def forward(self, h, inputs, c=0, cache=None):  # [N, D], [N, S]: what positions c .. c + S - 1 hold -> [N, S, C]
        parts, S = self.transformer, inputs.shape[1]
        seen = F.linear(h, self.linear_in.weight[c * self.n:(c + S) * self.n])            # these positions' rows: [N, S n]
        x = torch.stack([parts["wtes"][c + i](inputs[:, i]) for i in range(S)], 1)        # [N, S, n]
        x = x + parts["wpe"].weight[c:c + S] + seen.view(x.shape)
        for i, block in enumerate(parts["h"]):
            x = block(x, c, None if cache is None else cache[i])
        x = parts["ln_f"](x)
        return torch.stack([self.lm_heads[c + i](x[:, i]) for i in range(S)], 1)


# --- the model ---

class FLM(nn.Module):
    """Backbone, text head and depth transformer of one Config. It has no values yet: see init_weights, load, from_qwen."""

    def __init__(self, config):
        super().__init__()
        self.config, V, C, D = config, config.vocab_size, config.aud_vocab_size, config.hidden_size
        with torch.device("meta"):
            self.model = nn.ModuleDict({
                "embed_tokens": nn.ModuleDict({  # the empty id has an ordinary, learned row
                    "text_embeddings": nn.Embedding(V, D),
                    "aud_speak_embeddings": nn.ModuleList(nn.Embedding(C, D) for _ in range(K)),
                    "aud_listen_embeddings": nn.ModuleList(nn.Embedding(C, D) for _ in range(K)),
                }),
                "layers": nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers)),
                "norm": nn.RMSNorm(D, config.rms_norm_eps),
            })
            self.lm_head = nn.Linear(D, V, bias=False)
            self.aud_output_layers = Depth(config)
        self.input_mult = config.input_mult if config.use_mup else 1.0
        self.text_mult = config.output_mult / config.mup_scale_factor if config.use_mup else 1.0

    def hidden(self, text, speak, listen, cache=None):
        """text [B, T], speak [B, T, K], listen [B, T, K] -> h [B, T, D], equation (1): what all heads read.

        With a KVCache the T frames continue the frames it holds, and equal the same frames of one full pass until it turns.
        Raises ValueError when they do not fit the cache or the model's positions."""
        B, T = text.shape
        assert speak.shape == listen.shape == (B, T, K), f"text {[B, T]}, speak {list(speak.shape)}, listen {list(listen.shape)}"
        if T > self.config.max_position_embeddings:
            raise ValueError(f"{T} frames are more than the model's {self.config.max_position_embeddings} positions")
        position = torch.arange(T, device=text.device) if cache is None else cache.advance(T)
        written, spoken, heard = self.model.embed_tokens.values()
        x = written(text)  # [B, T, D]; a position is the sum of what its 17 channels say
        for c in range(K):
            x = x + spoken[c](speak[..., c]) + heard[c](listen[..., c])
        x = x * self.input_mult
        cos, sin = (table.to(x.dtype) for table in rope(self.config, position))
        for layer in self.model.layers:
            x = layer(x, cos, sin, cache)
        return self.model.norm(x)

    def text_logits(self, h):
        """h [B, T, D] -> logits [B, T, V] of the next frame's text token."""
        return self.lm_head(h) * self.text_mult

    def depth_logits(self, h, codes, cache=None):
        """h [N, D], codes [N, k] of codebooks 0 .. k - 1 with k < K -> logits [N, k + 1, C] of codebooks 0 .. k.

        Teacher-forced: position c sees the given codes before c. Training passes k = K - 1.
        With a depth_cache, and k = 0, 1 .. K - 1 in this order, under torch.no_grad(): only those of codebook k, [N, 1, C]."""
        assert len(h) == len(codes) and codes.shape[1] < K, f"h {list(h.shape)}, codes {list(codes.shape)}"
        c = 0 if cache is None else codes.shape[1]
        return self.aud_output_layers(h, F.pad(codes, (1, 0), value=self.config.empty_token)[:, c:], c, cache)


def count_parameters(model):
    """Parameters by part, a dict of whole numbers that sum to the model's. Heads are the text head and the 8 audio heads."""
    prefixes = {"model.embed_tokens.": "embeddings", "model.": "backbone", "aud_output_layers.lm_heads.": "heads",
                "aud_output_layers.": "depth", "lm_head.": "heads"}
    counts = dict.fromkeys(prefixes.values(), 0)
    for name, parameter in model.named_parameters():
        counts[next(part for prefix, part in prefixes.items() if name.startswith(prefix))] += parameter.numel()
    return counts


def init_weights(model, device="cpu", dtype=torch.float32):
    """Give every parameter that has no values yet its first ones, drawn on the CPU: the same seed, the same model anywhere.

    Normal of 0.02; projections that write to the residual stream are smaller by sqrt(2 layers), as in GPT-2, so that the
    stream does not grow with depth; norms 1, biases 0. Returns the model."""
    config, values = model.config, {}
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            continue  # from_qwen has filled it
        layers = config.depth_layers if name.startswith("aud_output_layers.") else config.num_hidden_layers
        writes = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
        value = torch.full(parameter.shape, 1.0 if name.endswith("weight") else 0.0)
        if parameter.ndim > 1:
            value.normal_(0, 0.02 / math.sqrt(2 * layers) if writes else 0.02)
        values[name] = value.to(device, dtype)
    model.load_state_dict(values, strict=False, assign=True)
    return model


# --- loading and saving ---

BESIDE = ("tokenizer.json", "sampling.json", "mimi.json", "mimi.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors")
WANTED = ["config.json", "model*.safetensors", "model.safetensors.index.json", *BESIDE]


def resolve(path):
    """A folder as it is; a Hub id (owner/name) -> the folder of its download, which is only fetched once. Raises LoadError."""
    if Path(path).is_dir():
        return Path(path)
    if Path(path).exists():
        raise LoadError(f"{path} is a file, and a model is a folder with config.json and model.safetensors")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        raise LoadError(f"{path} does not exist, and is no Hub id (owner/name) either")
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(str(path), allow_patterns=WANTED))
    except Exception as error:  # no connection, no such repository, no space: the client's errors share no base class
        raise LoadError(f"{path} is no folder here and could not be had from the Hub: {str(error).splitlines()[0]}") from None


def _read_json(file):
    try:
        return json.loads(file.read_text())
    except OSError:
        raise LoadError(f"{file} is missing or cannot be read") from None
    except ValueError as error:
        raise LoadError(f"{file} is not JSON: {error}") from None


def is_finite(tensor):
    """Whether a tensor holds neither NaN nor infinity, in one pass and without a copy. True for one without values (meta)."""
    if tensor.is_meta or not tensor.numel():
        return True
    low, high = tensor.aminmax()  # NaN wins over every number
    return bool(low.isfinite() & high.isfinite())


def _fill(model, folder, device, dtype, rename=lambda name: name, optional=(), convert=None):
    """Assign the folder's tensors to the model. Each is mapped from disk and cast alone, so the weights are never held twice.
    `rename` gives our name of a tensor, or None to leave it; `optional` names may be absent; `convert` as in `load`."""
    from safetensors import SafetensorError, safe_open
    index = folder / "model.safetensors.index.json"
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    sharded, lacking = index.exists(), shapes.keys() - set(optional)
    names = {"model.safetensors"}
    if sharded:
        try:
            names = set(_read_json(index)["weight_map"].values())
        except (AttributeError, KeyError, TypeError):
            raise LoadError(f"{index} has no weight_map that says which file holds which tensor") from None
    for file in [folder / name for name in sorted(names)]:
        if not file.exists():
            raise LoadError(f"{file} is missing" + (f", and {index.name} lists it" if sharded else ""))
        try:
            with safe_open(file, "pt") as opened:
                for theirs in opened.keys():
                    if (name := rename(theirs)) is None:
                        continue
                    if name not in shapes:
                        raise LoadError(f"{file} has a tensor {theirs} that this model does not")
                    tensor = opened.get_tensor(theirs)
                    if tensor.shape != shapes[name]:
                        raise LoadError(f"{file}: tensor {theirs} is {list(tensor.shape)} and should be {list(shapes[name])}")
                    if not tensor.is_floating_point():
                        raise LoadError(f"{file}: tensor {theirs} is {tensor.dtype}, and weights are floating point")
                    if not is_finite(tensor):
                        raise LoadError(f"{file}: tensor {theirs} holds values that are no finite numbers: these weights are spoilt")
                    owner = model.get_submodule(path := name.rpartition(".")[0])
                    setattr(owner, name.rpartition(".")[2], nn.Parameter(tensor.to(device=device, dtype=dtype)))
                    lacking.discard(name)
                    if convert and isinstance(owner, nn.Linear) and not any(p.is_meta for p in owner.parameters()):
                        model.set_submodule(path, convert(path, owner))
        except (OSError, SafetensorError) as error:
            raise LoadError(f"{file} cannot be read as safetensors, it is damaged or cut short: {error}") from None
    if lacking:
        raise LoadError(f"{index if sharded else file} lacks the tensor {min(lacking)}" + f" and {len(lacking) - 1} more" * (len(lacking) > 1))


def load(path, device="cpu", dtype=torch.float32, convert=None):
    """The FLM of a folder or Hub id, ready to use; dtype None keeps the file's. The files are the release's. `convert` (name,
    Linear -> module) replaces each Linear as it arrives: memory peaks at what that makes and one layer.

    Raises LoadError, one sentence, where config or weights are missing, unknown, misshapen or damaged."""
    folder = resolve(path)
    values = _read_json(folder / "config.json")
    try:
        model = FLM(Config.from_json(values))
    except ValueError as error:
        raise LoadError(f"{folder / 'config.json'}: {error}") from None
    _fill(model, folder, device, dtype, convert=convert)
    return model


def from_qwen(path, config, device="cpu", dtype=torch.float32):
    """An FLM whose text embeddings, layers, norm and text head are those of a Qwen2 or Qwen2.5 checkpoint, or of the
    language part of Qwen2.5-VL (section 2.1); audio embeddings and depth transformer are fresh from the current seed.

    Raises LoadError where the checkpoint is not of the config's shape, or as `load` does."""
    folder = resolve(path)
    values = _read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise LoadError(f"{folder / 'config.json'} is no configuration: it must be an object of settings")
    values = values.get("text_config", values)  # the vision-language model of newer transformers nests its language part
    try:
        rope = rope_settings(values)
    except ValueError as error:
        raise LoadError(f"{folder / 'config.json'}: {error}") from None
    if rope["rope_type"] not in _FIXED["rope_type"]:
        raise LoadError(f"{folder / 'config.json'} has RoPE of type {rope['rope_type']}, which turns every position by other angles: "
                        "only plain RoPE can be started from")
    if values.get("use_sliding_window"):
        raise LoadError(f"{folder / 'config.json'} has use_sliding_window, and this model attends to all that it remembers")
    theirs = {**rope, **{key: value for key, value in values.items() if value is not None}}
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps", "rope_theta"):
        if theirs.get(name) != getattr(config, name):
            raise LoadError(f"{folder / 'config.json'} has {name} {theirs.get(name)}, and the model to be started "
                            f"has {getattr(config, name)}")

    def rename(name):
        name = re.sub(r"^model\.language_model\.", "model.", name)
        if name.startswith(("visual.", "model.visual.")):
            return None
        return "model.embed_tokens.text_embeddings.weight" if name == "model.embed_tokens.weight" else name

    model, tied = FLM(config), values.get("tie_word_embeddings", False)
    fresh = [name for name, _ in model.named_parameters() if "aud_" in name]
    _fill(model, folder, device, dtype, rename, optional=fresh + ["lm_head.weight"] * tied)
    if model.lm_head.weight.is_meta:
        model.lm_head.weight = nn.Parameter(model.model.embed_tokens.text_embeddings.weight.detach().clone())
    return init_weights(model, device, dtype)


def save(model, folder, max_shard_bytes=5 * 10**9):
    """Write config.json and model.safetensors, or shards of at most `max_shard_bytes` (or one tensor) and their index.

    Everything is written beside and then renamed, so a full disk costs no older checkpoint. Raises ValueError for
    weights that are not finite, OSError where they cannot be written; one sentence each."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    folder = Path(folder)
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(f"the model is not written to {folder}: its tensor {name} holds values that are no finite numbers")
    texts = {"config.json": model.config.to_json()}
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_bytes)
    if split.is_sharded:
        texts["model.safetensors.index.json"] = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    shards = split.filename_to_tensors
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:  # all are renamed when all are written
            for name, members in shards.items():
                beside = files.enter_context(replacing(folder / name))
                save_file({key: tensors[key].contiguous() for key in members}, beside, metadata={"format": "pt"})
            for name, values in texts.items():
                beside = files.enter_context(replacing(folder / name))
                beside.write_text(json.dumps(values, indent=1))
        for old in folder.glob("model*.safetensors*"):
            if old.name not in (*shards, *texts):
                old.unlink()  # of a save with other shards: an old index would be read in place of the new file
    except (OSError, SafetensorError) as error:
        raise OSError(f"the model cannot be written to {folder}: {error}") from None


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Show a model's parameters by part, and check that its files are whole.")
    parser.add_argument("model", help=f"a folder, a Hub id (owner/name), or a preset: {', '.join(PRESETS)}")
    name = parser.parse_args(arguments).model
    try:
        model = FLM(PRESETS[name]) if name in PRESETS else load(name, device="meta", dtype=None)
    except ValueError as error:
        sys.exit(f"flm.py: {error}")
    dtype = model.lm_head.weight.dtype
    print(f"{name}, {str(dtype).removeprefix('torch.')}\n{'part':<12}{'parameters':>16}{'bytes':>18}")
    counts = count_parameters(model)
    for part, count in {**counts, "all": sum(counts.values())}.items():
        print(f"{part:<12}{count:>16,}{count * dtype.itemsize:>18,}")


if __name__ == "__main__":
    main()
