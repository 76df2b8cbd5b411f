"""A folder of photos and the dataset that the program makes of it, once for each module."""

import pytest

from tests.data_prep.conversion.conversions import SMALL, succeed
from tests.data_prep.conversion.photos import class_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("photos") / "in")


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "d"
    succeed(folder, output, *SMALL)
    return output
