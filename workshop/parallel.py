"""A function over many jobs, in this process or in several.

What this is: `--workers` of data.py's commands, which it serves. What this is not: a queue over
several machines; there `data.py encode --part I/N` shares the work.
"""
import signal
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context

from workshop.manifests import DataError


def in_parallel(function, jobs, workers):
    """function of each job, in order. Raises DataError where a process was killed."""
    if workers == 1:
        yield from map(function, jobs)
        return
    # Workers leave Ctrl-C to this process, which lets them finish what they have begun.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=signal.signal,
                               initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield from pool.map(function, jobs)
    except BrokenExecutor:
        raise DataError("a worker was killed, perhaps for want of memory: run this again, or with "
                        "fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)
