"""Sentences spoken by many voices: what to record, and the files and manifests of it.

What this is: the plan of the open recordings (which sentence, by which of tiny/voices.py's voices)
and its carrying out, resumable, in an order of which every beginning is a fair sample; and the same
for dialogs, whose questions a user asks and whose answers the model's voice gives. What this is
not: their texts.

    python small/make.py --only open-speech
"""
import hashlib
import json
import random
from dataclasses import dataclass

import soundfile
from tqdm import tqdm

import sentences
import voices
import world
from workshop.files import replacing
from workshop.manifests import write_lines

# Recordings, each of a sentence, by the users of each engine and by the model's voice.
USERS = {"espeak": 10_000, "flite": 2600, "pico": 1400, "kokoro": 900, "festival": 300}
MODEL = 1800
# Held-out sentences: by each held-out voice, and by users of the engines that train.
TEST_PER_VOICE = 16
TEST_USERS = {"espeak": 70, "flite": 30, "pico": 15, "joe": 15}
# Questions of the small model's world, so that one codec serves both models.
WORLD = {"espeak": 5000, "flite": 1400, "pico": 800, "joe": 600, "kokoro": 900}
TEST_WORLD_PER_VOICE = 10
LATER = ("kokoro", "festival")  # slow engines: the last of each list


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
    engines = {engine: part(count) for engine, count in WORLD.items()}
    pairs = world.sample(sum(engines.values()), 21, held_out=False)
    questions = by_random_users([a.question for a in pairs], engines, rng)
    rng.shuffle(questions)
    questions.sort(key=lambda clip: clip.voice.startswith(LATER))
    pairs = world.sample(part(TEST_WORLD_PER_VOICE) * len(voices.HELD_OUT), 22, held_out=True)
    new_questions = [Clip(a.question, voices.HELD_OUT[i % len(voices.HELD_OUT)])
                     for i, a in enumerate(pairs)]
    return {"test-voices": new_voices, "test-sentences": new_sentences,
            "test-world": new_questions, "users": users, "model": model, "world": questions}


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
    with replacing(path) as beside:
        soundfile.write(beside, audio, voices.SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return True


def interleaved(lists):
    """The items of several lists, each spread evenly over the whole."""
    placed = [((i + 0.5) / len(items), n, i) for n, items in enumerate(lists)
              for i in range(len(items))]
    return [lists[n][i] for _, n, i in sorted(placed)]


def entry_of(clip):
    """A clip's line of a manifest."""
    entry = {"audio": f"speech/{clip.file}", "text": clip.text, "voice": clip.voice}
    return json.dumps(entry) + "\n"


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
    tests = [clip for name in missing if name.startswith("test-") for clip in missing[name]]
    rest = interleaved([missing["users"], missing["model"], missing["world"]])
    for clip in tqdm(tests + rest, "open speech", unit="clip"):
        if record(clip, folder):
            file = files[manifest_of[clip]]
            file.write(entry_of(clip))
            file.flush()
    for file in files.values():
        file.close()


# --- dialogs ---

def plan_dialogs(dialogs, shares, rng):
    """[(turns, the user's clips, the model's clips)] of dialogs, lists of (question, answer). One
    user asks all questions of a dialog. shares: {engine: weight}, or None for voices kept for
    tests"""
    planned = []
    for i, turns in enumerate(dialogs):
        voice, speed, pitch = voices.HELD_OUT[i % len(voices.HELD_OUT)], 1.0, 1.0
        if shares:
            engine, = rng.choices(list(shares), list(shares.values()))
            voice, speed, pitch = voices.draw_user(rng, engine)
        asking = [Clip(question, voice, round(speed, 2), round(pitch, 3)) for question, _ in turns]
        answered = [Clip(answer, voices.MODEL_VOICE) for _, answer in turns]
        planned.append((turns, asking, answered))
    return planned


def record_dialogs(work, name, dialogs, shares=None):
    """Record dialogs and write the manifest NAME.jsonl. One that an engine refuses is left out."""
    folder = work / "speech"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    planned = plan_dialogs(dialogs, shares, random.Random(51))
    for turns, asking, answered in tqdm(planned, name, unit="dialog"):
        if not all([record(clip, folder) for clip in (*asking, *answered)]):
            continue
        entries = [{"heard": f"speech/{question.file}", "transcript": question.text,
                    "spoken": f"speech/{answer.file}", "response": answer.text}
                   for question, answer in zip(asking, answered)]
        lines.append({"turns": entries, "voice": asking[0].voice})
    write_lines(work / f"{name}.jsonl", lines)


def write_pairs(work):
    """questions.jsonl and answers.jsonl: the recordings of dialogs.jsonl as pairs, each once."""
    questions = {}
    answers = {}
    for line in (work / "dialogs.jsonl").read_text().splitlines():
        for turn in json.loads(line)["turns"]:
            questions[turn["heard"]] = turn["transcript"]
            answers[turn["spoken"]] = turn["response"]
    for name, pairs in (("questions", questions), ("answers", answers)):
        entries = [{"audio": audio, "text": text} for audio, text in pairs.items()]
        write_lines(work / f"{name}.jsonl", entries)
