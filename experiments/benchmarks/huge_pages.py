"""What huge pages are worth to the train step of an experiment on a CPU, in turns.

    python -m experiments.benchmarks.huge_pages --config=experiments/glyphs.py
    taskset -c 0 python -m experiments.benchmarks.huge_pages --config=experiments/glyphs.py

The second line does so on one core. One side is a process with GLIBC_TUNABLES set to
glibc.malloc.hugetlb=1, the other one has no tunables; each trains on a batch of zeros while the
other one waits. The experiment's dataset has to exist. Huge pages need Linux, glibc from 2.35 on,
and "madvise" or "always" in /sys/kernel/mm/transparent_hugepage/enabled.
"""

import contextlib
import sys
import time
from pathlib import Path

import jax
from absl import flags

from experiments.benchmarks.compute.train_step import trainer_on_zeros
from experiments.benchmarks.turns import Worker, print_rates, rate_ratio, rates_in_turns
from fsdit import program

STEPS = 3  # of a turn
TUNABLES = {"without": "", "with huge pages": "glibc.malloc.hugetlb=1"}


def main(argv: list[str]) -> None:
    del argv
    if _WORK.value:
        work()
        return
    command = [sys.executable, "-m", "experiments.benchmarks.huge_pages", "--work", *sys.argv[1:]]
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                contextlib.closing(Worker(command, Path.cwd(), {"GLIBC_TUNABLES": tunables}))
            )
            for name, tunables in TUNABLES.items()
        }
        found = rates_in_turns(workers, _TURNS.value)
    times = rate_ratio(found, "with huge pages", "without")
    print(f"{_CONFIG().name}: {times:.2f} times as fast with huge pages")
    print_rates(found)


def work() -> None:
    """Trains some steps for each line that comes in, and prints images a second."""
    config = _CONFIG()
    train = trainer_on_zeros(config)
    for _ in sys.stdin:
        begun = time.perf_counter()
        jax.block_until_ready(train(STEPS))
        print(STEPS * config.data.batch_size / (time.perf_counter() - begun), flush=True)


if __name__ == "__main__":
    _CONFIG = program.define_config()
    _TURNS = flags.DEFINE_integer("turns", 7, "Turns of each side.", lower_bound=1)
    _WORK = flags.DEFINE_bool("work", False, "Work as a side; for this program's own processes.")
    program.run(main)
