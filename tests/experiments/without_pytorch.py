"""Writes random weights where PyTorch and its libraries cannot be imported."""

import sys
from pathlib import Path

for name in ("torch", "transformers", "diffusers"):
    sys.modules[name] = None
from experiments.benchmarks import random_weights  # noqa: E402

random_weights.write(Path(sys.argv[1]))
