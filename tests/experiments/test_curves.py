"""The comparison of the losses of two runs."""

import json

import pytest

from experiments.benchmarks import curves
from fsdit.errors import DataError


def logged(folder, losses):
    """A run that logged these losses, by step."""
    lines = [json.dumps({"step": step, "train/loss": loss}) for step, loss in losses.items()]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def test_losses_are_compared_where_both_runs_logged_them(tmp_path):
    one = curves.losses(logged(tmp_path / "one", {1: 2.0, 2: -1.0, 3: 0.5}))
    other = curves.losses(logged(tmp_path / "other", {2: -1.5, 3: 0.5, 4: 9.0}))
    assert curves.differences(one, other) == {2: 0.5, 3: 0.0}


@pytest.mark.parametrize("losses", [None, {}])
def test_a_run_without_losses_is_named(tmp_path, losses):
    folder = tmp_path / "run" if losses is None else logged(tmp_path / "run", losses)
    with pytest.raises(DataError, match=r"run: no metrics\.jsonl with losses"):
        curves.losses(folder)
