"""The preparation of images: a conversion records it, and supports repeat it."""

import csv

import numpy as np
import pytest

from data_prep.rebuild import rebuild
from fsdit.data import supports
from fsdit.data.images.photos import Preparation
from fsdit.data.layout import read_dataset_info
from fsdit.data.records import decode_pixels
from tests.conftest import run_module
from tests.data.images.image_bytes import jpeg_of
from tests.data_prep.conversion import profiles
from tests.data_prep.conversion.photos import class_folders, encoded, photo, stored

FLAGS = ("--resize=pad", "--background=#204060", "--image_size=16", "--format=png")
DEALT = ("--num_classes=2,1,1", "--sets_per_class=1", "--workers=1", "--max_bad_fraction=0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = class_folders(tmp_path_factory.mktemp("prepared") / "in", classes=4, images=7)
    odd = folder / "class01"
    swapped, cmyk = profiles.rgb_profile(profiles.SWAPPED), profiles.cmyk_profile()
    (odd / "000.jpg").write_bytes(encoded(photo(50, 60, 30), icc_profile=swapped))
    (odd / "001.jpg").write_bytes(encoded(photo(51).convert("CMYK"), icc_profile=cmyk))
    photo(52, 30, 50).convert("RGBA").rotate(30).save(odd / "002.png")
    (odd / "002.jpg").unlink()
    (folder / "class00" / "huge.jpg").write_bytes(jpeg_of(8192, 8000, "RGB", progressive=True))
    return folder


@pytest.fixture(scope="module")
def converted(folder):
    output = folder.with_name("dataset")
    done = run_module(
        "data_prep.convert", f"--input={folder}", f"--output_dir={output}", *FLAGS, *DEALT
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.mark.medium
def test_the_preparation_is_recorded_and_repeats_the_images(folder, converted):
    info = read_dataset_info(converted)
    assert info.preparation == Preparation("#204060", "pad")
    records = [record for split in info.splits for record in stored(converted, split)]
    assert {record.key for record in records} >= {"class01/000.jpg", "class01/002.png"}
    for record in records:
        made = supports.from_files([folder / record.key], 16, 3, info.preparation)
        np.testing.assert_array_equal(made.images[0], decode_pixels(record.data, 3))


@pytest.mark.medium
def test_new_episodes_keep_the_recorded_preparation(converted):
    rebuild(converted, shots=2, sets_per_class=1, seed=1)
    assert read_dataset_info(converted).preparation == Preparation("#204060", "pad")


@pytest.mark.medium
def test_an_image_that_takes_too_much_memory_is_skipped_with_its_size(converted):
    with (converted / "skipped.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["file"] == "class00/huge.jpg"
    assert row["reason"].startswith("8192x8000 pixels of JPEG take about 625 MiB to decode, more")


@pytest.mark.medium
def test_glyphs_record_a_white_background(glyphs):
    assert read_dataset_info(glyphs).preparation == Preparation("white", "center_crop")


def test_a_background_that_is_no_colour_is_refused():
    Preparation("hsl(120, 50%, 50%)")
    with pytest.raises(ValueError, match="whyte"):
        Preparation("whyte")
