"""Speed of a run: the timing/* values of the logs.

    step_seconds = (step + data_wait + checkpoint_stall) / steps
    images_per_second = batch size / step_seconds
    model_flops_per_second = model FLOPs of a step / step_seconds
    mfu = model_flops_per_second / (published bfloat16 peak of a device x number of devices)

step, data_wait and checkpoint_stall are seconds of the clock's parts since the last line, and
steps are those dispatched since then. Evaluating and compiling do not count. The MFU is
defined in PaLM, arXiv 2204.02311, appendix B; `fsdit.training.flops` counts the model FLOPs.
"""

from collections.abc import Callable

import jax

from fsdit.parallel import processes
from fsdit.parallel.chips import find_chip
from fsdit.training.telemetry.clock import Clock


class Speed:
    """Measures steps against the clock.

    steps: those dispatched since the last row. flops: model FLOPs of one step over all devices;
    None until they are counted, 0 where they cannot be.
    """

    def __init__(self, clock: Clock, batch_size: int):
        self.steps = 0
        self.flops: int | None = None
        self._clock, self._batch_size = clock, batch_size
        self._before = clock.seconds()
        self._first: dict[str, float] | None = None
        chip = find_chip(jax.devices()[0].device_kind)
        self._peak = chip.flops * jax.device_count() if chip else None

    def count_flops(self, count: Callable[[], int]) -> None:
        """Sets `flops` to what `count` returns. Where it raises ValueError, prints why."""
        try:
            with jax.transfer_guard("allow"):  # tracing copies constants to the devices
                self.flops = count()
        except ValueError as error:
            _say(f"no model FLOPs and no timing/mfu: {error}")
            self.flops = 0

    def announce_first_step(self) -> None:
        """To be called when a step is done: prints, after the first one, what came before it."""
        if self._first is not None:
            return
        spent, cache = self._clock.seconds(), self._clock.cache
        total, compiling = sum(spent.values()), spent.get("compile", 0.0)
        restoring = spent.get("restore", 0.0)
        self._first = {
            "timing/start_to_first_step_seconds": total,
            "timing/start_compile_seconds": compiling,
            "timing/start_restore_seconds": restoring,
            "timing/start_cache_hits": cache["hits"],
        }
        _say(
            f"first step done {total:.1f} s after the start: compiling {compiling:.1f} s "
            f"({cache['hits']} of {cache['requests']} programs from the cache), "
            f"restoring {restoring:.1f} s"
        )

    def row(self) -> dict[str, float]:
        """The timing/* values of the interval since the last row; starts a new interval."""
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


def _say(line: str) -> None:
    if processes.is_main_process():
        print(line, flush=True)
