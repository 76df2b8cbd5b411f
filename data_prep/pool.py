"""Runs independent tasks in processes, with memory for a few tasks at a time."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("spawn")  # the caller may have threads


def results(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[tuple[Task, Result | None]]:
    """(task, result) in the order of their ends; None for a task that ends its process.

    At most two tasks a worker are taken from `tasks` ahead. workers = 0: in this process.
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
            yield task, _alone(function, task)


def _until_broken(
    function: Callable[[Task], Result],
    tasks: Iterator[Task],
    workers: int,
    unfinished: list[Task],
) -> Iterator[tuple[Task, Result]]:
    """Leaves in `unfinished` what was under way when a worker process died."""
    with ProcessPoolExecutor(workers, _CONTEXT) as pool:
        futures = {}

        def submit(count: int) -> None:
            for task in islice(tasks, count):
                unfinished.append(task)
                futures[pool.submit(function, task)] = task

        try:
            submit(2 * workers)
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    task = futures.pop(future)
                    unfinished.remove(task)
                    yield task, result
                    submit(1)
        except BrokenProcessPool:
            return


def _alone(function: Callable[[Task], Result], task: Task) -> Result | None:
    with ProcessPoolExecutor(1, _CONTEXT) as pool:
        try:
            return pool.submit(function, task).result()
        except BrokenProcessPool:
            return None
