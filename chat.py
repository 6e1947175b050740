"""Listening and speaking at once: the sampler, the duplex loop, and the ways into a conversation.

What this is: the streaming loop of the release, token by token (spec section 3), behind a microphone, a page for the
browser, or a sound file. In every frame of 80 ms the model reads what was heard and what it said itself, and writes its
next word and its next 8 codes. There is no turn-taking; it is silent by writing silence (section 2.1). What this is not:
the model (flm.py), the codec (mimi.py), or a score (eval.py).

    microphone frame --encode--> 8 codes --+                     +--> 8 codes --decode--> loudspeaker frame
                                           +--> row --> model ---+
            text and 8 codes, written before --+ ^               +--> text: the monologue
                                                 +-------- next row -----------+

    python chat.py                                                          # microphone and headphones
    python chat.py --serve                                                  # the same in a browser
    python chat.py --in examples/question.wav --out answer.wav --tail 4     # a sound file

Unusual here:
- Semantic codes stand one row before the acoustic codes of their frame, in both directions (stream.py). So a frame is
  complete, and can be decoded, one step after its semantic code was sampled, and the first step returns nothing.
- Frame s of the answer is written beside frame s of the question, as in the grid. Live it is heard 80 ms later, when
  the question's frame has been listened to.
"""
import argparse
import json
import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

import flm
import mimi
from flm import K

CARRIED = 375        # frames (30 s) that a full cache keeps when it starts again
PENALISED = 4        # codebooks 0 .. 3 have a repetition penalty, 4 .. 7 none (spec section 3)
SHIPPED = Path(__file__).resolve().parent / "tiny" / "model"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the defaults are the release's (spec section 3). Temperature 0 is argmax; top_p 0 leaves the
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
        for name in ("temperature", "top_p", "top_k", "window"):
            for channel in ("text", "audio"):
                value = getattr(self, f"{name}_{channel}")
                if value < 0 or (name == "top_p" and value > 1):
                    raise ValueError(f"{name}_{channel} must be {'0 .. 1' if name == 'top_p' else '0 or more'}, not {value}")
        if min(self.penalty_text, self.penalty_audio) <= 0:
            raise ValueError(f"a repetition penalty must be above 0, not {min(self.penalty_text, self.penalty_audio)}")

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

    @classmethod
    def greedy(cls, penalty_text=1.0, penalty_audio=1.0):
        """Always the likeliest token."""
        return cls(temperature_text=0, temperature_audio=0, penalty_text=penalty_text, penalty_audio=penalty_audio)


def sample(logits, history, penalty, temperature, top_p, top_k):
    """One token from logits [V], an int. history: ids that the penalty makes less likely, each once."""
    logits = logits.float()
    if penalty != 1 and history:
        seen = torch.tensor(sorted(set(history)), device=logits.device)
        values = logits[seen]
        logits = logits.index_copy(0, seen, torch.where(values > 0, values / penalty, values * penalty))
    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits / temperature).softmax(-1)
    if top_p > 0:
        ordered, ids = probabilities.sort(descending=True)
        kept = ordered * (ordered.cumsum(-1) - ordered <= top_p)  # the first always stays
        return int(ids[torch.multinomial(kept, 1)])
    if top_k > 0:
        ordered, ids = probabilities.topk(min(top_k, len(probabilities)))
        return int(ids[torch.multinomial(ordered, 1)])
    return int(torch.multinomial(probabilities, 1))


class Duplex:
    """One session of a model: `step` takes the codes heard in a frame and returns what is said in it.

    Memory does not grow: when `context` frames are cached, the last CARRIED ones are read again into an empty cache."""

    def __init__(self, model, sampling=Sampling(), context=4096):
        config = model.config
        self.model, self.sampling = model, sampling
        self.device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
        self.cache = flm.KVCache(config, 1, min(context, config.max_position_embeddings), self.device, dtype)
        self.depth_cache = flm.DepthCache(config, 1, self.device, dtype)
        self.text, self.speak = config.wait_token, [config.pad_token] * K      # of the row to be read next
        self.heard = [config.pad_token] * K                                    # codes of the frame before
        self.first = True
        self.rows = deque(maxlen=min(CARRIED, self.cache.length // 2))         # (text, speak, listen), as read
        self.said_text = deque(maxlen=sampling.window_text)
        self.said_codes = [deque(maxlen=sampling.window_audio) for _ in range(PENALISED)] + [()] * (K - PENALISED)

    @torch.inference_mode()
    def step(self, listen):
        """listen [8], the user's codes of this frame -> None in the first frame, then (text id, codes [8]) of this frame."""
        listen = [int(code) for code in listen]
        row = (self.text, self.speak, [listen[0], *self.heard[1:]])            # acoustics a row late
        if self.cache.filled == self.cache.length:
            self.cache.reset()
            self._read(self.rows)
        self.rows.append(row)
        h = self._read([row])[:, -1:]                                          # [1, 1, D]
        s = self.sampling
        text = sample(self.model.text_logits(h)[0, 0], self.said_text, s.penalty_text, s.temperature_text, s.top_p_text, s.top_k_text)
        codes = []
        for c in range(K):
            before = torch.tensor(codes[-1:], device=self.device) if codes else None
            logits = self.model.depth_step(h[:, 0], before, c, self.depth_cache)[0]
            codes.append(sample(logits, self.said_codes[c], s.penalty_audio, s.temperature_audio, s.top_p_audio, s.top_k_audio))
        self.said_text.append(text)
        for history, code in zip(self.said_codes[:PENALISED], codes):
            history.append(code)
        frame = None if self.first else (self.text, torch.tensor([self.speak[0], *codes[1:]]))
        self.text, self.speak, self.heard, self.first = text, codes, listen, False
        return frame

    def _read(self, rows):
        """Rows -> hidden states [1, T, D]"""
        text, speak, listen = (torch.tensor([list(column)], device=self.device) for column in zip(*rows))
        return self.model.hidden(text, speak, listen, self.cache)


class Monologue:
    """Text ids, one a frame -> printed lines, each with the time of its first word, as they are thought."""

    def __init__(self, tokenizer, wait_token, print=print):
        self.tokenizer, self.wait_token, self.print = tokenizer, wait_token, print
        self.ids, self.shown, self.lines = [], "", []  # lines: (seconds, text)

    def add(self, seconds, text_id):
        if text_id == self.wait_token:
            return self.close()
        if not self.ids:
            self.print(f"{seconds:7.2f} s  ", end="", flush=True)
            self.lines.append((seconds, ""))
        self.ids.append(text_id)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=False).rstrip("\ufffd")  # a character may take two ids
        self.print(text[len(self.shown):], end="", flush=True)
        self.shown = text
        self.lines[-1] = (self.lines[-1][0], text)

    def close(self):
        if self.ids:
            self.print(flush=True)
        self.ids, self.shown = [], ""


class Partner:
    """A model folder ready to talk: codec, language model, tokenizer. One frame of samples in, one out."""

    def __init__(self, folder, sampling, device="cpu", dtype=torch.float32):
        from tokenizers import Tokenizer
        folder = flm.resolve(folder)
        self.model = flm.load(folder, device, dtype).eval()
        self.codec, self.device = mimi.load(folder, device), device
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower class
            raise flm.LoadError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
        if self.model.config.aud_vocab_size <= self.codec.config.codebook_size:
            raise flm.LoadError(f"{folder}: the model has {self.model.config.aud_vocab_size} audio ids, too few for a codec of "
                                f"{self.codec.config.codebook_size}")
        self.duplex = Duplex(self.model, sampling)

    @torch.inference_mode()
    def frame(self, heard):
        """heard [frame_size] float32, inside `with partner.codec.streaming(1)` -> (said [frame_size], text id or None)"""
        codes = self.codec.encode(heard[None, None].to(self.device))[0, :, 0]
        answer = self.duplex.step(codes.tolist())
        if answer is None:
            return torch.zeros_like(heard), None
        text, speak = answer
        if int(speak.max()) >= self.codec.config.codebook_size:  # the empty id: nothing is said
            return torch.zeros_like(heard), text
        return self.codec.decode(speak[None, :, None].to(self.device))[0, 0].cpu(), text


def converse(partner, audio, monologue, bar=None):
    """Talk with a recording: audio float32 [N] -> (said [N], seconds that each frame took). A Ctrl-C ends the talk early.

    The recording is heard frame by frame, as from a microphone: nothing is known of what comes later."""
    size = partner.codec.config.frame_size
    frames, said, took = torch.nn.functional.pad(audio, (0, -len(audio) % size)).split(size), [], []
    with partner.codec.streaming(1):
        try:
            for i, heard in enumerate(frames):
                started = time.perf_counter()
                answer, text = partner.frame(heard)
                took.append(time.perf_counter() - started)
                said.append(answer)
                if text is not None:
                    monologue.add(i * size / partner.codec.config.sample_rate, text)
        except KeyboardInterrupt:
            print("\nchat.py: stopped; the answer so far is kept", file=sys.stderr)
    monologue.close()
    return torch.cat([*said, torch.zeros(0)])[:len(audio)], took


def check_target(target, source, overwrite):
    """Raise ValueError, one sentence, if the answer must not or cannot be written to `target`."""
    import soundfile
    if target.suffix.lstrip(".").upper() not in soundfile.available_formats():
        raise ValueError(f"{target}: no sound format is known by that ending; .wav and .flac are")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is no folder to write {target.name} to")
    if target.exists() and target.samefile(source):
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
        raise OSError(f"{target} cannot be written: {error}") from None


# --- ways in ---

def talk_to_file(partner, args):
    """--in and --out: hear a file, write the answer beside it."""
    rate = partner.codec.config.sample_rate
    heard = torch.nn.functional.pad(args.question, (0, round(args.tail * rate)))
    said, took = converse(partner, heard, Monologue(partner.tokenizer, partner.model.config.wait_token))
    write_audio(args.target, (torch.stack([heard[:len(said)], said], 1) if args.stereo else said).numpy(), rate)
    if took:
        print(f"{len(said) / rate:.1f} s of conversation in {sum(took):.1f} s ({len(said) / rate / sum(took):.1f} x real time, "
              f"slowest frame {1000 * max(took):.0f} of {1000 / partner.codec.config.frame_rate:.0f} ms) -> {args.target}")
    if not args.tail and len(said) and said[-rate // 4:].abs().max() > 0.01:
        print("the file ended while the model was speaking: --tail 5 lets it finish")


def talk_to_microphone(partner, args):
    """No --in: the default sound devices, until Ctrl-C. Raises ValueError, one sentence, where there are none."""
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise ValueError("a microphone needs the sounddevice package: pip install sounddevice, or give --in and --out") from None
    except OSError as error:  # PortAudio itself is missing
        raise ValueError(f"no sound system here ({error}): install PortAudio, or give --in and --out") from None
    config, monologue, frames = partner.codec.config, Monologue(partner.tokenizer, partner.model.config.wait_token), 0
    try:
        stream = sounddevice.Stream(samplerate=config.sample_rate, blocksize=config.frame_size, channels=1, dtype="float32")
    except sounddevice.PortAudioError as error:
        raise ValueError(f"no microphone and loudspeaker to use ({error}): connect them, or give --in and --out") from None
    print("Talk; Ctrl-C ends it. Wear headphones, or the model hears itself.")
    with stream, partner.codec.streaming(1):
        while True:
            heard, _ = stream.read(config.frame_size)
            said, text = partner.frame(torch.from_numpy(heard[:, 0].copy()))
            stream.write(said[:, None].numpy())
            if text is not None:
                monologue.add(frames * config.frame_size / config.sample_rate, text)
            frames += 1


HANDSHAKE, AUDIO, TEXT, ERROR = b"\0", b"\1", b"\2", b"\5"  # first byte of a message, as in spec section 5


def make_app(partner, sampling):
    """--serve: the page in web/, and /api/pcm: audio messages are float32 samples at the codec's rate, in any number; a
    frame comes back for each frame heard, and the monologue as it grows. One conversation at a time; more are refused."""
    import asyncio
    import numpy as np
    from aiohttp import WSMsgType, web
    page, busy, size = Path(__file__).resolve().parent / "web" / "index.html", asyncio.Lock(), partner.codec.config.frame_size

    async def converse_over(socket):
        partner.duplex, waiting, thought = Duplex(partner.model, sampling), b"", []
        monologue = Monologue(partner.tokenizer, partner.model.config.wait_token,
                              print=lambda text="", end="\n", flush=True: thought.append(text + end))
        with partner.codec.streaming(1):
            await socket.send_bytes(HANDSHAKE)
            frames = 0
            async for message in socket:
                if message.type != WSMsgType.BINARY or message.data[:1] != AUDIO or len(message.data) % 4 != 1:
                    continue
                waiting += message.data[1:]
                while len(waiting) >= 4 * size:
                    heard = np.nan_to_num(np.frombuffer(waiting[:4 * size], np.float32)).clip(-1, 1)
                    waiting = waiting[4 * size:]
                    said, text = await asyncio.to_thread(partner.frame, torch.from_numpy(heard))
                    await socket.send_bytes(AUDIO + said.numpy().astype(np.float32).tobytes())
                    if text is not None:
                        monologue.add(frames * size / partner.codec.config.sample_rate, text)
                    if thought:
                        await socket.send_bytes(TEXT + "".join(thought).encode())
                        thought.clear()
                    frames += 1

    async def pcm(request):
        socket = web.WebSocketResponse(max_msg_size=2 ** 20)
        await socket.prepare(request)
        if busy.locked():
            await socket.send_bytes(ERROR + b"The model is talking with someone else. Try again later.")
        else:
            async with busy:
                await converse_over(socket)
        await socket.close()
        return socket

    async def index(_):
        return web.FileResponse(page)
    app = web.Application()
    app.add_routes([web.get("/", index), web.get("/api/pcm", pcm)])
    return app


def serve(partner, args):
    try:
        from aiohttp import web
    except ModuleNotFoundError:
        raise ValueError("--serve needs the aiohttp package: pip install aiohttp") from None
    print(f"Open http://localhost:{args.serve} and talk; Ctrl-C ends it.")
    web.run_app(make_app(partner, args.sampling), host="localhost", port=args.serve, print=None)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Talk with the model: by microphone, in a browser (--serve), or by a sound file (--in, --out).")
    files = parser.add_argument_group("conversation with a file")
    files.add_argument("--in", dest="source", type=Path, metavar="FILE",
                       help="what is said to the model: any format and rate that soundfile reads")
    files.add_argument("--out", dest="target", type=Path, metavar="FILE", help="what it answers, of the same start and length")
    files.add_argument("--tail", type=float, default=0.0, metavar="SECONDS",
                       help="silence heard after the file ends (default: %(default)s)")
    files.add_argument("--stereo", action="store_true", help="write both voices: the question left, the answer right")
    files.add_argument("--overwrite", action="store_true", help="replace an answer that exists")
    parser.add_argument("--serve", type=int, nargs="?", const=8990, metavar="PORT",
                        help="a page for the browser on this machine (port %(const)s)")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default=SHIPPED,
                       help="folder or Hub id, such as CofeAI/FLM-Audio (default: the small model shipped here)")
    model.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    model.add_argument("--bfloat16", action="store_true", help="weights in 16 bits: half the memory, for GPUs")
    drawn = parser.add_argument_group("sampling")
    for name, field in Sampling.__dataclass_fields__.items():
        drawn.add_argument(f"--{name.replace('_', '-')}", type=type(field.default), metavar="X",
                           help=f"(default: the model's sampling.json, else {field.default})")
    drawn.add_argument("--seed", type=int, default=0, help="the same seed gives the same answer (default: %(default)s)")
    args = parser.parse_args(arguments)
    if (args.source is None) != (args.target is None):
        parser.error("--in and --out go together")
    way = talk_to_file if args.source else serve if args.serve is not None else talk_to_microphone
    try:
        if not args.tail >= 0:
            raise ValueError(f"--tail is a time in seconds, and {args.tail} is none")
        if args.source:
            args.question = mimi.read_audio(args.source)
            check_target(args.target, args.source, args.overwrite)
        given = {name: getattr(args, name) for name in Sampling.__dataclass_fields__ if getattr(args, name) is not None}
        args.sampling = Sampling.of(args.model, **given)
        partner = Partner(args.model, args.sampling, args.device, torch.bfloat16 if args.bfloat16 else torch.float32)
        torch.manual_seed(args.seed)
        way(partner, args)
    except (OSError, ValueError) as error:
        sys.exit(f"chat.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nchat.py: stopped")


if __name__ == "__main__":
    main()
