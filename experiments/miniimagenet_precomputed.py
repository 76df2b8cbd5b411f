"""As miniimagenet_b2.py, with features and latents that were computed beforehand.

    python -m data_prep.encode --dataset_dir=datasets/miniimagenet \\
      --encoder=google/siglip2-base-patch16-224 --tokens
    python -m data_prep.encode --dataset_dir=datasets/miniimagenet \\
      --vae=stabilityai/sd-vae-ft-ema
    python -m fsdit.main --config=experiments/miniimagenet_precomputed.py \\
      --workdir=runs/miniimagenet_precomputed

The frozen networks do not run in training. Features are 196 x 768 values an image, in 16
bits, 12 GB for 36,000 images; --config.features.location=device loads them once,
sharded over all chips, up to --config.features.device_gb on each.

Hardware: as miniimagenet_b2.py; not run on a TPU.
Expected result: none measured yet; it should be that of miniimagenet_b2, up to the rounding
of what is stored.
"""

from fsdit.config import Config, derive


def get_config() -> Config:
    return derive(
        __file__,
        "miniimagenet_b2.py",
        name="miniimagenet_precomputed",
        features={"supports": "precomputed", "targets": "precomputed"},
    )
