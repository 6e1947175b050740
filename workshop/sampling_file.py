"""The settings of the sampler: what they may be, and the file in which a model folder keeps them.

What this is: sampling.json, and the least and most of each setting. It serves chat.py. What this is
not: what the settings do (chat.py's Sampling).

    cat tiny/model/sampling.json
"""
import json

from workshop import model_files

RANGES = {"temperature": (0, 100), "top_p": (0, 1), "top_k": (0, 10**6), "penalty": (0.01, 100),
          "window": (0, 10_000)}


def check(field, value):
    """Raise ValueError, one sentence, where a field of Sampling cannot have this value."""
    low, high = RANGES[field.name.rpartition("_")[0]]
    if type(value) not in (int, field.type) or not low <= value <= high:
        whole = " and whole" if field.type is int else ""
        raise ValueError(f"{field.name} must be {low} .. {high}{whole}, not {value}")


def read(folder, fields):
    """What a model folder's sampling.json says -> {name: value}, empty where there is none.

    fields: those of Sampling. Raises ValueError that names the file."""
    path = model_files.resolve(folder) / "sampling.json"
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"it must hold an object, {{...}}, and not {settings!r:.40}")
        by_name = {field.name: field for field in fields}
        for name, value in settings.items():
            if name not in by_name:
                raise ValueError(f"no setting is called {name}")
            check(by_name[name], value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    return settings
