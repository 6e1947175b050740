"""A partner for strangers: the page in web/ and Moshi's protocol, over websockets.

What this is: what `chat.py --serve` runs. It knows of a partner only what it holds a conversation with: `duplex`,
`codec`, `monologue`, `sample_with`. What this is not: the conversation itself (chat.py), or anything of the model.

    python chat.py --serve
    python chat.py --serve --host 0.0.0.0 --ssl cert.pem key.pem --token secret --sessions 4

Messages are binary and begin with their type, as in Moshi's protocol. /api/chat carries Ogg-Opus; /api/pcm (the page) float32
samples, captions that begin with a time, and about once a second a type 4 with milliseconds. An audio message is of any
length; a frame comes back for each frame heard, and the monologue as it grows.

Unusual here:
- Who comes first with a frame takes along all conversations that wait with one, so N of them share a step when it is busy.
- Nothing that a visitor sends is lost while it waits, and no more than BACKLOG waits: who sends faster is sent away.
"""
import asyncio
import hmac
import json
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import torch

HANDSHAKE, AUDIO, TEXT, METADATA, ERROR = (bytes([kind]) for kind in (0, 1, 2, 4, 5))
PATIENCE = 5.0           # seconds without audio, or without taking ours, after which a visitor has gone: clients send silence too
HEARTBEAT = 3.0          # seconds between pings; aiohttp waits half as long for the answer
BACKLOG = 60.0           # seconds of sound that may wait to be heard
BURST, RATE = 3000, 600  # messages at once, and a second: an AudioWorklet that sends each block makes 188
LOCAL = ("localhost", "127.0.0.1", "::1")
PAGE = Path(__file__).resolve().parent.parent / "web" / "index.html"
BUSY = "The model is talking with someone else. Try again later."
# FLM-Audio's names for what POST /api/settings may change -> ours
RENAMED = (("temp_", "temperature_"), ("repetition_penalty_window_", "window_"), ("repetition_penalty_", "penalty_"))


class Pcm:
    """float32 samples, as the page sends and plays them."""
    longest = 2**18  # bytes of a message: 2.7 seconds

    def __init__(self, rate):
        self.decode, self.encode = partial(np.frombuffer, dtype=np.float32), np.ndarray.tobytes


class Opus:
    """A stream of Ogg-Opus pages in each direction, through sphn."""
    longest = 2**14  # bytes: seconds of speech, but no more than 15 minutes of the shortest packets there are

    def __init__(self, rate):
        import sphn
        self.decode, self.encode = sphn.OpusStreamReader(rate).append_bytes, sphn.OpusStreamWriter(rate).append_pcm


class Visitor:
    """One websocket's conversation: what was heard and waits, and why it ended."""

    def __init__(self, socket, wire, size, rate):
        self.socket, self.wire, self.size, self.limit = socket, wire, size, int(4 * BACKLOG * rate)
        self.waiting, self.arrived, self.over = bytearray(), asyncio.Event(), None  # over: a sentence, "" for a client that left

    async def listen(self):
        """Take messages until the client leaves or breaks a rule."""
        started, count = time.monotonic(), 0
        async for message in self.socket:
            count += 1
            if count > BURST + RATE * (time.monotonic() - started):
                self.over = "Too many messages at once."
            elif type(message.data) is bytes and message.data[:1] == AUDIO:  # others are dropped
                try:
                    samples = np.nan_to_num(self.wire.decode(message.data[1:])).clip(-1, 1)
                    self.waiting += samples.astype(np.float32).tobytes()
                except ValueError:
                    self.over = "This audio cannot be decoded."
                if len(self.waiting) > self.limit:
                    self.over = f"More than {BACKLOG:g} seconds of sound are waiting: send it as fast as it is spoken."
            if self.over:
                break
            self.arrived.set()
        self.over = self.over or ""
        self.arrived.set()

    async def frame(self):
        """The next frame heard, or None when the conversation is over."""
        while len(self.waiting) < 4 * self.size and self.over is None:
            self.arrived.clear()
            try:
                await asyncio.wait_for(self.arrived.wait(), PATIENCE)
            except TimeoutError:
                self.over = f"No sound came for {PATIENCE:g} seconds."
        if self.over is not None:
            return None
        heard = np.frombuffer(bytes(self.waiting[:4 * self.size]), np.float32).copy()
        del self.waiting[:4 * self.size]
        return torch.from_numpy(heard)

    async def send(self, kind, data):
        """Raises TimeoutError for a client that does not read, ConnectionError for one that has gone."""
        if data:
            await asyncio.wait_for(self.socket.send_bytes(kind + data), PATIENCE)


def make_app(partner, seats=1, seed=0, token=None, origins=(), local=True):
    """The aiohttp application. local: answer to the names of this machine alone, which stops pages of others that point
    their name at it. Raises ModuleNotFoundError without aiohttp."""
    from aiohttp import web
    codec, step, free, pending, answers = partner.codec.config, asyncio.Lock(), list(range(seats)), {}, {}

    async def answer(seat, heard):
        """Hear a frame -> what is said in it, in one step with all conversations that have a frame by then."""
        pending[seat] = heard
        async with step:
            if seat in pending:  # nobody took it along
                batch = dict(pending)
                pending.clear()
                try:
                    answers.update(await asyncio.to_thread(partner.duplex.steps, batch))
                except RuntimeError as error:  # torch's, out of memory for one: everybody's whose frame was in it
                    answers.update(dict.fromkeys(batch, error))
        if isinstance(found := answers.pop(seat), RuntimeError):
            raise found
        return found

    async def talk(visitor, seat):
        thought, frames, late, told = [], 0, 0, time.monotonic()
        page = isinstance(visitor.wire, Pcm)
        monologue = partner.monologue(lambda text="", end="\n", flush=True: thought.append(text + end), stamps=page)
        await visitor.socket.send_bytes(HANDSHAKE)
        while (heard := await visitor.frame()) is not None:
            started = time.monotonic()
            text, _, said = await answer(seat, heard)
            took = time.monotonic() - started
            late += took > 1 / codec.frame_rate
            await visitor.send(AUDIO, visitor.wire.encode(said.numpy().astype(np.float32)))
            monologue.add(frames / codec.frame_rate, text)
            await visitor.send(TEXT, "".join(thought).encode())
            thought.clear()
            frames += 1
            if page and time.monotonic() > told + 1:
                told = time.monotonic()
                behind = len(visitor.waiting) / 4 / codec.sample_rate
                times = {"ms": round(1000 * took, 1), "late": late, "behind": round(behind, 2)}
                await visitor.send(METADATA, json.dumps(times).encode())

    async def meet(request, wire):
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT, max_msg_size=wire.longest, compress=False)
        await socket.prepare(request)
        visitor, seat = Visitor(socket, None, codec.frame_size, codec.sample_rate), free.pop() if free else None
        try:
            if seat is None:
                visitor.over = BUSY
            else:
                visitor.wire = wire(codec.sample_rate)
                async with step:
                    partner.duplex.reset(seat, seed)
                listening = asyncio.create_task(visitor.listen())
                try:
                    await talk(visitor, seat)
                finally:
                    listening.cancel()
        except ModuleNotFoundError:
            visitor.over = "This server has no Opus: pip install sphn"
        except (ConnectionError, TimeoutError):
            visitor.over = "The answer was not taken."
        except RuntimeError:
            visitor.over = "The model failed; who runs it finds the reason in its log."
            raise
        finally:
            if seat is not None:
                free.append(seat)
            with suppress(ConnectionError, TimeoutError):
                await visitor.send(ERROR, (visitor.over or "").encode())  # nothing for a client that left
                await asyncio.wait_for(socket.close(), PATIENCE)
        return socket

    async def settings(request):
        """POST sampling, with our names or FLM-Audio's. Decision: as in the release, for all, and between conversations only."""
        try:
            given = dict(await request.json())
            if given.pop("use_sampling", True) is not True:
                given |= {"temperature_text": 0.0, "temperature_audio": 0.0}
            for theirs, ours in RENAMED:
                given = {name.replace(theirs, ours) if name.startswith(theirs) else name: value for name, value in given.items()}
            sampling = replace(partner.duplex.sampling, **given)
        except (ValueError, TypeError, AttributeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        if len(free) < seats:
            return web.json_response({"error": BUSY}, status=503)
        held, free[:] = list(free), []
        try:
            async with step:
                await asyncio.to_thread(partner.sample_with, sampling)
        finally:
            free.extend(held)
        return web.json_response({"status": "success"})

    async def page(_):
        return web.FileResponse(PAGE)

    @web.middleware
    async def guard(request, handler):
        origin = request.headers.get("Origin")
        if origin and urlsplit(origin).netloc != request.host and origin not in origins:
            raise web.HTTPForbidden(text="Pages of other origins may not connect; --origin allows one.")
        if local and request.url.host not in LOCAL:
            raise web.HTTPForbidden(text="This server answers on localhost only; --host opens it.")
        if token and not hmac.compare_digest(request.query.get("token", "").encode(), token.encode()):
            raise web.HTTPForbidden(text="The link lacks the token.")
        return await handler(request)

    app = web.Application(middlewares=[guard], client_max_size=2**16)
    app.add_routes([web.get("/", page), web.post("/api/settings", settings),
                    web.get("/api/pcm", partial(meet, wire=Pcm)), web.get("/api/chat", partial(meet, wire=Opus))])
    return app


def serve(partner, args):
    """Until Ctrl-C. Raises ValueError or OSError, one sentence."""
    try:
        from aiohttp import web
    except ModuleNotFoundError:
        raise ValueError("--serve needs the aiohttp package: pip install aiohttp") from None
    secure, local = None, args.host in LOCAL
    if args.ssl:
        import ssl
        secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            secure.load_cert_chain(*args.ssl)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"--ssl {args.ssl[0]} {args.ssl[1]} is no certificate and its key: {error}") from None
    link = f"http{'s' * bool(secure)}://{args.host}:{args.serve}/{f'?token={quote(args.token)}' if args.token else ''}"
    ready = f"Open {link} and talk; Ctrl-C ends it." + "\nBrowsers of other machines give no microphone to http: add --ssl." * (
        not local and not secure)
    app = make_app(partner, args.sessions, args.seed, args.token, args.origin, local)
    web.run_app(app, host=args.host, port=args.serve, ssl_context=secure, shutdown_timeout=2,
                print=lambda _: print(ready, flush=True))
