"""Runs independent tasks in processes, with memory for a few tasks at a time."""

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from fsdit.parallel import workers as worker_processes

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("spawn")  # the caller may have threads
_AHEAD = 2  # tasks a worker that are taken from their iterator: a bound on what waits


def results(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[tuple[Task, Result | None], None, None]:
    """(task, result) in the order of their ends; None for a task that ends its process.

    Raises what a task raises, at once. workers = 0: in this process.
    """
    if not workers:
        yield from ((task, function(task)) for task in tasks)
        return
    tasks = iter(tasks)
    while True:
        suspects: list[Task] = []
        yield from _until_broken(function, tasks, workers, suspects)
        if not suspects:
            return
        for task in suspects:  # one of them did it: each alone
            alone: list[Task] = []
            yield from _until_broken(function, iter([task]), 1, alone)
            yield from ((culprit, None) for culprit in alone)


def _until_broken(
    function: Callable[[Task], Result],
    tasks: Iterator[Task],
    workers: int,
    unfinished: list[Task],
) -> Generator[tuple[Task, Result], None, None]:
    """Leaves in `unfinished` what was under way when a worker process died."""
    pool = ProcessPoolExecutor(workers, _CONTEXT, _start_worker)
    futures = {}

    def submit(count: int) -> None:
        for task in islice(tasks, count):
            unfinished.append(task)
            futures[pool.submit(function, task)] = task

    try:
        submit(_AHEAD * workers)
        while futures:
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                result = future.result()
                task = futures.pop(future)
                unfinished.remove(task)
                yield task, result
                submit(1)
    except BrokenProcessPool:
        return
    except BaseException:  # what workers are at is of no use any more
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Workers leave interrupts to the program, and leave when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow's, about images that are reported in the end
    worker_processes.follow_parent()
