"""The codec's frames on a processor: the same sums with less overhead.

What this is: faster forms of mimi.py's modules for one frame at a time on a CPU in float32. They
have the weights, the states and, up to rounding, the results of the modules whose place they take.
It serves chat.py. What this is not: the method (mimi.py), or a compiler (graphs.py).

    python -m workshop.fast_codec --model tiny/model --threads 1      # before and after, in turns
    python -m workshop.fast_codec --model released --frames 60        # random weights

    codec = fast_codec.prepare_for_streaming(codec_files.load("tiny/model"))

Unusual here:
- A frame has 2 steps of 25 Hz, or 8 hops. A matrix product of so few rows takes as long as reading
  the matrix, and PyTorch's usual product reads it at a quarter of the bandwidth. `Matrix` has
  three that are faster.
- What a frame costs beside the products is the number of small operations. So rows [B, S, C] stay
  rows from layer to layer, and what does not depend on the frame is computed once.
- A module is changed in place: it gets another class and keeps everything else. Offline, and where
  nothing faster is known, the classes do what mimi.py does.

Shapes: B batch, S steps, C channels.
"""
import argparse
import sys
import time
from copy import deepcopy

import torch
import torch.nn.functional as F

import mimi
from workshop import codec_files, half_products

# Where float16 holds the weights, up to HALF_ROWS rows are multiplied with these. Else FEW_ROWS are
# multiplied from the other side, W x^T; and more rows with the weights in oneDNN's order.
HALF_ROWS = 8
FEW_ROWS = 2
WARM_UP = 3  # frames that are not counted


class Shared:
    """What copies of a codec share, as they share its weights."""

    def __deepcopy__(self, memo):
        return self


class Matrix(Shared):
    """y = x W^T + b, for x of a few rows."""

    def __init__(self, weight, bias=None):
        self.weight = weight  # [c_out, c_in]
        self.bias = bias
        self.packed = None    # made when it is needed first
        self.half = None
        if half_products.fits(weight):
            self.half = half_products.HalfProduct(weight, bias)

    def __call__(self, x, gelu=False):  # [..., c_in] -> [..., c_out], and GELU of it
        rows = x.numel() // x.shape[-1]
        if self.half and rows <= HALF_ROWS:
            y = self.half(x)
        elif rows > FEW_ROWS and torch.backends.mkldnn.is_available():
            return self.in_order(x, gelu)
        elif rows == FEW_ROWS:
            x_rows = x.reshape(rows, -1).contiguous()  # of columns this product is slower
            y = torch.mm(self.weight, x_rows.t()).t()
            y = y.contiguous() if self.bias is None else y + self.bias
            y = y.reshape(*x.shape[:-1], -1)
        else:
            y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if gelu else y

    def in_order(self, x, gelu):
        """With the weights in oneDNN's order."""
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())
        activation = "gelu" if gelu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation, [], "none")


class Conv(mimi.Conv):
    """As one product of the windows with all of the kernel, where that is faster."""

    def prepare(self):
        weight, *bias = self.parameters()
        self.matrix = Matrix(weight.transpose(1, 2).flatten(1), *bias)  # [c_out, kernel c_in]

    def forward(self, x):
        if not self.state or x.shape[-1] >= self.c_in:
            return super().forward(x)
        return self.of_rows(x.transpose(1, 2)).transpose(1, 2)

    def of_rows(self, x, gelu=False):  # [B, S, c_in] -> [B, S / stride, c_out], and GELU of it
        past, has_past = self.state
        past = past.transpose(1, 2)
        if self.replicate:
            past = torch.where(has_past, past, x[:, :1])
        x = torch.cat([past, x], 1)
        self.keep(x[:, x.shape[1] - self.past:].transpose(1, 2), True)
        windows = self.windows(x)
        return self.matrix(windows, gelu)

    def windows(self, x):  # [B, S, c_in] -> [B, steps, kernel c_in]
        """Neighbouring rows are neighbours in memory, so a window is a view."""
        B, S, C = x.shape
        steps = (S - self.kernel) // self.stride + 1
        return x.as_strided((B, steps, self.kernel * C), (S * C, self.stride * C, 1))


class ConvTranspose(mimi.ConvTranspose):
    """As one product with all of the kernel, whose halves are then added."""

    def prepare(self):
        weight = next(self.parameters())                    # [c_in, c_out / groups, 2 stride]
        self.is_depthwise = weight.shape[1] == 1 and len(weight) == self.c_out
        if self.is_depthwise:
            self.matrix = Matrix(weight[:, 0])              # [c_out, 2 stride]
        else:
            self.matrix = Matrix(weight.flatten(1).t().contiguous())

    def forward(self, x):
        if not self.state:
            return super().forward(x)
        if self.is_depthwise:
            y = x[..., None] * self.matrix.weight[:, None]  # [B, c_out, S, 2 stride]
        else:
            y = self.matrix(x.transpose(1, 2)).unflatten(-1, (self.c_out, -1)).transpose(1, 2)
        first, second = y.split(self.stride, -1)
        before = torch.cat([self.state[0][:, :, None], second[:, :, :-1]], 2)
        self.keep(second[:, :, -1])
        y = (first + before).flatten(2)
        for bias in list(self.parameters())[1:]:
            y = y + bias[:, None]
        return y


class Transformer(mimi.Transformer):
    """Layers on rows [B, S, D]; queries and keys turn together, as complex numbers."""

    def prepare(self):
        self.matrices = []
        for layer in self.transformer.layers:
            weights = (layer.self_attn.in_proj_weight, layer.self_attn.out_proj.weight,
                       layer.linear1.weight, layer.linear2.weight)
            self.matrices.append([Matrix(weight) for weight in weights])

    def forward(self, x):
        if not self.state:
            return super().forward(x)
        x = x.transpose(1, 2).contiguous()
        S = x.shape[1]
        step = torch.arange(S) + self.state[0]                       # [B, S]
        self.keep(step[:, -1:] + 1)
        angle = step[:, :, None, None].double() * self.frequencies
        turn = torch.complex(angle.cos().float(), angle.sin().float())  # [B, S, 1, d / 2]
        rows = step % self.ring
        age = (step[..., None] - torch.arange(self.ring)) % self.ring
        hidden = (age >= self.context) | (age > step[..., None])
        mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None]
        batch = torch.arange(len(x))[:, None]
        for layer, matrices in zip(self.transformer.layers, self.matrices):
            x = self.run(layer, matrices, x, turn, batch, rows, mask)
        return x.transpose(1, 2)

    def run(self, layer, matrices, x, turn, batch, rows, mask):
        qkv, out = matrices[:2]
        up, down = matrices[2:]
        heads = layer.self_attn.heads
        keys, values = layer.self_attn.state
        B, S, D = x.shape
        y = qkv(layer.norm1(x)).view(B, S, 3 * heads, -1, 2)
        pairs = torch.view_as_complex(y[:, :, :2 * heads]) * turn
        turned = torch.view_as_real(pairs).view(B, S, 2 * heads, -1)  # [B, S, 2 heads, d]
        q, k = turned.split(heads, 2)
        keys[batch, :, rows] = k
        values[batch, :, rows] = y[:, :, 2 * heads:].flatten(3)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask)
        y = out(y.transpose(1, 2).flatten(2))
        x = torch.addcmul(x, layer.layer_scale_1["scale"], y)
        y = down(up(layer.norm2(x), gelu=True))
        return torch.addcmul(x, layer.layer_scale_2["scale"], y)


class Tables(Shared):
    """Entries of the codebooks in use, and their squared lengths."""

    def __init__(self, codebooks):
        self.entries = [book.entries for book in codebooks]            # [C, codebook_dim] each
        self.squares = [entries.square().sum(-1) for entries in self.entries]
        self.columns = [entries.T.contiguous() for entries in self.entries]
        self.all_entries = torch.cat(self.entries)
        self.first_rows = torch.arange(len(codebooks))[:, None] * len(self.entries[0])

    def nearest(self, i, x):  # [B, T, codebook_dim] -> codes of codebook i, [B, T]
        y = torch.addmm(self.squares[i], x.flatten(0, 1), self.columns[i], alpha=-2)
        return y.argmin(-1).view(x.shape[:-1])

    def lookup(self, codes):  # [B, K, T] -> [B, K, T, codebook_dim]
        return F.embedding(codes + self.first_rows, self.all_entries)


class SplitRVQ(mimi.SplitRVQ):
    """With the codebooks' entries at hand, which mimi.py divides by their counts every time."""

    def prepare(self):
        codebooks = self.rvq_first.codebooks + self.rvq_rest.codebooks[:self.used - 1]
        self.tables = Tables(codebooks)

    def encode(self, latent):
        x = latent.transpose(1, 2)
        semantic = F.linear(x, self.rvq_first.input_proj.weight[..., 0])
        residual = F.linear(x, self.rvq_rest.input_proj.weight[..., 0])
        codes = [self.tables.nearest(0, semantic)]
        for i in range(1, self.used):
            code = self.tables.nearest(i, residual)
            residual = residual - F.embedding(code, self.tables.entries[i])
            codes.append(code)
        return torch.stack(codes, 1)

    def decode(self, codes):
        entries = self.tables.lookup(codes)
        semantic = F.linear(entries[:, 0], self.rvq_first.output_proj.weight[..., 0])
        acoustic = F.linear(entries[:, 1:].sum(1), self.rvq_rest.output_proj.weight[..., 0])
        return (semantic + acoustic).transpose(1, 2)


class STFTDecoder(mimi.STFTDecoder):
    """Convolutions on rows [B, hops, C]."""

    def prepare(self):
        self.matrices = [Matrix(part.weight, part.bias) for part in (self.linear, self.head)]

    def forward(self, x):
        if not self.state:
            return super().forward(x)
        linear, head = self.matrices
        x = linear(x.transpose(1, 2)).unflatten(2, (4, -1)).flatten(1, 2)
        for conv, norm in zip(self.convs, self.norms):
            x = x + conv.of_rows(norm(x), gelu=True)
        return self.synthesize(head(x))


FASTER = {mimi.Conv: Conv, mimi.ConvTranspose: ConvTranspose, mimi.Transformer: Transformer,
          mimi.SplitRVQ: SplitRVQ, mimi.STFTDecoder: STFTDecoder}


def round_weights(codec):
    """Round the matrices of a codec to numbers that float16 holds, so that their products take
    less time. The released codec is float32.

    Decision: not unasked. Of a trained codec whose weights float16 does not hold, 98.9 % of the
    codes of speech stay the same (86 % rounded to bfloat16), and the sound of given codes stays to
    0.001 dB."""
    for parameter in codec.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()


def prepare_for_streaming(codec):
    """The same codec, whose modules now take a frame of a stream faster. Its weights must not
    change any more. On anything but a CPU in float32 it stays as it is."""
    weight = codec.quantizer.rvq_first.input_proj.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return codec
    with torch.no_grad():
        for module in codec.modules():
            if type(module) in FASTER:
                module.__class__ = FASTER[type(module)]
                module.prepare()
    return codec


def plain(codec):
    """The same codec with its modules as mimi.py has them: the compiler refuses the products of
    prepare_for_streaming, and makes its own."""
    slower = {fast: module for module, fast in FASTER.items()}
    for module in codec.modules():
        if type(module) in slower:
            module.__class__ = slower[type(module)]
    return codec


# --- before and after ---

@torch.inference_mode()
def measure(codecs, frames):
    """Frames of noise through each codec, in turns -> {(name, part): milliseconds [frames]}.

    codecs: {name: codec}"""
    times = {}
    for codec in codecs.values():
        codec.start(1)
    for _ in range(frames + WARM_UP):
        audio = 0.1 * torch.randn(1, 1, mimi.PRESETS["released"].frame_size)
        for name, codec in codecs.items():
            start = time.perf_counter()
            codes = codec.encode_chunk(audio)
            middle = time.perf_counter()
            codec.decode_chunk(codes)
            end = time.perf_counter()
            times.setdefault((name, "encode"), []).append(1000 * (middle - start))
            times.setdefault((name, "decode"), []).append(1000 * (end - middle))
    return {key: torch.tensor(values[WARM_UP:]) for key, values in times.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m workshop.fast_codec",
                                     description="Time the codec's frames before and after.")
    parser.add_argument("--model", default="tiny/model",
                        help="folder, or 'released': its shape with random weights "
                             "(default: %(default)s)")
    parser.add_argument("--frames", type=int, default=200, help="frames (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: %(default)s)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.model == "released":
        codec = mimi.Mimi(mimi.PRESETS["released"]).eval().requires_grad_(False)
    else:
        try:
            codec = codec_files.load(args.model)
        except ValueError as error:
            sys.exit(f"fast_codec.py: {error}")
    fast = prepare_for_streaming(deepcopy(codec))
    for (name, part), times in measure({"plain": codec, "fast": fast}, args.frames).items():
        print(f"{name:<6}{part:<8}{times.median():8.2f} ms, p99 {times.quantile(0.99):8.2f} ms")


if __name__ == "__main__":
    main()
