"""How like a voice is to a reference: SIM of Table 5, the cosine of two speaker embeddings.

What this is: two optional embeddings. A number has the name of its embedding, because numbers of
two embeddings do not compare. What this is not: the fine-tuned WavLM of Seed-TTS's own script,
whose weights are no package: published SIMs are made with that. Serves eval.py --similarity.

    pip install transformers    # --similarity microsoft/wavlm-base-plus-sv, or a folder like it
    pip install resemblyzer     # --similarity resemblyzer: its weights are in the package
"""
import soundfile
import soxr

from workshop.files import error_line

RATE = 16_000  # Hz


class Similarity:
    """name: "resemblyzer", or a WavLM with a head for speakers. Raises ValueError where a package
    or the weights are not there."""

    def __init__(self, name):
        self.name = name
        self.references = {}  # path -> embedding
        try:
            if name == "resemblyzer":
                self.embed = resemblyzer()
            else:
                self.embed = wavlm(name)
        except ModuleNotFoundError as error:
            raise ValueError(f"--similarity lacks a package ({error}): pip install resemblyzer, "
                             "or transformers") from None
        except Exception as error:  # the Hub's and transformers' errors share no base class
            raise ValueError(f"--similarity {name} cannot be loaded: {error_line(error)}") from None

    def compare(self, audio, rate, reference):
        """float32 [N] at `rate` Hz and the path of a reference -> the cosine, -1 .. 1."""
        if reference not in self.references:
            wave, reference_rate = soundfile.read(reference, dtype="float32", always_2d=True)
            self.references[reference] = self.embedding(wave.mean(1), reference_rate)
        return float(self.embedding(audio, rate) @ self.references[reference])

    def embedding(self, audio, rate):
        """float32 [N] -> the embedding, of length 1."""
        vector = self.embed(soxr.resample(audio, rate, RATE))
        return vector / (vector @ vector) ** 0.5


def resemblyzer():
    """A function of audio [N] at RATE -> numpy [256]."""
    from resemblyzer import VoiceEncoder
    encoder = VoiceEncoder("cpu", verbose=False)
    return encoder.embed_utterance


def wavlm(name):
    """The same, of a WavLM."""
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector
    extractor = AutoFeatureExtractor.from_pretrained(name)
    model = AutoModelForAudioXVector.from_pretrained(name).eval()

    @torch.no_grad()
    def embed(audio):
        inputs = extractor(audio, sampling_rate=RATE, return_tensors="pt")
        return model(**inputs).embeddings[0].numpy()
    return embed
