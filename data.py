"""From recordings to token grids: a manifest of audio and text becomes encoded samples on disk.

What this is: reading manifests, joining pairs with random silence (section 3.1), the augmentation of what is heard
(section 3.2.1), encoding with the codec, and shards that train.py reads. What this is not: the formats themselves, which
are stream.py's, or speech synthesis, which for the small model is tiny/voices.py.

A manifest is JSONL, paths relative to it. Two kinds of lines:

    {"audio": "a.wav", "text": "It rains."}                                        a pair: formats tts and asr
    {"turns": [{"heard": "q.wav", "transcript": "Who are you?",                    a dialog: the two other formats
                "spoken": "a.wav", "response": "I am Joe."}]}

    python data.py pairs.jsonl grids/pt1-tts --format tts --join 1 4
    python data.py dialogs.jsonl grids/ft2 --format response-tts --draws 2

Unusual here:
- What is heard is one continuous waveform, silence and noise included, encoded whole. What is said is encoded clip by
  clip, each starting on a frame, with the codes of digital silence between the clips.
- A stopped run goes on where it was: a shard depends on the settings and its number alone.
"""
import argparse
import hashlib
import json
import math
import os
import random
import sys
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import mimi
import stream
from stream import Turn

SAMPLE_RATE, FRAME = 24_000, 1920   # Hz, samples
NOISE_LOUDNESS = (-70, -40)         # dB, section 3.2.1
NO_NOISE_PROBABILITY = 0.3          # section 3.2.1
GAIN_PROBABILITY, GAIN = 0.6, (-24, 20)  # dB, section 3.2.1
LOUDNESS_FLOOR = -40                # dB after gain, section 3.2.1
# Decision: the paper separates pairs "by random silence" and says no more. Short silences are common and long ones rare
# but present, since a model that never met ten quiet seconds starts to talk in them.
SILENCE_MEAN, LONG_SILENCE, LONG_SILENCE_PROBABILITY = 6, (25, 125), 0.15  # frames
# Decision: only silence tells that an utterance is over, so each ends with this much of it before the model may write.
# Without it equation 3, in which a <wait> weighs a hundredth of a word, rewards speaking into every pause.
CLOSING_SILENCE = 3                 # frames
# Decision: a recording's last sound still rings in the codec after the last sample; this much of it is kept.
RINGING = 1                         # frames
SAMPLES_PER_SHARD, ENCODED_AT_ONCE = 64, 16


class DataError(ValueError):
    """A manifest or a folder of grids that cannot be used; the message is one sentence."""


# --- manifests ---

def read_manifest(file, format):
    """A manifest -> a list of dialogs, each a list of turns: dicts of heard, transcript, spoken, response as the format
    has them, audio as paths. Raises DataError that names the line."""
    pairs, dialogs = format in ("tts", "asr"), []
    wanted = ("heard", "transcript", "spoken", "response") if not pairs else ("audio", "text")
    try:
        lines = Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the manifest {file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            turns = [{key: turn[key] for key in wanted} for turn in ([row] if pairs else row["turns"])]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number}: format {format} needs {', '.join(wanted)}, and there is: {error!r}") from None
        if pairs:
            audio, text = ("spoken", "response") if format == "tts" else ("heard", "transcript")
            turns = [{audio: turn["audio"], text: turn["text"]} for turn in turns]
        for turn in turns:
            for key in turn.keys() & {"heard", "spoken"}:
                turn[key] = Path(file).parent / turn[key]
                if not turn[key].exists():
                    raise DataError(f"{file}, line {number}: {turn[key]} does not exist")
        dialogs.append(turns)
    if not dialogs:
        raise DataError(f"the manifest {file} is empty")
    return dialogs


def join(dialogs, fewest, most, draws, seed):
    """`draws` passes over all dialogs in random order, `fewest` to `most` of them joined to a sample: a list of turn lists."""
    samples = []
    for draw in range(draws):
        rng = random.Random(f"{seed} {draw}")
        order = rng.sample(dialogs, len(dialogs))
        while order:
            n = rng.randint(fewest, most)
            samples.append(sum(order[:n], []))
            order = order[n:]
    return samples


# --- augmentation of what is heard ---

def loudness(audio):
    """dB of the root mean square, footnote 9."""
    return 20 * np.log10(np.sqrt(np.square(audio).mean()) + 1e-6)


def random_gain(audio, rng):
    """Section 3.2.1. Decision: a gain that would clip is lowered until the peak fits; a file cannot be louder than full scale."""
    if rng.random() < GAIN_PROBABILITY:
        gain = max(rng.uniform(*GAIN), LOUDNESS_FLOOR - loudness(audio))
        audio = audio * min(10 ** (gain / 20), 1 / max(np.abs(audio).max(), 1e-6))
    return audio


def random_speed(audio, rng, slowest, fastest):
    """The recording played at a random speed, pitch and all: one recorded speaker becomes several."""
    if slowest == fastest == 1:
        return audio
    import soxr
    return soxr.resample(audio, SAMPLE_RATE, SAMPLE_RATE / rng.uniform(slowest, fastest))


def noise(n, rng):
    """n samples of noise, or of silence. Decision: no noise recordings can be had here; noise of a random colour, from
    white to brown, stands for them."""
    if rng.random() < NO_NOISE_PROBABILITY:
        return np.zeros(n, np.float32)
    white = np.random.default_rng(rng.getrandbits(64)).standard_normal(n, np.float32)
    colour = np.arange(1, n // 2 + 2, dtype=np.float32) ** -rng.uniform(0, 1)
    coloured = np.fft.irfft(np.fft.rfft(white) * colour, n).astype(np.float32)
    return coloured * 10 ** ((rng.uniform(*NOISE_LOUDNESS) - loudness(coloured)) / 20)


def silence(rng):
    """Frames of a random pause."""
    if rng.random() < LONG_SILENCE_PROBABILITY:
        return rng.randint(*LONG_SILENCE)
    return 1 + min(round(rng.expovariate(1 / SILENCE_MEAN)), LONG_SILENCE[0])


# --- encoding ---

class Encoder:
    """Turns samples into grids with one codec, one tokenizer and one set of special ids, all from a model folder."""

    def __init__(self, folder, device="cpu"):
        from tokenizers import Tokenizer
        self.ids, self.codec, self.device = stream.Ids.read(folder), mimi.load(folder, device), device
        try:
            self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower class
            raise DataError(f"{folder}/tokenizer.json cannot be read: {error}") from None
        self.silence = self.encode([np.zeros(50 * FRAME, np.float32)])[0][-1]  # [K]: what quiet codes settle at
        self.said = cache(self.said)

    def encode(self, waves):
        """A list of float32 [N] of whole frames -> a list of codes [T, K]. Causal: padding changes nothing before it."""
        order, codes = sorted(range(len(waves)), key=lambda i: len(waves[i])), {}
        for chunk in (order[i:i + ENCODED_AT_ONCE] for i in range(0, len(order), ENCODED_AT_ONCE)):
            batch = np.zeros((len(chunk), 1, len(waves[chunk[-1]])), np.float32)
            for row, i in zip(batch, chunk):
                row[0, :len(waves[i])] = waves[i]
            for i, row in zip(chunk, self.codec.encode(torch.from_numpy(batch).to(self.device)).transpose(1, 2).cpu()):
                codes[i] = row[:len(waves[i]) // FRAME]
        return [codes[i] for i in range(len(waves))]

    def said(self, file):
        """Codes [T, K] of a clip that the model speaks, as they follow silence. Each file is encoded once."""
        audio, before = mimi.read_audio(file).numpy(), 4
        frames = -(-len(audio) // FRAME) + RINGING
        padded = np.zeros((before + frames) * FRAME, np.float32)
        padded[before * FRAME:before * FRAME + len(audio)] = audio
        return self.encode([padded])[0][before:]

    def plan(self, turns, format, rng, speeds=(1, 1)):
        """One sample before encoding: (Script, listen waveform or None, spoken clips)."""
        clips, offsets, spoken, lengths = [], [], [], []
        for turn in turns:
            heard = frames = 0
            if "heard" in turn:
                clips.append(random_gain(random_speed(mimi.read_audio(turn["heard"]).numpy(), rng, *speeds), rng))
                offsets.append(rng.randrange(FRAME))  # people do not begin on a frame
                heard = -(-(offsets[-1] + len(clips[-1])) // FRAME) + CLOSING_SILENCE
            if "spoken" in turn:
                spoken.append(self.said(turn["spoken"]))
                frames = len(spoken[-1])
            text = [self.tokenizer.encode(turn.get(key, "")).ids for key in ("transcript", "response")]
            lengths.append(Turn(heard, frames, *text))
        script = stream.write(format, lengths, [silence(rng) for _ in range(len(turns) + 1)], self.ids)
        if format not in stream.LISTENS:
            return script, None, spoken
        wave = noise(len(script) * FRAME, rng)
        for (start, _), offset, clip in zip(script.hears, offsets, clips):
            wave[start * FRAME + offset:][:len(clip)] += clip
        return script, wave.clip(-1, 1), spoken

    def grids(self, samples, format, rngs, speeds=(1, 1)):
        """Samples (lists of turns) -> a list of stream.Grid."""
        planned = [self.plan(turns, format, rng, speeds) for turns, rng in zip(samples, rngs)]
        heard = iter(self.encode([wave for _, wave, _ in planned if wave is not None]))
        return [script.grid(stream.place(script.says, spoken, self.silence, len(script)) if format in stream.SPEAKS else None,
                            None if wave is None else next(heard)) for script, wave, spoken in planned]


def encode(manifest, out, format, model, fewest=1, most=1, draws=1, seed=0, device="cpu", speeds=(1, 1)):
    """Encode a manifest into shards under `out`; shards that stand there already are kept. Returns the number of grids.

    Raises DataError, GridError, LoadError or ValueError, one sentence, for input that cannot be used."""
    out, samples = Path(out), join(read_manifest(manifest, format), fewest, most, draws, seed)
    fingerprint = hashlib.sha1()
    for file in (manifest, Path(model) / "tokenizer.json", Path(model) / "mimi.safetensors"):
        if Path(file).exists():
            fingerprint.update(Path(file).read_bytes())
    settings = dict(format=format, join=[fewest, most], draws=draws, seed=seed, made_from=fingerprint.hexdigest())
    if tuple(speeds) != (1, 1):
        settings["speeds"] = list(speeds)
    out.mkdir(parents=True, exist_ok=True)
    about = out / "grids.json"
    if about.exists() and json.loads(about.read_text()) != settings:
        raise DataError(f"{out} holds grids of another manifest, model or setting: choose another folder, or remove it")
    about.write_text(json.dumps(settings))
    shards = {out / f"shard-{i // SAMPLES_PER_SHARD:05d}.safetensors": range(i, min(i + SAMPLES_PER_SHARD, len(samples)))
              for i in range(0, len(samples), SAMPLES_PER_SHARD)}
    encoder = None
    with tqdm(total=len(samples), desc=f"{out.name}", unit="sample") as bar:
        for file, numbers in shards.items():
            if not file.exists():
                encoder = encoder or Encoder(model, device)
                rngs = [random.Random(f"{seed} {format} {i}") for i in numbers]
                stream.save(encoder.grids([samples[i] for i in numbers], format, rngs, speeds), file)
            bar.update(len(numbers))
    return len(samples)


# --- loading ---

_open_shard = lru_cache(maxsize=64)(stream.Shard)  # one mapping each: far below a process's limit of open files


def _source(source):
    """"FOLDER" or "FOLDER:WEIGHT" -> (folder, weight)"""
    folder, colon, weight = str(source).rpartition(":")
    if not colon or Path(source).is_dir():
        return Path(source), 1.0
    try:
        weight = float(weight)
    except ValueError:
        return Path(source), 1.0
    if not 0 < weight < math.inf:
        raise DataError(f"the weight of {source} must be above 0")
    return Path(folder), weight


def _index(folder):
    """The lengths of the grids in each shard of a folder, {name: [bytes, lengths]}. They are kept in index.json, so that
    a shard is opened once and not at every start. A shard that cannot be read is named and left out."""
    file, found = folder / "index.json", {}
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}  # it is made again
    for shard in sorted(folder.glob("shard-*.safetensors")):
        size = shard.stat().st_size
        found[shard.name] = known.get(shard.name)
        if not found[shard.name] or found[shard.name][0] != size:
            try:
                found[shard.name] = [size, stream.Shard(shard).lengths]
            except stream.GridError as error:
                print(f"data.py: SKIPPED, {error}; remove it and run data.py again to make it anew", file=sys.stderr)
                del found[shard.name]
    if found != known:
        try:
            _write_text(file, json.dumps(found))
        except OSError:
            pass  # a folder that cannot be written can still be read
    return found


def _write_text(file, text):
    """Beside and then renamed; each process has a name of its own for what is beside."""
    beside = Path(f"{file}.{os.getpid()}.part")
    beside.write_text(text)
    os.replace(beside, file)


class Grids:
    """A training set on disk: the grids of some folders, of which grids[i] reads one. lengths: frames of each grid;
    formats: the format of each ("unknown" where its folder does not say). Raises DataError for a folder without any."""

    def __init__(self, sources):
        self.lengths, self.formats, self._places, self._sources = [], [], [], []
        for folder, weight in map(_source, sources):
            index, first = _index(folder), len(self)
            about = folder / "grids.json"
            format = json.loads(about.read_text())["format"] if about.exists() else "unknown"
            for name, (_, lengths) in index.items():
                self._places += [(folder / name, i) for i in range(len(lengths))]
                self.lengths += lengths
            self.formats += [format] * (len(self) - first)
            if len(self) == first:
                raise DataError(f"{folder} holds no grids: make them with `python data.py encode MANIFEST {folder}`")
            self._sources.append((range(first, len(self)), weight))

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        file, number = self._places[i]
        return _open_shard(file)[number]

    def epoch(self, rng):
        """Indices of one epoch in random order. Weight 2.5: each of the source twice, and a random half once more
        (section 3.1 has 0.5 and 5 in Post-training-2)."""
        chosen = []
        for indices, weight in self._sources:
            chosen += list(indices) * int(weight) + rng.sample(indices, round(weight % 1 * len(indices)))
        rng.shuffle(chosen)
        return chosen


def load(folders):
    """All grids of some folders, in memory: a list of stream.Grid."""
    return list(Grids(folders))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Encode a manifest of recordings and text into token grids.",
                                     epilog="Look at what was made with: python stream.py --grid OUT/shard-00000.safetensors")
    parser.add_argument("manifest", help="JSONL; see the top of this file")
    parser.add_argument("out", help="folder for the shards")
    parser.add_argument("--format", choices=stream.FORMATS, required=True, help="tts and asr take pairs, the others dialogs")
    parser.add_argument("--model", default=Path(__file__).parent / "tiny" / "model",
                        help="folder with config.json, tokenizer.json and a codec (default: the shipped model)")
    parser.add_argument("--join", type=int, nargs=2, default=(1, 1), metavar=("FEWEST", "MOST"),
                        help="how many manifest lines make a sample (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=1,
                        help="passes over the manifest, each with fresh silence, level and noise (default: %(default)s)")
    parser.add_argument("--speeds", type=float, nargs=2, default=(1, 1), metavar=("SLOWEST", "FASTEST"),
                        help="play what is heard at a random speed between these (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    try:
        n = encode(args.manifest, args.out, args.format, args.model, *args.join, args.draws, args.seed, args.device, args.speeds)
    except (OSError, ValueError) as error:
        sys.exit(f"data.py: {error}")
    except KeyboardInterrupt:
        sys.exit("data.py: stopped; the same command goes on from the last whole shard")
    print(f"{n} samples in {args.out}")


if __name__ == "__main__":
    main()
