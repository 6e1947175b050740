"""A run of train.py, as eval.py finds it: its newest checkpoint as a model, and its stage.

What this is: the way from a run that still goes on to a model that can be asked, and the speaking
channel that its stage knows. What this is not: checkpoints (checkpoints.py). Serves eval.py.

    python eval.py --model runs/ft2 --dialogs dev.jsonl --most 16 --only questions --out check-1
"""
import json
import sys
from pathlib import Path

from workshop import checkpoints, model_files

# The stages in which the model is silent, and not without a voice, while it writes a transcript.
SILENT_STAGES = {"fine-tuning-1": "asr-response-tts"}


def model_folder(name):
    """What --model names, a path or a Hub id. Of a run without a model yet, the newest checkpoint
    is written to RUN/exported, which is what is asked. Raises ValueError."""
    folder = Path(name)
    whole = checkpoints.list_checkpoints(folder / "checkpoints")
    if not whole or model_files.files_of_model(folder):
        return name
    exported = folder / "exported" / whole[-1].name
    if not exported.exists():
        part = exported.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        checkpoints.export(whole[-1], part)
        part.rename(exported)
    print(f"eval.py: {folder} is not trained to its end: {exported} is asked", file=sys.stderr)
    return str(exported)


def asr_format(name):
    """The format in which a stage writes transcripts: "asr" or "asr-response-tts". A folder that
    does not say its stage is taken for one of post-training."""
    whole = checkpoints.list_checkpoints(Path(name) / "checkpoints")
    if not whole:
        return "asr"
    method = json.loads((whole[-1] / "run.json").read_text())["method"]
    return SILENT_STAGES.get(method.get("stage"), "asr")


def tts_format(name):
    """The format in which a run reads aloud: "reference-tts" where one of its folders of grids has
    it, or else "tts"."""
    whole = checkpoints.list_checkpoints(Path(name) / "checkpoints")
    if not whole:
        return "tts"
    method = json.loads((whole[-1] / "run.json").read_text())["method"]
    for folder in method.get("data", ()):
        about = Path(folder) / "grids.json"
        if about.exists() and json.loads(about.read_text())["format"] == "reference-tts":
            return "reference-tts"
    return "tts"
