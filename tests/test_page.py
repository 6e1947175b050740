"""The page: its sound code by itself, and all of it in Chromium without a window.

The browser's microphone hears a file. Most servers here are scripted, so that they fail when a test
says so; two tests talk with the real one."""
import asyncio
import base64
import io
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import chat
from workshop.server import AUDIO, ERROR, HANDSHAKE, METADATA, TEXT, make_app

aiohttp = pytest.importorskip("aiohttp")
from aiohttp import web  # noqa: E402
from aiohttp.test_utils import TestServer  # noqa: E402

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "web" / "index.html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NODE = shutil.which("node")
FRAME = 1920
RATE = 24_000
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt install chromium")
needs_javascript = pytest.mark.skipif(
    CHROMIUM is None and NODE is None, reason="neither node nor Chromium here: apt install nodejs")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP far.example 127.0.0.1", "--remote-debugging-port=0",
    "--window-size=900,900", "--remote-allow-origins=*")


# --- a browser ---

class Browser:
    """Chromium with one tab, by the DevTools protocol. sound: a file that its microphone hears."""

    def __init__(self, folder, sound):
        self.arguments = [
            CHROMIUM, *FLAGS, f"--use-file-for-fake-audio-capture={sound}",
            f"--user-data-dir={folder}", "about:blank"]
        self.port_file = folder / "DevToolsActivePort"
        self.calls = 0

    async def __aenter__(self):
        nowhere = asyncio.subprocess.DEVNULL
        self.process = await asyncio.create_subprocess_exec(
            *self.arguments, stdout=nowhere, stderr=nowhere)
        for _ in range(300):
            await asyncio.sleep(0.1)
            if self.port_file.exists() and self.port_file.read_text():
                break
        port = self.port_file.read_text().split()[0]
        self.http = aiohttp.ClientSession()
        async with self.http.get(f"http://127.0.0.1:{port}/json") as answer:
            tabs = await answer.json(content_type=None)
        tab = next(tab for tab in tabs if tab["type"] == "page")
        self.socket = await self.http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
        return self

    async def __aexit__(self, *_):
        await self.http.close()
        self.process.terminate()
        await self.process.wait()

    async def call(self, method, **parameters):
        """One command of the DevTools protocol -> its result."""
        self.calls += 1
        await self.socket.send_json({"id": self.calls, "method": method, "params": parameters})
        while True:
            answer = await self.socket.receive_json(timeout=60)
            if answer.get("id") == self.calls:
                return answer["result"]

    async def value(self, script):
        """What an expression is in the page. Raises AssertionError for an exception in it."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True,
                                 returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script, seconds=60):
        """Wait until an expression is true in the page -> its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = await self.value(script)
            if value:
                return value
            await asyncio.sleep(0.05)
        page = await self.value("document.body.innerText")
        raise AssertionError(f"{script} stayed false; the page says: {page}")

    async def open(self, url):
        await self.call("Page.navigate", url=str(url))
        await self.until(f"document.readyState === 'complete' && location.href === '{url}'")

    async def click(self, button):
        await self.value(f"document.getElementById('{button}').click()")

    async def press(self, key):
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)

    async def text(self, element):
        return await self.value(f"document.getElementById('{element}').innerText")

    async def problem(self):
        """The text of the box with what is wrong, "" where there is none."""
        return await self.value("problem.hidden ? '' : problem.innerText")

    async def resize(self, width, height):
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                        deviceScaleFactor=1, mobile=False)

    async def download(self):
        """What the download button would save -> samples [N, 2]."""
        data = await self.value("""wav().arrayBuffer().then(buffer => {
            let letters = "";
            for (const byte of new Uint8Array(buffer)) letters += String.fromCharCode(byte);
            return btoa(letters);
        })""")
        sound, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == RATE
        return sound


class Shared:
    """One browser for all tests of this file, on an event loop of its own."""

    def __init__(self, folder, sound):
        self.loop = asyncio.new_event_loop()
        self.browser = self.run(Browser(folder, sound).__aenter__())

    def run(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, 150))

    def visit(self, app, scenario, path="/", host="127.0.0.1"):
        """Serve an app, open its page, and hold scenario(browser, server)."""
        async def hold():
            async with TestServer(app, host="127.0.0.1") as server:
                url = server.make_url(path).with_host(host)
                await self.browser.open(url)
                try:
                    return await scenario(self.browser, server)
                finally:
                    await self.browser.call("Page.navigate", url="about:blank")
        return self.run(hold())

    def close(self):
        self.run(self.browser.__aexit__())
        self.loop.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt install chromium")
    folder = tmp_path_factory.mktemp("chromium")
    noise = 0.2 * np.random.default_rng(0).standard_normal(48_000 * 20)
    soundfile.write(folder / "noise.wav", noise, 48_000, "PCM_16")
    shared = Shared(folder / "profile", folder / "noise.wav")
    yield shared
    shared.close()


class Scripted:
    """A server that speaks the page's protocol, and does what a test says. It answers each frame
    with a tone, and the first of each conversation with a line.

    answers: whether it does. refusal: a sentence for all who come. gone: it takes no visitor."""

    def __init__(self):
        self.answers = True
        self.refusal = ""
        self.gone = False
        self.visits = 0
        self.request = None
        self.socket = None
        self.tone = 0.3 * np.sin(2 * np.pi * 500 / RATE * np.arange(FRAME)).astype(np.float32)
        self.app = web.Application()
        self.app.add_routes([web.get("/", self.page), web.get("/api/pcm", self.talk)])

    async def page(self, _):
        return web.FileResponse(PAGE)

    async def talk(self, request):
        if self.gone:
            raise web.HTTPServiceUnavailable
        self.request = request
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.refusal:
            await socket.send_bytes(ERROR + self.refusal.encode())
            await socket.close()
            return socket
        self.visits += 1
        self.socket = socket
        await socket.send_bytes(HANDSHAKE)
        await socket.send_bytes(TEXT + f"{65.2:7.2f} s  Line {self.visits}.\n".encode())
        waiting = 0
        async for message in socket:
            waiting += (len(message.data) - 1) // 4
            while waiting >= FRAME and self.answers:
                waiting -= FRAME
                await socket.send_bytes(AUDIO + self.tone.tobytes())
        return socket

    def drop(self):
        """Break the connection, as a server that is killed does."""
        self.request.transport.abort()

    async def end(self, sentence, code):
        """Close the connection with a sentence and a code."""
        await self.socket.send_bytes(ERROR + sentence.encode())
        await self.socket.close(code=code)


SOME_ANSWERS = "recording.answered > 6"


# --- the sound code by itself ---

HARNESS = """
(() => {
  const processors = {};
  globalThis.sampleRate = JOB.rate;
  globalThis.AudioWorkletProcessor = class {
    constructor() {
      this.port = { messages: [], postMessage(message) { this.messages.push(message); } };
    }
  };
  globalThis.registerProcessor = (name, kind) => { processors[name] = kind; };
  (() => { WORKLET })();

  const tones = (rate, start, length) => Float32Array.from({ length }, (_, i) => {
    let sum = 0;
    for (const f of JOB.tones) sum += Math.sin(2 * Math.PI * f * (start + i) / rate);
    return sum / JOB.tones.length;
  });
  const join = parts => {
    const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) { all.set(part, at); at += part.length; }
    return all;
  };

  function microphone() {
    const node = new processors.microphone();
    for (let at = 0; at < JOB.seconds * JOB.rate; at += 128)
      node.process([JOB.tones.length ? [tones(JOB.rate, at, 128)] : []], [[new Float32Array(128)]]);
    return join(node.port.messages);
  }

  function loudspeaker() {  // a frame every 80 ms, but for those that are lost
    const node = new processors.loudspeaker(), parts = [];
    let frames = 0;
    for (let at = 0; at < JOB.seconds * JOB.rate; at += 128) {
      for (; frames * 0.08 <= at / JOB.rate; frames++) {
        const copies = JOB.frames?.[frames] ?? 1;
        for (let i = 0; i < copies; i++)
          node.port.onmessage({ data: tones(24000, frames * 1920, 1920) });
      }
      const output = new Float32Array(128);
      node.process([], [[output]]);
      parts.push(output);
    }
    result.reports = node.port.messages;
    return join(parts);
  }

  const result = {};
  const sound = JOB.node === "microphone" ? microphone() : loudspeaker();
  result.count = sound.length;
  const bytes = new Uint8Array(sound.slice(-JOB.last || undefined).buffer);
  let letters = "";
  for (const byte of bytes) letters += String.fromCharCode(byte);
  result.sound = btoa(letters);
  return JSON.stringify(result);
})()
"""


@pytest.fixture(scope="module")
def worklet():
    """The text of the page's audio worklet."""
    return re.search(r'<script id="worklet"[^>]*>(.*?)</script>', PAGE.read_text(), re.S)[1]


@pytest.fixture
def run_worklet(worklet, request):
    """run_worklet(node, rate, tones, seconds, ...) -> its samples [N], and what else came of it."""
    def run(node, rate, tones, seconds=2, last=0, frames=None):
        job = dict(node=node, rate=rate, tones=tones, seconds=seconds, last=last, frames=frames)
        script = HARNESS.replace("WORKLET", worklet).replace("JOB", json.dumps(job))
        if NODE:
            printed = subprocess.run([NODE], input=f"console.log({script.strip()})", text=True,
                                     capture_output=True, timeout=60, check=True).stdout
        else:
            shared = request.getfixturevalue("shared")
            printed = shared.run(shared.browser.value(script))
        result = json.loads(printed)
        return np.frombuffer(base64.b64decode(result["sound"]), np.float32), result
    return run


def decibels(samples):
    return 20 * np.log10(np.sqrt(np.mean(np.square(samples))) + 1e-9)


def without_tones(samples, rate, tones):
    """Samples [N] -> the level of each tone [K], and what is left when they are taken out [N]."""
    angles = 2 * np.pi * np.outer(np.arange(len(samples)) / rate, tones)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    weights = np.linalg.lstsq(waves, samples, rcond=None)[0]
    return np.hypot(*weights.reshape(2, -1)), samples - waves @ weights


RATES = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000)


@needs_javascript
@pytest.mark.parametrize("rate", RATES)
def test_the_microphone_sends_24000_samples_a_second(run_worklet, rate):
    """Catches a recorder that sends another speed (16 kHz played 1.5 times too fast), holds sound
    back, or folds what is above 12 kHz into the voice."""
    limit = 0.8 * min(rate, RATE) / 2
    tones = [120, 0.3 * limit, 0.7 * limit, limit]
    sound, result = run_worklet("microphone", rate, tones)
    missing = 2 * RATE - result["count"]
    assert -RATE * 128 / rate <= missing < 480 + 0.01 * RATE, "a block and 10 ms may wait"
    levels, rest = without_tones(sound[2400:], RATE, tones)
    assert np.abs(20 * np.log10(levels * len(tones))).max() < 0.5
    assert decibels(rest) - decibels(sound[2400:]) < -40
    aliases = [tone for tone in (12_100, 13_000, 16_000, 20_000, 35_000, 47_000) if tone < rate / 2]
    if aliases and rate > RATE:
        folded, _ = run_worklet("microphone", rate, aliases, seconds=0.5)
        loudness = decibels(np.array(0.5 ** 0.5 / len(aliases)))  # of one of the tones
        assert decibels(folded[2400:]) < loudness - 40


@needs_javascript
@pytest.mark.parametrize("rate", RATES)
def test_the_loudspeaker_plays_the_same_sound_at_every_rate(run_worklet, rate):
    """Catches a player that changes the pitch, leaves gaps between frames, or adds images."""
    limit = 0.8 * min(rate, RATE) / 2
    tones = [120, 0.3 * limit, limit]
    sound, result = run_worklet("loudspeaker", rate, tones)
    first = np.argmax(np.abs(sound) > 0.01) / rate
    assert 0.11 < first < 0.14, "the lead, and no more"
    sound = sound[int(0.2 * rate):]
    levels, rest = without_tones(sound, rate, tones)
    assert np.abs(20 * np.log10(levels * len(tones))).max() < 0.5
    assert decibels(rest) - decibels(sound) < -40
    assert all(report["late"] == 0 and report["ahead"] < 0.21 for report in result["reports"])


@needs_javascript
@pytest.mark.parametrize("rate", (22_050, 44_100))
def test_the_resampler_does_not_drift(run_worklet, rate):
    """Catches rounding that adds up: after a minute a tone's phase is where it was."""
    late, result = run_worklet("microphone", rate, [440], seconds=60, last=2400)
    angle = 2 * np.pi * 440 / RATE * (np.arange(2400) + result["count"] - 2400)
    assert 60 * RATE - result["count"] < 480 + 0.01 * RATE
    assert np.abs(late - np.sin(angle)).max() < 0.01


@needs_javascript
def test_late_frames_do_not_stay_behind(run_worklet):
    """Catches a loudspeaker that stays behind after the server was late, or that never says so."""
    frames = [1] * 10 + [0] * 10 + [11] + [1] * 10  # ten are late, and come at once
    _, result = run_worklet("loudspeaker", 48_000, [440], seconds=2.5, frames=frames)
    assert result["reports"][-1]["late"] == 1
    assert max(report["ahead"] for report in result["reports"]) < 0.7


@needs_javascript
def test_a_microphone_that_gives_nothing_sends_silence(run_worklet):
    """Catches time that stands still, so that a server ends the talk, when a track has no sound."""
    sound, _ = run_worklet("microphone", 48_000, [], seconds=0.5)
    assert len(sound) >= 0.45 * RATE and not sound.any()


# --- the page without a server ---

def luminance(color):
    """#rrggbb -> relative luminance, as WCAG 2 defines it."""
    channels = np.array([int(color[i:i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    brighter, darker = sorted([luminance(one), luminance(other)], reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", (0, 1), ids=("light", "dark"))
def test_colors_can_be_read(scheme):
    """Catches text of less contrast than WCAG's AA, 4.5, and borders of buttons under 3."""
    blocks = re.findall(r":root \{(.*?)\}", PAGE.read_text(), re.S)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))
    pairs = [("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"),
             ("user", "card"), ("model", "card"), ("alarm", "alarm-paper"), ("ink", "alarm-paper"),
             ("on-alarm", "alarm")]
    for text, ground in pairs:
        assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    assert contrast(colors["edge"], colors["card"]) >= 3
    assert contrast(colors["user"], colors["paper"]) >= 3, "the outline of what has the focus"


def test_the_page_is_one_file():
    """Catches anything that is fetched from elsewhere, an address that ignores the page's own path,
    and a title that is not the heading."""
    text = PAGE.read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:)", text) and "@import" not in text
    links = re.findall(r"https?://[\w./]+", text)
    assert links == ["http://www.w3.org/2000/svg", "http://localhost"], "a namespace and a message"
    assert "location.origin" not in text and '"/api' not in text
    assert re.search("<title>(.*)</title>", text)[1] == re.search("<h1>(.*)</h1>", text)[1]


# --- the page before a conversation ---

def test_the_page_invites(shared):
    """Catches an empty box before the start, and a download of nothing that does not say why."""
    async def scenario(browser, _):
        assert "What is the capital of France?" in await browser.text("invitation")
        assert "Only the model’s words" in await browser.value("document.body.innerText")
        assert await browser.value("document.getElementById('download').disabled")
        assert "no conversation is recorded" in await browser.text("reason")
        assert await browser.problem() == ""
    shared.visit(Scripted().app, scenario)


def test_no_microphone_says_what_to_do(shared):
    """Catches a button that does nothing, or an error without advice, where the browser refuses."""
    async def scenario(browser, _):
        refuse = """navigator.mediaDevices.getUserMedia =
            () => Promise.reject(new DOMException("Permission denied", "%s"))"""
        for name, advice in (("NotAllowedError", "address bar"), ("NotFoundError", "Plug one in"),
                             ("NotReadableError", "Another program"),
                             ("AbortError", "Permission denied")):
            await browser.value(refuse % name)
            await browser.click("start")
            await browser.until(f"problem.innerText.includes('{advice}')")
            assert await browser.text("start") == "Start talking"
            assert not await browser.value("document.getElementById('start').disabled")
    shared.visit(Scripted().app, scenario)


def test_http_from_another_machine_says_what_to_do(shared):
    """Catches a page that browsers give no microphone, and that does not say so before Start."""
    async def scenario(browser, server):
        for _ in range(2):
            problem = await browser.problem()
            assert f"http://localhost:{server.port}/" in problem and "--ssl" in problem
            await browser.click("start")
    shared.visit(Scripted().app, scenario, host="far.example")


# --- conversations ---

def test_the_page_holds_a_conversation(shared, untrained):
    """Catches a page that does not connect, send, play, caption, count, mute, keep, or restart with
    the server as it is, or that does not say that someone else talks."""
    async def scenario(browser, server):
        await browser.click("start")
        await browser.until("recording.answered > 12 && captions.children.length > 0")
        assert re.match(r"0:0\d\s+w", await browser.text("captions"))
        await browser.until("times.textContent.includes('server')")
        assert "answers after" in await browser.value("times.textContent")
        assert await browser.value("parseFloat(document.querySelector('#user i').style.width)") > 20
        assert "speaking" in await browser.text("user")
        assert await browser.text("start") == "Stop"
        sound = await browser.download()
        assert len(sound) > 12 * FRAME
        assert np.abs(sound[5 * FRAME:12 * FRAME]).max(0).min() > 0.001, "both voices"
        async with aiohttp.ClientSession() as http:
            async with http.ws_connect(server.make_url("/api/pcm")) as second:
                assert b"someone else" in await second.receive_bytes()
        await browser.press("m")
        assert "Muted" in await browser.text("mute")
        muted = await browser.value("recording.frames.length")
        await browser.until(f"recording.frames.length > {muted} + 12")
        assert "Muted" in await browser.text("user")
        assert np.abs((await browser.download())[(muted + 4) * FRAME:, 0]).max() < 0.001
        await browser.value("window.last = recording")
        await browser.press("r")
        await browser.until("recording !== last && recording.answered > 4")
        assert "Muted" in await browser.text("mute"), "a restart opens no microphone"
        await browser.click("start")
        assert "over" in await browser.text("status")
    shared.visit(make_app(chat.Partner(untrained, chat.Sampling(), batch=1)), scenario)


def test_the_page_works_under_a_path_and_with_a_token(shared, untrained):
    """Catches a socket that ignores the path of a proxy, or loses the token; and a page that does
    not say why it is refused."""
    app = web.Application()
    partner = chat.Partner(untrained, chat.Sampling(), batch=1)
    app.add_subapp("/voice/", make_app(partner, token="a secret"))

    async def scenario(browser, _):
        await browser.click("start")
        await browser.until("recording.answered > 3")
        await browser.click("start")
        await browser.value("history.replaceState(null, '', '?token=another')")
        await browser.click("start")
        await browser.until("problem.innerText.includes('token')")
        assert await browser.text("start") == "Start talking"
        await browser.value("history.replaceState(null, '', '/voice?token=x#y')")
        assert (await browser.value("address('ws:')")).endswith("/voice/api/pcm?token=x")
    shared.visit(app, scenario, path="/voice/?token=a%20secret")


def test_a_server_that_hangs_is_told_within_3_s(shared):
    """Catches a page that goes on as if it were heard, or that gives up a server that is slow."""
    scripted = Scripted()

    async def scenario(browser, _):
        await browser.click("start")
        await browser.until(SOME_ANSWERS)
        await browser.value("""new MutationObserver(() => {
            window.told ??= performance.now() - session.connection.lastSign;
        }).observe(problem, { attributes: true })""")
        scripted.answers = False
        await browser.until("problem.innerText.includes('does not answer')", 10)
        assert 2400 < await browser.value("told") < 3000, "milliseconds"
        assert "s ago" in await browser.problem()
        scripted.answers = True
        await browser.until("problem.hidden", 10)
        assert scripted.visits == 1 and "1:05\tLine 1." in await lines(browser)
        scripted.answers = False
        await browser.value("session.connection.lastSign -= 6000; "
                            "session.connection.unanswered[0] = 0")
        await browser.until("!session.connection && problem.innerText.includes('attempt 1')", 10)
        scripted.answers = True
        await browser.until("captions.innerText.includes('Line 2.')", 10)
        assert await browser.problem() == ""
    shared.visit(scripted.app, scenario)


async def lines(browser):
    """The captions, a list of time and words with a tab between them."""
    return await browser.value("""[...captions.querySelectorAll("p:not(.seam)")].map(
        line => [...line.children].map(part => part.textContent).join("\\t"))""")


def test_a_server_that_went_away_is_tried_again(shared):
    """Catches a lost connection that is not told, ends the session, or costs captions or sound."""
    scripted = Scripted()

    async def scenario(browser, _):
        await browser.click("start")
        await browser.until(SOME_ANSWERS)
        scripted.gone = True
        scripted.drop()
        await browser.until("problem.innerText.includes('attempt 1 of 10')", 10)
        await browser.until("problem.innerText.includes('attempt 2 of 10')", 10)
        assert await lines(browser) == ["1:05\tLine 1."]
        before = await browser.value("recording.frames.length")
        assert len(await browser.download()) == before * FRAME, "the download is there meanwhile"
        assert await browser.text("start") == "Stop"
        scripted.gone = False
        await browser.until(f"recording.answered > {before} + 12", 10)
        seconds = int(5.2 + 0.08 * before)  # the clock goes on
        assert await lines(browser) == ["1:05\tLine 1.", f"1:{seconds:02d}\tLine 2."]
        assert "begins anew" in await browser.text("captions")
        sound = await browser.download()
        assert np.abs(sound[(before + 2) * FRAME:(before + 10) * FRAME, 1]).max() > 0.2
        assert await browser.problem() == ""
    shared.visit(scripted.app, scenario)


def test_a_server_that_stops_is_tried_again_and_a_rule_is_not(shared):
    """Catches a last sentence of the server that is not shown, a server that starts anew and is not
    found again, and a visitor who was sent away and comes back unasked."""
    scripted = Scripted()

    async def scenario(browser, _):
        await browser.click("start")
        await browser.until(SOME_ANSWERS)
        await scripted.end("The server stops.", code=1001)
        await browser.until("problem.innerText.includes('attempt 1')", 10)
        assert "The server stops." in await browser.problem()
        await browser.until("captions.innerText.includes('Line 2.')", 10)
        await scripted.end("Too many messages at once.", code=1008)
        await browser.until("problem.innerText.includes('Too many')", 10)
        assert await browser.text("start") == "Start talking"
        assert len(await lines(browser)) == 2 and len(await browser.download()) > 6 * FRAME
    shared.visit(scripted.app, scenario)


def test_a_slow_server_is_told(shared):
    """Catches a model that hears everything seconds late on a page that says that all is well."""
    scripted = Scripted()

    async def scenario(browser, _):
        await browser.click("start")
        await browser.until(SOME_ANSWERS)
        for behind, sentence in ((5.3, "5 s late"), (0.1, "Go ahead")):
            times = json.dumps({"ms": 120.5, "late": 7, "behind": behind})
            await scripted.socket.send_bytes(METADATA + times.encode())
            await browser.until(f"document.body.innerText.includes('{sentence}')")
        await browser.until("times.textContent.includes('server 121 of 80 ms a frame, 7 late')")
    shared.visit(scripted.app, scenario)


def test_a_browser_that_has_another_rate(shared):
    """Catches a microphone that is not resampled where a browser refuses a context of 24 kHz."""
    scripted = Scripted()

    async def scenario(browser, _):
        await browser.value("""window.AudioContext = class extends AudioContext {
            constructor(options) {
                if (options.sampleRate) throw new DOMException("no", "NotSupportedError");
                super({ sampleRate: 16000 });
            }
        }""")
        await browser.click("start")
        await browser.until(SOME_ANSWERS)
        now = "[session.context.currentTime, recording.frames.length, session.context.sampleRate]"
        seconds, frames, rate = await browser.value(now)
        await asyncio.sleep(2)
        later, more, _ = await browser.value(now)
        assert rate == 16_000
        assert abs((more - frames) - 12.5 * (later - seconds)) < 3
    shared.visit(scripted.app, scenario)


def test_a_restart_keeps_the_last_conversation_until_the_next_begins(shared):
    """Catches captions and a recording that are thrown away for a server that is busy or gone."""
    scripted = Scripted()

    async def scenario(browser, _):
        await browser.click("start")
        await browser.until(SOME_ANSWERS)
        scripted.refusal = "The model is talking with someone else. Try again later."
        await browser.press("r")
        await browser.until("problem.innerText.includes('someone else')", 10)
        size = len(await browser.download())
        assert size > 6 * FRAME and await lines(browser) == ["1:05\tLine 1."]
        await browser.click("start")  # which is Stop
        assert await browser.text("start") == "Start talking"
        await browser.click("start")
        await browser.until("problem.innerText.includes('someone else')", 10)
        assert await browser.text("start") == "Start talking"
        scripted.gone = True
        await browser.click("start")
        await browser.until("problem.innerText.includes('cannot be reached')", 10)
        assert len(await browser.download()) == size and await lines(browser) == ["1:05\tLine 1."]
        assert not await browser.value("document.getElementById('download').disabled")
        scripted.gone = False
        scripted.refusal = ""
        await browser.until("captions.innerText.includes('Line 2.')", 10)
        assert await lines(browser) == ["1:05\tLine 2."]
        assert len(await browser.download()) < size
    shared.visit(scripted.app, scenario)


def test_old_frames_leave_the_recording_in_pairs(shared):
    """Catches voices that no longer lie beside each other after the longest time that is kept."""
    async def scenario(browser, _):
        assert await browser.value("""(() => {
            const most = LONGEST_RECORDING * RATE / FRAME;
            for (let i = 0; i < most + 100; i++) {
                keepUser(new Float32Array([(i % 1000) / 32767]));
                if (i >= 5) keepModel(new Float32Array([((i - 5) % 1000) / 32767]));
            }
            const answered = recording.frames.filter(frame => frame.model);
            return recording.frames.length === most && answered.length === most - 5
                && answered.every(({ user, model }) => user[0] === model[0]);
        })()""")
        assert "the last 30 minutes" in await browser.text("reason")
    shared.visit(Scripted().app, scenario)


SCREENS = ((1280, 800), (390, 844), (844, 390), (360, 640))


def test_buttons_stay_on_the_screen(shared):
    """Catches a phone, held either way, whose buttons are below its edge, also with an error, many
    captions, and the details open."""
    scripted = Scripted()
    outside = """[...document.querySelectorAll("button")].filter(button => {
        const { left, top, right, bottom } = button.getBoundingClientRect();
        return left < 0 || top < 0 || right > innerWidth || bottom > innerHeight;
    }).map(button => button.id).join()"""

    async def check(browser, screens=SCREENS):
        for width, height in screens:
            await browser.resize(width, height)
            assert await browser.value(outside) == "", (width, height)
            assert await browser.value("document.documentElement.scrollWidth") <= width

    async def scenario(browser, _):
        await check(browser)
        await browser.click("start")
        await browser.until(SOME_ANSWERS)
        await browser.value("caption('   1.00 s  A line of captions, some words.\\n'.repeat(60))")
        await check(browser)
        scripted.refusal = "The model is talking with someone else. Try again later."
        await browser.click("restart")
        await browser.until("!problem.hidden", 10)
        await check(browser)
        await browser.value("document.querySelector('details').open = true")
        await check(browser, SCREENS[:3])
        await browser.call("Emulation.clearDeviceMetricsOverride")
    shared.visit(scripted.app, scenario)


@needs_chromium
def test_the_shipped_model_answers_in_the_page(tmp_path, shipped):
    """Catches anything between microphone and captions that changes a question or its answer."""
    import soxr
    audio, rate = soundfile.read(ROOT / "examples" / "question.wav", dtype="float32")
    quiet = np.zeros(rate, np.float32)  # while the page connects, and while the model answers
    whole = np.concatenate([quiet, quiet, audio, *[quiet] * 8])
    soundfile.write(tmp_path / "q.wav", soxr.resample(whole, rate, 48_000), 48_000, "PCM_16")
    app = make_app(chat.Partner(shipped, chat.Sampling.of(shipped)))

    async def ask():
        async with (TestServer(app, host="127.0.0.1") as server,
                    Browser(tmp_path / "profile", f"{tmp_path / 'q.wav'}%noloop") as browser):
            await browser.open(server.make_url("/"))
            await browser.click("start")
            await browser.until("captions.innerText.includes('Paris.')")
            await asyncio.sleep(2)
            return await browser.text("captions"), await browser.download()
    captions, sound = asyncio.run(ask())
    assert "The capital of France is Paris." in captions
    assert np.abs(sound[:, 1]).max() > 0.05 and np.abs(sound[:, 0]).max() > 0.05
