"""How many parameters each part of a model has, and the command line of flm.py.

What this is: a table of parameters and bytes by part, of a preset, a folder or a Hub id; a folder's
files are checked on the way. What this is not: the network (flm.py), or what a run costs
(costs.py). Serves flm.py, costs.py and lora.py.

    python flm.py 0.5b
"""
import argparse
import sys

import flm
from workshop import model_files

# Which part of the model a parameter belongs to, by the beginning of its name; the first that fits.
# "heads" are the text head and the 8 audio heads.
PARTS = {
    "model.embed_tokens.": "embeddings",
    "model.": "backbone",
    "aud_output_layers.lm_heads.": "heads",
    "aud_output_layers.": "depth",
    "lm_head.": "heads",
}


def part_of(name):
    """The name of a parameter -> the part that it belongs to."""
    return next(part for prefix, part in PARTS.items() if name.startswith(prefix))


def count_parameters(model):
    """Parameters of an FLM by part: a dict of whole numbers that sum to the model's."""
    counts = dict.fromkeys(PARTS.values(), 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="flm.py",
        description="Show a model's parameters by part, and check that its files are whole.")
    parser.add_argument(
        "model", help=f"a folder, a Hub id (owner/name), or a preset: {', '.join(flm.PRESETS)}")
    name = parser.parse_args(arguments).model
    try:
        if name in flm.PRESETS:
            model = flm.FLM(flm.PRESETS[name])
        else:
            model = model_files.load(name, "meta", dtype=None)
    except ValueError as error:
        sys.exit(f"flm.py: {error}")
    dtype = model.lm_head.weight.dtype
    print(f"{name}, {str(dtype).removeprefix('torch.')}")
    print(f"{'part':<12}{'parameters':>16}{'bytes':>18}")
    counts = count_parameters(model)
    counts["all"] = sum(counts.values())
    for part, count in counts.items():
        print(f"{part:<12}{count:>16,}{count * dtype.itemsize:>18,}")
