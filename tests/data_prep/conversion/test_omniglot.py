"""Two inputs in one conversion: Omniglot as it is published, and what cannot be joined."""

import re
import shutil
from pathlib import Path

import pytest

from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import ImageReader
from tests.data_prep.conversion.conversions import check_valid, fail, rows, succeed
from tests.data_prep.conversion.omniglot import DRAWERS, EVALUATION, write_zips
from tests.data_prep.conversion.photos import class_folders, files, keys_by_class
from tests.programs import ROOT

pytestmark = pytest.mark.medium

COMMAND = (ROOT / "experiments" / "omniglot.py").read_text().split("data_prep.convert")[1]
# The recipe's own flags, and numbers that the few drawn characters allow.
FLAGS = (
    *(f for f in re.findall(r"--\S+", COMMAND.split("python")[0]) if "put" not in f),
    "--num_classes=rest,2,0",
    "--sets_per_class=3",
    "--workers=1",
)


@pytest.fixture(scope="module")
def zips(tmp_path_factory) -> tuple[Path, Path]:
    return write_zips(tmp_path_factory.mktemp("omniglot"))


@pytest.fixture(scope="module")
def made(zips) -> Path:
    background, evaluation = zips
    output = background.with_name("dataset")
    succeed(background, output, f"--test_input={evaluation}", *FLAGS)
    return output


def test_the_published_split_is_that_of_the_dataset(made):
    info = read_dataset_info(made)
    assert [len(split.classes) for split in info.splits.values()] == [6, 2, 4]
    assert set(info.split("test").classes) == {
        f"{alphabet}/character{i:02d}"
        for alphabet, n in EVALUATION.items()
        for i in range(1, n + 1)
    }
    assert (info.image_size, info.channels) == (28, 1)
    assert (info.split("test").shots, info.split("test").episodes) == (1, 4 * 3 * 2)
    assert {n for split in info.splits.values() for n in split.images_per_class} == {DRAWERS}
    assert rows(made / "skipped.csv") == []


def test_each_character_has_its_own_drawings(made):
    for label, keys in keys_by_class(made, "test").items():
        assert all(key.startswith(f"images_evaluation/{label}/") for key in keys)
    for split in ("train", "val"):
        for label, keys in keys_by_class(made, split).items():
            assert all(key.startswith(f"images_background/{label}/") for key in keys)


def test_strokes_stay_black_on_white(made):
    reader = ImageReader(made / "test", 28, 1)
    for i in range(len(reader)):
        assert reader[i].min() < 100 and reader[i][0].min() > 240


def test_the_dataset_is_valid_and_names_both_inputs(made, zips):
    check_valid(made)
    command = read_dataset_info(made).command
    assert all(str(path) in command for path in zips)


def test_unpacked_folders_give_the_same_images(made, zips, tmp_path):
    for path in zips:
        shutil.unpack_archive(path, tmp_path)
    background, evaluation = tmp_path / "images_background", tmp_path / "images_evaluation"
    succeed(background, tmp_path / "d", f"--test_input={evaluation}", *FLAGS)
    mine, theirs = read_dataset_info(tmp_path / "d"), read_dataset_info(made)
    assert {n: s.classes for n, s in mine.splits.items()} == {
        n: s.classes for n, s in theirs.splits.items()
    }


def test_without_the_depth_it_is_said_that_characters_share_names(zips, tmp_path):
    line = fail(zips[0], tmp_path / "d", f"--test_input={zips[1]}", "--num_classes=rest,2,0")
    assert "'character01' is the name of 3 folders" in line and "--class_depth=2" in line


WRONG = {
    "the same twice": (("--num_classes=2,1,0",), "--test_input: the class 'class00' is in --input"),
    "test classes of both": (("--num_classes=2,1,1",), "end --num_classes with 0"),
    "the default": ((), "end --num_classes with 0"),
    "another split": (("--split=vanilla",), "--test_input goes with --split=fewshot"),
    "nothing there": (("--test_input=none",), "--test_input=none: no such file or folder"),
}


@pytest.mark.parametrize(("flags", "reported"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_joined_is_reported(tmp_path, flags, reported):
    source = class_folders(tmp_path / "in", classes=4, images=6)
    other = tmp_path / "other"
    for path, data in files(source).items():
        name = path if "same" in reported or "class00" in reported else f"new-{path}"
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes(data)
    line = fail(source, tmp_path / "d", "--workers=1", f"--test_input={other}", *flags)
    assert reported in line
