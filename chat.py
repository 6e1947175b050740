"""Listening and speaking at once: the sampler, the duplex loop, and the ways into a conversation.

What this is: the streaming loop of the release, token by token, behind a microphone, a page for the browser, Moshi's
clients, or a sound file. In every frame of 80 ms the model reads what was heard and what it said itself, and
writes its next word and its next 8 codes. There is no turn-taking; it is silent by writing silence (section 2.1).
What this is not: the model (flm.py), the codec (mimi.py), or a score (eval.py).

    microphone frame --encode--> 8 codes --+                     +--> 8 codes --decode--> loudspeaker frame
                                           +--> row --> model ---+
            text and 8 codes, written before --+ ^               +--> text: the monologue
                                                 +-------- next row -----------+

    python chat.py                                                          # microphone and headphones
    python chat.py --serve                                                  # the same in a browser, or any Moshi client
    python chat.py --in examples/question.wav --out answer.wav --tail 4     # a sound file
    python chat.py --bench --random-weights 0.5b                            # how fast, and how near to what memory allows

Unusual here:
- Semantic codes stand one row before the acoustic codes of their frame, in both directions (stream.py). So a frame is
  complete, and can be decoded, one step after its semantic code was sampled, and the first step returns nothing.
- Frame s of the answer is written beside frame s of the question, as in the grid. Live it is heard 80 ms later, when
  the question's frame has been listened to.
- A step draws nothing: numbers 0 .. 1 come in with the frame and pick the tokens. So it can be replayed as a CUDA graph,
  and each conversation of a batch has a seed of its own.
"""
import argparse
import json
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from workshop import pace

pace.sleep_while_waiting()  # OpenMP reads it when torch loads, so torch and what imports it come after

import torch
import torch.nn.functional as F

import flm
import mimi
import speed
from flm import K
from stream import FRAME_RATE
from workshop import sound_card

CONTEXT = 4096       # frames (5.5 min) that a conversation remembers where the model does not say; see `default_context`
PENALISED = 4        # codebooks 0 .. 3 have a repetition penalty, 4 .. 7 none, as in the release
LIKELIEST = 4096     # Decision: top-p looks at no more tokens than this: sorting 152,064 costs 9 ms on a CPU, these 1 ms
SHIPPED = Path(__file__).resolve().parent / "tiny" / "model"
RANGES = {"temperature": (0, 100), "top_p": (0, 1), "top_k": (0, 10**6), "penalty": (0.01, 100), "window": (0, 10_000)}


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the defaults are the release's. Temperature 0 is argmax; top_p 0 leaves the
    choice to top_k, top_k 0 to all tokens. window: tokens, or frames, that the repetition penalty looks back over."""
    temperature_text: float = 0.01
    temperature_audio: float = 0.5
    top_p_text: float = 0.9
    top_p_audio: float = 0.9
    top_k_text: int = 0
    top_k_audio: int = 0
    penalty_text: float = 1.03
    penalty_audio: float = 1.2
    window_text: int = 50
    window_audio: int = 50

    def __post_init__(self):
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), RANGES[field.name.rpartition("_")[0]]
            if type(value) not in (int, field.type) or not low <= value <= high:
                raise ValueError(f"{field.name} must be {low} .. {high}{' and whole' * (field.type is int)}, not {value}")

    @classmethod
    def of(cls, folder, **changed):
        """The sampling that a model folder asks for in its sampling.json, else the release's, with some fields changed.
        Raises ValueError that names the file."""
        file = flm.resolve(folder) / "sampling.json"
        if not file.exists():
            return cls(**changed)
        try:
            return cls(**{**json.loads(file.read_text()), **changed})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None

    def channel(self, c):
        """What channel c (0: text, 1 ..: codes) is drawn with: window, penalty, temperature, top_p, top_k."""
        kind = "audio" if c else "text"
        window, *drawn = (getattr(self, f"{name}_{kind}") for name in ("window", "penalty", "temperature", "top_p", "top_k"))
        return (window if c <= PENALISED and drawn[0] != 1 else 0), *drawn


def default_context(config):
    """Frames of an flm.Config's model that a conversation remembers.

    Attention between frames that are farther apart than the rows of training ever were is undefined: a model that was trained on
    rows of 640 frames and remembers 4,096 falls silent after a minute and never speaks again. So a model folder says how long
    its rows were (`trained_frames`), and no more is remembered.
    Decision: where it does not say, as the release does not, CONTEXT, half of the paper's rows of 8,192 (section 3.1)."""
    return min(config.trained_frames or CONTEXT, config.max_position_embeddings)


def sample(logits, chance, seen, penalty, temperature, top_p, top_k):
    """logits [B, V], chance [B] in 0 .. 1 -> tokens [B]. seen [B, W] or None: ids that the penalty, a number or [B, 1],
    makes less likely. Nothing here waits for the device."""
    logits = logits.float()
    if seen is not None:
        values = logits.gather(1, seen)  # an id that was seen twice is written twice, with the same value
        logits = logits.scatter(1, seen, torch.where(values > 0, values / penalty, values * penalty))
    if temperature < 1e-3:
        return logits.argmax(-1)
    ordered, ids = (logits / temperature).softmax(-1), None
    if top_p > 0 or top_k > 0:
        ordered, ids = ordered.topk(min(LIKELIEST if top_p > 0 else top_k, ordered.shape[-1]))
    if top_p > 0:
        ordered = ordered * (ordered.cumsum(-1) - ordered <= top_p)  # the first always stays
    summed = ordered.cumsum(-1)
    place = torch.searchsorted(summed, chance[:, None].clamp(max=1 - 1e-6) * summed[:, -1:], right=True)
    return (place if ids is None else ids.gather(1, place))[:, 0]


class Duplex:
    """`batch` conversations with a model: `step`, or `steps`, takes what is heard in a frame and returns what is said in it.
    That is codes; with a codec it is sound.

    Memory does not grow: the cache is a ring of `context` frames (None: what the model was trained on). fast: compile the frame, on CUDA as graphs. A frame's
    parts write into tensors that stay where they are, and never look at a value, so the device is waited for once: what
    a frame needs goes in as one tensor, `given`, and text id, codes and sound come back as one, `answer`."""

    def __init__(self, model, sampling=Sampling(), context=None, batch=1, fast=False, codec=None):
        config, norm = model.config, model.model.norm.weight
        context = min(context or default_context(config), config.max_position_embeddings)
        self.model, self.sampling, self.batch, device = model, sampling, batch, norm.device
        self.cache = flm.KVCache(config, batch, context, device, norm.dtype)
        self.depth_cache = flm.depth_cache(config, batch, device, norm.dtype)
        self.opening = torch.tensor([config.wait_token] + [config.pad_token] * K, device=device)
        self.written, self.told = (self.opening.repeat(batch, 1) for _ in range(2))     # [B, 9] text, speak: read next; returned
        self.listen, self.heard = (self.opening[1:].repeat(batch, 1) for _ in range(2)) # [B, 8] of this frame; of the last one
        self.frames = torch.zeros(batch, 1, device=device, dtype=torch.long)
        size = codec.config.frame_size if codec else 0
        self.packet = torch.zeros(batch, 2 + K + (size or K), pin_memory=device.type == "cuda")  # is there, chances, heard
        self.given = self.packet.to(device)
        self.answer = torch.zeros(batch, 1 + K + size, device=device)  # text, codes, said; ids up to 2^24 are exact
        self.h, self.text = norm.new_zeros(batch, config.hidden_size), self.frames[:, 0].clone()  # between two parts
        self.seen = {c: self.frames.repeat(1, window) for c in range(1 + K) if (window := sampling.channel(c)[0])}
        self.parts = {"encode": self._encode, "backbone": self._backbone, "depth": self._depth, "decode": self._decode}
        self.generators = [None] * batch
        self.codec = codec and deepcopy(codec, {id(t): t for t in (*codec.parameters(), *codec.buffers())})  # states of its own
        if codec:
            self.codec.start(batch)
        if fast:
            self._compile()

    @torch.inference_mode()
    def _compile(self):
        self.cache.fixed, cuda = True, self.h.device.type == "cuda"
        torch.compiler.reset()  # or after some changes of sampling the compiler gives up on the same code once more
        self.parts = {name: torch.compile(part, fullgraph=True, dynamic=False) for name, part in self.parts.items()}
        with torch.cuda.stream(torch.cuda.Stream()) if cuda else ExitStack():
            for part in [*self.parts.values()] * 3:
                part()
        if cuda:
            torch.cuda.synchronize()
            for name, part in self.parts.items():
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    part()
                self.parts[name] = graph.replay
        for i in range(self.batch):
            self.reset(i)

    @torch.inference_mode()
    def reset(self, i=0, seed=None):
        """Conversation i starts afresh. Its draws follow from `seed`; without one, from torch's generator."""
        self.written[i], self.heard[i] = self.opening, self.opening[1:]
        self.frames[i] = self.cache.position[i] = 0
        self.cache.filled *= self.batch > 1
        self.generators[i] = seed if seed is None else torch.Generator().manual_seed(seed)
        if self.codec:
            self.codec.reset(i)

    def step(self, listen):
        """listen, the user's codes [8] of a frame -> None in the first, then (text id, a list of 8 codes), as the release returns
        them."""
        first = self.frames[0, 0] == 0
        text, codes, _ = self.steps({0: listen})[0]
        return None if first else (text, codes)

    @torch.inference_mode()
    def steps(self, heard):
        """{conversation: heard}, codes [8] or, with a codec, samples [frame_size] -> {conversation: (text id, a list of 8 codes,
        samples or none)} of this frame. The first stands for nothing: <wait>, codes that begin with a pad, silence. Conversations
        that are not named stand still."""
        self.packet.zero_()
        for i, values in heard.items():
            self.packet[i, 0] = 1
            self.packet[i, 1:2 + K] = torch.rand(1 + K, generator=self.generators[i])
            self.packet[i, 2 + K:] = torch.as_tensor(values)
        self.given.copy_(self.packet, non_blocking=True)
        for part in self.parts.values():
            part()
        answer = self.answer.to("cpu", copy=True)  # the frame's one wait for the device
        ids = answer[:, :1 + K].long().tolist()
        return {i: (ids[i][0], ids[i][1:], answer[i, 1 + K:]) for i in heard}

    def _encode(self):
        """What is heard, as codes."""
        heard, active = self.given[:, 2 + K:], self.given[:, 0] > 0
        self.cache.active.copy_(active)
        if self.codec:
            self.codec.active.copy_(active)
            heard = self.codec.quantizer.encode(self.codec.to_latent(heard[:, None]))[..., 0]
        self.listen.copy_(heard)

    def _draw(self, c, logits):
        _, penalty, *rest = self.sampling.channel(c)  # no penalty while nothing was said
        return sample(logits, self.given[:, 1 + c], self.seen.get(c), torch.where(self.frames == 0, 1.0, penalty), *rest)

    def _backbone(self):
        """Read the row: h and the next text id."""
        listen = torch.cat([self.listen[:, :1], self.heard[:, 1:]], 1)  # acoustics a row late
        h = self.model.hidden(self.written[:, :1], self.written[:, None, 1:], listen[:, None], self.cache)  # [B, 1, D]
        self.h.copy_(h[:, 0])
        self.text.copy_(self._draw(0, self.model.text_logits(h)[:, 0]))

    def _depth(self):
        """The next 8 codes, one after the other; then the state that the next frame finds."""
        tokens, active = self.text[:, None], self.cache.active.bool()[:, None]
        for c in range(K):  # tokens [B, 1 + c]: the text id and the codes so far
            logits = self.model.depth_logits(self.h, tokens[:, 1:], self.depth_cache)[:, 0]
            tokens = torch.cat([tokens, self._draw(1 + c, logits)[:, None]], 1)
        self.told.copy_(torch.cat([self.written[:, :2], tokens[:, 2:]], 1))
        for c, seen in self.seen.items():  # the first token fills the window, which says the same as itself alone
            later = torch.where(self.frames == 0, tokens[:, c:c + 1], torch.cat([seen[:, 1:], tokens[:, c:c + 1]], 1))
            seen.copy_(torch.where(active, later, seen))
        for state, value in ((self.written, tokens), (self.heard, self.listen), (self.frames, self.frames + 1)):
            state.copy_(torch.where(active, value, state))

    def _decode(self):
        """What is said, as sound: silence where a code is the empty id or, in a first frame, a pad."""
        said = self.answer[:, :0]
        if self.codec:
            codes, size = self.told[:, 1:], self.codec.config.codebook_size
            speaks = (self.cache.active > 0) & (codes < size).all(1)
            self.codec.active.copy_(speaks)
            said = self.codec.from_latent(self.codec.quantizer.decode(codes.clamp(max=size - 1)[..., None]))[:, 0]
            said = torch.where(speaks[:, None], said, 0)
        self.answer.copy_(torch.cat([self.told, said], 1))


class Monologue:
    """Text ids, one a frame -> printed lines, each with the time of its first word, as they are thought."""

    def __init__(self, tokenizer, wait_token, print=print, stamps=True):
        self.tokenizer, self.wait_token, self.print, self.stamps = tokenizer, wait_token, print, stamps
        self.ids, self.lines = [], []  # lines: (seconds, text)

    def add(self, seconds, text_id):
        if text_id == self.wait_token:
            return self.close()
        if not self.ids:
            self.print(f"{seconds:7.2f} s  " * self.stamps, end="", flush=True)
            self.lines.append((seconds, ""))
        self.ids = [*self.ids[-8:], text_id]  # enough to tell what the last one adds: a character may take two ids
        before, text = (self.tokenizer.decode(ids, skip_special_tokens=False).rstrip("\ufffd") for ids in (self.ids[:-1], self.ids))
        self.print(text[len(before):], end="", flush=True)
        self.lines[-1] = self.lines[-1][0], self.lines[-1][1] + text[len(before):]

    def close(self):
        if self.ids:
            self.print(flush=True)
        self.ids = []


class Partner:
    """A model folder ready to talk: tokenizer, language model, codec."""

    def __init__(self, folder, sampling, device="cpu", dtype=torch.float32, bits=16, **shape):
        from tokenizers import Tokenizer
        folder = flm.resolve(folder)
        self.model = flm.load(folder, device, dtype, speed.packing(bits)).eval()
        self.codec, self.shape = mimi.load(folder, device), shape
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower class
            raise flm.LoadError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
        if self.model.config.aud_vocab_size <= self.codec.config.codebook_size:
            raise flm.LoadError(f"{folder}: the model has {self.model.config.aud_vocab_size} audio ids, too few for a codec of "
                                f"{self.codec.config.codebook_size}")
        self.sample_with(sampling)

    def sample_with(self, sampling):
        """A Duplex with this sampling, warm: the first frame of a conversation is as fast as the others."""
        self.duplex = Duplex(self.model, sampling, codec=self.codec, **self.shape)
        list(hold(self, torch.zeros(3, self.codec.config.frame_size), self.monologue(lambda *_, **__: None)))

    def monologue(self, print=print, stamps=True):
        return Monologue(self.tokenizer, self.model.config.wait_token, print, stamps)


def hold(partner, frames, monologue, seed=None, keep=None):
    """One conversation, frame by frame -> (heard, said, seconds it took) for each. keep: a SoundFile for both voices."""
    partner.duplex.reset(seed=seed)
    for i, heard in enumerate(frames):
        started = time.perf_counter()
        text, _, said = partner.duplex.steps({0: heard})[0]
        took = time.perf_counter() - started
        monologue.add(i / partner.codec.config.frame_rate, text)
        if keep:
            keep.write(torch.stack([heard, said], 1).numpy())
        yield heard, said, took
    monologue.close()


def converse(partner, audio, monologue, seed=None, keep=None):
    """Talk with a recording: audio float32 [N] -> (said [N], seconds that each frame took). A Ctrl-C ends the talk early.

    The recording is heard frame by frame, as from a microphone: nothing is known of what comes later."""
    size, said, took = partner.codec.config.frame_size, [torch.zeros(0)], []
    try:
        for _, answer, seconds in hold(partner, F.pad(audio, (0, -len(audio) % size)).split(size), monologue, seed, keep):
            said.append(answer)
            took.append(seconds)
    except KeyboardInterrupt:
        monologue.close()
        print("\nchat.py: stopped; the answer so far is kept", file=sys.stderr)
    return torch.cat(said)[:len(audio)], took


def check_target(target, source, overwrite):
    """Raise ValueError, one sentence, if the answer must not or cannot be written to `target`."""
    import soundfile
    if target.suffix.lstrip(".").upper() not in soundfile.available_formats():
        raise ValueError(f"{target}: no sound format is known by that ending; .wav and .flac are")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is no folder to write {target.name} to")
    if source and target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the question itself and is not overwritten")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists: choose another name, or add --overwrite")


def write_audio(target, audio, sample_rate):
    """audio [N] or [N, 2] -> a file, beside and then renamed. Raises OSError, one sentence."""
    import soundfile
    part = target.with_name(f".{target.name}.part")
    try:
        soundfile.write(part, audio, sample_rate, format=target.suffix.lstrip(".").upper())
        os.replace(part, target)
    except (OSError, RuntimeError) as error:  # soundfile's own error is a RuntimeError
        part.unlink(missing_ok=True)
        raise OSError(f"{target} cannot be written, is the disk full? {error}") from None


@contextmanager
def kept(args, rate):
    """--record: a stereo file of exact samples, the user left, the model right, that says how to hold the talk again."""
    if not args.record:
        yield None
        return
    import soundfile
    try:
        with soundfile.SoundFile(args.record, "w", rate, 2, "FLOAT", format="WAV") as file:
            file.comment = json.dumps({"seed": args.seed, "sampling": asdict(args.sampling)})
            yield file
    except soundfile.SoundFileError as error:
        raise OSError(f"{args.record} cannot be written: {error}") from None


# --- ways in ---

def talk_to_file(partner, args):
    """--in and --out: hear a file, write the answer beside it."""
    rate = partner.codec.config.sample_rate
    heard = F.pad(args.question, (0, round(args.tail * rate)))
    with kept(args, rate) as keep:
        said, took = converse(partner, heard, partner.monologue(), args.seed, keep)
    write_audio(args.target, (torch.stack([heard[:len(said)], said], 1) if args.stereo else said).numpy(), rate)
    if took:
        print(f"{len(said) / rate:.1f} s of conversation in {sum(took):.1f} s ({len(said) / rate / sum(took):.1f} x real time, "
              f"slowest frame {1000 * max(took):.0f} of {1000 / partner.codec.config.frame_rate:.0f} ms) -> {args.target}")
    if not args.tail and len(said) and said[-rate // 4:].abs().max() > 0.01:
        print("the file ended while the model was speaking: --tail 5 lets it finish")
    warning = pace.too_slow(sum(took) / max(1, len(took)), 1 / partner.codec.config.frame_rate)
    if warning:
        print(warning)


def read_kept(path):
    """A file of --record -> (heard [N], answer [N], Sampling, seed). Raises ValueError, one sentence."""
    import soundfile
    try:
        with soundfile.SoundFile(path) as file:
            both, made = torch.from_numpy(file.read(dtype="float32", always_2d=True)), json.loads(file.comment)
        return both[:, 0], both[:, 1], Sampling(**made["sampling"]), made["seed"]
    except (soundfile.SoundFileError, ValueError, KeyError, TypeError, IndexError):
        raise ValueError(f"{path} is no conversation that --record kept") from None


def talk_again(partner, args):
    """--replay: what --record kept is heard again, and the answer compared with the one kept."""
    heard, answer, _, seed = args.again
    said, _ = converse(partner, heard, partner.monologue(), seed)
    differ = (said != answer[:len(said)]).nonzero()
    print(f"{args.replay}: the answer " + (f"differs from {differ[0].item() / partner.codec.config.sample_rate:.2f} s on"
                                          if len(differ) else "is the same, sample for sample"))


def talk_to_microphone(partner, args):
    """No --in: sound devices, until Ctrl-C. Raises ValueError, one sentence, where there are none, or when they go away."""
    config = partner.codec.config
    monologue = partner.monologue(lambda *_, **__: None)
    devices = (args.input_device, args.output_device)
    with (sound_card.SoundCard(config.sample_rate, config.frame_size, *devices) as card,
          kept(args, config.sample_rate) as record):
        print("Talk; Ctrl-C ends it. Wear headphones, or the model hears itself.", flush=True)
        talk = hold(partner, card, monologue, args.seed, record)
        sound_card.show(card, talk, monologue, 1 / config.frame_rate)


def server_module():
    """workshop/server.py, which needs a package that nothing else here needs."""
    try:
        from workshop import server
        return server
    except ModuleNotFoundError as error:
        raise ValueError(f"--serve needs the {error.name} package: pip install {error.name}") from None


def talk_to_visitors(partner, args):
    """--serve: the page and Moshi's clients, until Ctrl-C."""
    server_module().serve(partner, args)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Talk with the model: by microphone, in a browser or a Moshi client (--serve), "
                                                 "or by a sound file (--in, --out).")
    files = parser.add_argument_group("conversation with a file")
    files.add_argument("--in", dest="source", type=Path, metavar="FILE",
                       help="what is said to the model: any format and rate that soundfile reads")
    files.add_argument("--out", dest="target", type=Path, metavar="FILE", help="what it answers, of the same start and length")
    files.add_argument("--tail", type=float, default=0.0, metavar="SECONDS",
                       help="silence heard after the file ends (default: %(default)s)")
    files.add_argument("--stereo", action="store_true", help="write both voices: the question left, the answer right")
    files.add_argument("--overwrite", action="store_true", help="replace an answer or a record that exists")
    files.add_argument("--record", type=Path, metavar="FILE.wav", help="keep both voices, exactly; with a microphone too")
    files.add_argument("--replay", type=Path, metavar="FILE.wav", help="hold a recorded conversation again, and compare the answer")
    sound = parser.add_argument_group("microphone (what happens when no other way in is asked for)")
    sound.add_argument("--list-devices", action="store_true", help="number the sound devices")
    for way in ("input", "output"):
        sound.add_argument(f"--{way}-device", type=int, metavar="N", help="a number of --list-devices (default: the system's)")
    served = parser.add_argument_group("browser and Moshi clients")
    served.add_argument("--serve", type=int, nargs="?", const=8990, metavar="PORT",
                        help="a page, and /api/chat (port %(const)s)")
    served.add_argument("--host", default="localhost", help="address to listen on; 0.0.0.0 is every one (default: %(default)s)")
    served.add_argument("--ssl", type=Path, nargs=2, metavar=("CERT", "KEY"),
                        help="serve https: without it, browsers of other machines give no microphone")
    served.add_argument("--token", metavar="SECRET",
                        help="what visitors must have in their link or in an Authorization header")
    served.add_argument("--origin", action="append", default=[], metavar="ORIGIN",
                        help="let pages of another origin connect, written https://HOST or "
                             "https://HOST:PORT; behind a proxy, its own; may be repeated")
    served.add_argument("--sessions", type=int, default=1, metavar="N",
                        help="conversations at once (default: %(default)s)")
    served.add_argument("--longest", type=float, metavar="MINUTES",
                        help="end a conversation after so long (default: never)")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default=SHIPPED,
                       help="folder or Hub id, such as CofeAI/FLM-Audio (default: the small model shipped here)")
    model.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    model.add_argument("--bfloat16", action="store_true", help="weights in 16 bits: half the memory, for GPUs")
    model.add_argument("--bits", type=int, choices=(4, 8, 16), default=16, help="bits of a weight; 4 and 8 compute in bfloat16")
    model.add_argument("--context", type=int, metavar="FRAMES",
                       help=f"what is remembered (default: as many as the rows that the model was trained on, else {CONTEXT})")
    model.add_argument("--eager", action="store_true", help="neither compile nor capture the step on a GPU")
    timed = parser.add_argument_group("speed")
    timed.add_argument("--bench", action="store_true", help="time a frame, beside memory bandwidth and the straightforward loop")
    timed.add_argument("--random-weights", choices=flm.PRESETS, metavar="PRESET", help=f"a shape alone: {', '.join(flm.PRESETS)}")
    timed.add_argument("--frames", type=int, default=50, metavar="N", help="frames timed (default: %(default)s)")
    drawn = parser.add_argument_group("sampling")
    for field in fields(Sampling):
        drawn.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, metavar="X",
                           help=f"(default: the model's sampling.json, else {field.default})")
    drawn.add_argument("--seed", type=int, default=0, help="the same seed gives the same answer (default: %(default)s)")
    args = parser.parse_args(arguments)
    if (args.source is None) != (args.target is None):
        parser.error("--in and --out go together")
    for name in ("host", "ssl", "token", "origin", "sessions", "longest"):
        if args.serve is None and getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} goes with --serve")
    try:
        run(args)
    except torch.OutOfMemoryError:
        sys.exit("chat.py: the GPU's memory is full: take --bfloat16, --bits 8 or 4, or a smaller --context")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        sys.exit("chat.py: the memory is full: take fewer --sessions, or a smaller --context")
    except (OSError, ValueError, KeyboardInterrupt) as error:
        print(end="\n" * sys.stdout.isatty())  # below the status line
        sys.exit(f"chat.py: {str(error) or 'stopped'}")


def warn_of_context(config, context):
    """Say so where more is to be remembered than the model was trained to."""
    if config.trained_frames and context and context > config.trained_frames:
        seconds = config.trained_frames / FRAME_RATE
        print(f"chat.py: note: this model was trained on rows of {config.trained_frames} frames ({seconds:.0f} s); with "
              f"--context {context} it may fall silent after that time", file=sys.stderr)


def run(args):
    """The way in that was asked for. Raises OSError or ValueError, one sentence."""
    if args.list_devices:
        return sound_card.list_devices()
    for name, low in (("tail", 0), ("sessions", 1), ("context", 2), ("frames", 1)):
        if getattr(args, name) is None:
            continue
        if not low <= getattr(args, name) < 1e9:
            raise ValueError(f"--{name} must be {low} or more, and a number, not {getattr(args, name)}")
    if sum(way is not None for way in (args.source, args.serve, args.replay)) > 1:
        raise ValueError("--in, --serve and --replay are different ways in: choose one")
    if args.record and (args.serve is not None or args.replay or args.record == args.target):
        raise ValueError("--record keeps a talk by file or microphone, in a file of its own")
    mimi.check_device(args.device)
    if args.serve is None and not (args.source or args.replay or args.bench):
        sound_card.check_devices(args.input_device, args.output_device)
    if args.serve is not None:
        args.door = server_module().door.open_door(args)
    if args.source:
        args.question = mimi.read_audio(args.source)
    for target in filter(None, (args.target, args.record)):
        check_target(target, args.source, args.overwrite)
    given = {field.name: value for field in fields(Sampling) if (value := getattr(args, field.name)) is not None}
    dtype = torch.bfloat16 if args.bfloat16 or args.bits < 16 else torch.float32
    shape = dict(context=args.context, batch=args.sessions if args.serve is not None else 1,
                 fast=args.device.startswith("cuda") and not args.eager)
    if args.bench:
        model, codec = speed.subject(args, dtype)
        pace.settle_threads(model, codec)
        return speed.bench(args, model, codec, Duplex(model, Sampling(**given), codec=codec, **shape))
    args.again = read_kept(args.replay) if args.replay else None
    args.sampling = args.again[2] if args.again else Sampling.of(args.model, **given)
    partner = Partner(args.model, args.sampling, args.device, dtype, args.bits, **shape)
    pace.settle_threads(partner.model, partner.codec)
    warn_of_context(partner.model.config, args.context)
    if args.source:
        talk_to_file(partner, args)
    elif args.replay:
        talk_again(partner, args)
    elif args.serve is not None:
        talk_to_visitors(partner, args)
    else:
        talk_to_microphone(partner, args)


if __name__ == "__main__":
    main()
