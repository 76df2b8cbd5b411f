"""Samples emoji that training never showed, in colour, from five examples each.

    python -m data_prep.emoji --packages=datasets/emoji-packages --output_dir=datasets/emoji
    python -m fsdit.main --config=experiments/emoji.py --workdir=runs/emoji
    python -m fsdit.evaluate --workdir=runs/emoji --output=runs/emoji/test

`make emoji` fetches the packages and runs all of it. As glyphs.py, with larger pictures and a
longer run; nothing else was chosen for emoji.

Hardware: two CPU cores, under an hour.
Expected result: none measured yet.
"""

from fsdit.config import Config, derive


def get_config() -> Config:
    return derive(
        __file__,
        "glyphs.py",
        name="emoji",
        data={"dataset_dir": "datasets/emoji"},
        model={"encoder": {"patch_size": 8}},
        optimizer={"peak_learning_rate": 2e-3, "warmup_steps": 200},
        train={"num_steps": 5000, "ema_decay": 0.999},
    )
