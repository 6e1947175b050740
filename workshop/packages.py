"""Whether an optional package is installed.

What this is: the look that precedes a sentence such as "--whisper lacks the package ...". What this
is not: an import. Serves recogniser.py, spelling.py and quality.py.

    is_there("faster_whisper")
"""
import importlib.util


def is_there(module):
    """Whether a package is installed."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # sys.modules has something by this name that is no module
        return False
