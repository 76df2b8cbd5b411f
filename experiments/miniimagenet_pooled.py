"""As miniimagenet_b2.py, conditioned on the mean of the supports' pooled vectors alone.

    python -m fsdit.main --config=experiments/miniimagenet_pooled.py \\
      --workdir=runs/miniimagenet_pooled

Without cross-attention and tokens: miniimagenet_b2 against this run shows what they add.

Hardware: as miniimagenet_b2.py; not run on a TPU.
Expected result: none measured yet.
"""

from fsdit.config import Config, derive


def get_config() -> Config:
    return derive(
        __file__,
        "miniimagenet_b2.py",
        name="miniimagenet_pooled",
        model={"cross_attention": "none"},
    )
