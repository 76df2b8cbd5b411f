"""Samples emoji that training never showed, in colour, from five examples each.

    python -m data_prep.emoji --packages=datasets/emoji-packages --output_dir=datasets/emoji
    python -m fsdit.main --config=experiments/emoji.py --workdir=runs/emoji
    python -m fsdit.evaluate --workdir=runs/emoji --output=runs/emoji/test

`make emoji` fetches the packages and runs all of it. As glyphs.py, with larger pictures, a longer
run and more guidance; nothing else was chosen for emoji.

Hardware: two CPU cores, under an hour.
Expected result: not measured with these settings. A run on a GPU with a modulation of each block
and 30 steps of sampling got the rough shapes right: 0.58 of the samples were nearest to their own
emoji in the features of the trained critic (150 unseen emoji; real images 0.69; docs/emoji.md).
"""

from fsdit.config import Config, derive


def get_config() -> Config:
    return derive(
        __file__,
        "glyphs.py",
        name="emoji",
        data={"dataset_dir": "datasets/emoji"},
        model={"encoder": {"patch_size": 8}},
        sampling={"guidance_scale": 3.0},
        optimizer={"peak_learning_rate": 4e-3, "warmup_steps": 150},
        train={"num_steps": 3600, "ema_decay": 0.999, "eval_interval": 1200},
        checkpoint={"interval": 600},
    )
