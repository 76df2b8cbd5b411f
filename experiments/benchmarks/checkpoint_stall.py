"""What saving a checkpoint costs the loop, against one step of the same run.

    python -m experiments.benchmarks.checkpoint_stall --dataset_dir=datasets/glyphs

Trains the glyph experiment for a few steps on eight forced host devices, saving at
every 10th, and reads both figures from the log that the run itself wrote.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

_DATASET = flags.DEFINE_string("dataset_dir", "datasets/glyphs", "The glyph dataset.")
_STEPS = flags.DEFINE_integer("num_steps", 60, "Steps to train.")
_INTERVAL = 10


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, "-m", "fsdit.main", "--config=experiments/glyphs.py"),
            f"--workdir={workdir}/run",
            f"--config.data.dataset_dir={_DATASET.value}",
            f"--config.train.num_steps={_STEPS.value}",
            f"--config.train.log_interval={_INTERVAL}",
            "--config.train.eval_batches=1",
            f"--config.checkpoint.interval={_INTERVAL}",
        ]
        environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(workdir) / "run" / "metrics.jsonl").read_text().splitlines()
    # A line holds the stall of the save before it; the first lines compile.
    rows = [json.loads(line) for line in lines][2:]
    stall = statistics.median(row["timing/checkpoint_stall_seconds"] for row in rows)
    step = statistics.median(row["timing/step_seconds"] for row in rows)
    print(f"step {step:.3f} s, stall of a save {stall:.3f} s, ratio {stall / step:.2f}")


if __name__ == "__main__":
    app.run(main)
