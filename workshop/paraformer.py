"""Paraformer, a recogniser of Mandarin: the one that Seed-TTS's Chinese error rates are made with.

What this is: funasr, as an optional package, which downloads its model when it is first used. What
this is not: Whisper (recogniser.py, whose `load` chooses between the two). Serves eval.py --whisper
and data.py check --whisper.

    pip install funasr
    python eval.py --tts seedtts_testset/zh/meta.lst --language zh --whisper paraformer-zh --out zh

It was tested with a stub of the package: its weights have not been at hand here.
"""
import soxr

from workshop.files import error_line

RATE = 16_000  # Hz
INSTALL = "pip install funasr"


def is_paraformer(name):
    """Whether the name of a recogniser is one of funasr's: "paraformer-zh" and the like, or a
    folder or id with such a name."""
    return name.rstrip("/").rpartition("/")[2].lower().startswith("paraformer")


class Paraformer:
    """name: of funasr's model. Raises ValueError where it cannot be loaded."""

    def __init__(self, name, device):
        try:
            from funasr import AutoModel
            self.model = AutoModel(model=name, device=device, disable_update=True,
                                   disable_pbar=True)
        except ModuleNotFoundError as error:
            raise ValueError(f"--whisper {name} lacks a package ({error}): {INSTALL}") from None
        except Exception as error:  # funasr's, modelscope's and the Hub's errors share no base
            raise ValueError(f"--whisper {name} cannot be loaded: {error_line(error)}") from None

    def transcribe(self, audio, rate):
        """float32 [N] at `rate` Hz -> text."""
        results = self.model.generate(input=soxr.resample(audio, rate, RATE))
        return " ".join(result["text"].strip() for result in results)
