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
    python chat.py --in examples/question.wav --out answer.wav              # a sound file
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
import sys
import time
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from workshop import command, pace

if __name__ == "__main__":
    command.stop_while_loading("chat.py")
pace.sleep_while_waiting()  # OpenMP reads it when torch loads: torch and what imports it come after

import torch
import torch.nn.functional as F

import flm
import mimi
import speed
from flm import K
from stream import FRAME_RATE
from workshop import model_files, options, sound_card, sound_file
from workshop.record import Record, read_record

CONTEXT = 4096       # frames (5.5 min) that a conversation remembers where the model does not say; see `default_context`
PENALISED = 4        # codebooks 0 .. 3 have a repetition penalty, 4 .. 7 none, as in the release
LIKELIEST = 4096     # Decision: top-p looks at no more tokens than this: sorting 152,064 costs 9 ms on a CPU, these 1 ms
QUIET = 2.0          # seconds without a word or a sound after which an answer is over
HESITATION = 4.0     # seconds that the model is given to begin one
LONGEST_ANSWER = 60  # seconds that a file's end is followed for at most, where --tail does not say
SILENT = 0.01        # of full scale: what is quieter is no speech
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
        file = model_files.resolve(folder) / "sampling.json"
        if not file.exists():
            return cls(**changed)
        try:
            settings = json.loads(file.read_text())
            if not isinstance(settings, dict):
                raise ValueError(f"it must hold an object, {{...}}, and not {settings!r:.40}")
            unknown = settings.keys() - {field.name for field in fields(cls)}
            if unknown:
                raise ValueError(f"no setting is called {sorted(unknown)[0]}")
            return cls(**{**settings, **changed})
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: {error}") from None

    def channel(self, c):
        """What channel c (0: text, 1 ..: codes) is drawn with: window, penalty, temperature, top_p, top_k."""
        kind = "audio" if c else "text"
        window, *drawn = (getattr(self, f"{name}_{kind}") for name in ("window", "penalty", "temperature", "top_p", "top_k"))
        return (window if c <= PENALISED and drawn[0] != 1 else 0), *drawn


def default_context(config):
    """Frames of an flm.Config's model that a conversation remembers.

    Attention between frames that are farther apart than the rows of training ever were is
    undefined: a model that was trained on rows of 640 frames and remembers 4,096 falls silent after
    a minute and never speaks again. So a model folder says how long its rows were
    (`trained_frames`), and no more is remembered.
    Decision: where it does not say, as the release does not, CONTEXT, half of the paper's rows of
    8,192 (section 3.1)."""
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

    Memory does not grow: the cache is a ring of `context` frames (None: what the model was trained
    on). fast: compile the frame, on CUDA as graphs. A frame's parts write into tensors that stay
    where they are, and never look at a value, so the device is waited for once: what a frame needs
    goes in as one tensor, `given`, and text id, codes and sound come back as one, `answer`."""

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
        folder = model_files.resolve(folder)
        self.model = model_files.load(folder, device, dtype, speed.packing(bits)).eval()
        self.codec, self.shape = mimi.load(folder, device), shape
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower class
            raise model_files.LoadError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
        if self.model.config.aud_vocab_size <= self.codec.config.codebook_size:
            raise model_files.LoadError(f"{folder}: the model has {self.model.config.aud_vocab_size} audio ids, too few for a codec of "
                                f"{self.codec.config.codebook_size}")
        self.sample_with(sampling)

    def sample_with(self, sampling):
        """A Duplex with this sampling, warm: the first frame of a conversation is as fast as the others."""
        self.duplex = Duplex(self.model, sampling, codec=self.codec, **self.shape)
        list(hold(self, torch.zeros(3, self.codec.config.frame_size), self.monologue(lambda *_, **__: None)))

    def monologue(self, print=print, stamps=True):
        return Monologue(self.tokenizer, self.model.config.wait_token, print, stamps)


def hold(partner, frames, monologue, seed=None, record=None):
    """One conversation, frame by frame -> (user_audio, model_audio, seconds it took) for each.
    record: a Record for both."""
    partner.duplex.reset(seed=seed)
    for i, user_audio in enumerate(frames):
        started = time.perf_counter()
        text, _, model_audio = partner.duplex.steps({0: user_audio})[0]
        seconds = time.perf_counter() - started
        monologue.add(i / partner.codec.config.frame_rate, text)
        if record:
            record.write(user_audio, model_audio)
        yield user_audio, model_audio, seconds
    monologue.close()


class AnswerWatch:
    """Tells when the answer to a recording is over: QUIET seconds after its last word and its last
    audible sound.

    A model that has not begun is given HESITATION seconds from the user's last sound on. Times are
    counted in frames."""

    def __init__(self, frames, frame_rate):
        """frames: what the user says, [N] samples each."""
        levels = torch.stack([frame.square().mean().sqrt() for frame in frames])
        audible = levels > levels.max() / 10
        self.asked = int(audible.nonzero().max()) + 1 if audible.any() else 0
        self.frame_rate = frame_rate
        self.passed = 0       # frames until now
        self.spoke = None     # the last frame with a word or a sound of the answer
        self.loudest = SILENT

    def add(self, thinks, model_audio):
        """A frame of the model's: whether it writes words in it, and its samples."""
        level = model_audio.square().mean().sqrt().item()
        self.loudest = max(self.loudest, level)
        self.passed += 1
        if thinks or level > max(SILENT, self.loudest / 30):
            self.spoke = self.passed

    def answered(self):
        """Whether the model has spoken since the user's last sound."""
        return self.spoke is not None and self.spoke > self.asked

    def over(self):
        """Whether nothing more is to come."""
        if self.answered():
            return self.passed - self.spoke >= QUIET * self.frame_rate
        return self.passed - self.asked >= HESITATION * self.frame_rate


def converse(partner, audio, monologue, seed=None, record=None, tail=0.0):
    """Talk with a recording: audio float32 [N] -> (user_audio [M], model_audio [M], seconds that
    each frame took).

    tail: seconds of silence heard after it; None: until the answer is over, LONGEST_ANSWER seconds
    at most. The recording is heard frame by frame, as from a microphone: nothing is known of what
    comes later. A Ctrl-C ends the talk early."""
    config = partner.codec.config
    size = config.frame_size
    length = len(audio) + round((tail or 0) * config.sample_rate)
    padded = F.pad(audio, (0, length - len(audio) + -length % size))
    frames = padded.split(size)
    watch = AnswerWatch(frames, config.frame_rate)

    def user_frames():
        yield from frames
        most = len(frames) + LONGEST_ANSWER * config.frame_rate
        while tail is None and not watch.over() and watch.passed < most:
            yield torch.zeros(size)

    voices = []
    seconds = []
    try:
        for user_audio, model_audio, took in hold(partner, user_frames(), monologue, seed, record):
            watch.add(bool(monologue.ids), model_audio)
            voices.append(torch.stack([user_audio, model_audio]))
            seconds.append(took)
    except KeyboardInterrupt:
        monologue.close()
        print("\nchat.py: stopped; the answer so far is kept", file=sys.stderr)
    user_audio, model_audio = torch.cat([torch.zeros(2, 0), *voices], 1)
    if tail is not None:
        return user_audio[:length], model_audio[:length], seconds
    return user_audio, model_audio, seconds


@contextmanager
def kept(args, partner):
    """--record: a Record that says how to hold the conversation again, or None. What failed is
    raised when all else is done."""
    if not args.record:
        yield None
        return
    settings = {"seed": args.seed, "sampling": asdict(args.sampling),
                "context": partner.duplex.cache.length}
    record = Record(args.record, partner.codec.config.sample_rate, settings)
    try:
        yield record
    finally:
        record.close()
    if record.trouble:
        raise OSError(record.trouble)


# --- ways in ---

def talk_to_file(partner, args):
    """--in and --out: hear a file, write the answer beside it. Raises OSError, one sentence."""
    config = partner.codec.config
    with kept(args, partner) as record:
        monologue = partner.monologue(command.print_while_read)
        user_audio, model_audio, seconds = converse(partner, args.question, monologue, args.seed,
                                                    record, args.tail)
        if not seconds:  # Ctrl-C in the first frame
            return
        answer = torch.stack([user_audio, model_audio], 1) if args.stereo else model_audio
        save_answer(args.target, answer, config.sample_rate)
    length = len(model_audio) / config.sample_rate
    speed_up = length / sum(seconds)
    slowest = 1000 * max(seconds)
    print(f"{length:.1f} s of conversation in {sum(seconds):.1f} s ({speed_up:.1f} x real time, "
          f"slowest frame {slowest:.0f} of {1000 / config.frame_rate:.0f} ms) -> {args.target}")
    if model_audio.abs().max() <= SILENT:
        print("chat.py: note: the model said nothing: is there speech in the file?",
              file=sys.stderr)
    elif model_audio[-config.sample_rate // 4:].abs().max() > SILENT:
        print("chat.py: note: the file ended while the model was speaking: "
              "a longer --tail lets it finish", file=sys.stderr)
    warning = pace.too_slow(sum(seconds) / len(seconds), 1 / config.frame_rate)
    if warning:
        print(warning)


def save_answer(target, audio, sample_rate):
    """Write an answer; elsewhere, where `target` takes it no more. Raises OSError that says
    where."""
    try:
        sound_file.write_audio(target, audio, sample_rate)
    except OSError as error:
        raise OSError(f"{error}; {sound_file.rescue_audio(target, audio, sample_rate)}") from None


def read_replay(path):
    """A file of --record -> Replay. Raises ValueError, one sentence."""
    user_audio, model_audio, settings = read_record(path)
    try:
        sampling = Sampling(**settings["sampling"])
        return Replay(user_audio, model_audio, sampling, settings["seed"], settings.get("context"))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is no conversation that --record kept") from None


@dataclass
class Replay:
    """A recorded conversation: both voices, [N] samples each, and what it takes to hold it
    again."""
    user_audio: torch.Tensor
    model_audio: torch.Tensor
    sampling: Sampling
    seed: int
    context: int | None  # frames; None: as many as the model was trained on

    def __post_init__(self):
        options.check_number("seed", self.seed)
        if self.context is not None:
            options.check_number("context", self.context)


def talk_again(partner, args):
    """--replay: what --record kept is heard again, and the answer compared with the one kept."""
    replay = args.again
    _, model_audio, _ = converse(partner, replay.user_audio, partner.monologue(), replay.seed)
    differ = (model_audio != replay.model_audio[:len(model_audio)]).nonzero()
    if len(differ):
        moment = differ[0].item() / partner.codec.config.sample_rate
        print(f"{args.replay}: the answer differs from {moment:.2f} s on")
    else:
        print(f"{args.replay}: the answer is the same, sample for sample")


def talk_to_microphone(partner, args):
    """No --in: sound devices, until Ctrl-C. Raises ValueError, one sentence, where there are none, or when they go away."""
    config = partner.codec.config
    monologue = partner.monologue(lambda *_, **__: None)
    devices = (args.input_device, args.output_device)
    with (sound_card.SoundCard(config.sample_rate, config.frame_size, *devices) as card,
          kept(args, partner) as record):
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
    files.add_argument("--tail", type=float, metavar="SECONDS",
                       help="silence heard after the file ends, 0 for none "
                            f"(default: until the answer is over, {LONGEST_ANSWER} at most)")
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
    try:
        options.check_options(parser, args, [field.name for field in fields(Sampling)])
        run(args)
    except torch.OutOfMemoryError:
        sys.exit("chat.py: the GPU's memory is full: take --bfloat16, --bits 8 or 4, or a smaller --context")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        sys.exit("chat.py: the memory is full: take fewer --sessions, or a smaller --context")
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError) as error:
        if sys.stdout.isatty():
            print()  # below the status line
        sys.exit(f"chat.py: {error}")


def check_targets(args):
    """Raise ValueError, one sentence, where --out and --record must not or cannot be written."""
    if args.record and args.target and sound_file.same_file(args.record, args.target):
        raise ValueError(f"--record and --out are one file, {args.target}: "
                         "give the record a file of its own")
    if args.record and args.record.suffix.lower() != ".wav":
        raise ValueError(f"--record {args.record}: a record is a .wav")
    sources = [args.source] if args.source else []
    for target in (args.target, args.record):
        if target:
            sound_file.check_target(target, args.overwrite, sources)


def check_room(args, sample_rate=24_000):
    """Raise ValueError, one sentence, where a disk has no room for a conversation about
    args.question. An answer's length is not known beforehand; what is known is how long it is
    waited for."""
    seconds = HESITATION if args.tail is None else args.tail
    samples = len(args.question) + round(seconds * sample_rate)
    sizes = {args.target: samples * 2 * (2 if args.stereo else 1)}  # two bytes a sample
    if args.record:
        sizes[args.record] = samples * 4 * 2
    sound_file.check_space(sizes)


def changed_sampling(args):
    """{field of Sampling: value} of the options that were given. Raises ValueError that names the
    option."""
    changed = {}
    for field in fields(Sampling):
        value = getattr(args, field.name)
        if value is None:
            continue
        try:
            Sampling(**{field.name: value})
        except ValueError as error:
            sentence = str(error).replace(field.name, options.option(field.name))
            raise ValueError(sentence) from None
        changed[field.name] = value
    return changed


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
    mimi.check_device(args.device)
    changed = changed_sampling(args)
    if options.way_of(args) == "microphone":
        sound_card.check_devices(args.input_device, args.output_device)
    if args.serve is not None:
        args.door = server_module().door.open_door(args)
    check_targets(args)
    if args.source:
        args.question = sound_file.read_question(args.source)
        check_room(args)
    dtype = torch.bfloat16 if args.bfloat16 or args.bits < 16 else torch.float32
    args.again = read_replay(args.replay) if args.replay else None
    shape = dict(context=args.again.context if args.again else args.context,
                 batch=args.sessions if args.serve is not None else 1,
                 fast=args.device.startswith("cuda") and not args.eager)
    if args.bench:
        model, codec = speed.subject(args, dtype)
        pace.settle_threads(model, codec)
        duplex = Duplex(model, Sampling(**changed), codec=codec, **shape)
        return speed.bench(args, model, codec, duplex)
    args.sampling = args.again.sampling if args.again else Sampling.of(args.model, **changed)
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
    command.run("chat.py", main)
