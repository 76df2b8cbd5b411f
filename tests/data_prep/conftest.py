"""A small valid dataset, written once for each module, and a copy of it for each test."""

import shutil
from pathlib import Path

import pytest

from tests.data_prep import datasets


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("valid") / "d")


@pytest.fixture
def dataset(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "d"))
