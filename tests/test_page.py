"""The page in a real browser: Chromium without a window, with a sound file as its microphone."""
import asyncio
import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

import chat
from workshop.server import HANDSHAKE, make_app

aiohttp = pytest.importorskip("aiohttp")
from aiohttp.test_utils import TestServer  # noqa: E402

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")


class Browser:
    """One tab, by the DevTools protocol."""

    def __init__(self, folder, sound):
        self.arguments = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={sound}%noloop", f"--user-data-dir={folder}",
            "--remote-debugging-port=0", "--window-size=900,900", "--remote-allow-origins=*", "about:blank"]
        self.folder, self.calls = folder, 0

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(*self.arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
        for _ in range(300):
            await asyncio.sleep(0.1)
            if (port := self.folder / "DevToolsActivePort").exists() and port.read_text():
                break
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{port.read_text().split()[0]}/json") as tabs:
            tab = next(t for t in await tabs.json(content_type=None) if t["type"] == "page")
        self.socket = await self.session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
        return self

    async def __aexit__(self, *_):
        await self.session.close()
        self.process.terminate()
        await self.process.wait()

    async def call(self, method, **parameters):
        self.calls += 1
        await self.socket.send_json({"id": self.calls, "method": method, "params": parameters})
        while (answer := await self.socket.receive_json(timeout=60)).get("id") != self.calls:
            pass
        return answer["result"]

    async def value(self, script):
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script, seconds=60):
        for _ in range(int(seconds / 0.2)):
            if found := await self.value(script):
                return found
            await asyncio.sleep(0.2)
        raise AssertionError(f"{script} stayed false; the page says: {await self.value('document.body.innerText')}")


def hold(folder, partner, sound, scenario):
    async def run():
        async with TestServer(make_app(partner), host="127.0.0.1") as server, Browser(folder, sound) as browser:
            await browser.call("Page.navigate", url=str(server.make_url("/")))
            await browser.until("document.readyState === 'complete' && !!document.getElementById('start')")
            return await asyncio.wait_for(scenario(browser, server), 150)
    return asyncio.run(run())


async def downloaded(browser):
    """What the download button would save -> [N, 2], rate."""
    data = await browser.value("wav().arrayBuffer().then(b => { let s = ''; for (const x of new Uint8Array(b)) s += String.fromCharCode(x); return btoa(s) })")
    return soundfile.read(io.BytesIO(base64.b64decode(data)))


@pytest.fixture
def noise(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "noise.wav", 0.2 * rng.standard_normal(48_000 * 20), 48_000, "PCM_16")
    return tmp_path / "noise.wav"


def test_the_page_holds_a_conversation(tmp_path, untrained, noise):
    """Catches a page that does not connect, send, play, caption, count, mute, keep, restart, or say that someone else talks."""
    async def scenario(browser, server):
        await browser.value("document.getElementById('start').click()")
        await browser.until("kept.said.length > 20 && document.querySelectorAll('#captions p').length > 0")
        captions = await browser.value("document.getElementById('captions').innerText")
        assert "w" in captions
        assert "answers after" in await browser.until("document.getElementById('times').innerText")
        await browser.until("document.getElementById('times').innerText.includes('server')")
        assert await browser.value("parseFloat(document.querySelector('#user i').style.width)") > 20
        sound, rate = await downloaded(browser)
        assert rate == 24_000 and len(sound) >= 20 * 1920 and np.abs(sound[-9600:]).max(0).min() > 0.001, "both voices"
        async with aiohttp.ClientSession() as session, session.ws_connect(server.make_url("/api/pcm")) as second:
            assert b"someone else" in await second.receive_bytes()
        key = {"type": "keyDown", "key": "m", "text": "m"}
        await browser.call("Input.dispatchKeyEvent", **key)
        assert await browser.value("document.getElementById('mute').getAttribute('aria-pressed')") == "true"
        muted = await browser.value("kept.heard.length")
        await browser.until(f"kept.heard.length > {muted} + 30")
        assert np.abs((await downloaded(browser))[0][-9600:, 0]).max() < 0.001
        await browser.value("document.getElementById('restart').click()")
        await browser.until("session && kept.said.length > 5 && kept.said.length < 60")
        await browser.value("document.getElementById('start').click()")
        assert "over" in await browser.value("document.getElementById('status').innerText")
        async with aiohttp.ClientSession() as session:  # someone else has the seat
            for _ in range(20):
                async with session.ws_connect(server.make_url("/api/pcm")) as first:
                    if (await first.receive_bytes()) == HANDSHAKE:
                        await browser.value("document.getElementById('start').click()")
                        await browser.until("document.getElementById('status').innerText.includes('someone else')", 10)
                        break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("the seat was not freed")
    hold(tmp_path / "profile", chat.Partner(untrained, chat.Sampling(), batch=1), noise, scenario)


def test_the_shipped_model_answers_in_the_page(tmp_path, shipped, pytestconfig):
    """Catches anything between a microphone and the captions that changes what is heard or said."""
    audio, rate = soundfile.read(ROOT / "examples" / "question.wav", dtype="float32")
    import soxr
    quiet = np.zeros(4 * rate, np.float32)  # while the page connects, and while the model answers
    soundfile.write(tmp_path / "q.wav", soxr.resample(np.concatenate([quiet[:2 * rate], audio, quiet, quiet]), rate, 48_000), 48_000, "PCM_16")

    async def scenario(browser, server):
        await browser.value("document.getElementById('start').click()")
        await browser.until("document.getElementById('captions').innerText.includes('Paris.')", 30)
        await asyncio.sleep(2)
        shot = await browser.call("Page.captureScreenshot", format="png")
        sound, _ = await downloaded(browser)
        return await browser.value("document.getElementById('captions').innerText"), sound, base64.b64decode(shot["data"])
    captions, sound, screenshot = hold(tmp_path / "profile", chat.Partner(shipped, chat.Sampling.of(shipped)), tmp_path / "q.wav", scenario)
    assert "The capital of France is Paris." in captions
    assert np.abs(sound[:, 1]).max() > 0.05 and np.abs(sound[:, 0]).max() > 0.05
    (tmp_path / "page.png").write_bytes(screenshot)
    print(f"screenshot: {tmp_path / 'page.png'}")
