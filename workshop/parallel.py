"""A function over many jobs, in this process or in several.

What this is: `--workers` of data.py's commands, which it serves. What this is not: a queue over
several machines; there `data.py encode --part I/N` shares the work.
"""
import itertools
import signal
from collections import deque
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context

from workshop.manifests import DataError

AHEAD = 16  # jobs a worker that wait, or whose results do; millions may follow


def in_parallel(function, jobs, workers):
    """function of each job, in order. Jobs are taken as they are needed. Raises DataError where a
    process was killed."""
    if workers == 1:
        yield from map(function, jobs)
        return
    # Workers leave Ctrl-C to this process, which lets them finish what they have begun.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=signal.signal,
                               initargs=(signal.SIGINT, signal.SIG_IGN))
    jobs = iter(jobs)
    waiting = deque()
    try:
        for job in itertools.islice(jobs, workers * AHEAD):
            waiting.append(pool.submit(function, job))
        while waiting:
            yield waiting.popleft().result()
            for job in itertools.islice(jobs, 1):
                waiting.append(pool.submit(function, job))
    except BrokenExecutor:
        raise DataError("a worker was killed, perhaps for want of memory: run this again, or with "
                        "fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)
