"""A run in words."""

import dataclasses

import jax
import numpy as np
import pytest

from fsdit.config import Config, EncoderConfig, ModelConfig
from fsdit.data.layout import DatasetInfo, SplitInfo
from fsdit.models.encoder import FeatureShape
from fsdit.models.spec import ModelSpec
from fsdit.training.telemetry.logs import overview

MODEL = ModelConfig(
    hidden_size=16,
    depth=1,
    num_heads=2,
    patch_size=4,
    num_latents=8,
    encoder=EncoderConfig(patch_size=6, hidden_size=16, depth=1, num_heads=2),
)
SQUARE = jax.ShapeDtypeStruct((32, 32), np.float32)
PATCHES = "(6 x 6 patches of 4 x 4 pixels)"


@pytest.mark.parametrize(
    ("changes", "features", "shots", "words"),
    [
        ({}, None, 5, "36 tokens {}; 5 supports of 16 tokens each, read through 8 latents"),
        ({"num_latents": 0}, None, 1, "36 tokens {}; 1 support of 16 tokens each"),
        ({"cross_attention": "none"}, None, 0, "36 tokens {}; 1 support of one pooled vector each"),
        (
            {"cross_attention": "cls"},
            FeatureShape(5, (3, 4)),
            2,
            "37 tokens {}; 2 supports of 12 tokens each, read through 8 latents",
        ),
    ],
)
def test_the_model_is_one_line(changes, features, shots, words):
    model = dataclasses.replace(MODEL, **changes)
    config = Config(name="a\x1b[31m", model=model)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shots=shots))
    spec = ModelSpec(model, 24, 1, features=features)
    line = overview.model_line(config, spec, {"a": {"b": SQUARE}, "c": SQUARE})
    assert line == rf"model a\x1b[31m: 2,048 parameters; a sample is {words.format(PATCHES)}"


def test_pages_show_what_differs_and_escape_names_of_others():
    config = Config(name="<b>|x|_y_", model=MODEL)
    split = SplitInfo(classes=("a", "b"), images_per_class=(3, 4), episodes=5, shots=1)
    info = DatasetInfo(24, 1, {"train": split}, command="python -m x", seed=0)
    pages = overview.pages(config, info, {"kernel": SQUARE})
    changed, everything = pages["configuration"].split("### All settings")
    assert r"| name | &lt;b&gt;\|x\|\_y\_ |  |" in changed
    assert r"| model.depth | 1 | 12 |" in changed and "num\\_steps" not in changed
    assert r"| train.num\_steps | 200000 |" in everything
    assert "| train | 2 | 7 | 5 |" in pages["data"]
    assert all(line.startswith("    ") for line in pages["model"].splitlines())
