"""Tests import the rooms of the house by name, from wherever pytest is started."""
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from workshop import pace  # noqa: E402

# As chat.py does, before torch is there: beside a busy core, threads that spin while they wait make
# the tests several times slower.
pace.sleep_while_waiting()

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import chat  # noqa: E402
import flm  # noqa: E402
import mimi  # noqa: E402
from workshop import codec_files, drawing, model_files  # noqa: E402


def assert_same(found, expected, ids):
    """Raise AssertionError with both drawings where two grids differ."""
    same = all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("text", "speak", "listen", "loss"))
    assert same, f"the grid is\n{drawing.draw(found, ids)}\nand should be\n{drawing.draw(expected, ids)}"


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="hours of conversation, and 10,000 messages from strangers")


@pytest.fixture(autouse=True)
def threads():
    """As many threads after a test as before it: chat.py takes one for a small model, and sums in
    another order are other sums."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A model folder of the shipped shape with random weights: it babbles, but its bytes and times are right."""
    from tokenizers import Tokenizer, decoders, models
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    model = flm.init_weights(flm.FLM(flm.PRESETS["tiny"]))
    model_files.save(model, folder)
    codec_files.save(mimi.Mimi(mimi.PRESETS["tiny"]), folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(model.config.vocab_size)}, unk_token="w0"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def shipped():
    """The shipped model's folder; tests that need what it has learned skip where it is not there."""
    if not (chat.SHIPPED / "model.safetensors").exists():
        pytest.skip("tiny/model has no weights")
    return chat.SHIPPED


@dataclass
class Device:
    """A made-up sound device: the rates and channels that it takes, and channels that it has."""
    name: str = "device"
    channels_in: int = 1
    channels_out: int = 1
    native: int = 24_000
    rates: tuple = (24_000,)
    channels: tuple = (1,)

    def entry(self):
        return {"name": self.name, "default_samplerate": float(self.native),
                "max_input_channels": self.channels_in, "max_output_channels": self.channels_out}


class MadeUpSound:
    """In the sounddevice package's place. A microphone gives blocks of `sound` [N, channels], as fast
    as they are taken, and is then unplugged. What the loudspeaker plays in the same time is in
    `played`, blocks [N, channels]."""
    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, sound, devices):
        self.sound = sound
        self.devices = devices
        self.played = []
        self.microphone = None
        self.loudspeaker = None
        self.opened = {}

    def query_devices(self, number=None, kind=None):
        if number is None and kind is None:
            return [device.entry() for device in self.devices]
        if number is not None:
            return self.devices[number].entry()
        for device in self.devices:
            if device.entry()[f"max_{kind}_channels"]:
                return device.entry()
        raise self.PortAudioError("Error querying device -1")

    def check(self, kind, number, channels, samplerate):
        if number is None:
            number = [bool(entry[f"max_{kind}_channels"]) for entry in self.query_devices()].index(True)
        device = self.devices[number]
        if samplerate not in device.rates:
            raise self.PortAudioError("Invalid sample rate [PaErrorCode -9997]")
        if channels not in device.channels:
            raise self.PortAudioError("Invalid number of channels [PaErrorCode -9998]")

    def check_input_settings(self, device, channels, dtype, samplerate):
        self.check("input", device, channels, samplerate)

    def check_output_settings(self, device, channels, dtype, samplerate):
        self.check("output", device, channels, samplerate)

    def InputStream(self, device, channels, dtype, samplerate, blocksize, callback):
        self.check("input", device, channels, samplerate)
        self.opened["input"] = (samplerate, channels)
        self.microphone = MadeUpStream(self, callback, blocksize, channels)
        return self.microphone

    def OutputStream(self, device, channels, dtype, samplerate, blocksize, callback):
        self.check("output", device, channels, samplerate)
        self.opened["output"] = (samplerate, channels)
        self.loudspeaker = MadeUpStream(self, callback, blocksize, channels)
        return self.loudspeaker

    def run(self):
        """The clock of both devices."""
        size = self.microphone.size
        for start in range(0, len(self.sound), size):
            block = self.sound[start:start + size]
            self.microphone.callback(block, len(block), None, None)
            output = np.ones((self.loudspeaker.size, self.loudspeaker.channels), np.float32)
            self.loudspeaker.callback(output, len(output), None, None)
            self.played.append(output)
            waiting = self.microphone.callback.__self__.blocks
            while self.microphone.active and waiting.qsize() > 1:
                time.sleep(0.001)
        self.microphone.active = False


class MadeUpStream:
    """One direction. The microphone's start and end are those of the clock."""

    def __init__(self, system, callback, size, channels):
        self.system = system
        self.callback = callback
        self.size = size
        self.channels = channels
        self.active = False
        self.thread = None

    def start(self):
        self.active = True
        if self is self.system.microphone:
            self.thread = threading.Thread(target=self.system.run)
            self.thread.start()

    def close(self):
        self.active = False
        if self.thread:
            self.thread.join()


@pytest.fixture
def sound_card(monkeypatch):
    """sound_card(sound, devices): plug in a made-up sounddevice -> MadeUpSound."""
    def plug(sound, *devices):
        system = MadeUpSound(sound, devices or [Device()])
        monkeypatch.setitem(sys.modules, "sounddevice", system)
        return system
    return plug
