"""The language model for one frame at a time, for a CPU.

What this is: what chat.py computes its frames with on a CPU. A frame of a small model is more than
a thousand operations, each over in microseconds, so the calls cost more than the arithmetic. Here
is the network of flm.py once more in fewer calls, with the same weights and, but for the rounding
of sums, the same numbers. It serves chat.py. What this is not: the model as one reads it (flm.py),
training, several frames at once, or compiled code (graphs.py).

    python chat.py --bench

Unusual here:
- Layers that read one input are one product: q, k and v; gate and up.
- A product with one vector takes as long as its weights take from memory. So weights that float16
  holds as they are, as those of a model folder are, stand there as float16 too, and are read from
  there (half_products.py): half as many bytes as of float32, at 1.5 times the memory.
- Other float32 weights of one input become one tensor, and the parameters of the model parts of it,
  so that they do not stand in memory twice. Those of more rows than columns stand there column by
  column: MKL's product then adds whole columns, and reads 1.3 to 1.9 times as fast as where it sums
  along rows (an AMD EPYC, one thread).
- The depth transformer's views of h, for all 8 positions, are one product at its first code.

Shapes as in flm.py.
"""
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

import flm
from flm import K
from workshop import half_products, quantize


# --- weights ---

@torch.inference_mode(False)
@torch.no_grad()
def joined(parameters, by_columns=False):
    """Parameters [rows, columns] as one tensor [all rows, columns], of which each is a part from
    now on. by_columns: a column stands in memory in one piece, instead of a row."""
    shape = (sum(len(parameter) for parameter in parameters), *parameters[0].shape[1:])
    if not are_joined(parameters, by_columns):
        whole = torch.cat([parameter.data for parameter in parameters])
        if by_columns:
            whole = whole.T.contiguous().T
        start = 0
        for parameter in parameters:
            parameter.data = whole[start:start + len(parameter)]
            start += len(parameter)
    strides = (1, shape[0]) if by_columns else parameters[0].stride()
    return parameters[0].data.as_strided(shape, strides, 0)


def are_joined(parameters, by_columns):
    """Whether parameters are the parts of one tensor already, and nothing else is."""
    storage = parameters[0].untyped_storage()
    start = 0
    for parameter in parameters:
        is_part = parameter.untyped_storage().data_ptr() == storage.data_ptr()
        is_by_columns = parameter.stride(0) == 1 and parameter.ndim > 1
        step = 1 if by_columns else parameter.stride(0)
        if not is_part or is_by_columns != by_columns or parameter.storage_offset() != start:
            return False
        start += step * len(parameter)
    return sum(parameter.nbytes for parameter in parameters) == storage.nbytes()


def product_of(*layers):
    """One or several layers of the same input, nn.Linear or quantize.Packed, as a function:
    [N, columns] -> [N, rows of all], float32."""
    bias = None
    if layers[0].bias is not None:
        bias = torch.cat([layer.bias.data for layer in layers]).float()
    if isinstance(layers[0], quantize.Packed):
        return PackedProduct(layers, bias)
    weights = [layer.weight for layer in layers]
    whole = torch.cat([weight.data for weight in weights])
    if half_products.fits(whole):
        return half_products.HalfProduct(whole, bias)
    return PlainProduct(weights, bias)


class PlainProduct:
    """With the weights of Linear layers as they are."""

    def __init__(self, weights, bias):
        rows = sum(len(weight) for weight in weights)
        by_columns = weights[0].dtype == torch.float32 and rows >= weights[0].shape[1]
        self.weight = joined(weights, by_columns).T
        self.bias = bias
        self.nbytes = self.weight.nbytes

    def __call__(self, x):
        if self.bias is not None and self.weight.dtype == torch.float32:
            return torch.addmm(self.bias, x, self.weight)
        y = torch.mm(x.to(self.weight.dtype), self.weight).float()
        return y if self.bias is None else y + self.bias


class PackedProduct:
    """With the weights of Packed layers, which stand in memory as groups of rows."""

    def __init__(self, layers, bias):
        self.bits = layers[0].bits
        self.weight = joined([layer.weight for layer in layers])
        scales = [layer.scale for layer in layers]
        dimension = quantize.SCALE_ROWS[self.bits]
        self.scale = torch.cat(scales, dimension) if len(scales) > 1 else scales[0]
        self.nbytes = self.weight.nbytes + self.scale.nbytes
        self.bias = bias
        self.rows = None  # where a group is not full: which rows of the product are the layers'
        lengths = [scale.shape[dimension] for scale in scales]
        if lengths != [layer.rows for layer in layers]:
            firsts = [sum(lengths[:i]) for i in range(len(layers))]
            rows = [first + torch.arange(layer.rows) for first, layer in zip(firsts, layers)]
            self.rows = torch.cat(rows)

    def __call__(self, x):
        y = self.in_groups(x)
        if self.rows is not None:
            y = y.index_select(1, self.rows)
        return y if self.bias is None else y + self.bias

    def in_groups(self, x):
        """[N, rows of all groups]; what fills a group up is 0."""
        return quantize.product(x, self.weight, self.scale, self.bits)


def norm_of(layer):
    """An nn.RMSNorm as a function of few calls; any other norm as it is, in float32."""
    if not isinstance(layer, nn.RMSNorm):
        return deepcopy(layer).float()
    n = layer.weight.numel()
    weight = layer.weight.data.float() * n ** 0.5
    least = torch.tensor((n * layer.eps) ** 0.5)

    def norm(x):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / length.hypot(least) * weight  # the root of n times (mean square + eps)
    return norm


class Mlp:
    """An MLP of flm.py: [N, n] -> [N, n]."""

    def __init__(self, layer):
        self.is_swiglu = isinstance(layer, flm.SwiGLU)
        if self.is_swiglu:
            self.up = product_of(layer.gate_proj, layer.up_proj)
            self.down = product_of(layer.down_proj)
        else:
            self.up = product_of(layer.c_fc)
            self.down = product_of(layer.c_proj)
        self.multiply_up = self.up
        if isinstance(self.up, PackedProduct) and self.up.bias is None:
            self.multiply_up = self.up.in_groups  # `down` fills its columns up alike

    def __call__(self, x):
        if not self.is_swiglu:
            return self.down(F.gelu(self.multiply_up(x)))
        gate, up = self.multiply_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


# --- backbone ---

def append(cache, layer, k, v):
    """flm.KVCache.append, k and v [B, H_kv, 1, d]. One conversation's place is a slice, which is
    written in a third of the time."""
    if cache.mask is not None:
        return cache.append(layer, k, v)
    place = int(cache.places)
    cache.k[layer][:, :, place:place + 1] = k
    cache.v[layer][:, :, place:place + 1] = v
    return cache.k[layer][:, :, :cache.span], cache.v[layer][:, :, :cache.span]


class Layer:
    """A block of the backbone."""

    def __init__(self, block, config):
        attention = block.self_attn
        self.number = attention.layer
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.norm_1 = norm_of(block.input_layernorm)
        self.qkv = product_of(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = product_of(attention.o_proj)
        self.norm_2 = norm_of(block.post_attention_layernorm)
        self.mlp = Mlp(block.mlp)

    def __call__(self, x, cos, sin, cache):  # [B, D]
        B = len(x)
        H, H_kv = self.heads, self.kv_heads
        heads = self.qkv(self.norm_1(x)).view(B, H + 2 * H_kv, -1)     # [B, H + 2 H_kv, d]
        turned = flm.rotate(heads[:, :H + H_kv], cos, sin)
        q = turned[:, :H].view(B, H_kv, H // H_kv, -1)                 # [B, H_kv, H / H_kv, d]
        k, v = append(cache, self.number, turned[:, H:, None], heads[:, H + H_kv:, None])
        y = F.scaled_dot_product_attention(q, k, v, cache.mask)
        x = x + self.out(y.reshape(B, -1))
        return x + self.mlp(self.norm_2(x))


# --- depth transformer ---

class DepthLayer:
    """A block of the depth transformer, at one position a call."""

    def __init__(self, block):
        self.heads = block.attn.heads
        self.norm_1 = norm_of(block.ln_1)
        self.qkv = product_of(block.attn.c_attn)
        self.out = product_of(block.attn.c_proj)
        self.norm_2 = norm_of(block.ln_2)
        self.mlps = [Mlp(mlp) for mlp in (block.mlps if block.cmlp else [block.mlp])]

    def __call__(self, x, c, place, k, v):
        """x [N, n], position c; of this layer's cache the place of position c [2, N, H, 1, d], and
        the keys and values up to there [N, H, c + 1, d]."""
        N = len(x)
        qkv = self.qkv(self.norm_1(x)).view(N, 3, self.heads, 1, -1).transpose(0, 1)
        place.copy_(qkv[1:])
        y = F.scaled_dot_product_attention(qkv[0], k, v)               # [N, H, 1, d]
        x = x + self.out(y.reshape(N, -1))
        return x + self.mlps[c % len(self.mlps)](self.norm_2(x))


class Depth:
    def __init__(self, depth, config):
        parts = depth.transformer
        self.empty_token = config.empty_token
        self.linear_in = product_of(depth.linear_in)
        self.wtes = [table.weight.data for table in parts["wtes"]]
        self.wpe = parts["wpe"].weight.data.float()
        self.layers = [DepthLayer(block) for block in parts["h"]]
        self.norm = norm_of(parts["ln_f"])
        self.heads = [product_of(head) for head in depth.lm_heads]
        self.views = None  # [N, K, n], of the frame in the making
        self.cache = None
        self.places = []   # of each position and layer, the parts of the cache that it takes

    def __call__(self, h, codes, cache):
        """As flm.FLM.depth_logits: codes [N, c] -> logits [N, 1, C] of codebook c."""
        N, c = codes.shape
        if c == 0:
            self.views = self.linear_in(h).view(N, K, -1) + self.wpe
            x = self.views[:, 0] + self.wtes[0][self.empty_token]
        else:
            x = self.views[:, c] + F.embedding(codes[:, c - 1], self.wtes[c])
        if cache is not self.cache:
            self.take(cache)
        for layer, (place, k, v) in zip(self.layers, self.places[c]):
            x = layer(x, c, place, k, v)
        return self.heads[c](self.norm(x))[:, None]


    def take(self, cache):
        """Cut a flm.depth_cache, [2, N, H, K, d] of each layer, into parts, once for all frames."""
        self.cache = cache
        self.places = []
        for c in range(K):
            parts = [(one[:, :, :, c:c + 1], *one[:, :, :, :c + 1]) for one in cache]
            self.places.append(parts)


# --- the model ---

class LeanModel:
    """What a frame of chat.py needs of flm.FLM: `config`, `hidden`, `text_logits` and
    `depth_logits`, for one frame of B conversations, with their caches, on a CPU.

    Whatever the weights are, it computes in float32, and so do the caches. The model's weights must
    not change afterwards."""

    def __init__(self, model):
        self.config = model.config
        tables = model.model.embed_tokens
        self.input_mult = model.input_mult
        self.text_mult = model.text_mult
        self.text_table = tables.text_embeddings.weight.data
        audio = [*tables.aud_speak_embeddings, *tables.aud_listen_embeddings]
        self.audio_table = joined([table.weight for table in audio])   # [2 K C, D]
        self.first_rows = self.config.aud_vocab_size * torch.arange(2 * K)
        self.layers = [Layer(block, self.config) for block in model.model.layers]
        self.norm = norm_of(model.model.norm)
        self.lm_head = product_of(model.lm_head)
        self.depth_logits = Depth(model.aud_output_layers, self.config)

    def hidden(self, text, speak, listen, cache):
        """text [B, 1], speak [B, 1, K], listen [B, 1, K] -> h [B, 1, D]."""
        rows = torch.cat([speak[:, 0], listen[:, 0]], 1) + self.first_rows       # [B, 2 K]
        codes = F.embedding(rows, self.audio_table).float()                      # [B, 2 K, D]
        x = (F.embedding(text[:, 0], self.text_table) + codes.sum(1)) * self.input_mult
        cos, sin = flm.rope(self.config, cache.advance(1)[:, 0])                 # [B, 1, d]
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        return self.norm(x)[:, None]

    def text_logits(self, h):
        """h [B, 1, D] -> logits [B, 1, V]."""
        return self.lm_head(h[:, 0])[:, None] * self.text_mult

    def weight_bytes(self):
        """Bytes of the matrices that a frame reads, each counted once."""
        depth = self.depth_logits
        products = [self.lm_head, depth.linear_in, *depth.heads]
        for layer in self.layers:
            products += [layer.qkv, layer.out, layer.mlp.up, layer.mlp.down]
        for layer in depth.layers:
            products += [layer.qkv, layer.out]
            for mlp in layer.mlps:
                products += [mlp.up, mlp.down]
        return sum(product.nbytes for product in products)
