"""Bad files, duplicates and small classes: each file is converted or reported."""

import os
import shutil

import pytest
from PIL import Image

from data_prep.conversion import splits
from data_prep.conversion.counts import parse_class_counts
from data_prep.conversion.inputs.entries import Entry
from fsdit.data.layout import read_dataset_info
from tests.data_prep.conversion.conversions import SMALL, check_valid, fail, rows, succeed
from tests.data_prep.conversion.photos import (
    class_folders,
    encoded,
    keys_by_class,
    photo,
)
from tests.programs import run_module

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("photos") / "in")


@pytest.fixture
def flawed(folder, tmp_path):
    """Repeated pictures within a class and across classes, and files that are no images."""
    copy = tmp_path / "in"
    shutil.copytree(folder, copy)
    again = Image.open(folder / "class00" / "001.jpg")
    again.save(copy / "class00" / "zz.png")
    shutil.copy(folder / "class01" / "003.jpg", copy / "class05" / "stray.jpg")
    (copy / "class02" / "004.jpg").write_bytes(b"no image")
    (copy / "class02" / "005.jpg").write_bytes((folder / "class02" / "005.jpg").read_bytes()[:300])
    return copy


def test_bad_files_and_duplicates_are_left_out_and_listed(flawed, tmp_path):
    flags = (*SMALL, "--max_bad_fraction=0.1", "--format=auto")
    output = succeed(flawed, tmp_path / "d", *flags)
    listed = {row["file"]: row["reason"] for row in rows(tmp_path / "d" / "skipped.csv")}
    assert listed.keys() == {"class00/zz.png", "class02/004.jpg", "class02/005.jpg"}
    assert "not an image" in listed["class02/004.jpg"]
    assert "cannot be decoded" in listed["class02/005.jpg"]
    assert "same pixels" in listed["class00/zz.png"]
    both = rows(tmp_path / "d" / "duplicates.csv")
    assert {row["file"] for row in both} == {"class01/003.jpg", "class05/stray.jpg"}
    assert len({row["same_pixels_as"] for row in both}) == 1
    assert "left out: 3" in output and "warning: 2 images are the same" in output
    splits = read_dataset_info(tmp_path / "d").splits
    counts = {
        label: count
        for s in splits.values()
        for label, count in zip(s.classes, s.images_per_class, strict=True)
    }
    assert [counts[f"class{c:02d}"] for c in range(6)] == [8, 8, 6, 8, 8, 9]
    for split in splits:
        keys_by_class(tmp_path / "d", split)


def test_duplicates_are_kept_if_wanted(flawed, tmp_path):
    succeed(flawed, tmp_path / "d", *SMALL, "--max_bad_fraction=0.1", "--duplicates=keep")
    splits = read_dataset_info(tmp_path / "d").splits
    assert sum(s.num_images for s in splits.values()) == 6 * 8 + 2 - 2


def test_too_many_bad_files_stop_the_conversion(flawed, tmp_path):
    line = fail(flawed, tmp_path / "d", *SMALL)
    assert "of 50 files cannot be used" in line and "--max_bad_fraction=0.01" in line
    assert "class02/00" in line


def test_a_class_that_bad_files_make_small_is_named_or_left_out(flawed, tmp_path):
    flags = (*SMALL, "--max_bad_fraction=0.1", "--shots=6")
    line = fail(flawed, tmp_path / "d", *flags)
    assert "'class02'" in line and "6 usable images, --shots=6 needs 7" in line
    succeed(flawed, tmp_path / "d", *flags, "--drop_small_classes")
    splits = read_dataset_info(tmp_path / "d").splits
    assert sorted(c for s in splits.values() for c in s.classes) == [
        f"class{c:02d}" for c in (0, 1, 3, 4, 5)
    ]
    for split in splits:
        keys_by_class(tmp_path / "d", split)  # class ids are numbers of the classes that are left
    left_out = [r for r in rows(tmp_path / "d" / "skipped.csv") if r["class"] and not r["file"]]
    assert [row["class"] for row in left_out] == ["class02"]
    # The only thing that verify finds is a duplicate that the conversion reported too.
    done = run_module("data_prep.verify", f"--dataset_dir={tmp_path / 'd'}")
    (found,) = [line for line in done.stdout.splitlines() if "array_record" in line]
    assert "leakage: the same pixels" in found


def test_images_of_different_sizes_need_a_size(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "class03" / "wide.jpg").write_bytes(encoded(photo(7, 60, 40)))
    line = fail(tmp_path / "in", tmp_path / "d", *SMALL)
    assert "class03/wide.jpg is 60x40" in line and "--image_size" in line
    (tmp_path / "in" / "class03" / "wide.jpg").write_bytes(encoded(photo(7, 60, 60)))
    line = fail(tmp_path / "in", tmp_path / "e", *SMALL)
    assert "60x60" in line and "40x40" in line and "--image_size" in line


def test_no_file_grows_past_the_limit(folder, tmp_path):
    line = fail(folder, tmp_path / "d", *SMALL, "--max_file_gb=0.00001")
    assert "train/images-" in line or "test/images-" in line or "val/images-" in line
    assert "--max_file_gb" in line and "--shard_mb" in line
    line = fail(folder, tmp_path / "d", "--shard_mb=30000")
    assert "--shard_mb=30000" in line and "--max_file_gb" in line


def test_every_file_of_a_messy_folder_is_in_the_dataset_or_reported(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "in [1]")
    for path in list(source.rglob("*.jpg"))[::2]:
        path.with_suffix(".txt").write_text("a caption")
    (source / "README.md").write_text("hello")
    (source / "cover.jpg").write_bytes(encoded(photo(5)))
    (source / "class01" / "desktop.ini").write_text("[.ShellClassInfo]")
    os.mkfifo(source / "class02" / "pipe.jpg")
    (source / "=HYPERLINK(1)").mkdir()
    for i in range(7):
        (source / "=HYPERLINK(1)" / f"{i:03d}.jpg").write_bytes(encoded(photo(7_000_000 + i)))
    (source / "=HYPERLINK(1)" / "bad.jpg").write_bytes(b"no image")
    flags = ("--num_classes=rest,1,1", "--sets_per_class=1", "--max_bad_fraction=0.1")
    output = succeed(source, tmp_path / "d [2]", *flags)
    assert "passed over, by their names no images: 1 *.ini, 1 *.md, 24 *.txt" in output
    reported = {
        row["file"].removeprefix("'"): row["reason"]
        for row in rows(tmp_path / "d [2]" / "skipped.csv")
    }
    assert reported["class02/pipe.jpg"] == "a FIFO, not a regular file"
    assert reported["cover.jpg"].startswith("no class")
    assert "not an image" in reported["=HYPERLINK(1)/bad.jpg"]
    kept = {
        k
        for s in ("train", "val", "test")
        for ks in keys_by_class(tmp_path / "d [2]", s).values()
        for k in ks
    }
    images = {p.relative_to(source).as_posix() for p in source.rglob("*.jpg")}
    assert kept.isdisjoint(reported) and images <= kept | reported.keys()
    check_valid(tmp_path / "d [2]")


def test_another_class_takes_the_place_of_one_with_too_few_usable_images(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "in")
    entries = [Entry(c.name, c.name, None, 1, None) for c in sorted(source.iterdir())]
    small = min(splits.fewshot(entries, parse_class_counts(["3", "1", "1"]), 0)["train"])
    for path in sorted((source / small).iterdir())[2:]:
        path.write_bytes(b"no image")
    flags = ("--num_classes=3,1,1", "--sets_per_class=1", "--max_bad_fraction=0.2")
    output = succeed(source, tmp_path / "d", *flags, "--drop_small_classes")
    assert "1 classes have too few usable images: others take their place" in output
    info = read_dataset_info(tmp_path / "d")
    assert [len(split.classes) for split in info.splits.values()] == [3, 1, 1]
    assert small not in {label for split in info.splits.values() for label in split.classes}
    reported = [
        row["reason"] for row in rows(tmp_path / "d" / "skipped.csv") if row["class"] == small
    ]
    assert reported == ["2 usable images, --shots=5 needs 6"]
