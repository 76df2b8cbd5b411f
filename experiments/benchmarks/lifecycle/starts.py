"""From start to first step, cold and from the compilation cache; restoring a checkpoint.

    python -m experiments.benchmarks.lifecycle.starts --dataset_dir=datasets/glyphs

Trains the glyph experiment for a few steps with an empty workdir, takes the last checkpoint
away, and starts it again to go on from the one before. The figures are those that the runs
themselves log.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fsdit import program

_INTERVAL = 5


def main(argv: list[str]) -> None:
    del argv
    for start, values in measure(_DATASET.value).items():
        print(f"{start}: " + ", ".join(f"{name} {value:.1f}" for name, value in values.items()))


def measure(dataset: str) -> dict[str, dict[str, float]]:
    """Seconds by part, and programs found in the cache, of a cold start and of the next one."""
    with tempfile.TemporaryDirectory() as folder:
        # The number of steps is part of the compiled step: both starts need the same.
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
    """The lines of metrics.jsonl of the glyph run in `folder`, in a process of its own.

    interval: of logging and of saving. devices: forced on the host.
    """
    command = [
        *(sys.executable, "-m", "fsdit.main", "--config=experiments/glyphs.py"),
        f"--workdir={folder}/run",
        f"--config.data.dataset_dir={dataset}",
        f"--config.train.num_steps={num_steps}",
        f"--config.train.log_interval={interval}",
        "--config.train.eval_batches=1",
        f"--config.checkpoint.interval={interval}",
    ]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # a cold start must be one
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _of_start(rows: list[dict[str, Any]], step: int) -> dict[str, float]:
    """What the first line of a start, at `step`, says of it."""
    prefix = "timing/start_"
    (found,) = (row for row in rows if row["step"] == step)
    return {name.removeprefix(prefix): v for name, v in found.items() if name.startswith(prefix)}


if __name__ == "__main__":
    _DATASET = program.define_path("dataset_dir", "datasets/glyphs", "The glyph dataset.")
    program.run(main)
