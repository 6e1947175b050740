"""FLM, the language model: a Qwen2 backbone over 17 channels, and a depth transformer.

What this is: the network of FLM-Audio (section 2.1), exact against the released weights, and the
caches that let it go on one frame at a time. What this is not: a sampler (chat.py), a loss or an
optimizer (train.py), the meaning of channels and delays (stream.py), or files
(workshop/config_files.py, workshop/model_files.py).

    text   [T]    --embed--+
    speak  [T, K] --embed--+--sum--> e_t --> backbone --> h_t --text head--> next text token
    listen [T, K] --embed--+                               |
                                                           +--depth--> code 0 -> ... -> code 7

    e_t = text embedding + 8 listen embeddings + 8 speak embeddings         equation (1)
    h_t = backbone(e_0 ... e_t)                                             equation (2)

Unusual here:
- A position is the sum of 17 embeddings. All channels share one step, so the sequence grows by one
  position a frame, however many channels there are.
- The depth transformer sees h_t alone, never the other frames. That is enough because the backbone
  is trained through it: whatever the 8 codes need of the past, the loss pushes into h_t. So a frame
  costs the depth transformer the same after an hour as at the start, and it needs no cache across
  frames.
- The depth transformer's position c has an embedding and a head of its own, and with `depth_cmlp`
  an MLP too; attention is shared.
- Parameter names are the release's, so that its files load without renaming.

To start from Qwen2.5-0.5B: its weights become the text embeddings, the layers, the norm and the
text head, which begins as a copy of the embeddings where Qwen has one matrix for both. The 16 audio
embeddings and the depth transformer begin with random values (`init_weights`). The first line makes
the folder `start`: Qwen's tokenizer with ids for <wait>, <asr> and <answer>, a config.json whose
backbone has Qwen's shape, and the released codec (without --codec the miniature that ships).

    python train.py tokenizer Qwen/Qwen2.5-0.5B start --codec kyutai/mimi
    python data.py encode pairs.jsonl grids/tts --format tts --model start   # and grids/asr
    python train.py run grids/tts grids/asr --init start --qwen Qwen/Qwen2.5-0.5B --out runs/pt1
    python flm.py 0.5b          # parameters by part, of a preset, a folder or a Hub id

Shapes: B batch, T frames, K = 8 codebooks, D model width, V text vocabulary, C = card, the audio
vocabulary. Besides: H heads, H_kv key and value heads, d a head's width, N = B * T frames for the
depth transformer, S its positions in one pass, n its width.
"""
import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from workshop import config_checks

K = 8  # codebooks of a frame: one semantic code and seven acoustic ones, section 2.1


# --- configuration ---

@dataclass(frozen=True)
class Config:
    """One model's architecture and special ids. Fields without a default must be given. Raises
    ValueError, one sentence."""
    vocab_size: int                     # V
    aud_vocab_size: int                 # C: the codec's entries and one empty id
    hidden_size: int                    # D
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int            # H
    num_key_value_heads: int            # H_kv
    max_position_embeddings: int        # frames
    wait_token: int                     # text id: nothing is being written
    # Two audio ids for what is no code. The release, and every preset, has one number for both.
    pad_token: int                      # of all channels before the first frame
    empty_token: int                    # of a channel that carries nothing
    depth_layers: int
    depth_heads: int
    depth_dim: int                      # n
    asr_token: int | None = None        # text id that opens a transcript; None: a free id
    answer_token: int | None = None     # text id that opens an answer; None: a free id
    head_dim: int | None = None         # d; None: hidden_size / heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    attention_bias: bool = True         # of q, k, v
    disable_att_o_bias: bool = True     # o has none even so
    mlp_bias: bool = False
    use_mup: bool = False               # whether the three factors below hold
    input_mult: float = 1.0             # on the embeddings
    output_mult: float = 1.0            # on the text logits
    mup_scale_factor: float = 1.0       # divides the text logits
    depth_bias: bool = False
    depth_cmlp: bool = True             # an MLP for each codebook
    # The next two are on in every preset. Off is what the release takes where config.json does not
    # give them.
    depth_rmsnorm: bool = False
    depth_swiglu: bool = False
    # Frames of the sequences that it was trained on. Attention never saw a larger distance there.
    trained_frames: int | None = None

    def __post_init__(self):
        config_checks.check(self)
        if self.head_dim is None:
            self._set("head_dim", self.hidden_size // self.num_attention_heads)
        # Decision: the release has neither <asr> nor <answer>. Where a file names no ids for them,
        # they take the last ids of the vocabulary: Qwen's tokenizer ends before these.
        for name in ("answer_token", "asr_token"):
            if getattr(self, name) is None:
                others = (self.wait_token, self.asr_token, self.answer_token)
                ids = range(self.vocab_size - 1, -1, -1)
                self._set(name, next(token for token in ids if token not in others))

    def _set(self, name, value):
        object.__setattr__(self, name, value)  # the way past `frozen`, for what follows from others


def qwen_shape(hidden, intermediate, layers, heads, kv_heads, vocab=151_936):
    """The Config of an FLM around a Qwen2.5 of this shape."""
    # Decision: the paper gives no size for the depth transformer; this is the default of the
    # release's code.
    # Decision: <wait>, <asr> and <answer> take the first rows that Qwen's tokenizer leaves free;
    # the paper names no ids.
    return Config(
        vocab_size=vocab, aud_vocab_size=2049, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=32_768, wait_token=151_665, asr_token=151_666, answer_token=151_667,
        pad_token=2048, empty_token=2048, depth_layers=6, depth_heads=16, depth_dim=1024,
        depth_rmsnorm=True, depth_swiglu=True)


PRESETS = {
    "tiny": Config(
        vocab_size=1024, aud_vocab_size=513, hidden_size=256, intermediate_size=704,
        num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=8192, rope_theta=10_000.0,
        wait_token=1, asr_token=2, answer_token=3, pad_token=512, empty_token=512,
        depth_layers=3, depth_heads=4, depth_dim=128,
        depth_rmsnorm=True, depth_swiglu=True),
    "0.5b": qwen_shape(896, 4864, 24, 14, 2),
    "1.5b": qwen_shape(1536, 8960, 28, 12, 2),
    "3b": qwen_shape(2048, 11_008, 36, 16, 2),
    "7b": qwen_shape(3584, 18_944, 28, 28, 4, vocab=152_064),
}


# --- primitives ---

def rope(config, position):
    """position [...] -> cos and sin, float32 [..., d]; the first half of sin is negated, as
    `rotate` wants it.

    Angles are float64, so that they are exact after days of conversation (MPS has float32
    alone)."""
    exact = torch.float32 if position.device.type == "mps" else torch.float64
    exponent = torch.arange(0, config.head_dim, 2, device=position.device) / config.head_dim
    speed = config.rope_theta ** -exponent                     # [d / 2], radians a frame
    angle = position[..., None].to(exact) * speed.to(exact)    # [..., d / 2]
    cos = angle.cos().float()
    sin = angle.sin().float()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x, cos, sin):
    """RoPE, half-split: dimensions i and i + d / 2 turn together.

    x [B, H, T, d], cos and sin [T, d] or [B, 1, T, d] -> [B, H, T, d]"""
    halves_swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, halves_swapped, sin)


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
    """Keys and values of the last `length` frames of B conversations: a ring. For inference, under
    torch.no_grad().

        length 4, frame 6 comes:   places [4|5|6|3]

    The order in which the places are read does not matter, because RoPE knows only differences of
    positions. When the ring has turned, frame t reads the frames t - length + 1 ... t. Only the
    first layer forgets strictly: the keys and values of deeper layers were computed from hidden
    states that had still seen what the ring no longer holds.

    position [B], on the device: frames of each conversation so far.
    active [B]: 0 for a conversation that stands still; its place is written again by the next
    frame. filled, on the host: how many places were written. On a CPU attention reads these alone.
    On a GPU, and where `fixed` is set, it reads all places behind a mask, so that shapes never
    change: compiled code and graphs need that."""

    def __init__(self, config, batch, length, device="cpu", dtype=torch.float32):
        if not 0 < length <= config.max_position_embeddings:
            raise ValueError(f"a cache of {length} frames does not fit the model's "
                             f"{config.max_position_embeddings} positions")
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        # A tensor for each layer: of one for all, compiled code would copy the whole to write a
        # place of it.
        self.k = []
        self.v = []
        for _ in range(config.num_hidden_layers):
            self.k.append(torch.zeros(shape, device=device, dtype=dtype))
            self.v.append(torch.zeros(shape, device=device, dtype=dtype))
        self.position = torch.zeros(batch, device=device, dtype=torch.long)
        self.active = torch.ones_like(self.position)
        self.length = length
        self.filled = 0
        self.fixed = self.position.device.type != "cpu"

    def advance(self, T):
        """Take places for the next T frames -> their positions [B, 1, T].

        Sets `places` [B, T]; `span`, how many places attention reads; and `mask`, None or
        [B, 1, T, span]. Raises ValueError when several frames do not fit before the ring turns."""
        if not torch.compiler.is_compiling():  # compiled code takes single frames and counts none
            if T > 1 and self.filled + T > self.length:
                raise ValueError(f"the cache is full: it holds {self.filled} of {self.length} "
                                 f"frames, and {T} more go in one by one")
            self.filled = min(self.filled + T, self.length)
        device = self.position.device
        positions = self.position[:, None] + torch.arange(T, device=device)
        self.places = positions % self.length
        self.position += T * self.active
        self.span = self.length if self.fixed else self.filled
        B = len(positions)
        if B == T == 1 and not self.fixed:
            self.mask = None  # one query may see every place that was written
        else:
            self.mask = torch.arange(self.span, device=device) <= positions[:, None, :, None]
        return positions[:, None]

    def append(self, layer, k, v):
        """Write k, v [B, H_kv, T, d] to the places taken -> all that this layer's attention reads,
        [B, H_kv, span, d] each."""
        batch = torch.arange(len(k), device=k.device)[:, None]
        self.k[layer][batch, :, self.places] = k.transpose(1, 2)
        self.v[layer][batch, :, self.places] = v.transpose(1, 2)
        return self.k[layer][:, :, :self.span], self.v[layer][:, :, :self.span]


# --- backbone: Qwen2, in its own names ---

class Attention(nn.Module):
    """Grouped-query attention: H query heads share H_kv key and value heads."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.d = config.head_dim
        D = config.hidden_size
        bias = config.attention_bias
        self.q_proj = nn.Linear(D, self.heads * self.d, bias)
        self.k_proj = nn.Linear(D, self.kv_heads * self.d, bias)
        self.v_proj = nn.Linear(D, self.kv_heads * self.d, bias)
        self.o_proj = nn.Linear(self.heads * self.d, D, bias and not config.disable_att_o_bias)

    def forward(self, x, cos, sin, cache=None):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.d).transpose(1, 2)      # [B, H, T, d]
        k = self.k_proj(x).view(B, T, self.kv_heads, self.d).transpose(1, 2)   # [B, H_kv, T, d]
        v = self.v_proj(x).view(B, T, self.kv_heads, self.d).transpose(1, 2)   # [B, H_kv, T, d]
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        mask = None
        if cache is not None:
            k, v = cache.append(self.layer, k, v)                              # [B, H_kv, span, d]
            mask = cache.mask
            if T == 1:
                # The heads of a group become queries of the one head that they share, so that its
                # keys and values are not copied.
                q = q.reshape(B, self.kv_heads, -1, self.d)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=cache is None, enable_gqa=True)
        y = y.reshape(B, self.heads, T, self.d).transpose(1, 2)                # [B, T, H, d]
        return self.o_proj(y.reshape(B, T, -1))                                # [B, T, D]


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        D = config.hidden_size
        self.input_layernorm = nn.RMSNorm(D, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(D, config.rms_norm_eps)
        self.mlp = SwiGLU(D, config.intermediate_size, config.mlp_bias)

    def forward(self, x, cos, sin, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


# --- depth transformer: the 8 codes of row t + 1, each from h_t and the codes before it ---
# (code 0 of frame t + 1, and codes 1 to 7 of frame t: the delay of stream.py, which says why)

def depth_cache(config, N, device="cpu", dtype=torch.float32):
    """Keys and values of the 8 positions of N frames in the making: a list with [2, N, H, K, d] of
    each layer.

    A new frame starts again at c = 0 and needs no reset: position c reads the positions 0 ... c,
    and each of them has been written by then."""
    shape = (2, N, config.depth_heads, K, config.depth_dim // config.depth_heads)
    return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.depth_layers)]


class DepthAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        n = config.depth_dim
        self.heads = config.depth_heads
        self.c_attn = nn.Linear(n, 3 * n, config.depth_bias)
        self.c_proj = nn.Linear(n, n, config.depth_bias)

    def forward(self, x, c=0, cache=None):
        """x [N, S, n], the positions c ... c + S - 1; cache [2, N, H, K, d], of this layer."""
        N, S, n = x.shape
        q, k, v = self.c_attn(x).split(n, -1)                       # [N, S, n] each
        q = q.view(N, S, self.heads, -1).transpose(1, 2)            # [N, H, S, d]
        k = k.view(N, S, self.heads, -1).transpose(1, 2)            # [N, H, S, d]
        v = v.view(N, S, self.heads, -1).transpose(1, 2)            # [N, H, S, d]
        if cache is not None:
            cache[..., c:c + S, :] = torch.stack([k, v])
            k, v = cache[..., :c + S, :]                            # [N, H, c + S, d]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        return self.c_proj(y.transpose(1, 2).reshape(N, S, n))


def depth_norm(config):
    if config.depth_rmsnorm:
        return nn.RMSNorm(config.depth_dim, 1e-6)
    return nn.LayerNorm(config.depth_dim, 1e-5, bias=config.depth_bias)


def depth_mlp(config):
    n = config.depth_dim
    if config.depth_swiglu:
        return SwiGLU(n, int(8 * n / 3), config.depth_bias)
    return nn.Sequential(OrderedDict(
        c_fc=nn.Linear(n, 4 * n, config.depth_bias),
        gelu=nn.GELU(),
        c_proj=nn.Linear(4 * n, n, config.depth_bias)))


class DepthBlock(nn.Module):
    """A block whose MLP may be another one at each of the 8 positions (`mlps`), or one for all
    (`mlp`)."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = depth_norm(config)
        self.attn = DepthAttention(config)
        self.ln_2 = depth_norm(config)
        self.cmlp = config.depth_cmlp
        if self.cmlp:
            self.mlps = nn.ModuleList(depth_mlp(config) for _ in range(K))
        else:
            self.mlp = depth_mlp(config)

    def forward(self, x, c=0, cache=None):  # [N, S, n]: the positions c ... c + S - 1
        x = x + self.attn(self.ln_1(x), c, cache)
        y = self.ln_2(x)
        if not self.cmlp:
            return x + self.mlp(y)
        # Stacking the weights for one batched product was no faster, measured on a CPU at N = 2000.
        outputs = [self.mlps[c + i](y[:, i]) for i in range(x.shape[1])]
        return x + torch.stack(outputs, 1)


class Depth(nn.Module):
    """Moshi's RQ-Transformer, which section 2.1 follows. Position c holds code c - 1 and predicts
    code c.

        in    empty  code 0  code 1 ... code 6
        out   code 0 code 1  code 2 ... code 7

    Each input is a sum of three vectors. At codebook 3, for example:

        x_3 = wtes[3](code 2) + wpe[3] + (linear_in h_t)[3]

    wtes[3] is an embedding table of position 3 alone, wpe[3] its position, and the last term is
    position 3's own view of h_t: linear_in makes 8 vectors of width n of it, one for each
    position."""

    def __init__(self, config):
        super().__init__()
        self.n = config.depth_dim
        C = config.aud_vocab_size
        self.linear_in = nn.Linear(config.hidden_size, K * self.n, bias=False)
        self.transformer = nn.ModuleDict({
            "wtes": nn.ModuleList(nn.Embedding(C, self.n) for _ in range(K)),
            "wpe": nn.Embedding(K, self.n),
            "h": nn.ModuleList(DepthBlock(config) for _ in range(config.depth_layers)),
            "ln_f": depth_norm(config),
        })
        self.lm_heads = nn.ModuleList(nn.Linear(self.n, C, bias=False) for _ in range(K))

    def forward(self, h, inputs, c=0, cache=None):
        """h [N, D], inputs [N, S]: what the positions c ... c + S - 1 hold -> logits [N, S, C]."""
        parts = self.transformer
        S = inputs.shape[1]
        rows = self.linear_in.weight[c * self.n:(c + S) * self.n]   # of these positions: [S n, D]
        views = F.linear(h, rows).view(len(h), S, self.n)           # [N, S, n]
        codes = [parts["wtes"][c + i](inputs[:, i]) for i in range(S)]
        x = torch.stack(codes, 1) + parts["wpe"].weight[c:c + S] + views
        for i, block in enumerate(parts["h"]):
            x = block(x, c, None if cache is None else cache[i])
        x = parts["ln_f"](x)
        logits = [self.lm_heads[c + i](x[:, i]) for i in range(S)]
        return torch.stack(logits, 1)


# --- the model ---

class FLM(nn.Module):
    """Backbone, text head and depth transformer of one Config. It has no values yet: see
    init_weights below, workshop/model_files.py and workshop/qwen_files.py."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        V, C, D = config.vocab_size, config.aud_vocab_size, config.hidden_size
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

    def embed(self, text, speak, listen):
        """Equation (1): text [B, T], speak [B, T, K], listen [B, T, K] -> e [B, T, D]."""
        tables = self.model.embed_tokens
        e = tables.text_embeddings(text)
        for c in range(K):
            e = e + tables.aud_speak_embeddings[c](speak[..., c])
            e = e + tables.aud_listen_embeddings[c](listen[..., c])
        return e * self.input_mult

    def hidden(self, text, speak, listen, cache=None):
        """Equation (2): text [B, T], speak [B, T, K], listen [B, T, K] -> h [B, T, D], which all
        heads read.

        With a KVCache the T frames continue the frames that it holds, and equal the same frames of
        one full pass until its ring turns. Raises ValueError when they do not fit the cache or the
        model's positions."""
        B, T = text.shape
        assert speak.shape == listen.shape == (B, T, K), (
            f"text {[B, T]}, speak {list(speak.shape)}, listen {list(listen.shape)}")
        if T > self.config.max_position_embeddings:
            raise ValueError(f"{T} frames are more than the model's "
                             f"{self.config.max_position_embeddings} positions")
        position = torch.arange(T, device=text.device) if cache is None else cache.advance(T)
        x = self.embed(text, speak, listen)
        cos, sin = rope(self.config, position)
        cos = cos.to(x.dtype)
        sin = sin.to(x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin, cache)
        return self.model.norm(x)

    def text_logits(self, h):
        """h [B, T, D] -> logits [B, T, V] of the next frame's text token."""
        return self.lm_head(h) * self.text_mult

    def depth_logits(self, h, codes, cache=None):
        """h [N, D], codes [N, k] of codebooks 0 ... k - 1 with k < K -> logits [N, k + 1, C] of
        codebooks 0 ... k.

        Teacher-forced: position c sees the codes before c. Training passes k = K - 1. With a
        depth_cache, and k = 0, 1 ... K - 1 in this order, under torch.no_grad(): only the logits of
        codebook k, [N, 1, C]."""
        assert len(h) == len(codes) and codes.shape[1] < K, (
            f"h {list(h.shape)}, codes {list(codes.shape)}")
        # Position 0 holds the empty id.
        inputs = F.pad(codes, (1, 0), value=self.config.empty_token)
        c = 0
        if cache is not None:
            c = codes.shape[1]
            inputs = inputs[:, c:]
        return self.aud_output_layers(h, inputs, c, cache)


def init_weights(model, device="cpu", dtype=torch.float32):
    """Give every parameter that has no values yet its first ones. Returns the model. They are drawn
    on the CPU, so that the same seed gives the same model anywhere.

    Normal of 0.02. Projections that write to the residual stream are smaller by sqrt(2 layers), as
    in GPT-2, so that the stream does not grow with depth. Norms are 1, biases 0."""
    values = {}
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            continue  # a checkpoint has filled it
        value = torch.empty(parameter.shape)
        if parameter.ndim > 1:
            value.normal_(0, initial_deviation(model.config, name))
        elif name.endswith("weight"):
            value.fill_(1)
        else:
            value.fill_(0)
        values[name] = value.to(device, dtype)
    model.load_state_dict(values, strict=False, assign=True)
    return model


def initial_deviation(config, name):
    """Standard deviation of a matrix' first values, by its name."""
    is_depth = name.startswith("aud_output_layers.")
    layers = config.depth_layers if is_depth else config.num_hidden_layers
    writes_to_stream = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
    return 0.02 / math.sqrt(2 * layers) if writes_to_stream else 0.02


if __name__ == "__main__":
    from workshop import parameters
    parameters.main()
