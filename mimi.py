"""Mimi, the codec: 24 kHz waveform <-> 12.5 frames a second of 8 codes, offline and frame by frame.

What this is: the published codec (Moshi, arXiv 2410.00037, section 3.3; FLM-Audio section 2.1 uses
it as is), exact against its weights, and the same skeleton at miniature size. One class serves
both; `Config.ends` picks what stands between the waveform and the 25 Hz latent: SEANet convolutions
(released) or a short-time spectrum (the miniature). What this is not: files
(workshop/codec_files.py), or a trainer; tiny/codec.py trains the miniature through these modules.

    audio --encoder--> --transformer--> --downsample--> --nearest entries--> codes [B, K, T]
          24 kHz       25 Hz            25 Hz           12.5 Hz              12.5 Hz
    audio <--decoder-- <--transformer-- <--upsample---- <--sum of entries--- codes

Unusual here:
- Everything is causal, so one piece of code serves the offline pass and the frame-by-frame stream,
  and both give the same. A module that needs its past keeps it in `state`; `with
  codec.streaming(batch_size):` enters and leaves all states at once.
- A state has one shape and one address, and counts on the device: a frame can be compiled, and be a
  CUDA graph.
- Parameter names are those of Moshi's checkpoint, so its file loads without renaming.

    python mimi.py voice.wav again.wav            # what the shipped codec keeps of a voice

Shapes: B batch, N samples, T frames, K = 8 codebooks used, D latent width, S steps of the 25 Hz
transformers.
"""
import math
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass

from workshop import command

if __name__ == "__main__":
    command.stop_while_loading("mimi.py")

import torch
import torch.nn.functional as F
from torch import nn

from workshop import codec_checks

# Seconds. A longer clip is coded chunk by chunk through the streaming states, so that memory stays
# flat.
LONG = 30


@dataclass(frozen=True)
class Config:
    """One codec's architecture, as in mimi.json. The defaults are the released Mimi. Raises
    ValueError, one sentence, for settings of which no codec can be built."""
    sample_rate: int = 24_000
    frame_rate: float = 12.5
    channels: int = 1
    ends: str = "seanet"            # or "stft"
    n_filters: int = 64             # seanet: channels after the first convolution
    ratios: tuple = (8, 6, 5, 4)    # seanet: strides, in the decoder's order
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    compress: int = 2               # seanet: width of a residual block's inside
    n_mels: int = 80                # stft: bands that the encoder sees
    window: int = 960               # stft: samples
    hop: int = 240                  # stft: samples
    conv_width: int = 256           # stft: the decoder's convolutions at the hop rate
    conv_layers: int = 3
    dimension: int = 512            # D
    num_layers: int = 8             # of each transformer
    num_heads: int = 8
    dim_feedforward: int = 2048
    context: int = 250              # steps that a step attends to, itself included
    max_period: float = 10_000
    layer_scale: float = 0.01
    codebook_size: int = 2048
    codebook_dim: int = 256
    n_q_total: int = 32
    n_q_used: int = 8               # K: codebooks that the language model reads (flm.K)

    def __post_init__(self):
        codec_checks.check(self)
        object.__setattr__(self, "ratios", tuple(self.ratios))  # a file has a list

    @property
    def frame_size(self):  # samples
        return round(self.sample_rate / self.frame_rate)

    @property
    def lag(self):
        """Samples by which the decoded waveform trails the encoded one. A short-time spectrum's
        last hop is complete only when the following windows have been added: three hops of the
        miniature are 30 ms."""
        return 0 if self.ends == "seanet" else self.window - self.hop


PRESETS = {
    "released": Config(),
    "tiny": Config(
        ends="stft", dimension=192, num_layers=3, num_heads=4, dim_feedforward=768, context=75,
        layer_scale=0.3, codebook_size=512, codebook_dim=64, n_q_total=8, conv_width=512,
        conv_layers=8),
}


# --- streaming: what a causal layer keeps ---
#
# A causal layer's output at a step depends on that step and on some of the past. So a layer that
# keeps just this past as its state gives, chunk by chunk, what it gives for the whole clip at once:
#
#     Conv             the last kernel - stride input steps
#     ConvTranspose    the half of its last output that the next input adds to
#     STFTEncoder      the last window - hop samples
#     STFTDecoder      the part of the last windows that is not complete yet
#     Attention        keys and values of the last `context` steps
#     Transformer      how many steps there were, for RoPE
#
# Everything else (norms, linear layers, activations) looks at one step alone and keeps nothing.

class Streaming(nn.Module):
    """A module with a past.

    `state` is None offline. In a stream it is a list of tensors [B, ...] that forward overwrites;
    they begin as the zeros that `start(batch_size, steps)` makes, for chunks of at most `steps`
    steps of 25 Hz. `active` [B] says to which streams a chunk belongs; the others stand still."""
    state = None
    active = None

    def keep(self, *values):
        """Make `values` the next state of the active streams. Offline there is none to keep."""
        if self.state is None:
            return
        for state, value in zip(self.state, values):
            active = self.active.view(-1, *[1] * (state.ndim - 1))
            state.copy_(torch.where(active, value, state))


def nested(name, depth, module):
    """`module` under `depth` levels of the same name, as Moshi's checkpoint nests its modules. A
    call goes through to it."""
    for _ in range(depth):
        module = nn.Sequential(OrderedDict({name: module}))
    return module


class Conv(Streaming):
    """Causal convolution. The left padding is the past. The number of input steps must be a
    multiple of the stride.

        kernel 4, stride 2:   [p p|x0 x1|x2 x3]   p: the two steps before, zeros at the start
                               \\______/ y0           (or x0 repeated, with `replicate`)
                                   \\______/ y1
    """

    def __init__(self, c_in, c_out, kernel, stride=1, bias=True, replicate=False, nesting=1):
        super().__init__()
        self.conv = nested("conv", nesting, nn.Conv1d(c_in, c_out, kernel, stride, bias=bias))
        self.c_in = c_in
        self.kernel = kernel
        self.stride = stride
        self.past = kernel - stride
        self.replicate = replicate

    def start(self, batch_size, steps):
        weight = next(self.parameters())
        past = weight.new_zeros(batch_size, self.c_in, self.past)
        has_past = weight.new_zeros(batch_size, 1, 1, dtype=torch.bool)
        return [past, has_past]

    def forward(self, x):  # [B, c_in, S] -> [B, c_out, S / stride]
        first = x[..., :1] if self.replicate else torch.zeros_like(x[..., :1])
        past = first.expand(-1, -1, self.past)
        if self.state:
            last_steps, has_past = self.state
            past = torch.where(has_past, last_steps, past)
        x = torch.cat([past, x], -1)
        self.keep(x[..., x.shape[-1] - self.past:], True)  # from now on there is a past
        return self.conv(x)


class ConvTranspose(Streaming):
    """Causal transposed convolution of kernel 2 x stride: the second half of each input's output is
    added to the first half of the next one's."""

    def __init__(self, c_in, c_out, stride, bias=True, groups=1, nesting=1):
        super().__init__()
        convtr = nn.ConvTranspose1d(c_in, c_out, 2 * stride, stride, bias=bias, groups=groups)
        self.convtr = nested("convtr", nesting, convtr)
        self.c_out = c_out
        self.stride = stride

    def start(self, batch_size, steps):
        weight = next(self.parameters())
        return [weight.new_zeros(batch_size, self.c_out, self.stride)]

    def forward(self, x):  # [B, c_in, S] -> [B, c_out, S * stride]
        y, overhang = self.convtr(x).tensor_split([-self.stride], -1)
        if self.state:
            y[..., :self.stride] += self.state[0]
            _, *bias = self.parameters()
            if bias:
                overhang = overhang - bias[0][:, None]  # the next output brings the bias again
            self.keep(overhang)
        return y


# --- SEANet, the released ends ---
#
# What a frame is on its way, channels x steps. The decoder goes the same way back, with transposed
# convolutions in place of those with a stride.
#
#     1 x 1920 --> 64 x 1920 --> 128 x 480 --> 256 x 96 --> 512 x 16 --> 1024 x 2 --> 512 x 2
#         kernel 7      stride 4      stride 5     stride 6     stride 8      kernel 3
#
# A Residual stands before each stride of the encoder, and after each of the decoder.

class Residual(nn.Module):
    """x plus what two convolutions make of it: one that sees some steps, at a part of the width,
    and one that sees a single step, back to the whole width. [B, width, S] -> [B, width, S]"""

    def __init__(self, config, width):
        super().__init__()
        inside = width // config.compress
        self.block = nn.Sequential(
            nn.ELU(),
            Conv(width, inside, config.residual_kernel_size),
            nn.ELU(),
            Conv(inside, width, 1))

    def forward(self, x):
        return x + self.block(x)


def seanet_encoder(config):
    """[B, 1, N] -> [B, D, S]"""
    width = config.n_filters
    layers = [Conv(config.channels, width, config.kernel_size)]
    for stride in reversed(config.ratios):
        layers += [Residual(config, width), nn.ELU(), Conv(width, 2 * width, 2 * stride, stride)]
        width *= 2
    layers += [nn.ELU(), Conv(width, config.dimension, config.last_kernel_size)]
    return nested("model", 1, nn.Sequential(*layers))


def seanet_decoder(config):
    """[B, D, S] -> [B, 1, N]"""
    width = config.n_filters * 2 ** len(config.ratios)
    layers = [Conv(config.dimension, width, config.kernel_size)]
    for stride in config.ratios:
        half = width // 2
        layers += [nn.ELU(), ConvTranspose(width, half, stride), Residual(config, half)]
        width = half
    layers += [nn.ELU(), Conv(width, config.channels, config.last_kernel_size)]
    return nested("model", 1, nn.Sequential(*layers))


# --- short-time spectrum, the miniature's ends ---

def mel_bands(n_mels, n_bins, sample_rate):
    """Triangular filters, equally spaced on the mel scale (2595 log10(1 + f / 700)), each of unit
    sum: [n_mels, n_bins]"""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, n_mels + 2) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, n_bins)
    up = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bands = torch.minimum(up, down).clamp(min=0)
    return bands / bands.sum(1, keepdim=True).clamp(min=1e-6)


class STFTEncoder(Streaming):
    """Log-mel spectrum of windows that end with each hop; four hops make a step of 25 Hz.
    [B, 1, N] -> [B, D, S]"""

    def __init__(self, config):
        super().__init__()
        self.window_size = config.window
        self.hop = config.hop
        bands = mel_bands(config.n_mels, config.window // 2 + 1, config.sample_rate)
        self.register_buffer("window", torch.hann_window(config.window), persistent=False)
        self.register_buffer("bands", bands, persistent=False)
        self.linear = nn.Linear(4 * config.n_mels, config.dimension)

    def start(self, batch_size, steps):
        return [self.window.new_zeros(batch_size, 1, self.window_size - self.hop)]

    def forward(self, x):
        past = self.state[0] if self.state else x.new_zeros(len(x), 1, self.window_size - self.hop)
        x = torch.cat([past, x], -1)
        self.keep(x[..., self.hop - self.window_size:])
        frames = x[:, 0].unfold(-1, self.window_size, self.hop) * self.window  # [B, 4 S, window]
        spectrum = torch.view_as_real(torch.fft.rfft(frames))                  # [B, 4 S, bins, 2]
        mel = spectrum.square().sum(-1).sqrt() @ self.bands.T                  # [B, 4 S, n_mels]
        # The floor is white noise 86 dB below full scale; values are about -3 .. 2.
        log_mel = (mel.clamp(min=1e-3).log() + 1) / 2
        steps = log_mel.unflatten(1, (-1, 4)).flatten(2)                       # [B, S, 4 n_mels]
        return self.linear(steps).transpose(1, 2)


class STFTDecoder(Streaming):
    """Convolutions at the hop rate, then log-magnitude and phase, inverse spectrum, overlap-add.
    [B, D, S] -> [B, 1, N]

    The output trails by `Config.lag`: with a window of four hops, a hop of the output is complete
    when its fourth window has been added.

        window i       |a0|a1|a2|a3|        hop i out = a0 + b1 + c2 + d3,
        window i + 1      |.0|.1|.2|.3|     where b, c, d are the three windows before;
                                            a1 .. a3 wait in `state`
    """

    def __init__(self, config):
        super().__init__()
        self.window_size = config.window
        self.hop = config.hop
        width = config.conv_width
        window = torch.hann_window(config.window)
        # Squared windows, overlapped, add up to a constant: what overlap-add must be divided by.
        overlapped = window.square()[::config.hop].sum()
        self.register_buffer("window", window / overlapped, persistent=False)
        self.linear = nn.Linear(config.dimension, 4 * width)
        self.convs = nn.ModuleList(Conv(width, width, 3) for _ in range(config.conv_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.conv_layers))
        self.head = nn.Linear(width, 2 * (config.window // 2 + 1))

    def start(self, batch_size, steps):
        return [self.window.new_zeros(batch_size, 1, self.window_size - self.hop)]

    def forward(self, x):
        x = self.linear(x.transpose(1, 2)).unflatten(2, (4, -1))       # [B, S, 4, conv_width]
        x = x.flatten(1, 2)                                            # [B, 4 S, conv_width]
        for conv, norm in zip(self.convs, self.norms):
            x = x + F.gelu(conv(norm(x).transpose(1, 2)).transpose(1, 2))
        return self.synthesize(self.head(x))

    def synthesize(self, x):  # [B, hops, 2 bins] -> [B, 1, hops * hop]
        log_magnitude, phase = x.chunk(2, -1)
        spectrum = torch.polar(log_magnitude.clamp(max=6).exp(), phase)
        windows = torch.fft.irfft(spectrum, self.window_size) * self.window  # [B, hops, window]
        return self.overlap_add(windows)

    def overlap_add(self, windows):  # [B, hops, window] -> [B, 1, hops * hop]
        overhang = self.window_size - self.hop
        complete = windows.shape[1] * self.hop
        y = F.fold(windows.transpose(1, 2), (1, complete + overhang), (1, self.window_size),
                   stride=(1, self.hop))[:, 0]
        if self.state:
            y[..., :overhang] += self.state[0]
            self.keep(y[..., complete:])
        return y[..., :complete]


# --- transformers at 25 Hz ---
#
# One stands on either side of the quantizer: convolutions see a fraction of a second, attention 10
# seconds (`context` steps). A step is normed before each part; positions are RoPE's.

def rotate(x, cos, sin):
    """RoPE, interleaved: neighbours turn together.

    x [B, heads, S, head_dim], cos and sin [B, 1, S, head_dim / 2]"""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Attention(Streaming):
    """The state is the keys and values of the last steps, each in a ring: step s stands in place
    s % its length."""

    def __init__(self, config):
        super().__init__()
        dim = config.dimension
        self.heads = config.num_heads
        self.context = config.context
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) * dim ** -0.5)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def start(self, batch_size, steps):
        head_dim = self.out_proj.in_features // self.heads
        shape = (batch_size, self.heads, self.context + steps - 1, head_dim)
        keys = self.in_proj_weight.new_zeros(shape)
        values = self.in_proj_weight.new_zeros(shape)
        return [keys, values]

    def forward(self, x, cos, sin, places, mask):  # [B, S, D]
        qkv = F.linear(x, self.in_proj_weight).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                   # [B, heads, S, head_dim] each
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        if self.state:
            # A stream that stands still writes too, where its next step will write again.
            batch = torch.arange(len(x), device=x.device)[:, None]
            keys, values = self.state
            keys[batch, :, places] = k.transpose(1, 2)
            values[batch, :, places] = v.transpose(1, 2)
            k, v = keys, values
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then an MLP. What either adds is scaled channel by channel (`layer_scale`); the
    scales start small, so an untrained layer passes on what it gets."""

    def __init__(self, config):
        super().__init__()
        dim = config.dimension
        self.self_attn = Attention(config)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.dim_feedforward, bias=False)
        self.linear2 = nn.Linear(config.dim_feedforward, dim, bias=False)
        self.layer_scale_1 = nn.ParameterDict({"scale": torch.full((dim,), config.layer_scale)})
        self.layer_scale_2 = nn.ParameterDict({"scale": torch.full((dim,), config.layer_scale)})

    def forward(self, x, cos, sin, places, mask):
        x = x + self.layer_scale_1["scale"] * self.self_attn(self.norm1(x), cos, sin, places, mask)
        y = self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return x + self.layer_scale_2["scale"] * y


class Transformer(Streaming):
    """[B, D, S] -> [B, D, S]: causal attention over the last `context` steps. The state is the
    number of steps so far.

        context 4, steps 6 and 7 come:   places [5|6|7|3|4]    one more than context, since step 6
        sees 3
    """

    def __init__(self, config):
        super().__init__()
        self.context = config.context
        layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.transformer = nested("layers", 1, layers)
        half = config.dimension // config.num_heads // 2
        frequencies = config.max_period ** (-torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def start(self, batch_size, steps):
        self.ring = self.context + steps - 1
        return [torch.zeros(batch_size, 1, device=self.frequencies.device, dtype=torch.long)]

    def forward(self, x):
        x = x.transpose(1, 2)
        S = x.shape[1]
        first = self.state[0] if self.state else 0
        length = self.ring if self.state else S
        step = torch.arange(S, device=x.device)[None] + first                # [B or 1, S]
        self.keep(step[:, -1:] + 1)
        # In float32 the angle would be blurred after an hour of steps (MPS has float32 alone).
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        angle = step[:, None, :, None].to(exact) * self.frequencies      # [B, 1, S, head_dim / 2]
        cos = angle.cos().to(x.dtype)
        sin = angle.sin().to(x.dtype)
        # How old, seen from each step, is what a place holds: [B, S, length].
        age = (step[..., None] - torch.arange(length, device=x.device)) % length
        mask = (age < self.context) & (age <= step[..., None])
        for layer in self.transformer.layers:
            x = layer(x, cos, sin, step % length, mask[:, None])
        return x.transpose(1, 2)


# --- split residual vector quantizer ---
#
#     latent --proj--> nearest entry of codebook 0                           code 0, semantic
#        |
#        +---proj--> nearest entry of codebook 1                             code 1, acoustic
#                    what is left --> nearest entry of codebook 2            code 2
#                                     what is left --> ...                   ... code 7
#
# 8 codes of 2,048 entries are 8 x 11 bits a frame: 1.1 kbit/s.

class Codebook(nn.Module):
    """Entries as running sums and counts, so that training can move them by averages:
    entry = sum / max(count, 1e-5)."""

    def __init__(self, config):
        super().__init__()
        self.register_buffer("_initialized", torch.ones(1))
        self.register_buffer("cluster_usage", torch.ones(config.codebook_size))
        sums = torch.randn(config.codebook_size, config.codebook_dim)
        self.register_buffer("embedding_sum", sums)

    @property
    def entries(self):  # [C, codebook_dim]
        return self.embedding_sum / self.cluster_usage.clamp(min=1e-5)[:, None]

    def lookup(self, codes):  # [...] -> [..., codebook_dim]
        # Not from `entries`, which would divide all of them.
        counts = self.cluster_usage[codes].clamp(min=1e-5)
        return F.embedding(codes, self.embedding_sum) / counts[..., None]

    def nearest(self, x):  # [..., codebook_dim] -> [...]
        entries = self.entries
        return (entries.square().sum(-1) - 2 * x @ entries.T).argmin(-1)


class ResidualVQ(nn.Module):
    """n codebooks, each quantizing what the ones before it left over."""

    def __init__(self, config, n):
        super().__init__()
        D, width = config.dimension, config.codebook_dim
        self.input_proj = nn.Conv1d(D, width, 1, bias=False)
        self.output_proj = nn.Conv1d(width, D, 1, bias=False)
        layers = nn.ModuleList(nested("_codebook", 1, Codebook(config)) for _ in range(n))
        self.vq = nested("layers", 1, layers)

    @property
    def codebooks(self):
        return [layer._codebook for layer in self.vq.layers]

    def encode(self, latent, n):  # [B, D, T] -> [B, n, T]
        residual = self.input_proj(latent).transpose(1, 2)
        codes = []
        for codebook in self.codebooks[:n]:
            code = codebook.nearest(residual)
            residual = residual - codebook.lookup(code)
            codes.append(code)
        return torch.stack(codes, 1)

    def decode(self, codes):  # [B, n, T] -> [B, D, T]
        entries = [book.lookup(code) for code, book in zip(codes.unbind(1), self.codebooks)]
        return self.output_proj(sum(entries).transpose(1, 2))


class SplitRVQ(nn.Module):
    """Codebook 0 (semantic) and the codebooks from 1 on (acoustic) quantize the same latent side by
    side; decoding adds them."""

    def __init__(self, config):
        super().__init__()
        self.used = config.n_q_used
        self.rvq_first = ResidualVQ(config, 1)
        self.rvq_rest = ResidualVQ(config, config.n_q_total - 1)

    def encode(self, latent):  # [B, D, T] -> [B, K, T]
        semantic = self.rvq_first.encode(latent, 1)
        acoustic = self.rvq_rest.encode(latent, self.used - 1)
        return torch.cat([semantic, acoustic], 1)

    def decode(self, codes):  # [B, K, T] -> [B, D, T]
        return self.rvq_first.decode(codes[:, :1]) + self.rvq_rest.decode(codes[:, 1:])


# --- the codec ---

class Mimi(nn.Module):
    """The codec. Make one with codec_files.load, or `Mimi(config)` for an untrained one."""
    frames = 0  # of a chunk in a stream, at most; 0 offline

    def __init__(self, config):
        super().__init__()
        self.config = config
        D = config.dimension
        is_seanet = config.ends == "seanet"
        self.encoder = seanet_encoder(config) if is_seanet else STFTEncoder(config)
        self.encoder_transformer = Transformer(config)
        self.downsample = Conv(D, D, 4, 2, bias=False, replicate=True, nesting=2)
        self.quantizer = SplitRVQ(config)
        self.upsample = ConvTranspose(D, D, 2, bias=False, groups=D, nesting=2)
        self.decoder_transformer = Transformer(config)
        self.decoder = seanet_decoder(config) if is_seanet else STFTDecoder(config)

    def to_latent(self, audio):
        """[B, 1, N], N whole frames -> the latent before quantization, [B, D, T]"""
        return self.downsample(self.encoder_transformer(self.encoder(audio)))

    def from_latent(self, latent):
        """[B, D, T] -> [B, 1, frame_size T]"""
        return self.decoder(self.decoder_transformer(self.upsample(latent)))

    @torch.no_grad()
    def encode(self, audio):
        """audio [B, 1, N] at 24 kHz in -1 .. 1 -> codes [B, K, T], T = ceil(N / 1920).

        Offline, an incomplete last frame is filled with silence; in a stream N must be whole frames
        (ValueError)."""
        if audio.ndim != 3 or audio.shape[1] != self.config.channels:
            raise ValueError(f"audio must be [B, {self.config.channels}, N], "
                             f"not {list(audio.shape)}")
        size = self.config.frame_size
        missing = -audio.shape[-1] % size
        if missing and self.frames:
            raise ValueError(f"a stream takes whole frames of {size} samples, "
                             f"not {audio.shape[-1]} samples")
        audio = F.pad(audio, (0, missing))
        return self.in_chunks(self.encode_chunk, audio, size)

    def encode_chunk(self, audio):
        return self.quantizer.encode(self.to_latent(audio))

    @torch.no_grad()
    def decode(self, codes):
        """codes [B, K, T] -> audio [B, 1, 1920 T]; the miniature's trails by `config.lag` samples.

        Raises ValueError for codes that the codec does not have (the language model's empty id is
        one)."""
        used, size = self.config.n_q_used, self.config.codebook_size
        if codes.ndim != 3 or codes.shape[1] != used:
            raise ValueError(f"codes must be [B, {used}, T], not {list(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise ValueError(f"codes must be 0 .. {size - 1}, "
                             f"not {int(codes.min())} .. {int(codes.max())}")
        return self.in_chunks(self.decode_chunk, codes, 1)

    def decode_chunk(self, codes):
        return self.from_latent(self.quantizer.decode(codes))

    def in_chunks(self, run, x, per_frame):
        """Run an input chunk by chunk: through the states of the stream, or, for a long input
        offline, through those of a stream that begins and ends here."""
        frames = self.frames or round(LONG * self.config.frame_rate)
        if not self.frames and x.shape[-1] > frames * per_frame:
            with self.streaming(len(x), frames):
                return self.in_chunks(run, x, per_frame)
        chunks = [run(chunk) for chunk in x.split(frames * per_frame, -1)]
        return torch.cat(chunks, -1)

    def start(self, batch_size, frames=1):
        """From here on take `batch_size` parallel streams, in chunks of at most `frames`, and
        remember their past; those that `active` [batch_size] leaves out stand still. batch_size 0:
        offline again."""
        device = self.quantizer.rvq_first.input_proj.weight.device
        self.frames = frames if batch_size else 0
        self.active = torch.ones(batch_size, dtype=torch.bool, device=device)
        for module in self.modules():
            if isinstance(module, Streaming):
                module.state = module.start(batch_size, 2 * frames) if batch_size else None
                module.active = self.active

    def reset(self, i):
        """Stream i begins anew."""
        for module in self.modules():
            if isinstance(module, Streaming) and module.state:
                for state in module.state:
                    state[i] = 0

    @contextmanager
    def streaming(self, batch_size, frames=1):
        """Within, encode and decode take the next frames of `batch_size` streams."""
        if self.frames:
            raise RuntimeError("this codec is streaming already: leave that stream first, "
                               "or load a second codec")
        self.start(batch_size, frames)
        try:
            yield self
        finally:
            self.start(0)


if __name__ == "__main__":
    from workshop import codec_command  # it imports this file
    command.run("mimi.py", codec_command.main)
