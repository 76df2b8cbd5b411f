"""A dataset converted from a folder of class folders trains with the unchanged program."""

import json
from dataclasses import replace

import pytest

from tests.conftest import experiment_file
from tests.data_prep.conversion.conversions import succeed
from tests.data_prep.conversion.photos import class_folders
from tests.programs import run_module

pytestmark = pytest.mark.medium

SPLITS = {
    "fewshot": ("--num_classes=5,2,2",),
    "vanilla": ("--split=vanilla", "--images_per_class=12,8"),  # without val
}


@pytest.mark.large
@pytest.mark.parametrize(
    ("split", "source"), [("fewshot", "file"), ("fewshot", "sampled"), ("vanilla", "file")]
)
def test_a_converted_folder_trains(tmp_path, small_config, split, source):
    folder = class_folders(tmp_path / "in", classes=9, images=20, size=(50, 40))
    flags = (*SPLITS[split], "--image_size=24", "--sets_per_class=2")
    succeed(folder, tmp_path / "d", *flags)
    config = replace(
        small_config,
        data=replace(small_config.data, dataset_dir=str(tmp_path / "d"), source=source),
        train=replace(small_config.train, num_steps=4, eval_interval=4),
    )
    experiment = experiment_file(tmp_path / "experiment.py", config)
    done = run_module("fsdit.main", f"--config={experiment}", f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["train/loss"] > 0 for row in rows)
    assert ("val/loss" in rows[-1]) == (split == "fewshot")
    assert (tmp_path / "run" / "samples" / "4.png").is_file()
