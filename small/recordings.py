"""Sentences spoken by many voices: what to record, and the files and manifests of it.

What this is: the plan of the open recordings (which sentence, by which of tiny/voices.py's voices)
and its carrying out, resumable, in an order of which every beginning is a fair sample. What this is
not: dialogs, of which make.py records two sides.

    python small/make.py --only open-speech
"""
import hashlib
import io
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import soundfile
from tqdm import tqdm

import sentences
import voices
from workshop.files import replacing

# Recordings of sentences by the users of each engine and by the model's voice, each of one sentence.
USERS = {"espeak": 10_000, "flite": 2600, "pico": 1400, "kokoro": 900, "festival": 300}
MODEL = 1800
# Held-out sentences: by each held-out voice, and by users of the engines that train.
TEST_PER_VOICE = 16
TEST_USERS = {"espeak": 70, "flite": 30, "pico": 15, "joe": 15}
LATER = ("kokoro", "festival")  # slow engines: recorded when all others are done


@dataclass(frozen=True)
class Clip:
    """One recording to make: `text` by `voice` at a rate of speech and a pitch."""
    text: str
    voice: str
    speed: float = 1.0
    pitch: float = 1.0

    @property
    def file(self):
        """Its name, the same for the same clip."""
        key = f"{self.text} {self.voice} {self.speed} {self.pitch}"
        return hashlib.sha1(key.encode()).hexdigest()[:16] + ".wav"


def by_random_users(texts, engines, rng):
    """One clip of a random user for each text. engines: {engine: how many}"""
    clips = []
    texts = iter(texts)
    for engine, count in engines.items():
        for _ in range(count):
            voice, speed, pitch = voices.draw_user(rng, engine)
            clips.append(Clip(next(texts), voice, round(speed, 2), round(pitch, 3)))
    return clips


def plan(share=1.0):
    """The recordings of open sentences: {name of the manifest: list of clips}. share: of their
    number, for a rehearsal."""
    def part(count):
        return max(1, round(share * count))

    rng = random.Random(21)
    train, kept_out = sentences.split()
    users = by_random_users(rng.sample(train, sum(map(part, USERS.values()))),
                            {engine: part(count) for engine, count in USERS.items()}, rng)
    rng.shuffle(users)
    users.sort(key=lambda clip: clip.voice.startswith(LATER))
    model = [Clip(text, voices.MODEL_VOICE) for text in rng.sample(train, part(MODEL))]
    texts = rng.sample(kept_out, part(TEST_PER_VOICE) * len(voices.HELD_OUT))
    new_voices = [Clip(text, voices.HELD_OUT[i % len(voices.HELD_OUT)])
                  for i, text in enumerate(texts)]
    engines = {engine: part(count) for engine, count in TEST_USERS.items()}
    new_sentences = by_random_users(rng.sample(kept_out, sum(engines.values())), engines, rng)
    return {"test-voices": new_voices, "test-sentences": new_sentences, "users": users,
            "model": model}


def record(clip, folder):
    """Make the file of a clip, unless it is there. Returns whether there is one: an engine may
    refuse a text."""
    path = folder / clip.file
    if path.exists():
        return True
    try:
        audio = voices.say(clip.text, clip.voice, clip.speed, clip.pitch)
    except ValueError:
        return False
    file = io.BytesIO()
    soundfile.write(file, audio, voices.SAMPLE_RATE, format="WAV", subtype="PCM_16")
    part = Path(f"{path}.part")
    part.write_bytes(file.getvalue())
    os.replace(part, path)
    return True


def interleaved(lists):
    """The items of several lists, each spread evenly over the whole."""
    placed = [((i + 0.5) / len(items), n, i) for n, items in enumerate(lists)
              for i in range(len(items))]
    return [lists[n][i] for _, n, i in sorted(placed)]


def entry_of(clip):
    """A clip's line of a manifest."""
    return json.dumps({"audio": f"speech/{clip.file}", "text": clip.text, "voice": clip.voice}) + "\n"


def record_all(work, share=1.0):
    """Record what is planned and not there, tests first, and write a manifest of pairs for each
    list. The manifests grow while recordings are made, so that a trainer may begin early."""
    planned = plan(share)
    folder = work / "speech"
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    missing = {}
    for name, clips in planned.items():
        there = [clip for clip in clips if (folder / clip.file).exists()]
        missing[name] = [clip for clip in clips if not (folder / clip.file).exists()]
        with replacing(work / f"{name}.jsonl") as beside:
            beside.write_text("".join(map(entry_of, there)))
        files[name] = open(work / f"{name}.jsonl", "a")
    manifest_of = {clip: name for name, clips in missing.items() for clip in clips}
    tests = [*missing["test-voices"], *missing["test-sentences"]]
    rest = interleaved([missing["users"], missing["model"]])
    for clip in tqdm(tests + rest, "open speech", unit="clip"):
        if record(clip, folder):
            file = files[manifest_of[clip]]
            file.write(entry_of(clip))
            file.flush()
    for file in files.values():
        file.close()
