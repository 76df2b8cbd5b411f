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

T = TypeVar("T")  # a task
R = TypeVar("R")  # its result

_CONTEXT = multiprocessing.get_context("spawn")  # the caller may have threads
_AHEAD = 2  # tasks taken from their iterator for each worker, which bounds what waits


def results(
    function: Callable[[T], R], tasks: Iterable[T], workers: int
) -> Generator[tuple[T, R | None], None, None]:
    """Yields (task, result) as tasks end; the result is None for a task that kills its process.

    Raises at once what a task raises. workers: processes; 0: this one.
    """
    if not workers:
        yield from ((task, function(task)) for task in tasks)
        return
    tasks = iter(tasks)
    while True:
        suspects: list[T] = []
        yield from _until_broken(function, tasks, workers, suspects)
        if not suspects:
            return
        for task in suspects:  # one of them killed its worker; which one shows when each is alone
            alone: list[T] = []
            yield from _until_broken(function, iter([task]), 1, alone)
            yield from ((culprit, None) for culprit in alone)


def _until_broken(
    function: Callable[[T], R],
    tasks: Iterator[T],
    workers: int,
    unfinished: list[T],
) -> Generator[tuple[T, R], None, None]:
    """Yields (task, result) until a worker process dies.

    `unfinished` then holds the tasks that were under way.
    """
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
    except BaseException:  # nobody will use what the workers compute now
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Makes a worker ignore interrupts, which the program handles, and end with the program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow's; images that cannot be used are reported at the end
    worker_processes.follow_parent()
