"""What lies beside the weights in a model folder: tokenizer, codec, settings of sampling.

What this is: from which folders a trained model gets them, what is lacking, and the copying. A
model without tokenizer or codec cannot talk. What this is not: the weights, or the names of these
files (model_files.py). Serves checkpoints.py, training_notes.py and tokenizer.py.

    python train.py export runs/ft2 somewhere/model --beside release
"""
import shutil
from pathlib import Path

import flm
from workshop import model_files
from workshop.files import LoadError, replacing

NEEDED = ("tokenizer", "codec")


def sources(first, *others):
    """Folders and Hub ids, the first of which counts most -> their folders. None, presets and files
    have nothing beside. Raises LoadError where the first is not there; others may be gone since a
    run began."""
    folders = []
    if first:
        folders.append(model_files.resolve(first))
    for name in others:
        if name and name not in flm.PRESETS and not Path(name).is_file():
            try:
                folders.append(model_files.resolve(name))
            except LoadError:
                continue
    return folders


def files_of_kinds(folders):
    """{kind: the files of it, in the first folder that has any}. One folder gives all of a kind,
    since the files of a codec go together."""
    files = {}
    for kind, names in model_files.KINDS.items():
        for folder in folders:
            present = [folder / name for name in names if (folder / name).exists()]
            if present:
                files[kind] = present
                break
    return files


def lacking(folders):
    """What a model needs in order to talk and none of the folders has: kinds, perhaps none."""
    files = files_of_kinds(folders)
    return [kind for kind in NEEDED if kind not in files]


def lay(folders, target):
    """Copy what the folders have to another folder, in place of what it had of the same kind: of
    two codecs in a folder one alone is read."""
    for kind, files in files_of_kinds(folders).items():
        copy(files, target)
        names = {file.name for file in files}
        for name in model_files.KINDS[kind]:
            if name not in names:
                (Path(target) / name).unlink(missing_ok=True)


def copy(files, target):
    """Copy files to a folder. The last ones first: what decides is copied when the rest is
    there."""
    target = Path(target)
    for file in reversed(files):
        if file.parent.resolve() != target.resolve():
            with replacing(target / file.name) as part:
                shutil.copyfile(file, part)
