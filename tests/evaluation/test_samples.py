"""Drawings that are kept: what tells them from those of anything else."""

import json

import pytest

from fsdit.config import SamplingConfig, to_dict
from fsdit.errors import ConfigError
from fsdit.evaluation.samples import Shards

OF = {"step": 5, "plans": [{"split": "test", "sampling": to_dict(SamplingConfig())}]}


def written(folder, change):
    (folder / "drawings").mkdir()
    values = json.loads(json.dumps(OF))
    change(values)
    (folder / "drawings" / "of.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [lambda of: None, lambda of: of["plans"][0]["sampling"].pop("noise_level")],
    ids=["the same", "of before a setting was there"],
)
def test_drawings_of_the_same_go_on(tmp_path, change):
    written(tmp_path, change)
    Shards(tmp_path, OF, (8, 8, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda of: of.update(step=6),
        lambda of: of["plans"][0]["sampling"].update(noise_level=0.5),
        lambda of: of["plans"][0]["sampling"].update(invention=1),
        lambda of: of["plans"][0].update(sampling=None),
        lambda of: of.update(plans=3),
        lambda of: of.pop("plans"),
    ],
)
def test_drawings_of_anything_else_are_refused(tmp_path, change):
    written(tmp_path, change)
    with pytest.raises(ConfigError, match="drawings of another checkpoint or protocol"):
        Shards(tmp_path, OF, (8, 8, 1))
