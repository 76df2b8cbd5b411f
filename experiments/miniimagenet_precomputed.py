"""As miniimagenet_b2.py, with features and latents that were computed beforehand.

    python -m data_prep.encode --dataset_dir=datasets/miniimagenet \\
      --encoder=google/siglip2-base-patch16-224 --tokens
    python -m data_prep.encode --dataset_dir=datasets/miniimagenet \\
      --vae=stabilityai/sd-vae-ft-ema
    python -m fsdit.main --config=experiments/miniimagenet_precomputed.py \\
      --workdir=runs/miniimagenet_precomputed

The frozen networks do not run in training. Features are 196 x 768 values an image, in 16
bits, 11 GB for 36,000 images; --config.features.location=device loads them once,
sharded over all chips, up to --config.features.device_gb on each.

Hardware: as miniimagenet_b2.py; not run on a TPU.
Expected result: none measured yet; that of miniimagenet_b2 to the stored precision.
"""

import dataclasses
from pathlib import Path

from fsdit.config import Config, FeaturesConfig, load_experiment


def get_config() -> Config:
    base = load_experiment(str(Path(__file__).with_name("miniimagenet_b2.py")))
    return dataclasses.replace(
        base,
        name="miniimagenet_precomputed",
        features=FeaturesConfig(supports="precomputed", targets="precomputed"),
    )
