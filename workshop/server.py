"""A partner for strangers: the page in web/ and Moshi's protocol, over websockets.

What this is: what `chat.py --serve` runs. It serves chat.py, of whose Partner it uses `duplex`,
`codec`, `monologue` and `sample_with`. What this is not: the conversation itself (chat.py), who may
come in (door.py), or anything of the model.

    python chat.py --serve
    python chat.py --serve --host 0.0.0.0 --ssl cert.pem key.pem --token secret --sessions 4

/api/pcm is for the page, /api/chat for Moshi's clients, POST /api/settings changes the sampling.
Messages are binary and begin with their type, as in Moshi's protocol:

    type           from    /api/pcm                          /api/chat
    0 HANDSHAKE    server  the conversation begins           the same
    1 AUDIO        both    float32 samples, 24 kHz, mono     pages of an Ogg-Opus stream each way
    2 TEXT         server  lines that begin with a time      one line that never ends
    4 METADATA     server  milliseconds, once a second       -
    5 ERROR        server  why the conversation ends         the same

An audio message is of any length. A frame comes back for each frame that arrived, and the words as
they are thought.

Unusual here:
- Who comes first with a frame takes along all conversations that wait with one, so that several
  share a step when the model is busy.
- Nothing that a visitor sends is lost while it waits, and no more than BACKLOG waits: who sends
  faster is sent away.
- What a visitor sends may be anything. A wrong thing is answered by one sentence.
"""
import asyncio
import json
import logging
import time
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError

from workshop import door, pace

HANDSHAKE = b"\0"
AUDIO = b"\1"
TEXT = b"\2"
METADATA = b"\4"
ERROR = b"\5"
PATIENCE = 5.0   # seconds without audio, or without taking ours, after which a visitor has gone
HEARTBEAT = 3.0  # seconds between pings; aiohttp waits half as long for the answer
BACKLOG = 60.0   # seconds of sound that may wait to be heard
BURST = 3000     # messages at once
RATE = 600       # messages a second after those: an AudioWorklet that sends each block makes 188
GOODBYE = 1.5    # seconds that visitors have to take the last message of a server that stops
SHUTDOWN = 2.0   # seconds after those until connections are cut
LONGEST_BODY = 2**16  # bytes of POST /api/settings
PAGE = Path(__file__).resolve().parent.parent / "web" / "index.html"
LOG = logging.getLogger("flm.server")

BUSY = "The model is talking with someone else. Try again later."
FAILED = "The model failed; who runs it finds the reason in its log."
NOT_TAKEN = "The answer was not taken."
STOPS = "The server stops."

# FLM-Audio's and Moshi's names of settings -> those of chat.Sampling
OTHER_NAMES = {
    "temp_text": "temperature_text",
    "temp_audio": "temperature_audio",
    "repetition_penalty_text": "penalty_text",
    "repetition_penalty_audio": "penalty_audio",
    "repetition_penalty_window_text": "window_text",
    "repetition_penalty_window_audio": "window_audio",
    "text_temperature": "temperature_text",
    "audio_temperature": "temperature_audio",
    "text_topk": "top_k_text",
    "audio_topk": "top_k_audio",
    "repetition_penalty": "penalty_text",  # Moshi penalises words alone
    "repetition_penalty_context": "window_text",
}


# --- what is on the wire ---

class Lines:
    """The monologue as the page gets it: lines, until they are sent."""

    def __init__(self):
        self.pieces = []

    def print(self, text="", end="\n", flush=True):
        """Takes the place of Python's print."""
        self.pieces.append(text + end)

    def take(self):
        """What is to be sent now."""
        text = "".join(self.pieces)
        self.pieces.clear()
        return text


class RunningText(Lines):
    """The monologue as Moshi's clients get it: no ends of lines, and a space between sentences.

    Their terminal client draws its line anew at each audio message, and scrolls at each "\\n" in
    it."""

    def __init__(self):
        super().__init__()
        self.is_after_sentence = False

    def print(self, text="", end="\n", flush=True):
        text = text.replace("\n", " ")
        if text and self.is_after_sentence:
            if not text.startswith(" "):
                self.pieces.append(" ")
            self.is_after_sentence = False
        self.pieces.append(text)
        if end:
            self.is_after_sentence = True


class Pcm:
    """The page's wire: float32 samples, and lines of text that begin with a time."""
    name = "page"
    longest = 2**18  # bytes of a message: 2.7 seconds
    is_page = True
    words_class = Lines

    def __init__(self, rate):
        self.decode = partial(np.frombuffer, dtype=np.float32)
        self.encode = np.ndarray.tobytes


class Opus:
    """The wire of Moshi's clients: a stream of Ogg-Opus pages in each direction, through sphn.

    Decision: nothing is sent for the first frame, as by Moshi's server, whose first step returns
    nothing either (the page is sent silence, since it counts an answer for each frame). So the
    stream begins with the second frame. Who plays frames as they come hears no difference. Who
    lays the stream beside the question, as Full-Duplex-Bench does, measures the delay that Moshi's
    server would show, and not a frame more."""
    name = "Moshi client"
    longest = 2**14  # bytes: seconds of speech, but at most 15 minutes of the shortest packets
    is_page = False
    words_class = RunningText

    def __init__(self, rate):
        import sphn
        self.decode = sphn.OpusStreamReader(rate).append_bytes
        self.encode = sphn.OpusStreamWriter(rate).append_pcm


# --- what a visitor asks for ---

def one_line(value):
    """A stranger's value within a sentence: on one line, and short."""
    text = ascii(value)
    return text if len(text) <= 40 else text[:36] + " ..."


def number(name, text):
    """A number in a link: an int where it is one. Raises ValueError, one sentence."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    raise ValueError(f"{name} must be a number, not {one_line(text)}")


def change_sampling(sampling, settings):
    """settings: [(name, value)] by our names, FLM-Audio's or Moshi's -> sampling with them.
    Raises ValueError, one sentence.

    Decision: here top-k decides only where top-p is 0, and Moshi knows no top-p. So Moshi's name
    for top-k sets top-p to 0, unless the same request sets top-p."""
    names = [field.name for field in fields(sampling)]
    changes = {}
    for name, value in settings:
        our_name = OTHER_NAMES.get(name, name)
        if our_name not in names:
            raise ValueError(f"{one_line(name)} is no setting; there are {', '.join(names)}")
        if our_name in changes:
            raise ValueError(f"{our_name} is set twice")
        if type(value) not in (int, float) or not abs(value) < 1e9:
            raise ValueError(f"{name} must be a number of a usual size, not {one_line(value)}")
        changes[our_name] = value
    names = [name for name, _ in settings]
    if "text_topk" in names:
        changes.setdefault("top_p_text", 0.0)
    if "audio_topk" in names:
        changes.setdefault("top_p_audio", 0.0)
    return replace(sampling, **changes)


def sampling_from_body(body, sampling):
    """The bytes of POST /api/settings -> sampling with what they ask for. Raises ValueError, one
    sentence. use_sampling false is FLM-Audio's way to ask for temperatures of 0."""
    try:
        settings = json.loads(body)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is no JSON: {error}") from None
    except ValueError:
        raise ValueError("the body is no UTF-8, or has a number of thousands of digits") from None
    if not isinstance(settings, dict):
        raise ValueError('the body must be a JSON object, such as {"temperature_audio": 0.5}')
    use_sampling = settings.pop("use_sampling", True)
    if not isinstance(use_sampling, bool):
        raise ValueError("use_sampling must be true or false")
    sampling = change_sampling(sampling, list(settings.items()))
    if not use_sampling:
        sampling = replace(sampling, temperature_text=0.0, temperature_audio=0.0)
    return sampling


def sampling_from_query(query, sampling):
    """The query of /api/chat -> sampling with what it asks for. Raises ValueError, one sentence.

    Moshi's client for browsers sends temperatures, top-k, penalty and pad_mult. Decision: pad_mult,
    the weight of Moshi's padding token, has no counterpart here and must be 0. Names that are not
    known are passed over, because links gather such names on their way."""
    names = {field.name for field in fields(sampling)} | OTHER_NAMES.keys()
    settings = [(name, number(name, text)) for name, text in query.items() if name in names]
    if number("pad_mult", query.get("pad_mult", "0")) != 0:
        raise ValueError("pad_mult must be 0 or left out: this model has no such setting")
    return change_sampling(sampling, settings)


def seed_from_query(query):
    """The query of /api/chat -> a seed, or None where it names none. Raises ValueError, a sentence.

    Decision: Moshi's clients send one seed for text and one for audio. A conversation has one
    here, which follows from both."""
    if "text_seed" not in query and "audio_seed" not in query:
        return None
    seeds = []
    for name in ("text_seed", "audio_seed"):
        seed = number(name, query.get(name, "0"))
        if type(seed) is not int or not 0 <= seed < 2**64:
            raise ValueError(f"{name} must be a whole number from 0 to 2^64 - 1")
        seeds.append(seed)
    text_seed, audio_seed = seeds
    return (text_seed + 1_000_003 * audio_seed) % 2**63  # what a torch.Generator takes


# --- who visits ---

class Visitor:
    """One websocket: the sound that arrived and waits to be heard, and how the conversation ends.

    ending: None while it lasts, then the sentence that the client is told; "" for a client that
    left. since: when the conversation began, by time.monotonic; None before."""

    def __init__(self, socket, name, codec):
        self.socket = socket
        self.name = name
        self.codec = codec
        self.arrived = asyncio.Event()
        self.waiting = bytearray()  # float32 samples
        self.since = None
        self.ending = None
        self.close_code = WSCloseCode.OK

    @property
    def seconds_waiting(self):
        """Seconds of sound that arrived and were not heard yet."""
        return len(self.waiting) / 4 / self.codec.sample_rate

    def end(self, sentence, close_code=WSCloseCode.OK):
        """The conversation ends with this sentence, unless it has ended already."""
        if self.ending is None:
            self.ending = sentence
            self.close_code = close_code
            self.arrived.set()

    async def listen(self, wire):
        """Take messages until the client leaves or breaks a rule. Types that are not known are
        dropped, as by Moshi's server."""
        started = time.monotonic()
        count = 0
        async for message in self.socket:
            count += 1
            if count > BURST + RATE * (time.monotonic() - started):
                self.end("Too many messages at once.", WSCloseCode.POLICY_VIOLATION)
            elif message.type is WSMsgType.ERROR:  # aiohttp has closed the socket
                self.end(f"A message was not as it should be: {message.data}.")
            elif message.type is WSMsgType.BINARY and message.data[:1] == AUDIO:
                self.take(message.data[1:], wire)
            if self.ending is not None:
                break
        self.end("")

    def take(self, data, wire):
        """Sound of any length joins what waits."""
        try:
            samples = np.nan_to_num(wire.decode(data)).clip(-1, 1)
        except (ValueError, RuntimeError):
            self.end("This audio cannot be decoded.", WSCloseCode.UNSUPPORTED_DATA)
            return
        self.waiting += samples.astype(np.float32).tobytes()
        if self.seconds_waiting > BACKLOG:
            self.end(f"More than {BACKLOG:g} seconds of sound are waiting: send it as fast as it "
                     "is spoken.", WSCloseCode.POLICY_VIOLATION)
        self.arrived.set()

    async def next_frame(self):
        """The next frame of the user's audio [frame_size], or None when the talk is over."""
        size = 4 * self.codec.frame_size
        while len(self.waiting) < size and self.ending is None:
            self.arrived.clear()
            try:
                await asyncio.wait_for(self.arrived.wait(), PATIENCE)
            except TimeoutError:  # clients send silence too
                self.end(f"No sound came for {PATIENCE:g} seconds.")
        if self.ending is not None:
            return None
        frame = np.frombuffer(bytes(self.waiting[:size]), np.float32).copy()
        del self.waiting[:size]
        return torch.from_numpy(frame)

    async def send(self, kind, data):
        """A message, unless it is empty. Raises TimeoutError for a client that does not read,
        ConnectionError for one that has gone."""
        if data:
            await asyncio.wait_for(self.socket.send_bytes(kind + data), PATIENCE)

    async def say_goodbye(self):
        """The last sentence, for a client that is there to read it, and a proper close."""
        sentence = (self.ending or "").encode()
        with suppress(ConnectionError, TimeoutError):
            await self.send(ERROR, sentence)
            closing = self.socket.close(code=self.close_code, message=sentence[:120])
            await asyncio.wait_for(closing, PATIENCE)

    def log_start(self):
        LOG.info("%s: a conversation begins", self.name)

    def log_end(self):
        """One line: how long the conversation was and why it ended, or why there was none."""
        reason = self.ending
        if not reason:
            is_broken = self.socket.close_code == WSCloseCode.ABNORMAL_CLOSURE
            reason = "The connection broke off." if is_broken else "The visitor left."
        if self.since is None:
            LOG.info("%s: turned away. %s", self.name, reason)
        else:
            seconds = time.monotonic() - self.since
            LOG.info("%s: the conversation ends after %.1f s. %s", self.name, seconds, reason)


# --- the model, shared ---

class StepFailed(Exception):
    """The model failed in a step that a conversation took part in."""


class SharedModel:
    """The model of a server. Conversations that wait with a frame go through one step together."""

    def __init__(self, partner):
        self.partner = partner
        self.lock = asyncio.Lock()  # one step, or one change of the model, at a time
        self.frames = {}   # seat -> the frame that waits there
        self.answers = {}  # seat -> what the step returned for it, or the exception

    async def answer(self, seat, frame):
        """Hear a frame [frame_size] -> (text id, codes, model audio [frame_size]).
        Raises StepFailed."""
        self.frames[seat] = frame
        async with self.lock:
            if seat in self.frames:  # no other conversation took it along
                await self.step()
        answer = self.answers.pop(seat)
        if isinstance(answer, Exception):
            raise StepFailed from answer
        return answer

    async def step(self):
        """One step with all frames that wait. What fails in it fails for all of them."""
        frames = dict(self.frames)
        self.frames.clear()
        try:
            self.answers.update(await asyncio.to_thread(self.partner.duplex.steps, frames))
        except Exception as error:  # torch has no class for what a device runs out of
            LOG.error("a step of %d conversations failed", len(frames), exc_info=error)
            self.answers.update(dict.fromkeys(frames, error))

    async def start(self, seat, seed):
        """A conversation starts afresh on this seat."""
        async with self.lock:
            self.partner.duplex.reset(seat, seed)

    async def sample_with(self, sampling):
        """From now on all conversations are drawn so. This takes as long as a few frames, and a
        minute where the frame is compiled. Raises StepFailed where there is no memory for it."""
        async with self.lock:
            if sampling == self.partner.duplex.sampling:
                return
            try:
                await asyncio.to_thread(self.partner.sample_with, sampling)
            except RuntimeError as error:
                LOG.error("the sampling could not be changed", exc_info=error)
                raise StepFailed from error


# --- the server ---

class Server:
    """The addresses of the server, its seats, and who sits there.

    seats: conversations at once. seed: of each conversation whose link names none. token: what
    visitors must bring, or None. origins: other pages that may connect, as in --origin. local:
    answer to names of this machine alone, which stops pages of others that point their name at it.
    longest: minutes that a conversation may last, or None."""

    def __init__(self, partner, seats=1, seed=0, token=None, origins=(), local=True, longest=None):
        self.partner = partner
        self.model = SharedModel(partner)
        self.codec = partner.codec.config
        self.sampling = partner.duplex.sampling  # of conversations whose link asks for none
        self.seats = seats
        self.seed = seed
        self.token = token
        self.local = local
        self.longest = longest
        self.origins = {door.address_of(origin) for origin in origins}
        self.free = list(range(seats))
        self.meetings = {}  # visitor -> the task that meets it

    def app(self):
        """The aiohttp application."""
        app = web.Application(middlewares=[self.guard], client_max_size=LONGEST_BODY)
        app.add_routes([
            web.get("/", self.page),
            web.post("/api/settings", self.settings),
            web.get("/api/pcm", partial(self.meet, wire_class=Pcm)),
            web.get("/api/chat", partial(self.meet, wire_class=Opus)),
        ])
        app.on_shutdown.append(self.stop)
        return app

    async def page(self, _):
        return web.FileResponse(PAGE)

    # who may come in

    @web.middleware
    async def guard(self, request, handler):
        """Whoever may not come in is told why."""
        refusal = self.refusal(request)
        if refusal:
            LOG.info("%s: turned away. %s", self.visitor_name(request, "door"), refusal)
            raise web.HTTPForbidden(text=refusal)
        return await handler(request)

    def refusal(self, request):
        """Why this request is not answered: a sentence, or None."""
        if self.local and not door.is_this_machine(door.host_of(request.host)):
            return "This server answers on localhost only; --host opens it."
        origin = request.headers.get("Origin")
        if origin and not self.is_welcome(origin, request.host):
            return "Pages of other origins may not connect; --origin allows one."
        authorization = request.headers.get("Authorization", "")
        if self.token and not door.brings_token(self.token, request.query, authorization):
            return "The token is missing or wrong."
        return None

    def is_welcome(self, origin, host):
        return door.is_same_origin(origin, host) or door.is_allowed(origin, self.origins)

    def visitor_name(self, request, place):
        """Address and place, for the log."""
        peer = request.transport.get_extra_info("peername") if request.transport else None
        return door.visitor_name(peer, request.headers.get("X-Forwarded-For", ""), place)

    # conversations

    async def meet(self, request, wire_class):
        """A websocket from its first message to its last."""
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT, max_msg_size=wire_class.longest,
                                       compress=False)
        if not socket.can_prepare(request).ok:
            raise web.HTTPBadRequest(text="This address takes websockets; the page is at /.")
        await socket.prepare(request)
        visitor = Visitor(socket, self.visitor_name(request, wire_class.name), self.codec)
        self.meetings[visitor] = asyncio.current_task()
        try:
            await self.seat(visitor, request.query, wire_class)
            visitor.log_end()
            await visitor.say_goodbye()
        finally:
            del self.meetings[visitor]
        return socket

    async def seat(self, visitor, query, wire_class):
        """A conversation on a free seat. However it ends, the visitor's `ending` says why."""
        if not self.free:
            visitor.end(BUSY, WSCloseCode.TRY_AGAIN_LATER)
            return
        seat = self.free.pop()
        try:
            wire = await self.prepare(visitor, query, wire_class, seat)
            if wire:
                await self.talk(visitor, wire, seat)
        except (ConnectionError, TimeoutError):
            visitor.end(NOT_TAKEN, WSCloseCode.GOING_AWAY)
        except StepFailed:
            visitor.end(FAILED, WSCloseCode.INTERNAL_ERROR)
        except Exception as error:  # a fault of ours: the others talk on, and the log tells it
            LOG.error("%s: %r", visitor.name, error, exc_info=error)
            visitor.end(FAILED, WSCloseCode.INTERNAL_ERROR)
        finally:
            self.free.append(seat)

    async def prepare(self, visitor, query, wire_class, seat):
        """Make a seat ready for what the link asks -> the wire, or None where the conversation
        cannot be held. Raises StepFailed.

        Decision: one sampler draws all conversations of a server. So with one seat a link may ask
        for its own sampling, which holds for its conversation. With several seats it may not,
        because it would change the conversations of others."""
        try:
            wire = wire_class(self.codec.sample_rate)
            sampling, seed = self.wishes(query, wire)
        except ModuleNotFoundError:
            visitor.end("This server has no Opus: pip install sphn", WSCloseCode.INTERNAL_ERROR)
            return None
        except ValueError as error:
            visitor.end(f"{error}.", WSCloseCode.POLICY_VIOLATION)
            return None
        await self.model.sample_with(sampling)
        await self.model.start(seat, seed)
        return wire

    def wishes(self, query, wire):
        """The query of a link -> (sampling, seed) of its conversation. Raises ValueError, one
        sentence. The page's link has no wishes."""
        if wire.is_page:
            return self.sampling, self.seed
        sampling = sampling_from_query(query, self.sampling)
        if sampling != self.sampling and self.seats > 1:
            raise ValueError("With several seats a link cannot ask for its own sampling: leave it "
                             "out, or POST it to /api/settings for all")
        seed = seed_from_query(query)
        return sampling, self.seed if seed is None else seed

    async def talk(self, visitor, wire, seat):
        """The conversation in both directions, and its limit of time."""
        await visitor.socket.send_bytes(HANDSHAKE)
        visitor.since = time.monotonic()
        visitor.log_start()
        listening = asyncio.create_task(visitor.listen(wire))
        limit = None
        if self.longest:
            sentence = f"A conversation may last {self.longest:g} minutes here. Start another one."
            loop = asyncio.get_running_loop()
            limit = loop.call_later(60 * self.longest, visitor.end, sentence)
        try:
            await self.speak(visitor, wire, seat)
        finally:
            listening.cancel()
            if limit:
                limit.cancel()

    async def speak(self, visitor, wire, seat):
        """Answer each frame with a frame and the words thought in it, until the talk is over."""
        words = wire.words_class()
        monologue = self.partner.monologue(words.print, stamps=wire.is_page)
        budget = 1 / self.codec.frame_rate  # seconds
        clock = pace.Pace(budget)
        count = 0
        times_sent = time.monotonic()
        while (frame := await visitor.next_frame()) is not None:
            started = time.monotonic()
            text_id, _, model_audio = await self.model.answer(seat, frame)
            took = time.monotonic() - started
            warning = clock.add(took)
            if warning:
                LOG.warning("%s: %s", visitor.name, warning)
            if count > 0 or wire.is_page:
                await visitor.send(AUDIO, wire.encode(model_audio.numpy().astype(np.float32)))
            monologue.add(count * budget, text_id)
            await visitor.send(TEXT, words.take().encode())
            count += 1
            if wire.is_page and time.monotonic() > times_sent + 1:
                times_sent = time.monotonic()
                behind = round(visitor.seconds_waiting, 2)
                times = {"ms": round(1000 * took, 1), "late": clock.late, "behind": behind}
                await visitor.send(METADATA, json.dumps(times).encode())

    async def stop(self, _):
        """The server stops. Whoever talks is told so, and has GOODBYE seconds to read it."""
        for visitor in self.meetings:
            visitor.end(STOPS, WSCloseCode.GOING_AWAY)
        if self.meetings:
            await asyncio.wait(list(self.meetings.values()), timeout=GOODBYE)

    # settings

    async def settings(self, request):
        """POST sampling, with our names, FLM-Audio's or Moshi's. Decision: as in the release it
        holds for all, and changes between conversations only."""
        status, answer = await self.change_settings(request)
        event = answer.get("error") or f"from now on {self.sampling}"
        LOG.info("%s: %s", self.visitor_name(request, "settings"), event)
        response = web.json_response(answer, status=status)
        if status != 200:
            response.force_close()  # a body that was not read to its end may be in the way
        return response

    async def change_settings(self, request):
        """A request -> (HTTP status, the JSON object that answers it)."""
        try:
            sampling = sampling_from_body(await request.read(), self.sampling)
        except web.HTTPRequestEntityTooLarge:
            return 413, {"error": f"the body has more than {LONGEST_BODY} bytes"}
        except (HttpProcessingError, web.RequestPayloadError):
            return 400, {"error": "the body is not in the encoding that its headers name"}
        except ValueError as error:
            return 400, {"error": str(error)}
        if len(self.free) < self.seats:
            return 503, {"error": BUSY}
        seats = list(self.free)
        self.free.clear()  # nobody starts meanwhile
        try:
            await self.model.sample_with(sampling)
        except StepFailed:
            return 500, {"error": FAILED}
        finally:
            self.free.extend(seats)
        self.sampling = sampling
        return 200, {"status": "success"}


def make_app(partner, **options):
    """The aiohttp application of a Server with these options."""
    return Server(partner, **options).app()


# --- from the command line ---

class OneLine(logging.Filter):
    """What is no HTTP at all, such as a scan of ports, is a line in the log and no traceback."""

    def filter(self, record):
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
            visitor = record.args[0] if record.args else "unknown address"
            record.msg = "%s: no proper request"
            record.args = (visitor,)
            record.exc_info = None
        return True


def start_log():
    """Conversations, who was turned away, and errors: to stderr, each with its time."""
    handler = logging.StreamHandler()
    handler.addFilter(OneLine())
    logging.basicConfig(handlers=[handler], format="%(asctime)s  %(message)s",
                        datefmt="%Y-%m-%d %H:%M:%S")
    LOG.setLevel(logging.INFO)


def serve(partner, args):
    """Until Ctrl-C or SIGTERM, at args.door (door.open_door)."""
    start_log()
    app = make_app(partner, seats=args.sessions, seed=args.seed, token=args.token,
                   origins=args.origin, local=args.door.is_local, longest=args.longest)
    ready = door.invitation(args.door, args.token)
    web.run_app(app, sock=args.door.sockets, ssl_context=args.door.secure, access_log=None,
                shutdown_timeout=SHUTDOWN, print=lambda _: print(ready, flush=True))
