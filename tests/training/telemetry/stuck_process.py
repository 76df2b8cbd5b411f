"""Do twenty quick steps, and then one that waits in C code for ever.

    python -m tests.training.telemetry.stuck_process STACKS STOP_SECONDS PART

It stands for a run, with the same clock and the same calls of the watchdog.
"""

import os
import sys
from pathlib import Path

from fsdit.config import WatchdogConfig
from fsdit.training.telemetry.clock import Clock
from fsdit.training.telemetry.watchdog import Watchdog


def waiting_for_a_device() -> None:
    os.read(os.pipe()[0], 1)


def main(stacks: Path, stop_seconds: float, part: str) -> None:
    clock = Clock()
    left = stacks.with_name("left")
    limits = WatchdogConfig(factor=10, min_seconds=0.4, stop_seconds=stop_seconds)
    watchdog = Watchdog(limits, stacks, clock, lambda: left.write_text("x"))
    with clock.part(part):
        watchdog.start(1)
        for step in range(2, 21):
            until = clock.elapsed() + 0.01
            while clock.elapsed() < until:
                pass
            watchdog.beat(step)
        print("stuck from here on", flush=True)
        waiting_for_a_device()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
