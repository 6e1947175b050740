"""Whether this machine keeps up with a talk, and how a talk uses its cores.

What this is: what chat.py needs so that each frame of 80 ms is over in time, and the sentence for a
machine that is too slow. What this is not: a measurement (bench.py).

    OMP_NUM_THREADS=2 python chat.py      # two threads, whatever this file thinks best

Unusual here:
- A small model computes a frame in hundreds of products, each over in microseconds. Two threads
  that wait for each other after each of them are no faster on idle cores. Beside another busy
  program they are many times slower: a thread that waits spins through its share of time, while
  the one that it waits for has no core.
"""
import math
import os
from collections import deque

SMALL = 50_000_000   # parameters, codec included, of a model that is not faster with two threads
WINDOW = 50          # frames (4 s) over which a machine has to keep up
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # OpenMP reads them as it loads


def sleep_while_waiting():
    """Let threads that wait for others sleep, unless the user has chosen.

    It has an effect only before torch is imported."""
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def settle_threads(*modules):
    """One thread for small modules, all cores for larger ones. The user's OMP_NUM_THREADS goes
    before."""
    import torch
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    if count <= SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def too_slow(seconds, budget):
    """What to tell the user of a machine that needs `seconds` for a frame of `budget` seconds; None
    where it keeps up."""
    if seconds <= budget:
        return None
    milliseconds = math.ceil(1000 * seconds)  # 81, not "80 of 80"
    return (f"this machine takes {milliseconds} ms for a frame of {1000 * budget:.0f} ms, "
            "so a live talk falls behind: "
            "end other programs, or take a smaller model or a GPU (--device cuda)")


class Pace:
    """The frames of one talk against the clock. budget: seconds of a frame."""

    def __init__(self, budget):
        self.budget = budget
        self.last = 0.0      # seconds that the last frame took
        self.late = 0        # frames that took longer than a frame lasts
        self.recent = deque(maxlen=WINDOW)
        self.warned = False

    def add(self, seconds):
        """Count a frame -> the sentence for a machine that is too slow, once a talk; else None."""
        self.last = seconds
        self.late += seconds > self.budget
        self.recent.append(seconds)
        if self.warned or len(self.recent) < WINDOW:
            return None
        warning = too_slow(sum(self.recent) / WINDOW, self.budget)
        self.warned = warning is not None
        return warning
