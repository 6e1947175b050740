"""From manifests to token grids: speech and text become encoded samples on disk, which train.py reads.

What this is: joining pairs with random silence (section 3.1), augmenting what is heard (3.2.1, 3.2.2), encoding, and the
shards. What this is not: the manifests (workshop/manifests.py and its neighbours, whose commands are here too) or the formats (stream.py).

    python data.py encode pairs.jsonl grids/tts --format tts --join 1 4
    python data.py encode dialogs.jsonl grids/ft2 --format response-tts-free --join 1 4 --draws 6 --noise noise/

Unusual here:
- What is heard is one continuous waveform, silence and noise included, encoded whole. What is said is encoded clip by
  clip, each starting on a frame, with the codes of digital silence between the clips.
- A shard depends on settings and number alone: a stopped run goes on, and any number of processes make the same shards.
"""
import argparse
import hashlib
import json
import os
import random
import re
import sys
from collections import Counter
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path

from workshop import command

if __name__ == "__main__":
    command.stop_while_loading("data.py")

import numpy as np
import soxr
import torch
from tqdm import tqdm

import mimi
import stream
from stream import Turn
from workshop import sound_file
from workshop.check import check
from workshop.importers import LAYOUTS, bring_in
from workshop.manifests import DataError, read_manifest, write_lines
from workshop.parallel import in_parallel
from workshop.sound_file import loudness
from workshop.synthesis import synthesise

SAMPLE_RATE = 24_000                # Hz
FRAME = 1920                        # samples
NOISE_LOUDNESS, NO_NOISE_PROBABILITY = (-70, -40), 0.3  # dB, section 3.2.1
GAIN_PROBABILITY, GAIN, LOUDNESS_FLOOR = 0.6, (-24, 20), -40  # dB, and dB after the gain, section 3.2.1
LEAKAGE_PROBABILITY, LEAKAGE_GAIN, LEAKAGE_DELAY = 0.3, (0, 0.2), (0.1, 0.5)  # amplitude, seconds, section 3.2.2
# Decision: the paper's recordings bring their rooms and hesitations along. Where clean speech stands for them, some of what is
# heard gets a room (seconds until its echo is 60 dB down, dB of direct over echoed sound), a microphone (dB, standard deviation
# of its response from octave to octave) and a pause inside the sentence, and noise may be louder.
ROOM_PROBABILITY, ROOM_DECAY, ROOM_DIRECT, ROOM_NOISE_LOUDNESS = 0.4, (0.1, 0.6), (0, 15), (-70, -30)
MICROPHONE_PROBABILITY, MICROPHONE = 0.5, 4
# A telephone carries 300 to 3,400 Hz. Recordings of 8 kHz are as narrow at the upper end, and often not at the lower.
TELEPHONE_PROBABILITY, TELEPHONE_LOWEST, TELEPHONE_HIGHEST = 0.15, (20, 300), (3_300, 4_000)  # Hz
PAUSE_PROBABILITY, PAUSE, QUIET = 0.35, (0.2, 1.0), 0.1  # seconds; the quiet places, a share of all
BACKCHANNEL_PROBABILITY = 0.8       # Decision: the paper does not say how many responses are given one; what finds no room is left out
# Decision: the paper separates pairs "by random silence" and says no more. Short silences are common and long ones rare
# but present, since a model that never met ten quiet seconds starts to talk in them.
SILENCE_MEAN, LONG_SILENCE, LONG_SILENCE_PROBABILITY = 6, (25, 125), 0.15  # frames
# Decision: a person may think for a minute before the next question. Where a longer silence than LONG_SILENCE is
# allowed (--longest-silence), this share of all silences is longer.
VERY_LONG_SILENCE_PROBABILITY = 0.05
# Decision: only silence tells that an utterance is over, so each ends with this much of it before the model may write.
# Without it equation 3, in which a <wait> weighs a hundredth of a word, rewards speaking into every pause. A turn of
# the manifest may ask for another ("patience", in seconds), where what is said might go on.
CLOSING_SILENCE = 2                 # frames
# Decision: a recording's last sound still rings in the codec after the last sample; this much of it is kept.
RINGING = 1                         # frames
SAMPLES_PER_SHARD, ENCODED_AT_ONCE = 64, 16
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def join(dialogs, fewest, most, draws, seed):
    """`draws` passes over all dialogs in random order, `fewest` to `most` of them joined to a sample: a list of turn lists."""
    samples = []
    for draw in range(draws):
        rng = random.Random(f"{seed} {draw}")
        order = iter(rng.sample(dialogs, len(dialogs)))
        while taken := list(islice(order, rng.randint(fewest, most))):
            samples.append(sum(taken, []))
    return samples


# --- augmentation of what is heard ---

def random_gain(audio, rng):
    """Section 3.2.1. Decision: a gain that would clip is lowered until the peak fits; a file cannot be louder than full scale."""
    if rng.random() < GAIN_PROBABILITY:
        gain = max(rng.uniform(*GAIN), LOUDNESS_FLOOR - loudness(audio))
        audio = audio * min(10 ** (gain / 20), 1 / max(np.abs(audio).max(), 1e-6))
    return audio


def room(audio, rng):
    """audio [N] as a microphone across a room hears it, [N + echo]: an exponentially decaying noise is the room's response."""
    n, direct = round(rng.uniform(*ROOM_DECAY) * SAMPLE_RATE), rng.uniform(*ROOM_DIRECT)
    echo = np.random.default_rng(rng.getrandbits(64)).standard_normal(n, np.float32) * np.exp(-6.9 * np.arange(n, dtype=np.float32) / n)
    size = 1 << (len(audio) + n).bit_length()
    wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(echo / np.linalg.norm(echo), size), size)[:len(audio) + n]
    return np.pad(audio, (0, n)) + (10 ** (-direct / 20) * wet).astype(np.float32)


def microphone(audio, rng):
    """audio [N] through a microphone that favours some octaves: a random gain at each, the eight below 12 kHz, a line between
    them."""
    octaves, size = np.arange(-8, 1), 1 << len(audio).bit_length()
    gains = np.interp(np.log2(np.arange(1, size // 2 + 2) / (size // 2)), octaves, [rng.gauss(0, MICROPHONE) for _ in octaves])
    return np.fft.irfft(np.fft.rfft(audio, size) * 10 ** (gains / 20), size)[:len(audio)].astype(np.float32)


def telephone(audio, rng):
    """audio [N] as a telephone or a file of 8 kHz carries it: a band of its frequencies, drawn anew each time."""
    lowest = rng.uniform(*TELEPHONE_LOWEST)
    highest = rng.uniform(*TELEPHONE_HIGHEST)
    size = 1 << len(audio).bit_length()
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum = np.fft.rfft(audio, size)
    spectrum[(frequencies < lowest) | (frequencies > highest)] = 0
    return np.fft.irfft(spectrum, size)[:len(audio)].astype(np.float32)


def hesitate(audio, seconds, rng):
    """audio [N] with a pause at one of its quiet places -> (audio, sample where the pause begins). Any of them, not the
    quietest, which is always the first of several gaps: nobody would learn that a list may go on before its last word."""
    window, first, last = SAMPLE_RATE // 50, len(audio) // 8, len(audio) - len(audio) // 10
    level = np.convolve(audio ** 2, np.ones(window, np.float32), "same")[first:last]
    at = first + int(rng.choice(np.flatnonzero(level <= np.quantile(level, QUIET))))
    return np.concatenate([audio[:at], np.zeros(round(seconds * SAMPLE_RATE), np.float32), audio[at:]]), at


_recording = lru_cache(maxsize=64)(sound_file.read_audio)


def noise(n, rng, recordings=(), levels=NOISE_LOUDNESS):
    """n samples: recordings one after the other, each of its own loudness (dB within `levels`) or replaced by silence. Decision:
    where there are none, one noise of a random colour, from white to brown, stands for them."""
    parts, missing = [], n
    while missing > 0:
        quiet = rng.random() < NO_NOISE_PROBABILITY
        if recordings:
            part = _recording(rng.choice(recordings)).numpy()[:missing]
        else:
            white = np.fft.rfft(np.random.default_rng(rng.getrandbits(64)).standard_normal(n, np.float32))
            part = np.fft.irfft(white * np.arange(1, n // 2 + 2, dtype=np.float32) ** -rng.uniform(0, 1), n).astype(np.float32)
        parts.append(part * (0 if quiet else 10 ** ((rng.uniform(*levels) - loudness(part)) / 20)))
        missing -= len(part)
    return np.concatenate(parts)


def draw_leak(rng):
    """Section 3.2.2: whether the microphone hears what the model says -> None, or (gain, delay in samples)."""
    if rng.random() >= LEAKAGE_PROBABILITY:
        return None
    gain = rng.uniform(*LEAKAGE_GAIN)
    delay = round(rng.uniform(*LEAKAGE_DELAY) * SAMPLE_RATE)
    return gain, delay


def leak(user_audio, model_audio, gain, delay):
    """Mix what the model says into what is heard, `delay` samples later. Both are float32 [N]; changes `user_audio`."""
    user_audio[delay:] += gain * model_audio[:-delay]


def silence(rng, longest=LONG_SILENCE[1]):
    """Frames of a random pause, at most `longest`."""
    if longest > LONG_SILENCE[1] and rng.random() < VERY_LONG_SILENCE_PROBABILITY:
        return rng.randint(LONG_SILENCE[1], longest)
    if rng.random() < LONG_SILENCE_PROBABILITY:
        return rng.randint(*LONG_SILENCE)
    return 1 + min(round(rng.expovariate(1 / SILENCE_MEAN)), LONG_SILENCE[0])


# --- encoding ---

class Encoder:
    """Turns samples into grids with one codec, one tokenizer and one set of special ids, all from a model folder.
    noises, backchannels: recordings to draw from; leakage: whether what is said may be heard; rooms: whether what is heard may
    get a room, a microphone, a telephone, pauses and louder noise; reaction: seconds in which an interruption silences the model;
    hearing: a folder with another codec for what is heard, of the same codebooks; longest_silence: frames between two turns;
    longest_sample: frames, above which the last turns of a sample are left out."""

    def __init__(self, folder, device="cpu", noises=(), backchannels=(), leakage=False, rooms=False,
                 reaction=stream.REACTION_DELAY, hearing=None, longest_silence=LONG_SILENCE[1], longest_sample=None):
        from tokenizers import Tokenizer
        self.ids, self.codec, self.device = stream.Ids.read(folder), mimi.load(folder, device), device
        self.noises, self.backchannels, self.leakage, self.rooms, self.reaction = noises, backchannels, leakage, rooms, reaction
        self.hearing = mimi.load(hearing, device) if hearing else self.codec
        self.longest_silence = longest_silence
        self.longest_sample = longest_sample
        if hearing and not torch.equal(*(torch.cat([part.entries for part in codec.modules() if isinstance(part, mimi.Codebook)])
                                         for codec in (self.codec, self.hearing))):
            raise DataError(f"{hearing} has other codebooks than {folder}: what is heard must be written in the same codes")
        try:
            self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower class
            raise DataError(f"{folder}/tokenizer.json cannot be read: {error}") from None
        last, size = max(self.tokenizer.get_vocab().values()), json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
        if last >= size:
            raise DataError(f"{folder}/tokenizer.json is another model's: its ids go up to {last}, config.json's to {size - 1}")
        self.silence = self.encode([np.zeros(50 * FRAME, np.float32)])[0][-1]  # [K]: what quiet codes settle at
        self.said = lru_cache(maxsize=20_000)(self.said)
        self.said_audio = lru_cache(maxsize=2_000)(self.said_audio)

    def encode(self, waves, codec=None):
        """A list of float32 [N] of whole frames -> a list of codes [T, K]. Causal: padding changes nothing before it."""
        codec, order, codes = codec or self.codec, sorted(range(len(waves)), key=lambda i: len(waves[i])), {}
        for chunk in (order[i:i + ENCODED_AT_ONCE] for i in range(0, len(order), ENCODED_AT_ONCE)):
            batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(waves[i]) for i in chunk], batch_first=True)[:, None]  # [B, 1, N]
            for i, row in zip(chunk, codec.encode(batch.to(self.device)).transpose(1, 2).cpu()):
                codes[i] = row[:len(waves[i]) // FRAME]
        return [codes[i] for i in range(len(waves))]

    def said(self, file):
        """Codes [T, K] of a clip that the model speaks, as they follow silence: a sound file, each encoded once, or the codes
        themselves in a .npy file [T, K], as tiny/replay.py writes them. Raises ValueError."""
        if Path(file).suffix == ".npy":
            return stream.read_codes(file, self.codec.config.codebook_size)
        audio, before = sound_file.read_audio(file).numpy(), 4
        padded = np.pad(audio, (before * FRAME, -len(audio) % FRAME + RINGING * FRAME))  # to whole frames
        return self.encode([padded])[0][before:]

    def said_audio(self, file):
        """float32 [N] of the same clip."""
        if Path(file).suffix != ".npy":
            return sound_file.read_audio(file).numpy()
        codes = self.said(file).T[None].to(self.device)  # [1, K, T]
        return self.codec.decode(codes)[0, 0].cpu().numpy()

    def write(self, format, shapes, silences):
        """stream.write, without the last turns of a sample that would be longer than `longest_sample`. Of a single turn that is too
        long even so, the longest silence is made shorter."""
        script = stream.write(format, shapes, silences, self.ids)
        if self.longest_sample is None:
            return script
        while len(script) > self.longest_sample and len(shapes) > 1:
            shapes = shapes[:-1]
            silences = [*silences[:len(shapes)], silences[-1]]
            script = stream.write(format, shapes, silences, self.ids)
        excess = len(script) - self.longest_sample
        if excess > 0:
            longest = max(silences)
            silences[silences.index(longest)] = max(0, longest - excess)
            script = stream.write(format, shapes, silences, self.ids)
        return script

    def plan(self, turns, format, rng, speeds=(1, 1)):
        """One sample before encoding: (Script, listen waveform or None, spoken clips)."""
        clips, spoken, shapes = [], [], []

        def hear(file):
            """(waveform, frames until it is said; a room's echo goes on in the silence after it)"""
            clip = sound_file.read_audio(file).numpy()
            if tuple(speeds) != (1, 1):  # pitch and all: one recorded speaker becomes several
                clip = soxr.resample(clip, SAMPLE_RATE, SAMPLE_RATE / rng.uniform(*speeds))
            if self.rooms and rng.random() < PAUSE_PROBABILITY:
                clip, _ = hesitate(clip, rng.uniform(*PAUSE), rng)
            late = rng.randrange(FRAME)  # people do not begin on a frame
            frames = -(-(late + len(clip)) // FRAME)
            if self.rooms and rng.random() < MICROPHONE_PROBABILITY:
                clip = microphone(clip, rng)
            if self.rooms and rng.random() < ROOM_PROBABILITY:
                clip = room(clip, rng)
            if self.rooms and rng.random() < TELEPHONE_PROBABILITY:
                clip = telephone(clip, rng)
            return np.pad(random_gain(clip, rng), (late, 0)), frames
        for turn in turns:
            shapes.append(shape := Turn(reaction=self.reaction))
            if "heard" in turn:
                clip, frames = hear(turn["heard"])
                clips.append(clip)
                patience = turn.get("patience")
                shape.heard = frames + (CLOSING_SILENCE if patience is None else round(patience * stream.FRAME_RATE))
                shape.onset = int(np.argmax(np.abs(clip) > 0.1 * np.abs(clip).max())) // FRAME
            if "spoken" in turn:
                spoken.append(self.said(turn["spoken"]))
                shape.spoken = len(spoken[-1])
            shape.transcript, shape.response = (self.tokenizer.encode(turn.get(key, "")).ids for key in ("transcript", "response"))
            shape.words = [(int(start * stream.FRAME_RATE), self.tokenizer.encode(" " * (i > 0) + word).ids)
                           for i, (word, start, _) in enumerate(turn.get("words", ()))]
        if format == "response-tts-free":
            murmurs, lengths = zip(*(hear(rng.choice(self.backchannels)) if self.backchannels and rng.random() < BACKCHANNEL_PROBABILITY
                                     else ("", 0) for _ in turns))
            stream.draw_interruptions(shapes, lengths, rng)
            clips = [clip for shape, *both in zip(shapes, clips, murmurs) for clip in both[:2 if shape.murmur else 1]]
        silences = [silence(rng, self.longest_silence) for _ in range(len(turns) + 1)]
        script = self.write(format, shapes, silences)
        turns = turns[:len(script.says)]
        clips = clips[:len(script.hears)]
        spoken = [codes[:stop - start] for codes, (start, stop) in zip(spoken, script.says)]  # an interruption cuts them
        if format not in stream.LISTENS:
            return script, None, spoken

        def lay(wave, spans, clips):
            for (start, stop), clip in zip(spans, clips, strict=True):
                part = wave[start * FRAME:stop * FRAME]
                part[:len(clip)] += clip[:len(part)]
        wave = noise(len(script) * FRAME, rng, self.noises, ROOM_NOISE_LOUDNESS if self.rooms else NOISE_LOUDNESS)
        lay(wave, script.hears, clips)
        leakage = draw_leak(rng) if self.leakage else None
        if leakage:
            model_audio = np.zeros_like(wave)
            lay(model_audio, script.says, [self.said_audio(turn["spoken"]) for turn in turns if "spoken" in turn])
            leak(wave, model_audio, *leakage)
        return script, wave.clip(-1, 1), spoken

    def grids(self, samples, format, rngs, speeds=(1, 1)):
        """Samples (lists of turns) -> (a list of stream.Grid, a sentence for each sample left out, whose audio is broken)"""
        planned, problems = [], []
        for turns, rng in zip(samples, rngs):
            try:
                planned.append(self.plan(turns, format, rng, speeds))
            except ValueError as error:
                problems.append(str(error))
        heard = iter(self.encode([wave for _, wave, _ in planned if wave is not None], self.hearing))
        return [script.grid(stream.place(script.says, spoken, self.silence, len(script)) if format in stream.SPEAKS else None,
                            None if wave is None else next(heard)) for script, wave, spoken in planned], problems


_encoder = lru_cache(maxsize=1)(Encoder)  # one a process


def _encode_shard(job, format, seed, speeds, setup):
    """A shard that is not there yet, (file, number of its first sample, samples) -> (samples done, hours of audio, problems)"""
    file, first, samples = job
    if parent_process():  # one of several, which have a core each
        torch.set_num_threads(1)
    rngs = [random.Random(f"{seed} {format} {first + i}") for i in range(len(samples))]
    grids, problems = _encoder(*setup).grids(samples, format, rngs, speeds)
    if grids:
        stream.save(grids, file)
    return len(samples), sum(map(len, grids)) / stream.FRAME_RATE / 3600, problems


def recordings(folders):
    """The sound files below some folders."""
    found = [str(file) for folder in folders for file in Path(folder).rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES]
    if folders and not found:
        raise DataError(f"{', '.join(map(str, folders))} holds no {', '.join(AUDIO_SUFFIXES)}")
    return tuple(sorted(found))


def encode(manifest, out, format, model, fewest=1, most=1, draws=1, seed=0, device="cpu", speeds=(1, 1), noises=(),
           backchannels=(), leakage=False, rooms=False, reaction=stream.REACTION_DELAY, hearing=None,
           longest_silence=LONG_SILENCE[1] / stream.FRAME_RATE, longest_sample=None, workers=1, part="1/1"):
    """Encode a manifest into shards under `out`; shards that stand there already are kept. noises, backchannels: folders of
    recordings; reaction, hearing: of Encoder; longest_silence: seconds between two turns; longest_sample: frames; part "i/n": every n-th shard from the i-th on. Returns how many samples there
    are, and how many were left out now. Raises ValueError or OSError, one sentence, for input that cannot be used."""
    first, step = map(int, part.split("/")) if re.fullmatch(r"\d+/\d+", part) else (0, 0)
    if not 1 <= first <= step:
        raise DataError(f"there is no part {part}: it is I/N, with I from 1 to N")
    if not 1 <= fewest <= most or draws < 1 or not 0.1 <= speeds[0] <= speeds[1] <= 10:
        raise DataError("--join takes FEWEST and MOST from 1 on, --draws 1 or more, --speeds SLOWEST and FASTEST from 0.1 to 10")
    if not 0 <= reaction < 60:
        raise DataError(f"--reaction must be 0 .. 60 seconds, not {reaction:g}")
    if not LONG_SILENCE[1] / stream.FRAME_RATE <= longest_silence < 3600:
        raise DataError(f"--longest-silence must be {LONG_SILENCE[1] / stream.FRAME_RATE:g} seconds or more, not {longest_silence:g}")
    mimi.check_device(device)
    out, samples = Path(out), join(read_manifest(manifest, format), fewest, most, draws, seed)
    heard = recordings(noises), recordings(backchannels), leakage or format == "response-tts-free"
    files = [Path(manifest), Path(model) / "tokenizer.json", *(Path(codec) / "mimi.safetensors" for codec in (model, hearing) if codec)]
    files = [file for file in files if file.exists()]
    made_from = hashlib.sha1(b"".join([*(file.read_bytes() for file in files), repr(heard).encode()])).hexdigest()
    settings = dict(format=format, join=[fewest, most], draws=draws, seed=seed, speeds=list(speeds), rooms=rooms, reaction=reaction,
                    longest_silence=longest_silence, longest_sample=longest_sample, made_from=made_from)
    out.mkdir(parents=True, exist_ok=True)
    about = out / "grids.json"
    if about.exists() and json.loads(about.read_text()) != settings:
        raise DataError(f"{out} holds grids of another manifest, model or setting: choose another folder, or remove it")
    write_lines(about, [settings])
    jobs = [(out / f"shard-{i // SAMPLES_PER_SHARD:05d}.safetensors", i, samples[i:i + SAMPLES_PER_SHARD])
            for i in range(0, len(samples), SAMPLES_PER_SHARD)][first - 1::step]
    todo, total, hours, left_out = [job for job in jobs if not job[0].exists()], sum(len(job[2]) for job in jobs), 0, 0
    setup = str(model), device, *heard, rooms, reaction, hearing and str(hearing), round(longest_silence * stream.FRAME_RATE), longest_sample
    work = partial(_encode_shard, format=format, seed=seed, speeds=speeds, setup=setup)
    with tqdm(total=total, initial=total - sum(len(job[2]) for job in todo), desc=out.name, unit="sample") as bar:
        for done, length, problems in in_parallel(work, todo, workers):
            hours, left_out = hours + length, left_out + len(problems)
            for problem in problems:
                tqdm.write(f"SKIPPED: a sample, for {problem}", file=sys.stderr)
            bar.set_postfix_str(f"{hours:.2f} h of audio, {hours / bar.format_dict['elapsed'] * 3600:.0f} an hour")
            bar.update(done)
    if any(job[0].exists() for job in jobs):
        Grids([out])  # which writes the index
    elif jobs:
        raise DataError(f"nothing was encoded: all {total} samples were left out")
    return total - left_out, left_out


# --- loading ---

_shard = lru_cache(maxsize=64)(stream.Shard)  # one mapping each: far below a process's limit of open files


class Grids:
    """A training set on disk: the grids of some sources, "FOLDER" or "FOLDER:WEIGHT", of which grids[i] reads one. lengths:
    frames of each; formats: the format of each ("unknown" where its folder does not say). Raises DataError.

    A folder's index.json has bytes and lengths of its shards, so that each is opened once and not at every start."""

    def __init__(self, sources):
        self.lengths, self.formats, self._places, self._weighted = [], [], [], []
        for source in sources:
            folder, weight = re.fullmatch(r"(.*?)(?::(\d+\.?\d*|\.\d+))?", str(source)).groups()
            folder, weight, first, found = Path(folder), float(weight or 1), len(self), {}
            known, about = (json.loads(file.read_text()) if file.exists() else {}
                            for file in (folder / "index.json", folder / "grids.json"))
            for shard in sorted(folder.glob("shard-*.safetensors")):
                size, lengths = known.get(shard.name, (0, None))
                try:
                    if size != shard.stat().st_size:
                        size, lengths = shard.stat().st_size, stream.Shard(shard).lengths
                except stream.GridError as error:
                    tqdm.write(f"SKIPPED: {error}; remove it, and data.py encode makes it again", file=sys.stderr)
                    continue
                found[shard.name] = [size, lengths]
                self._places += [(shard, i) for i in range(len(lengths))]
                self.lengths += lengths
            if found != known and os.access(folder, os.W_OK):
                write_lines(folder / "index.json", [found])
            if not found or not weight:
                raise DataError(f"{source} holds no grids, or weighs nothing: make them with `python data.py encode MANIFEST {folder}`")
            self.formats += [about.get("format", "unknown")] * (len(self) - first)
            self._weighted.append((range(first, len(self)), weight))

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        file, number = self._places[i]
        return _shard(file)[number]

    def place(self, i):
        """Where grid i stands, for messages."""
        file, number = self._places[i]
        return f"{file}, grid {number}"

    def epoch(self, rng):
        """Indices of one epoch in random order. Weight 2.5: each of the source twice, and a random half once more
        (Post-training-2 of section 3.1 has 0.5 and 5)."""
        chosen = []
        for indices, weight in self._weighted:
            chosen += list(indices) * int(weight) + rng.sample(indices, round(weight % 1 * len(indices)))
        return rng.sample(chosen, len(chosen))


def check_grids(folder):
    """Compare every shard of a folder of grids with its digest -> a table of how many are whole, have no digest (made by an
    older version), or are damaged. Raises DataError where one is damaged, or where there are none."""
    counts = Counter()
    damaged = []
    shards = sorted(Path(folder).glob("shard-*.safetensors"))
    for file in tqdm(shards, desc=Path(folder).name, unit="shard"):
        try:
            counts["whole" if stream.Shard(file).verify() else "without a digest"] += 1
        except stream.GridError as error:
            damaged.append(str(error))
    if not shards:
        raise DataError(f"{folder} holds no grids (shard-*.safetensors)")
    if damaged:
        raise DataError("\n".join([*damaged, f"{len(damaged)} of {len(shards)} shards are damaged: remove them, and "
                                   "data.py encode makes them again"]))
    return "\n".join(f"{count:>9} {kind}" for kind, count in counts.items())


def main(arguments=None):
    parser = argparse.ArgumentParser(description="From recordings to token grids.", epilog="More: python data.py COMMAND --help")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, about, epilog=None, **positional):
        made = commands.add_parser(name, help=about, description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
        for key, text in positional.items():
            made.add_argument(key, help=text)
        if name != "import":
            made.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
        return made
    command("import", "Write the manifest of a data set.", layout=", ".join(LAYOUTS) + " (JSONL or CSV with columns audio and text)",
            source="the data set's folder, or the file of moshi-finetune and table", out="manifest to write").set_defaults(
        run=lambda a: "%d lines, %d things left out" % bring_in(a.layout, a.source, a.out))
    made = command("synth", "Turn written dialogs into speech. A stopped run goes on.", "voices, as command lines (one without {text} reads "
                   "it from standard input):\n  'espeak-ng -v en-us -w {out} -- {text}'\n  'piper -m en_US-joe-medium.onnx -f {out}'",
                   texts='JSONL of {"turns": [{"transcript", "response"}]}', out="folder for audio/ and dialogs.jsonl")
    made.add_argument("--model-voice", required=True, metavar="COMMAND", help="the one voice of the model")
    made.add_argument("--user-voice", action="append", required=True, metavar="COMMAND", help="of several, two are drawn for each dialog")
    made.set_defaults(run=lambda a: "%d dialogs, %d clips failed" % synthesise(a.texts, a.out, a.model_voice, a.user_voice, a.workers))
    made = command("check", "Say what is wrong with a data set, or with encoded grids.", manifest="JSONL; see the top of workshop/manifests.py; or "
                   "a folder of grids")
    made.add_argument("--longest", type=float, default=60, metavar="SECONDS", help="longer recordings are reported (default: %(default)s)")
    made.add_argument("--format", choices=stream.FORMATS, help="that the lines shall be used for (default: the one of their kind that needs least)")
    made.set_defaults(run=lambda a: check_grids(a.manifest) if Path(a.manifest).is_dir() else "\n".join(f"{n:>9} {problem}" for problem, n in check(a.manifest, a.longest, a.workers, a.format).most_common()))
    made = command("encode", "Encode a manifest into token grids. A stopped run goes on.", "Then: python stream.py --grid OUT/shard-00000.safetensors",
                   manifest="JSONL; see the top of workshop/manifests.py", out="folder for the shards")
    made.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    made.add_argument("--part", default="1/1", metavar="I/N", help="every N-th shard only, from the I-th on: one job of N")
    add = made.add_argument_group("samples").add_argument
    add("--format", choices=stream.FORMATS, required=True, help=f"{', '.join(sorted(stream.PAIRS))} take pairs, the others dialogs")
    add("--model", default=Path(__file__).parent / "tiny" / "model", help="folder with config.json, tokenizer.json, codec (default: the shipped model)")
    add("--join", type=int, nargs=2, default=(1, 1), metavar=("FEWEST", "MOST"), help="manifest lines to a sample (default: %(default)s)")
    add("--draws", type=int, default=1, help="encodings of each line, with fresh silence, level and noise, each costing the disk and "
        "the time of one; train one epoch on as many as you want epochs (default: %(default)s)")
    add("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    add = made.add_argument_group("what is heard").add_argument
    add("--noise", nargs="+", default=(), metavar="FOLDER", help="recordings of noise, and of others' speech (default: synthetic noise)")
    add("--backchannels", nargs="+", default=(), metavar="FOLDER", help="recordings of uh-huh and the like, for response-tts-free: of the "
        "manifest's own users, since a stranger's voice gives a murmur away")
    add("--leakage", action="store_true", help="what is said may be heard, as always in response-tts-free")
    add("--rooms", action="store_true", help="some of what is heard gets a room's echo, a microphone, a pause inside, or louder noise")
    add("--hearing", metavar="FOLDER", help="another codec for it, whose encoder was trained further (default: the one of --model)")
    add("--reaction", type=float, default=stream.REACTION_DELAY, metavar="SECONDS", help="from an interruption's first sound to the model's "
        "silence; in a longer one it hears more of a back-channel first (default: %(default)s)")
    add("--longest-silence", type=float, default=LONG_SILENCE[1] / stream.FRAME_RATE, metavar="SECONDS", help="silences between "
        "turns are at most so long (default: %(default)s)")
    add("--longest-sample", type=int, metavar="FRAMES", help="leave out the last turns of a sample that would be longer: one frame less than "
        "the rows of training")
    add("--speeds", type=float, nargs=2, default=(1, 1), metavar=("SLOWEST", "FASTEST"), help="play what is heard at a random speed (default: %(default)s)")
    made.set_defaults(run=lambda a: "%d samples, %d left out" % encode(
        a.manifest, a.out, a.format, a.model, *a.join, a.draws, a.seed, a.device, a.speeds, a.noise, a.backchannels, a.leakage, a.rooms,
        a.reaction, a.hearing, a.longest_silence, a.longest_sample, a.workers, a.part))
    args = parser.parse_args(arguments)
    try:
        print(args.run(args))
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError) as error:
        sys.exit(f"data.py: {error}")
    except KeyboardInterrupt:
        sys.exit("data.py: stopped; the same command goes on from what is finished")


if __name__ == "__main__":
    command.run("data.py", main)
