"""How far the losses of two runs lie apart, as shares of their size.

    git worktree add /tmp/before 3b52c82
    export XLA_FLAGS=--xla_force_host_platform_device_count=8
    (cd /tmp/before && python -m data_prep.glyphs --output_dir=datasets/glyphs &&
      python -m fsdit.main --config=experiments/glyphs.py --workdir=/tmp/a \\
      --config.train.num_steps=200 --config.train.log_interval=1 \\
      --config.train.eval_interval=1000 --config.mesh.data=1 --config.mesh.fsdp=8)
    python -m fsdit.main --config=/tmp/a/config.json --workdir=/tmp/b
    python -m experiments.benchmarks.curves --workdirs=/tmp/a,/tmp/b

The losses are those that both runs logged. With one seed, and where one code only adds in another
order than the other, they differ by rounding, which training amplifies step by step.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fsdit import program
from fsdit.errors import ConfigError, DataError

_RANGES = 4  # into which the steps are split


def losses(workdir: Path) -> dict[int, float]:
    """The logged losses of a run, by step. Raises DataError where there are none."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    found = [json.loads(line) for line in lines]
    if not found:
        raise DataError(f"{workdir}: no metrics.jsonl with losses in it")
    return {line["step"]: line["train/loss"] for line in found}


def differences(one: dict[int, float], other: dict[int, float]) -> dict[int, float]:
    """Of the steps that both have, the difference of the losses as a share of the first one's."""
    return {step: abs(other[step] - one[step]) / abs(one[step]) for step in one if step in other}


def main(argv: Sequence[str]) -> None:
    del argv
    if len(_WORKDIRS.value or ()) != 2:
        raise ConfigError("--workdirs names two runs, separated by a comma")
    one, other = (losses(Path(workdir)) for workdir in _WORKDIRS.value)
    found = differences(one, other)
    if not found:
        raise DataError("there is no step of which both runs logged the loss")
    for steps in np.array_split(sorted(found), min(_RANGES, len(found))):
        begin, end = int(steps[0]), int(steps[-1])
        largest = max(found[int(step)] for step in steps)
        fall = f"loss {one[begin]:.3f} to {one[end]:.3f}"
        print(f"steps {begin} to {end}: {fall}, differences of at most {largest:.1e} of it")


if __name__ == "__main__":
    _WORKDIRS = program.define_paths("workdirs", "The two runs.")
    program.run(main)
