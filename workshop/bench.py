"""How fast a frame is, and what memory would allow.

What this is: `chat.py --bench`: the parts of a frame timed, beside the straightforward loop (a
cache that grows by concatenation, the depth prefix computed anew for each codebook), and beside the
bandwidth that this machine shows. It serves chat.py. What this is not: the frame itself (chat.py),
or weights of few bits (quantize.py).

    python chat.py --bench                                     # the shipped model
    python chat.py --bench --random-weights 7b --bits 4 --device cuda

Unusual here:
- A frame of one conversation reads nearly every weight for one product with a vector. So its time
  is bytes over bandwidth, and the share of the bandwidth is the number to look at. Embeddings are
  not counted, since one row of each is read; every other weight is counted once.
- Both loops run in turns, frame by frame, so that whatever else this machine does slows both.
"""
import json
import platform
import sys
import time
from copy import deepcopy
from pathlib import Path

import torch

import flm
import mimi
from flm import K
from workshop import devices, fast_codec, model_files, pace, partner_files, quantize
from workshop.lean_model import LeanModel

# The functions of chat.py that are the parts of a frame, and how the report calls them.
PARTS = {"encode_user": "encode", "read_row": "backbone", "write_codes": "depth",
         "decode_model": "decode"}
FILLED = 250  # frames (20 s) in both caches when timing starts
WARM_UP = 3   # frames that are not counted


class StraightforwardLoop:
    """What the frame is measured against: the same model, greedy, as one would first write it. It
    takes flm.KVCache's place."""
    mask = None

    def __init__(self, model):
        self.model = model
        self.device = model.model.norm.weight.device
        self.k = {}  # layer -> [1, H_kv, T, d]
        self.v = {}
        self.position = 0

    def advance(self, T):
        self.position += T
        return torch.tensor([[[self.position - 1]]], device=self.device)

    def append(self, layer, k, v):
        if layer in self.k:
            k = torch.cat([self.k[layer], k], 2)
            v = torch.cat([self.v[layer], v], 2)
        self.k[layer] = k
        self.v[layer] = v
        return k, v

    def fill(self, cache):
        """Begin with the frames of a KVCache of one conversation."""
        self.position = cache.filled
        dtype = self.model.model.norm.weight.dtype
        for layer, (k, v) in enumerate(zip(cache.k, cache.v)):
            self.k[layer] = k[:, :, :self.position].to(dtype, copy=True)
            self.v[layer] = v[:, :, :self.position].to(dtype, copy=True)

    @torch.inference_mode()
    def step(self, text, speak_codes, listen_codes):
        """Ids of a row -> text id and codes [8] of the next."""
        row = [torch.tensor([[ids]], device=self.device)
               for ids in (text, speak_codes, listen_codes)]
        h = self.model.hidden(*row, self)[:, 0]
        next_text = self.model.text_logits(h).argmax(-1)
        codes = torch.zeros(1, 0, dtype=torch.long, device=self.device)
        for _ in range(K):
            logits = self.model.depth_logits(h, codes)[:, -1]
            codes = torch.cat([codes, logits.argmax(-1, keepdim=True)], 1)
        return next_text.item(), codes[0].tolist()


def clock(run, device):
    """Seconds that `run()` takes, device included, and what it returns."""
    settle(device)
    start = time.perf_counter()
    result = run()
    settle(device)
    return time.perf_counter() - start, result


def settle(device):
    """Wait until the device has done all that it was told to do."""
    if str(device).startswith("cuda"):
        torch.cuda.synchronize(device)


def bandwidth(device):
    """Bytes per second of reading 1 GiB, more than caches hold, best of five."""
    block = torch.ones(2**28, device=device)
    return block.nbytes / min(clock(block.sum, device)[0] for _ in range(5))


def weight_bytes(model):
    """Bytes of weights that a frame of one conversation reads, each counted once, embeddings
    not."""
    def size(*modules):
        return sum(tensor.nbytes for module in modules
                   for tensor in (*module.parameters(), *module.buffers()))
    depth = model.aud_output_layers
    all_read = size(model.model.layers, model.model.norm, model.lm_head, depth)
    return all_read - size(depth.transformer["wtes"])


def subject(args):
    """The model and codec that --bench times: of a folder, or of a preset with random weights.
    Those of the model are numbers of 16 bits, as the release's are."""
    if not args.random_weights:
        model, codec, _ = partner_files.read(args.model, args.device, args.dtype, args.bits,
                                             args.codec_bits)
        return model, codec
    torch.manual_seed(0)
    model = flm.FLM(flm.PRESETS[args.random_weights])
    flm.init_weights(model, args.device, torch.bfloat16).to(args.dtype).eval()
    quantize.pack(model, args.bits)
    codec = mimi.Mimi(mimi.PRESETS["tiny" if args.random_weights == "tiny" else "released"])
    devices.convolve_exactly()
    codec = codec.eval().requires_grad_(False).to(args.device)
    if args.codec_bits == 16:
        fast_codec.round_weights(codec)
    return model, fast_codec.prepare_for_streaming(codec)


@torch.inference_mode()
def divergence(model, folder, device, frames=24):
    """KL in nats, (text, codes), from the predictions of a folder's whole weights to these, over
    one conversation of theirs in which the user's codes are random."""
    whole = model_files.load(folder, device, model.model.norm.weight.dtype).eval()
    config = whole.config
    loop = StraightforwardLoop(whole)
    generator = torch.Generator().manual_seed(0)
    listen = torch.randint(config.empty_token, (frames, K), generator=generator)
    rows = [(config.wait_token, [config.pad_token] * K)]
    for listen_codes in listen.tolist():
        rows.append(loop.step(*rows[-1], listen_codes))
    text = torch.tensor([[text for text, _ in rows]], device=device)          # [1, frames + 1]
    speak = torch.tensor([[codes for _, codes in rows]], device=device)       # [1, frames + 1, K]
    predictions = []
    for one in (whole, model):
        h = one.hidden(text[:, :-1], speak[:, :-1], listen[None].to(device))
        logits = one.text_logits(h)[0], one.depth_logits(h[0], speak[0, 1:, :-1])
        predictions.append([values.float().log_softmax(-1) for values in logits])
    return [(p.exp() * (p - q)).sum(-1).mean().item() for p, q in zip(*predictions)]


class Timer:
    """Milliseconds of the parts of a frame, and of whatever else it is called with.

    times: {name: [milliseconds of each call]}."""

    def __init__(self, device):
        self.device = device
        self.times = {}

    def __call__(self, name, call):
        seconds, result = clock(call, self.device)
        self.times.setdefault(name, []).append(1000 * seconds)
        return result


@torch.inference_mode()
def skip_to(cache, frames):
    """A KVCache as if there had been so many frames, of which it remembers nothing but zeros."""
    cache.position.fill_(frames)
    cache.filled = min(frames, cache.length)


@torch.inference_mode()
def time_frames(args, model, codec, duplex, timer, filled):
    """Both loops, frame by frame -> milliseconds of the parts: {name: [frames]}; those of the
    straightforward loop, with `model`, are "straightforward". filled: frames in the caches."""
    config = model.config
    plain = StraightforwardLoop(model)
    skip_to(duplex.cache, filled)
    plain.fill(duplex.cache)
    timer.times.clear()  # what compiling took
    row = (config.wait_token, [config.pad_token] * K)
    for _ in range(args.frames + WARM_UP):
        user_audio = 0.1 * torch.randn(codec.config.frame_size)
        duplex.steps({0: user_audio})
        listen_codes = duplex.state.listen[0].tolist()
        row = timer("straightforward", lambda: plain.step(*row, listen_codes))
    return {name: torch.tensor(values[WARM_UP:]) for name, values in timer.times.items()}


def bench(args, duplex_class):
    """--bench: a table, and the same as JSON on the last line. duplex_class: chat.Duplex."""
    model, codec = subject(args)
    pace.settle_threads(model, codec)
    timer = Timer(args.device)
    untouched = model
    if torch.device(args.device).type == "cpu":
        untouched = deepcopy(model)  # lean_model.py lays the weights as a CPU reads them fastest
    duplex = duplex_class(model, args.sampling, codec=codec, timer=timer, **args.shape)
    filled = FILLED if duplex.cache.length > FILLED else 0
    times = time_frames(args, untouched, codec, duplex, timer, filled)
    slow = times.pop("straightforward").median().item()
    frames = torch.stack(list(times.values())).sum(0)
    medians = {PARTS[name]: values.median().item() for name, values in times.items()}
    step = medians["backbone"] + medians["depth"]
    frame_model = duplex.tools.model
    is_lean = isinstance(frame_model, LeanModel)
    weight_size = frame_model.weight_bytes() if is_lean else weight_bytes(model)
    measured = bandwidth(args.device)
    result = {
        "ms_per_frame": {"median": frames.median().item(), "p99": frames.quantile(0.99).item(),
                         "worst": frames.max().item()},
        "split_ms": medians,
        "straightforward_ms": slow,
        "speedup": slow / step,
        "weight_bytes_per_frame": weight_size,
        "bandwidth_bytes_per_s": measured,
        "bandwidth_share": weight_size / (step / 1000) / measured,
        "model": args.random_weights or str(args.model),
        "bits": args.bits,
        "device": hardware(args.device),
        "dtype": str(model.model.norm.weight.dtype).removeprefix("torch."),
    }
    if torch.device(args.device).type == "cuda":
        result["gigabytes"] = torch.cuda.max_memory_allocated(args.device) / 1e9
    if args.bits < 16 and not args.random_weights:
        text, codes = divergence(model, args.model, args.device)
        result["kl_nats"] = {"text": text, "codes": codes}
    print_table(result, args.frames, filled)
    print(json.dumps(result))


def print_table(result, frames, filled):
    """What was measured, for people."""
    weights = result["dtype"] if result["bits"] == 16 else f"{result['bits']} bits"
    print(f"{result['model']}, {weights}, {result['device']}, {frames} frames with {filled} in the "
          f"cache, {torch.get_num_threads()} threads")

    def line(name, text):
        print(f"{name:<28}{text}")
    for name, value in result["split_ms"].items():
        line(name, f"{value:>10.2f} ms")
    for name, value in result["ms_per_frame"].items():
        line(f"frame, {name}", f"{value:>10.2f} ms")
    line("straightforward loop", f"{result['straightforward_ms']:>10.2f} ms, "
                                 f"{result['speedup']:.2f} times backbone and depth")
    weight_size, measured = result["weight_bytes_per_frame"], result["bandwidth_bytes_per_s"]
    rate = result["bandwidth_share"] * measured
    line("weights read", f"{weight_size / 1e6:>10.1f} MB a frame, {rate / 1e9:.1f} GB/s: "
                         f"{result['bandwidth_share']:.0%} of the {measured / 1e9:.1f} GB/s that "
                         "this machine reads")
    if "gigabytes" in result:
        line("memory of the GPU", f"{result['gigabytes']:>10.2f} GB at most")
    if "kl_nats" in result:
        line("KL to whole weights", f"{result['kl_nats']['text']:>10.1e} nats a word, "
                                    f"{result['kl_nats']['codes']:.1e} a code")


def hardware(device):
    """The name of the processor or GPU."""
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
