"""Tests import the rooms of the house by name, from wherever pytest is started."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
