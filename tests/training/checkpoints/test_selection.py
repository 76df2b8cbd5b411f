import dataclasses

import pytest

from fsdit.config import RENAMED, Config
from fsdit.training.checkpoints.metadata import score_in
from fsdit.training.checkpoints.selection import better, score, to_meta


@pytest.mark.parametrize(("steps", "compares"), [(30, True), (31, False)])
def test_scores_compare_under_a_setting_that_was_renamed(monkeypatch, steps, compares):
    config = Config(sampling=dataclasses.replace(Config().sampling, num_steps=30))
    meta = to_meta(score(config, 10, 0.1), None)
    del meta["judged"]["settings"]["sampling.num_steps"]
    meta["judged"]["settings"]["sampling.steps"] = steps
    monkeypatch.setitem(RENAMED, "sampling.steps", "sampling.num_steps")
    assert better(score(config, 20, 0.9), score_in(meta, "judged")) is not compares
