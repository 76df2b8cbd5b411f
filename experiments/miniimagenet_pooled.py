"""As miniimagenet_b2.py, conditioned on the mean of the supports' pooled vectors alone.

    python -m fsdit.main --config=experiments/miniimagenet_pooled.py \\
      --workdir=runs/miniimagenet_pooled

No cross-attention, no tokens: what they add is this run against miniimagenet_b2.

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
        name="miniimagenet_pooled",
        model=dataclasses.replace(base.model, use_support_tokens=False, cross_attention="none"),
    )
