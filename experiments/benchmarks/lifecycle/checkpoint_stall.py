"""How long saving a checkpoint stalls the loop, compared with a step of the same run.

    python -m experiments.benchmarks.lifecycle.checkpoint_stall --dataset_dir=datasets/glyphs

Trains the glyph experiment for a few steps on eight forced host devices, saves every 10th
step, and reads both figures from the log of that run.
"""

import statistics
import tempfile

from absl import flags

from experiments.benchmarks.lifecycle.starts import train
from fsdit import program


def main(argv: list[str]) -> None:
    del argv
    found = measure(_DATASET.value, _STEPS.value)
    print(
        f"step {found['step_seconds']:.3f} s, stall of a save {found['stall_seconds']:.3f} s, "
        f"ratio {found['ratio']:.2f}"
    )


def measure(dataset: str, num_steps: int = 60, devices: int = 8) -> dict[str, float]:
    """Median seconds of a step and of the stall of a save, and their ratio stall / step."""
    with tempfile.TemporaryDirectory() as folder:
        # A line holds the stall of the save before it. The first two lines include compiling.
        rows = train(folder, dataset, num_steps, interval=10, devices=devices)[2:]
    stall = statistics.median(row["timing/checkpoint_stall_seconds"] for row in rows)
    step = statistics.median(row["timing/step_seconds"] for row in rows)
    return {"step_seconds": step, "stall_seconds": stall, "ratio": stall / step}


if __name__ == "__main__":
    _DATASET = program.define_path("dataset_dir", "datasets/glyphs", "The glyph dataset.")
    _STEPS = flags.DEFINE_integer("num_steps", 60, "Steps to train.")
    program.run(main)
