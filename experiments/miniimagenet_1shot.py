"""As miniimagenet_b2.py, with a single support.

    python -m fsdit.main --config=experiments/miniimagenet_1shot.py \\
      --workdir=runs/miniimagenet_1shot

Episodes are drawn on the fly, so a dataset whose files hold five-shot ones will do.

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
        name="miniimagenet_1shot",
        data=dataclasses.replace(base.data, shots=1, source="sampled"),
    )
