"""The best step of a checkpoint that an older version wrote, with its names of the settings."""

import dataclasses

import pytest

from fsdit.config import Config, EvaluationConfig, TrainConfig
from fsdit.training.checkpoints.metadata import score_in
from fsdit.training.checkpoints.selection import better, score, to_meta

CONFIG = Config(
    evaluation=EvaluationConfig(critic="facebook/dinov2-base"),
    train=TrainConfig(few_shot_samples=64),
)
OLD_NAMES = {
    "evaluation.critic": "evaluation.judge",
    "train.few_shot_samples": "train.fsd_drawings",
}


def old_meta(**changes):
    """The entries of a checkpoint's meta as an older version wrote them at step 10."""
    found = score(CONFIG, 10, 0.5)
    meta = to_meta(found, found)
    for entry in meta.values():
        settings = {**entry["settings"], **changes}
        entry["settings"] = {OLD_NAMES.get(name, name): value for name, value in settings.items()}
    return meta


@pytest.mark.parametrize("name", ["judged", "best"])
def test_the_old_score_is_read_with_the_new_names(name):
    meta = old_meta()
    assert "evaluation.judge" in meta[name]["settings"]
    assert score_in(meta, name) == score(CONFIG, 10, 0.5)
    assert score_in({}, name) is None


@pytest.mark.parametrize(
    ("changes", "value", "is_better"),
    [
        ({}, 0.4, True),
        ({}, 0.6, False),
        # Values under other settings do not compare, so the later one counts.
        ({"evaluation.critic": "pixels"}, 0.6, True),
        ({"train.few_shot_samples": 256}, 0.6, True),
    ],
)
def test_the_old_score_compares_as_before(changes, value, is_better):
    old = score_in(old_meta(**changes), "best")
    assert better(score(CONFIG, 20, value), old) is is_better


def test_a_run_that_changes_a_renamed_setting_does_not_compare():
    train = dataclasses.replace(CONFIG.train, few_shot_samples=256)
    changed = dataclasses.replace(CONFIG, train=train)
    assert better(score(changed, 20, 0.6), score_in(old_meta(), "best"))
