"""The server against its own protocol, a Moshi client, and strangers. All of it over loopback, with an untrained model:
what is said is babble, but the same babble for the same sound."""
import asyncio
import base64
import gc
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import chat
from workshop import server

pytest.importorskip("aiohttp")
from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError  # noqa: E402
from aiohttp.test_utils import TestClient, TestServer  # noqa: E402

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
        assert (await socket.receive(timeout=10)).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        assert message[:1] == server.ERROR
        return message[1:].decode()


def test_conversations_start_fresh_and_one_at_a_time(partner):
    """Catches samples lost between messages, a conversation that remembers the one before, and two at once on one seat."""
    async def scenario(client):
        first = await converse(client)
        async with client.ws_connect("/api/pcm") as socket:
            assert await socket.receive_bytes() == server.HANDSHAKE
            assert "someone else" in await refusal(client) and "someone else" in await refusal(client, "/api/chat")
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
        # products of several rows round otherwise than those of one, so a rare draw may differ late
        assert np.allclose(sound[:5], sound_together[:5], atol=1e-3) and text[:8] == text_together[:8]
    assert "someone else" in refused


def test_a_step_that_fails_is_told_to_all_of_it(partner, monkeypatch, caplog):
    """Catches conversations of a failed step that end without a word, or that never end, a seat that is lost with them, and a
    log that does not say why."""
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
    assert sum("The model failed" in sentence for sentence in told) >= 2 and len(sound) == 5 and "out of memory" in caplog.text


def test_a_moshi_client(partner):
    """Catches anything that differs from Moshi's protocol: handshake, Ogg-Opus both ways, text, unknown types dropped."""
    sphn = pytest.importorskip("sphn")

    async def scenario(client):
        writer, reader, heard = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000), []
        async with client.ws_connect("/api/chat") as socket:
            assert await socket.receive_bytes() == b"\0"
            await socket.send_bytes(b"\6")
            for frame in SOUND:
                await socket.send_bytes(b"\1" + writer.append_pcm(frame))
            text = b""
            while sum(map(len, heard)) < 20 * 1920:
                message = await socket.receive_bytes(timeout=10)
                assert message[:1] in (b"\1", b"\2")
                if message[:1] == b"\1":
                    heard.append(reader.append_bytes(message[1:]))
                else:
                    text += message[1:]
        return np.concatenate(heard), text.decode()
    sound, text = visit(partner, scenario)
    assert np.abs(sound).max() > 0 and text.startswith("w") and " s  " not in text, "words without our times"


def test_settings_are_checked_and_hold(partner):
    """Catches settings that are taken unchecked, change a conversation that is held, or change nothing."""
    async def scenario(client):
        async def post(body):
            async with client.post("/api/settings", data=body) as answer:
                return answer.status, await answer.json()
        before = await converse(client)
        for body, sentence in [("{", "Expecting"), ("[3]", "cannot convert"), ('{"__class__": 1}', "unexpected keyword"),
                               ('{"temp_audio": "hot"}', "temperature_audio must be 0 .. 100"),
                               ('{"temp_audio": NaN}', "must be"),
                               ('{"repetition_penalty_window_text": 1000000000}', "window_text must be 0 .. 10000")]:
            status, answer = await post(body)
            assert status == 400 and sentence in answer["error"] and "\n" not in answer["error"], answer
        async with client.ws_connect("/api/pcm") as socket:
            await socket.receive_bytes()
            assert (await post("{}"))[0] == 503
        for _ in range(50):
            if (status := (await post(json.dumps({"use_sampling": False, "repetition_penalty_text": 1.0})))[0]) != 503:
                break
            await asyncio.sleep(0.02)
        assert status == 200 and partner.duplex.sampling.temperature_audio == 0 and partner.duplex.sampling.penalty_text == 1
        return before, await converse(client)
    before, after = visit(partner, scenario)
    assert not np.array_equal(before[0], after[0])
    partner.sample_with(chat.Sampling())


def test_who_may_come_in(partner):
    """Catches a page of another origin that talks through a visitor's browser, another name for this machine, a token not asked."""
    async def status(client, path, **headers):
        async with client.get(path, headers=headers) as answer:
            return answer.status

    async def scenario(client):
        here = f"http://{client.host}:{client.port}"
        assert await status(client, "/?token=open") == 200 and await status(client, "/?token=open", Origin=here) == 200
        assert await status(client, "/?token=open", Origin="https://friend.org") == 200
        assert await status(client, "/?token=open", Origin="https://evil.org") == 403
        assert await status(client, "/?token=open", Host="evil.org", Origin="http://evil.org") == 403
        assert await status(client, "/") == 403 and await status(client, "/?token=shut") == 403
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/api/pcm")
    visit(partner, scenario, token="open", origins=["https://friend.org"])


def test_strangers(partner, pytestconfig):
    """Catches a crash, growth, or a conversation disturbed by random messages, malformed Opus, floods, huge messages and 200
    visitors at once."""
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
                        await (socket.send_str(data.hex()) if kind == 0 else socket.send_bytes(typed if kind < 3 else data))
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
                last = message.data if type(message.data) is bytes and message.data[:1] == server.ERROR else last
            return last[1:].decode()

    async def scenario(client):
        alone = await converse(client)
        gc.collect()
        held = len(gc.get_objects())
        quiet = asyncio.create_task(converse(client, pace=0.05))
        await asyncio.sleep(0.05)
        await asyncio.gather(pester(client, "/api/chat", count), pester(client, "/api/pcm", count))
        assert "Too many messages" in await too_much(client, [b"\3"] * (server.BURST + 900))
        assert "seconds of sound are waiting" in await too_much(client, [b"\1" + bytes(240_000)] * 30)
        await too_much(client, [b"\1" + bytes(2**20)])
        refused = await asyncio.gather(*(asyncio.wait_for(knock(client), 30) for _ in range(200)))
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
    """Catches a half-open socket that keeps others out: it answers no ping, reads nothing, and sends no end. And one that
    answers pings but gives no sound."""
    async def scenario(client):
        reader, writer = await asyncio.open_connection(client.host, client.port)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(f"GET /api/pcm HTTP/1.1\r\nHost: {client.host}:{client.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
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


def test_a_conversation_goes_on_and_on(partner, pytestconfig):
    """Catches memory or time that grows, and a position or a state that runs over, in a visitor's loop without its socket:
    Opus, codec, model, monologue, Opus. It goes past the ring's end, and with --long through three hours of conversation."""
    pytest.importorskip("sphn")
    frames = 3 * 3600 * 25 // 2 if pytestconfig.getoption("long") else 150
    duplex, rates, thought = partner.duplex, [], []
    partner.duplex = chat.Duplex(partner.model, chat.Sampling(), context=64, codec=partner.codec)
    partner.duplex.reset(seed=0)
    if not pytestconfig.getoption("long"):
        partner.duplex.cache.position[0] = partner.model.config.max_position_embeddings - 20  # as if hours had passed
    client, ear, ears = server.Opus(24_000), server.Opus(24_000), np.zeros(1920, np.float32)
    monologue = partner.monologue(lambda text="", **_: thought.append(text), stamps=False)
    held, started, part = {}, time.process_time(), max(frames // 36, 1)
    for i in range(frames):
        ears = np.concatenate([ears, ear.decode(client.encode(SOUND[i % 25]))])
        heard, ears = ears[:1920], ears[1920:]
        text, _, said = partner.duplex.steps({0: torch.from_numpy(np.pad(heard, (0, 1920 - len(heard))))})[0]
        assert said.isfinite().all() and (i > 0 or not said.any())
        client.decode(ear.encode(said.numpy()))
        monologue.add(i / 12.5, text)
        if i % part == part - 1:  # five minutes
            held[i] = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
            rates.append(1000 * (time.process_time() - started) / part)
            started = time.process_time()
            print(f"{(i + 1) / 750:6.1f} min, {rates[-1]:.2f} ms of processor a frame, {held[i]:.1f} MB", flush=True)
    partner.duplex = duplex
    held, thirds = [*held.values()], len(rates) // 3
    assert held[-1] - held[thirds] < 30, "megabytes"
    assert np.median(rates[-thirds:]) < 2 * np.median(rates[:thirds]), rates


def test_a_session_over_tcp_from_another_client(partner):
    """Catches a server that needs aiohttp's test client: a plain session of the library, with the token in its link."""
    async def scenario(client):
        async with ClientSession() as session, session.ws_connect(f"http://{client.host}:{client.port}/api/chat?token=a b") as socket:
            return await socket.receive_bytes()
    assert visit(partner, scenario, token="a b") == b"\0"
