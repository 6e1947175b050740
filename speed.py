"""How fast a frame is, in how many bits, and what memory would allow.

What this is: `chat.py --bench`: the one-frame step timed in its parts, beside the straightforward loop (a cache that grows
by concatenation, the depth prefix computed anew for each codebook) and beside the bandwidth that this machine shows; and
weights of 8 or 4 bits, made layer by layer while a model is loaded. What this is not: the step itself (chat.py).

    python chat.py --bench                                     # the shipped model
    python chat.py --bench --random-weights 7b --bits 4 --device cuda

Unusual here:
- A frame of one conversation reads nearly every weight for one product with a vector: time is bytes over bandwidth, so
  that share is the number to look at. Embeddings are not counted, one row of each is read; every other weight is, once.
- Both loops run in turns, frame by frame, so that whatever else this machine does slows both.
"""
import json
import platform
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import flm
import mimi
from flm import K
from workshop import model_files

FILLED = 250  # frames (20 s) in both caches when timing starts


class Packed(torch.nn.Module):
    """A Linear with 8-bit weights (a scale for each row) or 4-bit ones (a scale and an offset for each GROUP of a row).

    Decision: torch's own packed products, on which torchao's weight-only layers stand too: one package fewer."""
    GROUP, ROWS = 128, 4096  # ROWS at once: float32 copies of a whole 7B head would take as much memory as the packed model

    def __init__(self, linear, bits):
        super().__init__()
        w, self.bias, self.bits, self.shape = linear.weight.detach(), linear.bias, bits, linear.weight.shape
        self.pad = -w.shape[1] % self.GROUP  # the kernels want whole groups; 2730, the depth transformer's, has none
        packed, scale = zip(*(self._pack(F.pad(rows.float(), (0, self.pad, 0, -len(rows) % self.GROUP))) for rows in w.split(self.ROWS)))
        packed, scale, kept = torch.cat(packed), torch.cat(scale, -2 if bits == 4 else 0), w.dtype
        self.register_buffer("weight", packed)
        self.register_buffer("scale", scale.to(kept))

    def _pack(self, w):
        """Some rows, float32 -> their packed weights, and their scales [rows] or scales and offsets [groups, rows, 2]"""
        if self.bits == 8:
            scale = w.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
            return (w / scale).round().to(torch.int8), scale[:, 0]
        groups = w.unflatten(1, (-1, self.GROUP))
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = (high - low).clamp(min=1e-8) / 15
        ids = ((groups - low) / scale).round().clamp(0, 15).flatten(1).to(torch.int32)
        scale = torch.cat([scale, low + 8 * scale], -1).transpose(0, 1).contiguous()  # the kernels take 8 from an id
        if w.device.type == "cpu":
            return torch._convert_weight_to_int4pack_for_cpu(ids, 1), scale
        return torch._convert_weight_to_int4pack((ids[:, ::2] << 4 | ids[:, 1::2]).to(torch.uint8), 8), scale

    def forward(self, x):
        rows, cpu = F.pad(x.flatten(0, -2), (0, self.pad)), x.device.type == "cpu"
        if self.bits == 8:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale) if cpu else rows @ self.weight.to(x.dtype).T * self.scale
        else:
            product = torch._weight_int4pack_mm_for_cpu if cpu else torch._weight_int4pack_mm
            y = product(rows, self.weight, self.GROUP, self.scale)
        y = y[:, :self.shape[0]].unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


def packing(bits):
    """What model_files.load does with each Linear for 8 or 4 bits; None for whole weights. linear_in is read by rows, so it stays."""
    return None if bits == 16 else lambda name, linear: linear if name.endswith("linear_in") else Packed(linear, bits)


class StraightforwardLoop:
    """What the step is measured against: the same model, greedy, as one would first write it."""

    def __init__(self, model):
        self.model, self.k, self.v, self.mask, self.position = model, {}, {}, None, 0

    def advance(self, T):  # in flm.KVCache's place
        self.position += T
        return torch.tensor([[[self.position - 1]]], device=self.model.model.norm.weight.device)

    def append(self, layer, k, v):
        for held, new in ((self.k, k), (self.v, v)):
            held[layer] = torch.cat([held[layer], new], 2) if layer in held else new
        return self.k[layer], self.v[layer]

    def fill(self, cache):
        """Begin with the frames of a KVCache of one conversation."""
        self.position = cache.filled
        self.k, self.v = (dict(enumerate(part[:, :, :, :self.position].clone())) for part in (cache.k, cache.v))

    @torch.inference_mode()
    def step(self, text, speak, listen):
        """Ids of a row -> text id and codes [8] of the next."""
        row = (torch.tensor([[x]], device=self.model.model.norm.weight.device) for x in (text, speak, listen))
        h = self.model.hidden(*row, self)[:, 0]
        text, codes = self.model.text_logits(h).argmax(-1), torch.zeros(1, 0, dtype=torch.long, device=h.device)
        for _ in range(K):
            codes = torch.cat([codes, self.model.depth_logits(h, codes)[:, -1].argmax(-1, keepdim=True)], 1)
        return text.item(), codes[0].tolist()


def clock(run, device):
    """Seconds that `run()` takes, device included, and what it returns."""
    settle = torch.cuda.synchronize if str(device).startswith("cuda") else lambda: None
    settle()
    started = time.perf_counter()
    result = run()
    settle()
    return time.perf_counter() - started, result


def bandwidth(device):
    """Bytes per second of reading 1 GiB, more than caches hold, best of five."""
    block = torch.ones(2**28, device=device)
    return block.nbytes / min(clock(block.sum, device)[0] for _ in range(5))


def weight_bytes(model):
    """Bytes of weights that a frame of one conversation reads, each counted once, embeddings not."""
    def size(*modules):
        return sum(t.nbytes for m in modules for t in (*m.parameters(), *m.buffers()))
    depth = model.aud_output_layers
    return size(model.model.layers, model.model.norm, model.lm_head, depth) - size(depth.transformer["wtes"])


def subject(args, dtype):
    """The model and codec that --bench times: of a folder, or of a preset with random weights."""
    if not args.random_weights:
        return model_files.load(args.model, args.device, dtype, packing(args.bits)).eval(), mimi.load(args.model, args.device)
    torch.manual_seed(0)
    model = flm.init_weights(flm.FLM(flm.PRESETS[args.random_weights]), args.device, dtype).eval()
    if convert := packing(args.bits):
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                model.set_submodule(name, convert(name, module))
    codec = mimi.Mimi(mimi.PRESETS["tiny" if args.random_weights == "tiny" else "released"])
    return model, codec.eval().requires_grad_(False).to(args.device)


@torch.inference_mode()
def divergence(model, folder, device, frames=24):
    """KL in nats, (text, codes), from the predictions of a folder's whole weights to these, over one fixed session of theirs:
    random codes are heard."""
    whole = model_files.load(folder, device, model.model.norm.weight.dtype).eval()
    config, loop = whole.config, StraightforwardLoop(whole)
    listen = torch.randint(config.empty_token, (frames, K), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [(config.wait_token, [config.pad_token] * K)]
    for codes in listen:
        rows.append(loop.step(*rows[-1], codes))
    text, speak = (torch.tensor([list(column)], device=device) for column in zip(*rows))
    heard, predictions = torch.tensor([listen], device=device), []
    for one in (whole, model):
        h = one.hidden(text[:, :-1], speak[:, :-1], heard)
        logits = one.text_logits(h)[0], one.depth_logits(h[0], speak[0, 1:, :-1])
        predictions.append([x.float().log_softmax(-1) for x in logits])
    return [(p.exp() * (p - q)).sum(-1).mean().item() for p, q in zip(*predictions)]


@torch.inference_mode()
def bench(args, model, codec, duplex):
    """--bench: a table, and the same as JSON on the last line."""
    device, config, plain = args.device, model.config, StraightforwardLoop(model)
    duplex.cache.filled = filled = FILLED if duplex.cache.length > FILLED else 0
    duplex.cache.position.fill_(filled)
    plain.fill(duplex.cache)
    rows, row = [], (config.wait_token, [config.pad_token] * K)
    for _ in range(args.frames + 3):
        duplex.given.copy_(torch.cat([torch.ones(1), torch.rand(1 + K), 0.1 * torch.randn(codec.config.frame_size)]))
        took = [clock(part, device)[0] for part in duplex.parts.values()]
        seconds, row = clock(lambda: plain.step(*row, duplex.listen[0].tolist()), device)
        rows.append([*took, seconds])
    ms = 1000 * torch.tensor(rows[3:])  # the first frames warm up; the last column is the straightforward loop
    frames, (*medians, slow) = ms[:, :-1].sum(1), ms.median(0).values.tolist()
    medians = dict(zip(duplex.parts, medians))
    read, measured, step = weight_bytes(model), bandwidth(device), medians["backbone"] + medians["depth"]
    result = {"ms_per_frame": {"median": frames.median().item(), "p99": frames.quantile(0.99).item(), "worst": frames.max().item()},
              "split_ms": medians, "straightforward_ms": slow, "speedup": slow / step,
              "weight_bytes_per_frame": read, "bandwidth_bytes_per_s": measured, "bandwidth_share": read / (step / 1000) / measured,
              "model": args.random_weights or str(args.model), "bits": args.bits, "device": hardware(device),
              "dtype": str(model.model.norm.weight.dtype).removeprefix("torch.")}
    if args.bits < 16 and not args.random_weights:
        result["kl_nats"] = dict(zip(("text", "codes"), divergence(model, args.model, device)))
    print(f"{result['model']}, {args.bits if args.bits < 16 else result['dtype']}{' bits' * (args.bits < 16)}, {result['device']}, "
          f"{args.frames} frames with {filled} in the cache, {torch.get_num_threads()} threads")
    for name, value in medians.items():
        print(f"{name:<28}{value:>10.2f} ms")
    for name, value in result["ms_per_frame"].items():
        print(f"{'frame, ' + name:<28}{value:>10.2f} ms")
    print(f"{'straightforward loop':<28}{result['straightforward_ms']:>10.2f} ms, {result['speedup']:.2f} times backbone and depth")
    print(f"{'weights read':<28}{read / 1e6:>10.1f} MB a frame, {read / step / 1e6:.1f} GB/s: {result['bandwidth_share']:.0%} of the "
          f"{measured / 1e9:.1f} GB/s that this machine reads")
    if "kl_nats" in result:
        print(f"{'KL to whole weights':<28}{result['kl_nats']['text']:>10.1e} nats a word, {result['kl_nats']['codes']:.1e} a code")
    print(json.dumps(result))


def hardware(device):
    """The name of the processor or GPU."""
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    known = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(": ")[2] for line in known if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
