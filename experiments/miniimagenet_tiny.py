"""Every part of miniimagenet_b2.py at its smallest, with random frozen networks: a smoke run.

    python -m experiments.benchmarks.random_weights --output_dir=weights
    python -m data_prep.convert --input=FOLDER --output_dir=datasets/tiny \\
      --num_classes=4,2,2 --image_size=32 --sets_per_class=4
    python -m fsdit.main --config=experiments/miniimagenet_tiny.py --workdir=runs/tiny

FOLDER holds eight folders of six pictures or more each, one a class. No network is needed.

Hardware: a CPU; meant to take a minute or two.
Expected result: it ends with exit status 0. The drawings mean nothing: no weight of the
frozen networks was learned.
"""

import dataclasses
from pathlib import Path

from fsdit.config import (
    CheckpointConfig,
    Config,
    FeaturesConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainConfig,
    load_experiment,
)


def get_config() -> Config:
    base = load_experiment(str(Path(__file__).with_name("miniimagenet_b2.py")))
    encoder, codec = base.model.encoder, base.model.codec
    return dataclasses.replace(
        base,
        name="miniimagenet_tiny",
        data=dataclasses.replace(base.data, dataset_dir="datasets/tiny", batch_size=16),
        features=FeaturesConfig(cache_mb=16, encode_batch=16),
        model=ModelConfig(
            hidden_size=64,
            depth=2,
            num_heads=4,
            patch_size=2,
            num_latents=8,
            encoder=dataclasses.replace(encoder, location="weights/siglip", dtype="float32"),
            codec=dataclasses.replace(codec, location="weights/vae", dtype="float32", max_batch=8),
            dtype="float32",
        ),
        sampling=SamplingConfig(num_steps=4),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=5),
        train=TrainConfig(
            num_steps=40,
            ema_decay=0.9,
            log_interval=5,
            eval_interval=20,
            eval_batches=1,
            grid_episodes=2,
        ),
        checkpoint=CheckpointConfig(interval=10, keep_last=2),
    )
