"""The server against its own protocol, a Moshi client, a proxy, and strangers. All of it runs over
loopback, with an untrained model: it babbles, but says the same babble for the same sound."""
import asyncio
import base64
import gc
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import chat

pytest.importorskip("aiohttp")
from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError, web  # noqa: E402
from aiohttp.test_utils import TestClient, TestServer  # noqa: E402

from workshop import bench, door, pace, server  # noqa: E402

SOUND = 0.1 * np.random.default_rng(0).standard_normal((25, 1920)).astype(np.float32)


@pytest.fixture(scope="module")
def partner(untrained):
    return chat.Partner(untrained, chat.Sampling(), batch=3)


def visit(partner, scenario, **options):
    """Run scenario(client) against a server."""
    async def run():
        async with TestClient(TestServer(server.make_app(partner, **options))) as client:
            return await asyncio.wait_for(scenario(client), 120)
    return asyncio.run(run())


async def converse(client, frames=SOUND, path="/api/pcm", parts=40, pace=0.0):
    """A conversation in messages that are no frames -> (sound, text), as the page hears it."""
    sound, text = [], ""
    async with client.ws_connect(path) as socket:
        assert await socket.receive_bytes() == server.HANDSHAKE
        for part in np.array_split(frames.ravel(), parts):
            await socket.send_bytes(server.AUDIO + part.tobytes())
            await asyncio.sleep(pace)
        while len(sound) < len(frames):
            message = await socket.receive_bytes(timeout=30)
            assert message[:1] != server.ERROR, message
            if message[:1] == server.AUDIO:
                sound.append(np.frombuffer(message[1:], np.float32))
            elif message[:1] == server.TEXT:
                text += message[1:].decode()
    return np.stack(sound), text


async def refusal(client, path="/api/pcm"):
    """What a visitor is told who comes when all seats are taken."""
    async with client.ws_connect(path) as socket:
        message = await socket.receive_bytes(timeout=10)
        closing = await socket.receive(timeout=10)
        assert closing.type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        assert message[:1] == server.ERROR
        return message[1:].decode()


def test_conversations_start_fresh_and_one_at_a_time(partner):
    """Catches samples lost between messages, a conversation that remembers the one before, and two
    at once on one seat."""
    async def scenario(client):
        first = await converse(client)
        async with client.ws_connect("/api/pcm") as socket:
            assert await socket.receive_bytes() == server.HANDSHAKE
            assert "someone else" in await refusal(client)
            assert "someone else" in await refusal(client, "/api/chat")
            await socket.send_str("no audio")
            for dropped in (b"", b"\3\0", b"\6", b"\x99nothing"):
                await socket.send_bytes(dropped)
        return first, await converse(client, parts=7)
    (sound, text), (again, text_again) = visit(partner, scenario)
    assert np.array_equal(sound, again) and text == text_again and text
    assert np.abs(sound).max() > 0


def test_sessions_share_a_model_undisturbed(partner):
    """Catches conversations of a batch that hear each other, and a fourth one that gets in."""
    others = [SOUND, SOUND[::-1].copy(), -SOUND]

    async def scenario(client):
        alone = [await converse(client, frames) for frames in others]
        together = asyncio.gather(*(converse(client, frames, pace=0.002) for frames in others))
        await asyncio.sleep(0.02)
        refused = await refusal(client)
        return alone, await together, refused
    alone, together, refused = visit(partner, scenario, seats=3)
    for (sound, text), (sound_together, text_together) in zip(alone, together):
        # products of several rows round otherwise than those of one: a rare draw may differ late
        assert np.allclose(sound[:5], sound_together[:5], atol=1e-3)
        assert text[:8] == text_together[:8]
    assert "someone else" in refused


def test_a_step_that_fails_is_told_to_all_of_it(partner, monkeypatch, caplog):
    """Catches conversations of a failed step that end without a word, or that never end, a seat
    that is lost with them, and a log that does not say why."""
    steps, failing = partner.duplex.steps, []

    def fail(heard):
        time.sleep(0.05)  # so that the others' frames wait by then
        if failing and len(heard) > 1:
            raise RuntimeError("out of memory")
        return steps(heard)
    monkeypatch.setattr(partner.duplex, "steps", fail)

    async def fate(client):
        async with client.ws_connect("/api/pcm") as socket:
            assert await socket.receive_bytes() == server.HANDSHAKE
            await socket.send_bytes(server.AUDIO + SOUND.tobytes())
            while (message := await socket.receive_bytes(timeout=30))[:1] != server.ERROR:
                pass
            return message[1:].decode()

    async def scenario(client):
        failing.append(True)
        told = await asyncio.gather(*(asyncio.create_task(fate(client)) for _ in range(3)))
        failing.clear()
        return told, await converse(client, SOUND[:5])
    told, (sound, _) = visit(partner, scenario, seats=3)
    assert sum("The model failed" in sentence for sentence in told) >= 2 and len(sound) == 5
    assert "out of memory" in caplog.text


def test_a_fault_of_the_server_is_told_and_logged(partner, monkeypatch, caplog):
    """Catches a conversation that breaks off without a word, a fault that only the visitor is
    told, and a seat that is lost."""
    class Broken:
        def add(self, seconds, text_id):
            raise ValueError("no such word")

    async def scenario(client):
        with monkeypatch.context() as patch:
            patch.setattr(partner, "monologue", lambda *_, **__: Broken())
            async with client.ws_connect("/api/pcm") as socket:
                assert await socket.receive_bytes() == server.HANDSHAKE
                await socket.send_bytes(server.AUDIO + SOUND[:1].tobytes())
                ending = await last_words(socket)
        await converse(client, SOUND[:3])
        return ending
    sentence, close_code = visit(partner, scenario)
    assert sentence == server.FAILED and close_code == 1011 and "no such word" in caplog.text


async def converse_in_opus(client, frames=SOUND, path="/api/chat"):
    """A conversation as Moshi's clients hold it -> (sound [N], the text messages)."""
    import sphn
    writer = sphn.OpusStreamWriter(24_000)
    reader = sphn.OpusStreamReader(24_000)
    sound = []
    texts = []
    async with client.ws_connect(path) as socket:
        assert await socket.receive_bytes() == b"\0"
        await socket.send_bytes(b"\6")
        for frame in frames:
            await socket.send_bytes(b"\1" + writer.append_pcm(frame))
        while sum(map(len, sound)) < (len(frames) - 5) * 1920:
            message = await socket.receive_bytes(timeout=10)
            assert message[:1] in (b"\1", b"\2"), message
            if message[:1] == b"\1":
                sound.append(reader.append_bytes(message[1:]))
            else:
                texts.append(message[1:].decode())
    return np.concatenate(sound), texts


def test_a_moshi_client(partner):
    """Catches anything that differs from Moshi's protocol: the handshake, Ogg-Opus both ways,
    text, types that are to be dropped, times that only our page understands."""
    pytest.importorskip("sphn")
    sound, texts = visit(partner, converse_in_opus)
    text = "".join(texts)
    assert np.abs(sound).max() > 0 and text.startswith("w")
    assert " s  " not in text and "\n" not in text


def test_a_moshi_client_is_sent_nothing_for_the_first_frame(partner, monkeypatch):
    """Catches a stream that lies a frame late against the question, or one that is short of more
    than the first frame: a model that says a tone in frame 7 is heard in frame 6 of the stream."""
    pytest.importorskip("sphn")
    tone = 0.5 * torch.sin(torch.arange(1920) * 0.2)
    calls = []

    def say_a_tone(frames):
        calls.append(frames)
        model_audio = tone if len(calls) == 8 else torch.zeros(1920)
        wait = partner.model.config.wait_token
        return {seat: (wait, [0] * 8, model_audio) for seat in frames}
    monkeypatch.setattr(partner.duplex, "steps", say_a_tone)
    sound, texts = visit(partner, converse_in_opus)
    loudness = np.abs(sound[:18 * 1920].reshape(18, 1920)).mean(1)
    assert loudness.argmax() == 6 and loudness[:6].max() < 0.01 and not texts


def test_sentences_run_on_for_a_moshi_client(untrained):
    """Catches a "\\n", at which Moshi's terminal client scrolls; sentences that are glued to each
    other; a space before the first one."""
    partner = SimpleNamespace(decode=lambda ids, **_: "".join("_All is fine.\n"[i] for i in ids))
    words = server.RunningText()
    monologue = chat.Monologue(partner, 0, words.print, stamps=False)
    messages = []
    for text_id in (0, 1, 2, 3, 0, 0, 1, 0, 4, 5, 6, 13, 0):
        monologue.add(0, text_id)
        messages.append(words.take())
    assert messages == ["", "A", "l", "l", "", "", " A", "", " ", "i", "s", " ", ""]


def test_moshi_sampling_holds_for_one_conversation(partner):
    """Catches sampling in the link that is ignored, that is not checked, that stays for the next
    visitor, or that changes what others hear."""
    pytest.importorskip("sphn")
    own = partner.duplex.sampling
    samplings = []

    async def one_seat(client):
        links = ["?text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250"
                 "&pad_mult=0&text_seed=11&audio_seed=5&repetition_penalty_context=64"
                 "&repetition_penalty=1.0&worker_auth_id=x", "?temperature_audio=0&fbclid=3", ""]
        for link in links:
            await converse_in_opus(client, SOUND[:8], "/api/chat" + link)
            samplings.append(partner.duplex.sampling)
            await asyncio.sleep(0.1)
        for link, sentence in [
            ("audio_temperature=hot", "audio_temperature must be a number, not 'hot'"),
            ("audio_temperature=nan", "audio_temperature must be a number of a usual size"),
            ("audio_temperature=-1", "temperature_audio must be 0 .. 100"),
            ("text_topk=2.5", "top_k_text must be 0"),
            ("text_topk=1&text_topk=2", "top_k_text is set twice"),
            ("pad_mult=2", "pad_mult must be 0"),
            ("text_seed=x", "text_seed must be a number"),
            ("text_seed=-1", "text_seed must be a whole number"),
            ("audio_seed=" + "9" * 5000, "audio_seed must be a whole number"),
            ("text_temperature=%ff", "text_temperature must be a number"),
        ]:
            answer = await refusal(client, f"/api/chat?{link}")
            assert sentence in answer and answer.endswith(".") and "\n" not in answer, answer

    async def two_seats(client):
        assert "With several seats" in await refusal(client, "/api/chat?audio_temperature=0.9")
        await converse_in_opus(client, SOUND[:8], f"/api/chat?temp_audio={own.temperature_audio}")
    visit(partner, one_seat)
    visit(partner, two_seats, seats=2)
    moshis = replace(own, temperature_text=0.7, top_k_text=25, top_p_text=0, window_text=64,
                     penalty_text=1.0, temperature_audio=0.8, top_k_audio=250, top_p_audio=0)
    assert samplings == [moshis, replace(own, temperature_audio=0), own]


def test_moshi_seeds_pick_the_words():
    """Catches a seed that is ignored, or one of the two."""
    seeds = [server.seed_from_query(query) for query in (
        {}, {"text_seed": "1"}, {"audio_seed": "1"}, {"text_seed": "1", "audio_seed": "1"},
        {"text_seed": str(2**64 - 1), "audio_seed": str(2**64 - 1)})]
    assert seeds[0] is None and len(set(seeds)) == 5
    for seed in seeds[1:]:
        torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("body, sentence", [
    (b"{", "Expecting"),
    (b"", "Expecting"),
    (b"[3]", "a JSON object"),
    (b'"hot"', "a JSON object"),
    (b"[" * 60_000, "nested too deeply"),
    (b'{"a":' * 10_000, "nested too deeply"),
    (b'{"temp_audio": {"a": [1]}}', "temp_audio must be a number"),
    (b'{"temp_audio": [0.5]}', "temp_audio must be a number"),
    (b'{"temp_audio": "hot\\nhot"}', "temp_audio must be a number"),
    (b'{"temp_audio": null}', "temp_audio must be a number"),
    (b'{"temp_audio": true}', "temp_audio must be a number"),
    (b'{"temp_audio": NaN}', "temp_audio must be a number"),
    (b'{"temp_audio": 1e999}', "temp_audio must be a number"),
    (b'{"temp_audio": ' + b"9" * 4000 + b"}", "temp_audio must be a number"),
    (b'{"temp_audio": ' + b"9" * 5000 + b"}", "thousands of digits"),
    (b'{"temp_audio": 101}', "temperature_audio must be 0 .. 100"),
    (b'{"text_topk": 2.5}', "top_k_text must be 0"),
    (b'{"repetition_penalty_window_text": 10000000}', "window_text must be 0 .. 10000"),
    (b'{"temp_audio": 1, "temperature_audio": 1}', "set twice"),
    (b'{"use_sampling": 0}', "use_sampling must be true or false"),
    (b'{"__class__": 1}', "'__class__' is no setting"),
    (b'{"' + b"n" * 9000 + b'": 1}', "is no setting"),
    (b'{"\\ud800\\n": 1}', "is no setting"),
    (b'{"\xff": 1}', "no UTF-8"),
])
def test_wrong_settings_are_one_sentence(body, sentence):
    """Catches a traceback, and an answer that repeats a visitor's pages or lines."""
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        server.sampling_from_body(body, chat.Sampling())
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


def test_settings_hold_from_the_next_conversation_on(partner):
    """Catches settings that change a conversation that is held, or change nothing; and requests
    whose headers or length are wrong."""
    async def post(client, body, **headers):
        async with client.post("/api/settings", data=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def scenario(client):
        before = await converse(client)
        assert (await post(client, "[" * 60_000))[0] == 400
        assert (await post(client, b"0" * 70_000))[0] == 413
        assert (await post(client, "junk", **{"Content-Encoding": "gzip"}))[0] == 400
        odd_type = {"Content-Type": "application/json; charset=none"}
        async with client.ws_connect("/api/pcm") as socket:
            await socket.receive_bytes()
            assert (await post(client, "{}", **odd_type))[0] == 503
        body = json.dumps({"use_sampling": False, "repetition_penalty_text": 1.0})
        for _ in range(50):
            status, _ = await post(client, body, **odd_type)
            if status != 503:
                break
            await asyncio.sleep(0.02)
        sampling = partner.duplex.sampling
        assert status == 200 and sampling.temperature_audio == 0 and sampling.penalty_text == 1
        return before, await converse(client)
    before, after = visit(partner, scenario)
    assert not np.array_equal(before[0], after[0])
    partner.sample_with(chat.Sampling())


async def status_of(client, path="/", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.get(path, headers=names) as answer:
        return answer.status


def test_who_may_come_in(partner):
    """Catches a page of another origin that talks through a visitor's browser, another name for
    this machine, and headers that are no addresses and end in a traceback."""
    async def scenario(client):
        here = f"http://{client.host}:{client.port}"
        assert await status_of(client) == 200 and await status_of(client, Origin=here) == 200
        assert await status_of(client, Origin="https://friend.org:443") == 200
        for origin in ("https://evil.org", "http://friend.org", "null", "http://[", "http://a:b"):
            assert await status_of(client, Origin=origin) == 403, origin
        for host in ("evil.org", "[", "a b", "localhost@evil.org", ""):
            assert await status_of(client, Host=host) == 403, host
        assert await status_of(client, Host="evil.org", Origin="http://evil.org") == 403
    visit(partner, scenario, origins=["https://friend.org"])


def test_the_token(partner):
    """Catches a token that is not asked for, and each place where a client may bring it: the link,
    Authorization: Bearer, and the user part of a URL, which is all that Moshi's client can set."""
    token = "a b/ä"

    async def scenario(client):
        basic = base64.b64encode(f"me:{token}".encode()).decode()
        header = token.encode().decode("utf-8", "surrogateescape")
        assert await status_of(client, "/?token=a+b/%C3%A4") == 200
        assert await status_of(client, Authorization=f"Bearer {header}") == 200
        assert await status_of(client, Authorization=f"Basic {basic}") == 200
        for wrong in ("", "Bearer", "Bearer a", "Basic", "Basic !", "Basic YTpi", "Basic ä"):
            assert await status_of(client, Authorization=wrong) == 403, wrong
        for path in ("/", "/?token=", "/?token=shut", "/?token=%ff", "/api/chat?token"):
            assert await status_of(client, path) == 403, path
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/api/pcm")
    visit(partner, scenario, token=token)


def test_moshi_client_brings_the_token_in_its_url(partner):
    """Catches a link of the form http://user:TOKEN@HOST that does not let Moshi's client in, which
    can change nothing but its URL and puts /api/chat behind it."""
    pytest.importorskip("sphn")

    async def scenario(client):
        async with ClientSession() as session:
            url = f"ws://me:se%20cret@{client.host}:{client.port}/api/chat"
            async with session.ws_connect(url) as socket:
                return await socket.receive_bytes()
    assert visit(partner, scenario, token="se cret") == b"\0"


@pytest.mark.parametrize("origin, host, same", [
    ("https://example.org", "example.org", True),
    ("https://example.org", "example.org:443", True),
    ("https://example.org:443", "example.org", True),
    ("http://example.org", "EXAMPLE.org:80", True),
    ("http://[::1]:8990", "[::1]:8990", True),
    ("https://example.org", "example.org:80", False),
    ("https://example.org:8443", "example.org", False),
    ("https://example.org", "example.org.evil.org", False),
    ("https://example.org", "", False),
    ("null", "example.org", False),
    ("https://example.org:99999", "example.org", False),
    ("http://[", "[", False),
])
def test_origin_and_host(origin, host, same):
    """Catches usual ports that are told apart from none, and addresses that only look alike."""
    assert door.is_same_origin(origin, host) == same


def test_behind_a_proxy(partner):
    """Catches a server that does not work where a proxy gives it a path of its own, strips that,
    and puts its own Host: the page, a conversation, and the origin of the proxy's page alone."""
    async def run():
        async with TestServer(server.make_app(partner, origins=["https://example.org"])) as inner:
            async def forward(request):
                url = inner.make_url("/" + request.match_info["rest"]).with_query(request.query)
                headers = {"X-Forwarded-For": request.remote}
                if "Origin" in request.headers:
                    headers["Origin"] = request.headers["Origin"]
                if "Upgrade" in request.headers:
                    return await forward_socket(request, url, headers)
                async with session.request(request.method, url, headers=headers) as answer:
                    return web.Response(body=await answer.read(), status=answer.status)

            proxy = web.Application()
            proxy.add_routes([web.route("*", "/voice/{rest:.*}", forward)])
            async with ClientSession() as session, TestClient(TestServer(proxy)) as client:
                assert await status_of(client, "/voice/", Origin="https://example.org") == 200
                assert await status_of(client, "/voice/", Origin="https://evil.org") == 403
                return await converse(client, path="/voice/api/pcm")

    async def forward_socket(request, url, headers):
        outer = web.WebSocketResponse()
        await outer.prepare(request)
        async with ClientSession() as session, session.ws_connect(url, headers=headers) as inner:
            async def pump(source, target):
                async for message in source:
                    await target.send_bytes(message.data)
                await target.close()
            await asyncio.gather(pump(outer, inner), pump(inner, outer))
        return outer
    sound, text = asyncio.run(run())
    direct_sound, direct_text = visit(partner, converse)
    assert np.array_equal(sound, direct_sound) and text == direct_text


async def last_words(socket):
    """-> (the sentence of the ERROR message, the close code)"""
    sentence = None
    while True:
        message = await socket.receive(timeout=10)
        if message.type is not WSMsgType.BINARY:
            return sentence, socket.close_code
        if message.data[:1] == server.ERROR:
            sentence = message.data[1:].decode()


def test_a_server_that_stops_says_so(partner):
    """Catches conversations that break off without a word when the server is stopped, one of which
    has a client that waits, one a client that sends; and a stop that takes longer than it may."""
    async def scenario(client):
        quiet = await client.ws_connect("/api/pcm")
        busy = await client.ws_connect("/api/pcm")
        for visitor in (quiet, busy):
            assert await visitor.receive_bytes() == server.HANDSHAKE
        await busy.send_bytes(server.AUDIO + SOUND.tobytes())
        started = time.monotonic()
        stopping = asyncio.create_task(client.server.close())
        endings = await asyncio.gather(last_words(quiet), last_words(busy))
        await stopping
        return endings, time.monotonic() - started
    endings, seconds = visit(partner, scenario, seats=2)
    assert endings == [("The server stops.", 1001)] * 2 and seconds < server.GOODBYE


def test_longest(partner):
    """Catches a visitor who sends silence and keeps the only seat for ever."""
    async def silence(socket):
        while not socket.closed:
            await socket.send_bytes(server.AUDIO + bytes(4 * 1920))
            await asyncio.sleep(0.05)

    async def scenario(client):
        async with client.ws_connect("/api/pcm") as socket:
            started = time.monotonic()
            sending = asyncio.create_task(silence(socket))
            sentence, _ = await last_words(socket)
            seconds = time.monotonic() - started
            sending.cancel()
        await converse(client, SOUND[:3])  # the seat is free
        return sentence, seconds
    sentence, seconds = visit(partner, scenario, longest=0.01)
    assert "may last 0.01 minutes" in sentence and seconds > 0.5


def test_the_log(partner, caplog):
    """Catches conversations without a line at their start and one at their end, lines that do not
    say who, where, how long and why, tokens in the log, and made-up addresses shown as true."""
    async def scenario(client):
        await converse(client, SOUND[:3])
        await asyncio.sleep(0.1)
        claim = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7"}
        async with client.ws_connect("/api/pcm", headers=claim) as socket:
            await socket.receive_bytes()
            await refusal(client)
            await socket.send_bytes(server.AUDIO + b"123")
            await last_words(socket)
        async with client.ws_connect("/api/pcm") as socket:
            await socket.receive_bytes()
            await socket.send_bytes(server.AUDIO + bytes(server.Pcm.longest))
            await last_words(socket)
        for claim in ("\t<script>", "1.2.3.4 evil", "1.2.3"):
            await status_of(client, Origin="http://evil.org", X_Forwarded_For=claim)
    with caplog.at_level(logging.INFO, "flm.server"):
        visit(partner, scenario)
    lines = [record.getMessage() for record in caplog.records if record.name == "flm.server"]
    who = r"127\.0\.0\.1:\d+"
    forwarded = who + r" \(forwarded for 203\.0\.113\.7, as it says\)"
    patterns = [
        who + ", page: a conversation begins",
        who + r", page: the conversation ends after \d+\.\d s\. The visitor left\.",
        forwarded + ", page: a conversation begins",
        who + r", page: turned away\. The model is talking with someone else\. .*",
        forwarded + r", page: the conversation ends after \d\.\d s\. This audio cannot .*\.",
        who + ", page: a conversation begins",
        who + r", page: the conversation ends after \d\.\d s\. A message was not as it should .*",
        *3 * [who + r", door: turned away\. Pages of other origins .*"],
    ]
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns):
        assert re.fullmatch(pattern, line), line


def test_a_server_that_is_too_slow_says_so_in_its_log(partner, monkeypatch, caplog):
    """Catches a machine that falls behind its visitors while nobody who runs it is told."""
    monkeypatch.setattr(pace.Pace, "add", lambda self, _, add=pace.Pace.add: add(self, 0.2))
    monkeypatch.setattr(pace, "WINDOW", 10)
    with caplog.at_level(logging.INFO, "flm.server"):
        visit(partner, converse)
    assert caplog.text.count("this machine takes 200 ms for a frame of 80 ms, so a live talk") == 1


def test_what_is_no_http_is_a_line_in_the_log(partner, caplog):
    """Catches a traceback for each scan of ports, and one that shuts the server."""
    async def scenario(client):
        for junk in (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"\x16\x03\x01junk\r\n\r\n"):
            reader, writer = await asyncio.open_connection(client.host, client.port)
            writer.write(junk)
            assert b"400" in await asyncio.wait_for(reader.read(), 5)
            writer.close()
        garbled = {"Content-Encoding": "gzip"}
        async with client.post("/api/settings", data="x", headers=garbled) as answer:
            assert answer.status == 400
        return await status_of(client)
    with caplog.at_level(logging.INFO):
        assert visit(partner, scenario) == 200
    records = [record for record in caplog.records if record.exc_info]
    assert records, "aiohttp logs tracebacks, which the filter is there for"
    for record in records:
        assert server.OneLine().filter(record)
        assert record.exc_info is None and record.getMessage().endswith(": no proper request")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_is_stopped_says_so(untrained, pytestconfig, signal_number):
    """Catches a Ctrl-C or a SIGTERM that reaches no visitor, ends in a traceback, or takes long."""
    if not pytestconfig.getoption("long"):
        pytest.skip("starts a program: --long")
    port = free_port()
    program = subprocess.Popen(
        [sys.executable, "chat.py", "--serve", str(port), "--model", str(untrained)],
        cwd=Path(chat.__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout.readline() == f"Open http://localhost:{port}/ and talk; Ctrl-C ends it.\n"

    async def talk():
        url = f"http://localhost:{port}/api/pcm"
        async with ClientSession() as session, session.ws_connect(url) as socket:
            assert await socket.receive_bytes() == server.HANDSHAKE
            await socket.send_bytes(server.AUDIO + SOUND.tobytes())
            program.send_signal(signal_number)
            return await last_words(socket)
    assert asyncio.run(talk()) == ("The server stops.", 1001)
    assert program.wait(15) == 0
    lines = program.stderr.read().splitlines()
    time_and_visitor = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  127\.0\.0\.1:\d+, page: "
    assert len(lines) == 2, lines
    assert re.fullmatch(time_and_visitor + "a conversation begins", lines[0])
    assert re.fullmatch(time_and_visitor + r".* after \d\.\d s\. The server stops\.", lines[1])


# --- the command line ---

def options(**changes):
    values = {"serve": 0, "host": "localhost", "ssl": None, "token": None, "origin": [],
              "longest": None}
    return SimpleNamespace(**{**values, **changes})


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_wrong_options_of_the_server_are_one_sentence(tmp_path):
    """Catches a model that is loaded before a port in use is noticed, and tracebacks."""
    port = free_port()
    (tmp_path / "cert.pem").write_text("none")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        for changes, sentence in [
            ({}, f"port {port} is in use"),
            ({"host": "127.0.0.1"}, f"port {port} is in use"),
            ({"host": "192.0.2.77"}, "is no address of this machine"),
            ({"host": "no.such.host.invalid"}, "is no address"),
            ({"host": ""}, "is no address"),
            ({"host": "a" * 300}, "is no address"),
            ({"host": "a..b"}, "is no address"),
            ({"serve": 0}, "from 1 to 65535"),
            ({"serve": 70_000}, "from 1 to 65535"),
            ({"token": ""}, "--token is empty"),
            ({"longest": 0}, "--longest takes minutes"),
            ({"longest": float("nan")}, "--longest takes minutes"),
            ({"origin": ["example.org"]}, "--origin: example.org is no origin"),
            ({"origin": ["https://example.org/page"]}, "is no origin"),
            ({"ssl": (tmp_path / "cert.pem", tmp_path / "cert.pem")}, "is no certificate"),
            ({"ssl": (tmp_path / "none.pem", tmp_path / "none.pem")}, "is no certificate"),
        ]:
            with pytest.raises((ValueError, OSError)) as refused:
                door.open_door(options(**{"serve": port, **changes}))
            assert sentence in str(refused.value) and "\n" not in str(refused.value), changes
    assert "administrators" in door.why_not_bound(PermissionError(13, "no"), "localhost", 80)


@pytest.mark.parametrize("arguments", [
    ("--token", "x"), ("--longest", "5"), ("--host", "0.0.0.0"), ("--sessions", "2"),
    ("--origin", "https://example.org")])
def test_options_of_the_server_need_the_server(arguments):
    """Catches options that are ignored without a word."""
    with pytest.raises(SystemExit, match=f"{arguments[0]} has no effect with --in: it goes with --serve"):
        chat.main([*arguments, "--in", "a.wav", "--out", "b.wav"])


def test_too_many_sessions_are_one_sentence(untrained):
    """Catches a traceback where the memory does not hold so many conversations."""
    arguments = ["--serve", str(free_port()), "--sessions", "100000000", "--model", str(untrained)]
    with pytest.raises(SystemExit, match="the memory is full: take fewer --sessions"):
        chat.main(arguments)


def test_without_aiohttp_the_server_is_one_sentence(monkeypatch):
    """Catches a traceback where an optional package is missing, and a chat.py that needs it."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for name in ("workshop.server", "workshop.door"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("workshop.server", raising=False)
    with pytest.raises(SystemExit, match="--serve needs the aiohttp package"):
        chat.main(["--serve", str(free_port())])


def test_links(monkeypatch):
    """Catches links that no browser opens or gives a microphone to, and an open server that does
    not say so."""
    monkeypatch.setattr(door, "own_address", lambda family: {
        socket.AF_INET: "192.168.1.5", socket.AF_INET6: "2001:db8::5"}[family])

    def lines(host, secure=None, token=None):
        return door.invitation(door.Door((), host, 8990, secure), token).splitlines()
    assert lines("localhost") == ["Open http://localhost:8990/ and talk; Ctrl-C ends it."]
    assert "https://[::1]:8990/?token=a%20%26 and" in lines("::1", True, "a &")[0]
    everywhere = lines("0.0.0.0")
    assert "http://localhost:8990/ on this machine" in everywhere[0]
    assert "add --ssl CERT KEY, then open https://192.168.1.5:8990/" in everywhere[1]
    assert everywhere[2].startswith("Warning:") and len(everywhere) == 3
    assert "http://[::1]:8990/ on this" in lines("::")[0]
    assert "https://[2001:db8::5]:8990/ on other" in lines("::", True)[1]
    assert lines("0.0.0.0", True, "x") == [
        "Open https://localhost:8990/?token=x on this machine and talk; Ctrl-C ends it.",
        "Open https://192.168.1.5:8990/?token=x on other machines."]
    assert "no microphone" in lines("192.168.1.5", None, "x")[0]


def test_a_door_is_opened_where_it_says():
    """Catches a host whose link or whose guard does not agree with where the server listens."""
    for host, shown_host, is_local in [
        ("localhost", "localhost", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.1", "127.0.0.1", True),
        ("0", "0.0.0.0", False),
    ]:
        opened = door.open_door(options(serve=free_port(), host=host))
        assert (opened.host, opened.is_local) == (shown_host, is_local)
        for listener in opened.sockets:
            listener.close()


def test_strangers(partner, pytestconfig):
    """Catches a crash, growth, or a conversation disturbed by random messages, malformed Opus,
    floods, huge messages and 200 visitors at once."""
    rng = np.random.default_rng(0)
    count = 10_000 if pytestconfig.getoption("long") else 1500

    async def pester(client, path, n):
        sent = 0
        while sent < n:
            async with client.ws_connect(path, max_msg_size=0) as socket:
                try:
                    while sent < n and not socket.closed:
                        sent += 1
                        data = rng.bytes(int(rng.integers(0, 300)))
                        kind = int(rng.integers(0, 4))
                        typed = bytes([rng.integers(0, 8)]) + data
                        if kind == 0:
                            await socket.send_str(data.hex())
                        else:
                            await socket.send_bytes(typed if kind < 3 else data)
                        await asyncio.sleep(0)
                except ConnectionError:
                    pass

    async def too_much(client, messages):
        async with client.ws_connect("/api/pcm") as socket:
            await socket.receive_bytes()
            try:
                for message in messages:
                    await socket.send_bytes(message)
            except ConnectionError:
                pass
            last = b""
            async for message in socket:
                if type(message.data) is bytes and message.data[:1] == server.ERROR:
                    last = message.data
            return last[1:].decode()

    async def scenario(client):
        alone = await converse(client)
        gc.collect()
        held = len(gc.get_objects())
        quiet = asyncio.create_task(converse(client, pace=0.05))
        await asyncio.sleep(0.05)
        await asyncio.gather(pester(client, "/api/chat", count), pester(client, "/api/pcm", count))
        assert "Too many messages" in await too_much(client, [b"\3"] * (server.BURST + 900))
        minute_and_more = [b"\1" + bytes(240_000)] * 30
        assert "seconds of sound are waiting" in await too_much(client, minute_and_more)
        await too_much(client, [b"\1" + bytes(2**20)])
        knocks = [asyncio.wait_for(knock(client), 30) for _ in range(200)]
        refused = await asyncio.gather(*knocks)
        assert sum(refused) >= 190
        disturbed = await quiet
        again = await converse(client)
        gc.collect()
        return alone, disturbed, again, len(gc.get_objects()) - held

    async def knock(client):
        async with client.ws_connect("/api/pcm") as socket:
            return (await socket.receive_bytes())[:1] == server.ERROR
    alone, disturbed, again, grown = visit(partner, scenario, seats=2)
    assert np.array_equal(alone[0], again[0])
    assert np.allclose(alone[0][:5], disturbed[0][:5], atol=1e-3)
    assert grown < 20_000, f"{grown} objects are held that were not before"


def test_a_client_that_vanished_frees_its_seat(partner):
    """Catches a half-open socket that keeps others out: it answers no ping, reads nothing, and
    sends no end. And one that answers pings but gives no sound."""
    async def scenario(client):
        reader, writer = await asyncio.open_connection(client.host, client.port)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write((f"GET /api/pcm HTTP/1.1\r\nHost: {client.host}:{client.port}\r\n"
                      "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                      f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.1)
        assert "someone else" in await refusal(client)
        started = time.monotonic()
        silent = None
        while silent is None:
            silent = await client.ws_connect("/api/pcm")
            if (await silent.receive_bytes()) != server.HANDSHAKE:
                await silent.close()
                silent = None
                await asyncio.sleep(0.1)
            assert time.monotonic() - started < 6
        half_open = time.monotonic() - started
        assert b"No sound came" in await silent.receive_bytes(timeout=7)
        writer.close()
        return half_open
    assert visit(partner, scenario) < 5.5


def test_a_conversation_goes_past_its_positions(partner):
    """Catches a position or a state that runs over, in a visitor's loop without its socket: Opus,
    codec, model, monologue, Opus. (Hours with the shipped model are in test_talk.py.)"""
    pytest.importorskip("sphn")
    before = partner.duplex
    partner.duplex = chat.Duplex(partner.model, chat.Sampling(), context=64, codec=partner.codec)
    partner.duplex.reset(seed=0)
    positions = partner.model.config.max_position_embeddings
    bench.skip_to(partner.duplex.cache, positions - 20)  # as if hours had passed
    client = server.Opus(24_000)
    wire = server.Opus(24_000)
    monologue = partner.monologue(lambda *_, **__: None)
    ears = np.zeros(1920, np.float32)
    for i in range(150):
        ears = np.concatenate([ears, wire.decode(client.encode(SOUND[i % 25]))])
        frame = np.pad(ears[:1920], (0, 1920 - len(ears[:1920])))
        ears = ears[1920:]
        text, _, model_audio = partner.duplex.steps({0: torch.from_numpy(frame)})[0]
        assert model_audio.isfinite().all()
        assert i > 0 or not model_audio.any()
        client.decode(wire.encode(model_audio.numpy()))
        monologue.add(i / 12.5, text)
    partner.duplex = before
