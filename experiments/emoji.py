"""Samples emoji that training never showed, in colour, from five examples each.

    python -m data_prep.emoji --packages=datasets/emoji-packages --output_dir=datasets/emoji
    python -m fsdit.main --config=experiments/emoji.py --workdir=runs/emoji
    python -m fsdit.evaluate --workdir=runs/emoji --output=runs/emoji/test

`make emoji` fetches the packages and runs all of it. As glyphs.py, with larger pictures, a longer
run and more guidance, which begins earlier. A scale of 4 is recognised more often than one of 2,
whose colours are nearer to those of real images (docs/emoji.md).

Hardware: two CPU cores, under an hour.
Expected result: about 0.64 of the samples are nearest to their own emoji in the features of the
trained critic (150 unseen emoji, two seeds; real images 0.69); all figures are in docs/emoji.md.
"""

from fsdit.config import Config, derive


def get_config() -> Config:
    return derive(
        __file__,
        "glyphs.py",
        name="emoji",
        data={"dataset_dir": "datasets/emoji"},
        model={"encoder": {"patch_size": 8}},
        sampling={"guidance_scale": 4.0, "guidance_interval": (0.1, 1.0)},
        optimizer={"peak_learning_rate": 4e-3, "warmup_steps": 300},
        train={"num_steps": 8000, "ema_decay": 0.999, "eval_interval": 2000},
        checkpoint={"interval": 1000},
    )
