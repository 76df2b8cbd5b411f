"""How fast a run goes: the timing/* values."""

import jax

from fsdit.parallel.chips import find_chip
from fsdit.training.telemetry.clock import Clock


class Speed:
    """Counts steps and FLOPs against the clock. Evaluating and compiling are no part of a step.

    steps: dispatched since the last row. flops: of one step, over all devices; None: not known.
    """

    def __init__(self, clock: Clock, batch_size: int):
        self.steps = 0
        self.flops: int | None = None
        self._clock, self._batch_size = clock, batch_size
        self._before = clock.seconds()
        self._first: dict[str, float] | None = None
        chip = find_chip(jax.devices()[0].device_kind)
        self._peak = chip.flops * jax.device_count() if chip else None

    def first_step(self) -> str:
        """Call when a step is done; after the first of this start, a line about the way to it."""
        if self._first is not None:
            return ""
        spent, cache = self._clock.seconds(), self._clock.cache
        total, compiling = sum(spent.values()), spent.get("compile", 0.0)
        restoring = spent.get("restore", 0.0)
        self._first = {
            "timing/start_to_first_step_seconds": total,
            "timing/start_compile_seconds": compiling,
            "timing/start_restore_seconds": restoring,
            "timing/start_cache_hits": cache["hits"],
        }
        return (
            f"first step done {total:.1f} s after the start: compiling {compiling:.1f} s "
            f"({cache['hits']} of {cache['requests']} programs from the cache), "
            f"restoring {restoring:.1f} s"
        )

    def row(self) -> dict[str, float]:
        """Of the interval since the last row."""
        now = self._clock.seconds()
        spent = {part: value - self._before.get(part, 0.0) for part, value in now.items()}
        steps = max(self.steps, 1)
        stall, waited = spent.get("checkpoint_stall", 0.0), spent.get("data_wait", 0.0)
        seconds = max(spent.get("step", 0.0) + waited + stall, 1e-9) / steps
        row = {
            "timing/step_seconds": seconds,
            "timing/images_per_second": self._batch_size / seconds,
            "timing/data_wait_seconds": waited / steps,
            "timing/checkpoint_stall_seconds": stall,
            "timing/evaluation_seconds": spent.get("evaluation", 0.0),
            "timing/compile_seconds": spent.get("compile", 0.0),
            **(self._first or {}),
        }
        if self.flops:
            row["timing/model_flops_per_second"] = self.flops / seconds
            if self._peak:
                row["timing/mfu"] = row["timing/model_flops_per_second"] / self._peak
        self._before, self.steps, self._first = now, 0, {}
        return row
