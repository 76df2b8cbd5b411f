"""As miniimagenet_b2.py, with the target as its own single support (K = 0).

    python -m fsdit.main --config=experiments/miniimagenet_reconstruction.py \\
      --workdir=runs/miniimagenet_reconstruction

It shows what the condition can carry: how much of an image its embedding brings back.
No target is mirrored, for supports never are. Episodes are drawn on the fly, so a dataset
whose files hold five-shot ones will do.

Hardware: as miniimagenet_b2.py; not run on a TPU.
Expected result: none measured yet.
"""

import dataclasses
from pathlib import Path

from fsdit.config import Config, load_experiment


def get_config() -> Config:
    base = load_experiment(str(Path(__file__).with_name("miniimagenet_b2.py")))
    return dataclasses.replace(
        base,
        name="miniimagenet_reconstruction",
        data=dataclasses.replace(base.data, shots=0, source="sampled", flip=False),
    )
