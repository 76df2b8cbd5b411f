"""Every part of miniimagenet_b2.py at its smallest, with random frozen networks: a smoke run.

    python -m experiments.benchmarks.random_weights --output_dir=weights
    python -m data_prep.convert --input=FOLDER --output_dir=datasets/tiny \\
      --num_classes=4,2,2 --image_size=32 --sets_per_class=4
    python -m fsdit.main --config=experiments/miniimagenet_tiny.py --workdir=runs/tiny

FOLDER holds eight folders of six pictures or more each, one a class. No network is needed.

Hardware: a CPU; meant to take a minute or two.
Expected result: it ends with exit status 0. The samples show nothing: no weight of the
frozen networks was learned.
"""

from fsdit.config import Config, derive


def get_config() -> Config:
    return derive(
        __file__,
        "miniimagenet_b2.py",
        name="miniimagenet_tiny",
        data={"dataset_dir": "datasets/tiny", "batch_size": 16},
        features={"cache_mb": 16, "encode_batch": 16},
        model={
            "hidden_size": 64,
            "depth": 2,
            "num_heads": 4,
            "num_latents": 8,
            "encoder": {"location": "weights/siglip", "dtype": "float32"},
            "codec": {"location": "weights/vae", "dtype": "float32", "max_batch": 8},
            "dtype": "float32",
            "remat": "none",
        },
        sampling={"num_steps": 4},
        optimizer={"peak_learning_rate": 1e-3, "warmup_steps": 5},
        train={
            "num_steps": 40,
            "ema_decay": 0.9,
            "log_interval": 5,
            "eval_interval": 20,
            "eval_batches": 1,
            "grid_episodes": 2,
        },
        checkpoint={"interval": 10, "keep_last": 2},
    )
