"""Timing sides in turns, so that a disturbance of the machine meets all of them."""

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax


def take_turns(
    sides: Mapping[str, Callable[[], Any]], turns: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Calls the sides in turns. Returns seconds of each turn, and the last result, by side.

    A first call of each side, which compiles, is not counted.
    """
    results = {side: jax.block_until_ready(call()) for side, call in sides.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(turns):
        for side, call in sides.items():
            begun = time.perf_counter()
            results[side] = jax.block_until_ready(call())
            seconds[side].append(time.perf_counter() - begun)
    return seconds, results


class Worker:
    """A process that does one piece of work for each line that it reads, and writes its rate.

    environment: variables that it has beside those of this process.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        variables = os.environ | environment
        self._process = subprocess.Popen(command, cwd=folder, env=variables, **pipes)

    def rate(self) -> float:
        """Has the work done once; returns the rate, in images a second."""
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended
            print("work", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with status {self._process.wait()}")
        return float(line)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def rates_in_turns(workers: Mapping[str, Worker], turns: int) -> dict[str, list[float]]:
    """Rates of each turn of the workers; a first one of each, which compiles, is left out."""
    for worker in workers.values():
        worker.rate()
    found: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(turns):
        for name, worker in workers.items():
            found[name].append(worker.rate())
    return found


def rate_ratio(found: Mapping[str, list[float]], side: str, other: str) -> float:
    """The median rate of a side as a multiple of that of another one."""
    return statistics.median(found[side]) / statistics.median(found[other])


def print_rates(found: Mapping[str, list[float]]) -> None:
    """Prints the median of each side, and its turns."""
    for name, rates_of in found.items():
        turns = ", ".join(f"{rate:.2f}" for rate in rates_of)
        print(f"  {name}: {statistics.median(rates_of):.2f} images/s, median of {turns}")


def rates(seconds: list[float], amount: float) -> dict[str, Any]:
    """Returns `amount` a second for turns of these seconds: the best, the median, and all."""
    every = [amount / s for s in seconds]
    return {"best": max(every), "median": statistics.median(every), "turns": every}


def machine() -> dict[str, Any]:
    """Returns what a figure depends on beside the code."""
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
    }
