"""As miniimagenet_b2.py, with the target as its own single support (K = 0).

    python -m fsdit.main --config=experiments/miniimagenet_reconstruction.py \\
      --workdir=runs/miniimagenet_reconstruction

It shows what the condition can carry: how much of an image its embedding brings back.
Targets are not mirrored, because supports never are. Episodes are sampled while training, so
a dataset whose files hold five-shot episodes will do.

Hardware: as miniimagenet_b2.py; not run on a TPU.
Expected result: none measured yet.
"""

from fsdit.config import Config, derive


def get_config() -> Config:
    return derive(
        __file__,
        "miniimagenet_b2.py",
        name="miniimagenet_reconstruction",
        data={"shots": 0, "source": "sampled", "flip": False},
    )
