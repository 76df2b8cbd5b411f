"""Time from start to first step, cold and with the compilation cache and a checkpoint.

    python -m experiments.benchmarks.lifecycle.starts --dataset_dir=datasets/glyphs

Trains the glyph experiment for a few steps in an empty workdir, removes the last checkpoint,
and starts it again, so that it resumes from the one before. The runs log the figures.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from experiments.benchmarks.programs import run_program
from fsdit import program

_INTERVAL = 5


def main(argv: list[str]) -> None:
    del argv
    for start, values in measure(_DATASET.value).items():
        print(f"{start}: " + ", ".join(f"{name} {value:.1f}" for name, value in values.items()))


def measure(dataset: str) -> dict[str, dict[str, float]]:
    """Seconds of each part of a cold start and of the next one, and programs in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        # The compiled step depends on the number of steps, so both starts need the same one.
        cold = train(folder, dataset, 2 * _INTERVAL, interval=_INTERVAL)
        shutil.rmtree(Path(folder) / "run" / "checkpoints" / str(2 * _INTERVAL))
        warm = train(folder, dataset, 2 * _INTERVAL, interval=_INTERVAL)
    return {
        "cold": _of_start(cold, _INTERVAL),
        "from the cache": _of_start(warm, 2 * _INTERVAL),
    }


def train(
    folder: str, dataset: str, num_steps: int, *, interval: int, devices: int = 1
) -> list[dict[str, Any]]:
    """Runs the glyph experiment in a process of its own; returns the lines of metrics.jsonl.

    The workdir is in `folder`. interval: steps between lines and between saves. devices: number
    of forced host devices.
    """
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would warm a cold start
    run_program(
        "fsdit.main",
        "--config=experiments/glyphs.py",
        f"--workdir={folder}/run",
        f"--config.data.dataset_dir={dataset}",
        f"--config.train.num_steps={num_steps}",
        f"--config.train.log_interval={interval}",
        "--config.train.eval_batches=1",
        f"--config.checkpoint.interval={interval}",
        environment=environment,
    )
    lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _of_start(rows: list[dict[str, Any]], step: int) -> dict[str, float]:
    """The timing/start_* values in the first line of a start, which is that of `step`."""
    prefix = "timing/start_"
    (found,) = (row for row in rows if row["step"] == step)
    return {name.removeprefix(prefix): v for name, v in found.items() if name.startswith(prefix)}


if __name__ == "__main__":
    _DATASET = program.define_path("dataset_dir", "datasets/glyphs", "The glyph dataset.")
    program.run(main)
