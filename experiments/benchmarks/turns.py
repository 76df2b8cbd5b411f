"""Timing sides in turns, so that a disturbance of the machine meets all of them."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
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
