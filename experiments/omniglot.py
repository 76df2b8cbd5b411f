"""Samples handwritten characters of alphabets that training never showed, from one example each.

    python -m data_prep.convert --input=images_background.zip --test_input=images_evaluation.zip \\
      --output_dir=datasets/omniglot --class_depth=2 --num_classes=rest,100,0 \\
      --image_size=28 --channels=1 --format=png --shots=1 --sets_per_class=10
    python -m fsdit.main --config=experiments/omniglot.py --workdir=runs/omniglot
    python -m fsdit.evaluate --workdir=runs/omniglot --output=runs/omniglot/test

The published split: 964 characters of 30 alphabets to train on (100 of them for validation),
659 of 20 others for the test, 20 drawings each (Lake et al., Science 2015;
https://github.com/brendenlake/omniglot). As glyphs.py, with a single support.

Hardware: two CPU cores; not run on the published data.
Expected result: none measured yet.
"""

from fsdit.config import Config, derive


def get_config() -> Config:
    return derive(
        __file__,
        "glyphs.py",
        name="omniglot",
        data={"dataset_dir": "datasets/omniglot", "shots": 1},
        model={"encoder": {"patch_size": 7}},
        optimizer={"peak_learning_rate": 2e-3, "warmup_steps": 200},
        train={"num_steps": 9000, "ema_decay": 0.999},
    )
