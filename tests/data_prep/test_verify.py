"""The verification and its program: tables, statuses, leakage, samples of records."""

import os

import pytest

from data_prep.verify import EXIT_LEAKAGE, conclude, damage_lines, table, verify
from fsdit.data import layout, records
from fsdit.data.records import Episode, ImageRecord
from fsdit.data.shards import shard_name
from fsdit.errors import DataError
from tests.data_prep import datasets
from tests.data_prep.damaging import (
    change_episode,
    change_image,
    describe,
    lines,
    same_class_in_val,
    same_picture_in_test,
)
from tests.data_prep.datasets import flip, rewrite, shard
from tests.programs import run_module


@pytest.mark.medium
@pytest.mark.parametrize("flags", [[], ["--fast"]])
def test_the_glyph_dataset_is_valid(glyphs, flags):
    done = run_module("data_prep.verify", f"--dataset_dir={glyphs}", *flags)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    for name, split in layout.read_dataset_info(glyphs).splits.items():
        (row,) = (row for row in rows if row[0] == name)
        assert row[1:4] == [str(len(split.classes)), str(split.num_images), str(split.episodes)]
        manifest = layout.read_manifest(glyphs / name)
        assert int(row[4].replace(",", "")) == sum(entry["bytes"] for entry in manifest.values())
        assert row[5] == "valid"


LEAKS = {
    "image": (same_picture_in_test, ["--shared_duplicates=first"]),
    "class": (same_class_in_val, ["take them out of one in --input", "--split=fewshot"]),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_leakage_is_no_damage_and_has_a_status_and_remedies_of_its_own(dataset, capsys, leak):
    make, remedies = LEAKS[leak]
    make(dataset)
    report = verify(dataset, False, 0)
    capsys.readouterr()  # drops the lines of progress
    assert conclude(dataset, report) == EXIT_LEAKAGE == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {dataset}: leakage, 1 found") and "copy" not in line
    assert all(remedy in line for remedy in remedies)
    assert "leakage (1)" in table(report) and "damaged" not in table(report)
    (dataset / "val" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="damaged, 1 found, and 1 leaks between splits"):
        conclude(dataset, verify(dataset, False, 0))


def test_a_valid_dataset_has_status_0(dataset):
    assert conclude(dataset, verify(dataset, False, 0)) == 0


@pytest.mark.medium
def test_a_dataset_that_is_not_there_is_reported_in_one_line(tmp_path):
    done = run_module("data_prep.verify", f"--dataset_dir={tmp_path}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/dataset.json: no such file")


@pytest.mark.medium
def test_a_file_whose_name_is_no_text_is_named_too(dataset):
    (dataset / "val" / os.fsdecode(b"\xff.jpg")).write_text("x")
    done = run_module("data_prep.verify", f"--dataset_dir={dataset}", "--workers=0")
    assert done.returncode == 1
    assert "\\udcff.jpg: not in the manifest" in done.stdout


def test_processes_find_what_one_process_finds(dataset):
    same_picture_in_test(dataset)
    flip(shard(dataset, "val"), 700)
    change_episode(dataset, 4, Episode(0, 1, (99, 2)))
    alone = lines(dataset)
    assert len(alone) > 1
    assert lines(dataset, workers=2) == alone


def test_a_file_with_a_wrong_checksum_is_read_in_full_though_others_are_sampled(tmp_path):
    info = layout.SplitInfo(("one",), (400,), episodes=0, shots=0)
    images = [
        ImageRecord(str(i), 0, records.encode_pixels(datasets.pixels("s", i)), 6, 6)
        for i in range(400)
    ]
    layout.write_split(tmp_path / "train", images, [])
    layout.write_dataset_json(tmp_path, layout.DatasetInfo(6, 1, {"train": info}, "command", 0))
    assert lines(tmp_path, fast=True) == []
    file = tmp_path / "train" / shard_name("images", 0, 1)
    flip(file, file.read_bytes().index(images[333].data) + 30)
    assert any(", record 333: damaged" in line for line in lines(tmp_path, fast=True))


def test_fast_leaves_out_the_search_for_images_in_two_splits(dataset):
    same_picture_in_test(dataset)
    assert any("leakage" in line for line in lines(dataset))
    assert lines(dataset, fast=True) == []


def test_splits_may_share_classes_but_no_image_where_the_description_says_so(dataset):
    same_class_in_val(dataset)
    describe(dataset, shared_classes=True)
    assert lines(dataset) == []
    same_picture_in_test(dataset)
    (line,) = lines(dataset)
    assert "leakage: the same pixels" in line


def test_identical_images_inside_a_split_are_allowed(dataset):
    change_image(dataset, 2, data=records.encode_pixels(datasets.pixels("train", 11)))
    assert lines(dataset) == []


def test_the_first_damages_of_a_file_are_shown_and_the_rest_counted(dataset):
    rewrite(shard(dataset), lambda payloads: [b"\xc1"] * len(payloads))
    (dataset / "val" / "notes.txt").write_text("x")
    reported = list(damage_lines(verify(dataset, False, 0).damages, most=2))
    assert sum("not a ImageRecord" in line for line in reported) == 2
    assert any(line.endswith("4 more damages; --max_lines=6 shows them") for line in reported)
    assert any("notes.txt" in line for line in reported)


def test_an_interrupted_rebuild_names_the_command_that_fixes_it(dataset):
    (dataset / "dataset.json").rename(dataset / layout.REBUILDING)
    with pytest.raises(DataError, match=r"run `python -m data_prep.episodes"):
        verify(dataset, False, 0)


@pytest.mark.parametrize(
    ("flips", "seed"), [(120, 0), pytest.param(500, 1, marks=pytest.mark.large)]
)
@pytest.mark.medium
def test_no_flipped_byte_goes_unnone_crashes(dataset, flips, seed):
    """A process of its own makes a crash visible, and prints each change before it makes it."""
    done = run_module("tests.data_prep.flip_bytes", dataset, flips, seed, timeout=120)
    tried = done.stdout.splitlines()
    assert done.returncode == 0, (tried[-1:], done.stderr[-2000:])
    assert len(tried) == flips + 1
    noticed = int(tried[-1])
    assert noticed > 0.8 * flips
