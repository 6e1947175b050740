"""How good a recording sounds, by a model of listeners.

What this is: DNSMOS P.835, by which the paper chooses its voices (section 3.2.1), through the
package speechmos. What this is not: a required package. Only `--dnsmos` needs it. Serves check.py
and synthesis.py.

    python data.py synth texts.jsonl speech ... --dnsmos 3.0
"""
import soxr

from workshop.packages import is_there

RATE = 16_000  # Hz, of DNSMOS


def check_packages(option):
    """Raise ValueError, one sentence, where speechmos or what it imports is not installed."""
    for package in ("speechmos", "librosa", "onnxruntime"):
        if not is_there(package):
            raise ValueError(f"{option} lacks the package {package}: "
                             "pip install speechmos librosa onnxruntime")


def score(audio, rate):
    """float32 [N] at `rate` Hz -> DNSMOS of the whole (OVRL), 1 .. 5. A clip of less than nine
    seconds is repeated by the package until it is as long."""
    from speechmos import dnsmos
    audio = soxr.resample(audio, rate, RATE)
    return float(dnsmos.run(audio.clip(-1, 1), sr=RATE)["ovrl_mos"])
