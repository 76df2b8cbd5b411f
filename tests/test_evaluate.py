import json

import numpy as np
from PIL import Image

from tests.conftest import run_module
from tests.training.test_checkpoint import saved_run


def test_evaluation_writes_scores_picture_and_one_page(tmp_path, small_config):
    saved_run(tmp_path / "run", small_config, steps=(5,))
    output = tmp_path / "result"
    flags = (f"--workdir={tmp_path}/run", f"--output={output}", "--split=val", "--episodes=20")
    first = run_module("fsdit.evaluate", *flags)
    assert first.returncode == 0, first.stderr
    results = json.loads((output / "results.json").read_text())
    assert results["protocol"]["episodes"] == 20 and results["protocol"]["split"] == "val"
    assert results["step"] == 5
    scores, exact = results["retrieval"]["top1"], results["retrieval"]["top1_exact"]
    assert all(exact[name] <= scores[name] for name in scores)
    assert scores.keys() == {
        "drawings",
        "copied_support",
        "mean_of_supports",
        "real_target",
        "chance",
    }
    assert 0 < scores["chance"] < 0.02 < scores["copied_support"] <= 1
    with Image.open(output / "drawings.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 3
    page = (output / "report.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page

    again = run_module("fsdit.evaluate", *flags, devices=4)
    assert again.returncode == 0, again.stderr
    assert json.loads((output / "results.json").read_text()) == results


def test_a_workdir_without_checkpoint_is_named(tmp_path):
    result = run_module(
        "fsdit.evaluate", f"--workdir={tmp_path}/none", f"--output={tmp_path}/result"
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/none holds no checkpoint")
    assert not (tmp_path / "result").exists()
