"""As miniimagenet_b2.py, with a single support.

    python -m fsdit.main --config=experiments/miniimagenet_1shot.py \\
      --workdir=runs/miniimagenet_1shot

Episodes are sampled while training, so a dataset whose files hold five-shot episodes will do.

Hardware: as miniimagenet_b2.py; not run on a TPU.
Expected result: none measured yet.
"""

from fsdit.config import Config, derive


def get_config() -> Config:
    return derive(
        __file__,
        "miniimagenet_b2.py",
        name="miniimagenet_1shot",
        data={"shots": 1, "source": "sampled"},
    )
