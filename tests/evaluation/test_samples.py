"""Stored samples are continued only with the weights and the protocol that made them."""

import json

import pytest

from fsdit.config import SamplingConfig, to_dict
from fsdit.errors import ConfigError
from fsdit.evaluation.samples import SampleFiles

SOURCE = {"step": 5, "cells": [{"split": "test", "sampling": to_dict(SamplingConfig())}]}


def written(folder, change):
    (folder / "samples").mkdir()
    values = json.loads(json.dumps(SOURCE))
    change(values)
    (folder / "samples" / "of.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [lambda source: None, lambda source: source["cells"][0]["sampling"].pop("noise_level")],
    ids=["the same", "made before a setting existed"],
)
def test_samples_of_the_same_source_are_continued(tmp_path, change):
    written(tmp_path, change)
    SampleFiles(tmp_path, SOURCE, (8, 8, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda source: source.update(step=6),
        lambda source: source["cells"][0]["sampling"].update(noise_level=0.5),
        lambda source: source["cells"][0]["sampling"].update(invention=1),
        lambda source: source["cells"][0].update(sampling=None),
        lambda source: source.update(cells=3),
        lambda source: source.pop("cells"),
    ],
)
def test_samples_of_another_source_are_refused(tmp_path, change):
    written(tmp_path, change)
    with pytest.raises(ConfigError, match="samples of another checkpoint or protocol"):
        SampleFiles(tmp_path, SOURCE, (8, 8, 1))


OLD = {
    "step": 5,
    "plans": [{"split": "test", "drawings": 4, "sampling": to_dict(SamplingConfig())}],
}
NEW = {
    "step": 5,
    "cells": [{"split": "test", "samples_per_episode": 4, "sampling": to_dict(SamplingConfig())}],
}


@pytest.mark.parametrize("step", [5, 6])
def test_samples_of_an_older_version_are_continued_in_their_folder(tmp_path, step):
    folder = tmp_path / "drawings"
    folder.mkdir()
    (folder / "of.json").write_text(json.dumps(OLD))
    source = {**NEW, "step": step}
    if step == OLD["step"]:
        SampleFiles(tmp_path, source, (8, 8, 1))
    else:
        with pytest.raises(ConfigError, match=f"or delete {folder}"):
            SampleFiles(tmp_path, source, (8, 8, 1))


def test_files_in_the_batches_of_an_older_version_are_continued(tmp_path):
    written(tmp_path, lambda source: source.update(batch_sizes=[64]))
    balanced = {**SOURCE, "batch_sizes": [52]}
    SampleFiles(tmp_path, balanced, (8, 8, 1), older_sizes=(64,))
    for older in ((), (63,)):
        with pytest.raises(ConfigError, match="samples of another checkpoint or protocol"):
            SampleFiles(tmp_path, balanced, (8, 8, 1), older)
