"""Files that are whole or not there: written beside, given the usual permissions, and renamed.

What this is: how every file of this repository is replaced, so that neither a full disk, a kill nor
a power cut costs what stood there before; what must not be overwritten; the error for files that
cannot be read, and what other people's errors say. What this is not: a format. Serves
model_files.py, codec_files.py, shards.py, sound_file.py, data.py, train.py.
"""
import os
import unicodedata
from contextlib import contextmanager
from pathlib import Path


class LoadError(ValueError):
    """Files of a model or codec that cannot be used. The message is one sentence that names the
    file and, where there is one, the tensor."""


def error_line(error):
    """What an error says, in one line; its class where it says nothing."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0]


def sync(path):
    """Return when a file's content, or a folder's names, are on the disk itself."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder, on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def same_file(one, other):
    """Whether two paths, which may not exist yet, are one file: by another spelling, a link, or a
    letter's case."""
    one, other = Path(one), Path(other)
    if one.exists() and other.exists():
        return one.samefile(other)

    def place(path):
        return unicodedata.normalize("NFC", str(path.resolve())).casefold()
    return place(one) == place(other)


def check_place(path, overwrite=False, sources=()):
    """Raise ValueError, one sentence, where a file must not be written to `path`.

    sources: files that are read, and that no `overwrite` covers."""
    path = Path(path)
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{path.parent} is no folder to write {path.name} to")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file that can be written")
    if any(same_file(path, source) for source in sources):
        raise ValueError(f"{path} is what is read, and is not overwritten")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another name, or add --overwrite")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} is write-protected: choose another name")


@contextmanager
def replacing(file, shared=False):
    """Within, write to the path that this yields; afterwards it takes the place of `file`, readable
    by whom the umask lets read. (The safetensors library makes files that their owner alone can
    read.) If anything is raised within, the file beside is removed and `file` stays as it was. What
    a kill leaves beside is overwritten by the next attempt. shared: several processes may write
    this file at once."""
    file = Path(file)
    process = f".{os.getpid()}" if shared else ""
    beside = file.with_name(f".{file.name}{process}.part")  # hidden: no name that a user gives
    try:
        beside.touch()  # made as every new file is: its permissions are what the umask leaves
        permissions = beside.stat().st_mode & 0o777
        yield beside
        os.chmod(beside, permissions)
        sync(beside)  # or a power cut may leave the new name, and nothing in it
        os.replace(beside, file)
        sync(file.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
