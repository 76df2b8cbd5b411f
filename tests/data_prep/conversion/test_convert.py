"""The conversion program as its user meets it: one process, one folder out, one line on error."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from data_prep.conversion import splits
from data_prep.conversion.counts import parse_class_counts
from data_prep.conversion.inputs.entries import Entry
from fsdit.data.layout import read_dataset_info, read_manifest
from fsdit.data.readers import EpisodeReader
from fsdit.data.records import decode_pixels
from tests.conftest import small_disk_at
from tests.data_prep.conversion.conversions import check_sound, fail, succeed
from tests.data_prep.conversion.photos import (
    class_folders,
    encoded,
    files,
    keys_by_class,
    photo,
    stored,
)
from tests.programs import ROOT, environment, run_module

pytestmark = pytest.mark.medium

SMALL = ("--num_classes=3,1,2", "--sets_per_class=4", "--shard_mb=0.01", "--workers=1")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("photos") / "in")


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "d"
    succeed(folder, output, *SMALL)
    return output


def test_a_folder_of_class_folders_becomes_a_few_shot_dataset(folder, converted):
    info = read_dataset_info(converted)
    assert {name: len(s.classes) for name, s in info.splits.items()} == {
        "train": 3,
        "val": 1,
        "test": 2,
    }
    assert (info.image_size, info.channels, info.seed) == (40, 3, 0)
    assert f"--input={folder}" in info.command and "workers" not in info.command
    originals = files(folder)
    seen = []
    for split in info.splits:
        for label, keys in keys_by_class(converted, split).items():
            assert keys == [f"{label}/{i:03d}.jpg" for i in range(8)]
            seen += keys
        assert all(r.data == originals[r.key] for r in stored(converted, split))
    assert sorted(seen) == sorted(originals)
    assert len(list(converted.glob("train/images-*"))) > 1
    assert rows(converted / "skipped.csv") == rows(converted / "duplicates.csv") == []


def test_a_converted_dataset_is_sound(converted):
    check_sound(converted)


def test_the_manifest_names_every_file_and_nothing_else_is_there(converted):
    for split in read_dataset_info(converted).splits:
        names = {path.name for path in (converted / split).iterdir()}
        assert names == {"manifest.json", *read_manifest(converted / split)}
    assert {path.name for path in converted.iterdir() if path.is_file()} == {
        "dataset.json",
        "skipped.csv",
        "duplicates.csv",
    }


def test_the_episodes_rotate_the_target_through_each_set(converted):
    info = read_dataset_info(converted).splits["train"]
    reader = EpisodeReader(converted / "train", info, shots=5)
    drawn = [reader[i] for i in range(len(reader))]
    assert len(drawn) == info.episodes == 3 * 4 * 6
    for start in range(0, len(drawn), 3):
        assert {e.class_id for e in drawn[start : start + 3]} == {0, 1, 2}
    for class_id in range(3):
        own = [e for e in drawn if e.class_id == class_id]
        for start in range(0, len(own), 6):
            sets = {frozenset({e.target, *e.supports}) for e in own[start : start + 6]}
            assert len(sets) == 1 and len(*sets) == 6
            assert {e.target for e in own[start : start + 6]} == set(*sets)


def test_without_supports_the_target_is_its_own(folder, tmp_path):
    succeed(folder, tmp_path / "d", *SMALL, "--shots=0")
    info = read_dataset_info(tmp_path / "d").splits["val"]
    assert (info.shots, info.episodes) == (0, 4)


def test_images_are_resized_to_a_format(folder, tmp_path):
    flags = ("--image_size=24", "--format=png", "--channels=1")
    succeed(folder, tmp_path / "d", *SMALL, *flags)
    info = read_dataset_info(tmp_path / "d")
    assert (info.image_size, info.channels) == (24, 1)
    for record in stored(tmp_path / "d", "test"):
        with Image.open(folder / record.key) as image:
            small = image.resize((24, 24), Image.Resampling.LANCZOS).convert("L")
        difference = decode_pixels(record.data, 1)[..., 0].astype(int) - np.asarray(small)
        assert np.abs(difference).max() <= 2


def test_a_zip_gives_the_images_of_its_folder(folder, converted, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in files(folder).items():
            archive.writestr(name, data)
    succeed(tmp_path / "in.zip", tmp_path / "d", *SMALL)
    changed = {
        name
        for name, data in files(converted).items()
        if files(tmp_path / "d")[name] != data and name != "dataset.json"
    }
    assert changed == set()


def test_a_compressed_tar_gives_the_images_of_its_folder(folder, converted, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "in"), "gztar", folder)
    succeed(Path(archive), tmp_path / "d", *SMALL)
    for split in ("train", "val", "test"):
        mine = {r.key: r.data for r in stored(tmp_path / "d", split)}
        assert mine == {r.key: r.data for r in stored(converted, split)}


@pytest.mark.parametrize("split", ["presplit", "fewshot"])
def test_parquet_files_of_a_hub_keep_their_splits_or_are_dealt_by_seed(folder, tmp_path, split):
    """Rows in any order, labels as numbers with names in the features, images as structs."""
    names = [f"class{c:02d}" for c in range(6)]
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "in" / "data").mkdir(parents=True)
    for part, classes in {"train": (0, 1, 2), "validation": (3,), "test": (4, 5)}.items():
        rows = [(c, f"{i:03d}.jpg") for i in range(8) for c in classes]
        images = [{"bytes": (folder / names[c] / f).read_bytes(), "path": f} for c, f in rows]
        table = pa.table({"image": images, "label": [c for c, _ in rows]})
        path = tmp_path / "in" / "data" / f"{part}-00000-of-00001.parquet"
        parquet.write_table(table.replace_schema_metadata(note), path, row_group_size=5)
    succeed(tmp_path / "in", tmp_path / "d", *SMALL, f"--split={split}")
    info = read_dataset_info(tmp_path / "d")
    if split == "presplit":
        assert {name: s.classes for name, s in info.splits.items()} == {
            "train": tuple(names[:3]),
            "val": tuple(names[3:4]),
            "test": tuple(names[4:]),
        }
    originals = {data: name.split("/")[0] for name, data in files(folder).items()}
    found = {}
    for name, s in info.splits.items():
        keys_by_class(tmp_path / "d", name)
        found |= {r.data: s.classes[r.class_id] for r in stored(tmp_path / "d", name)}
    assert found == originals


def write_lists(folder: Path, assigned: dict[str, list[int]]) -> None:
    """The published form: all images in images/, and train.csv, val.csv, test.csv."""
    (folder / "images").mkdir(parents=True)
    for split, classes in assigned.items():
        lines = ["filename,label"]
        for c in classes:
            for i in range(7):
                name = f"n{c:08d}{i:08d}.jpg"
                (folder / "images" / name).write_bytes(encoded(photo(100 * c + i)))
                lines.append(f"{name},n{c:08d}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


def test_published_lists_decide_the_splits(tmp_path):
    assigned = {"train": [5, 1, 3], "val": [2], "test": [4, 9]}
    write_lists(tmp_path / "in", assigned)
    succeed(tmp_path / "in", tmp_path / "d", *SMALL, "--split=csv")
    info = read_dataset_info(tmp_path / "d")
    assert {name: list(s.classes) for name, s in info.splits.items()} == {
        split: sorted(f"n{c:08d}" for c in classes) for split, classes in assigned.items()
    }
    for split in assigned:
        for label, keys in keys_by_class(tmp_path / "d", split).items():
            assert keys == [f"images/{label}{i:08d}.jpg" for i in range(7)]


def test_the_classes_of_a_list_can_be_dealt_by_seed(tmp_path):
    write_lists(tmp_path / "in", {"train": [5, 1, 3], "val": [2], "test": [4, 9]})
    (tmp_path / "in" / "test.csv").rename(tmp_path / "all.csv")
    flags = (f"--csv={tmp_path}/all.csv,{tmp_path}/in/val.csv", "--num_classes=2,0,1")
    succeed(tmp_path / "in", tmp_path / "d", "--sets_per_class=1", *flags)
    info = read_dataset_info(tmp_path / "d")
    assert {name: len(s.classes) for name, s in info.splits.items()} == {"train": 2, "test": 1}


def test_a_vanilla_split_has_every_class_in_train_and_test(folder, tmp_path):
    flags = ("--split=vanilla", "--images_per_class=5,3", "--shots=2", "--sets_per_class=1")
    output = succeed(folder, tmp_path / "d", *flags)
    assert "train: 6 classes, 30 images, 18 episodes" in output
    info = read_dataset_info(tmp_path / "d")
    assert info.shared_classes
    train, test = (keys_by_class(tmp_path / "d", split) for split in ("train", "test"))
    assert train.keys() == test.keys() and len(train) == 6
    for label, keys in train.items():
        assert len(keys) == 5 and len(test[label]) == 3
        assert len({*keys, *test[label]}) == 8
    check_sound(tmp_path / "d")


def test_split_folders_are_kept(folder, tmp_path):
    for c, split in enumerate(("train", "train", "validation", "validation", "test", "test")):
        target = tmp_path / "in" / split / f"class{c:02d}"
        shutil.copytree(folder / f"class{c:02d}", target)
    succeed(tmp_path / "in", tmp_path / "d", *SMALL, "--split=presplit")
    splits = read_dataset_info(tmp_path / "d").splits
    assert {name: s.classes for name, s in splits.items()} == {
        "train": ("class00", "class01"),
        "val": ("class02", "class03"),
        "test": ("class04", "class05"),
    }


def test_another_seed_deals_other_classes(folder, converted, tmp_path):
    succeed(folder, tmp_path / "d", *SMALL, "--seed=1")
    mine, other = read_dataset_info(tmp_path / "d"), read_dataset_info(converted)
    assert {n: s.classes for n, s in mine.splits.items()} != {
        n: s.classes for n, s in other.splits.items()
    }


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
        keys_by_class(tmp_path / "d", split)  # class ids follow the classes that are left
    left_out = [r for r in rows(tmp_path / "d" / "skipped.csv") if r["class"] and not r["file"]]
    assert [row["class"] for row in left_out] == ["class02"]
    # Of all that, verify finds only what the conversion reported too.
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


def empty(path):
    path.mkdir()


def one_class(path):
    class_folders(path, classes=1)


def flat(path):
    path.mkdir()
    (path / "1.jpg").write_bytes(encoded(photo(1)))


def tricky(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.jpg", b"x")


def text(path):
    path.write_text("hello")


def unreadable(path):
    class_folders(path)
    (path / "class00" / "link.jpg").symlink_to("nowhere.jpg")


WRONG = {
    "no input": (None, (), ["no such file or folder"]),
    "empty folder": (empty, (), ["no class", "--class_depth"]),
    "flat folder": (flat, (), ["no class", "--csv"]),
    "one class": (one_class, (), ["one class ('class00')"]),
    "zip with path tricks": (tricky, (), ["../../evil.jpg"]),
    "neither": (text, (), ["not a folder, zip, tar or Parquet"]),
    "unreadable file": (unreadable, (), ["class00/link.jpg", "cannot be read"]),
    "too few classes": (class_folders, ("--num_classes=60,16,20",), ["96", "has 6"]),
    "no numbers": (class_folders, ("--num_classes=60,x",), ["--num_classes=60,x"]),
    "too few images": (
        class_folders,
        ("--split=vanilla", "--images_per_class=6,3"),
        ["'class00' has 8 images", "needs 9"],
    ),
    "K too large": (class_folders, ("--shots=8",), ["8 images, --shots=8 needs 9"]),
    "no lists": (class_folders, ("--split=csv",), ["train.csv", "--csv"]),
    "no such list": (class_folders, ("--csv=/nowhere/x.csv",), ["/nowhere/x.csv"]),
    "no split folders": (class_folders, ("--split=presplit",), ["for training"]),
    "no colour": (class_folders, ("--background=whyte",), ["--background=whyte"]),
    "wrong choice": (class_folders, ("--format=gif",), ["format", "gif"]),
    "class depth": (class_folders, ("--class_depth=3",), ["no class"]),
}


@pytest.mark.parametrize(("make", "flags", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, make, flags, words):
    source = tmp_path / "in"
    if make:
        make(source)
    line = fail(source, tmp_path / "d", *SMALL, *flags)
    for word in words:
        assert word in line
    # What was begun may stay, to go on with; it is never taken for a dataset.
    assert not (tmp_path / "d.partial" / "dataset.json").exists()


def test_a_list_that_names_absent_files_is_one_line(tmp_path):
    write_lists(tmp_path / "in", {"train": [0, 1]})
    (tmp_path / "in" / "images" / "n0000000000000003.jpg").unlink()
    line = fail(tmp_path / "in", tmp_path / "d", "--split=csv")
    assert "train.csv" in line and "1 of its files" in line and "n0000000000000003.jpg" in line
    assert not (tmp_path / "d.partial").exists()


def test_a_list_without_labels_is_one_line(tmp_path):
    write_lists(tmp_path / "in", {"train": [0, 1]})
    (tmp_path / "in" / "train.csv").write_text("filename\nn0000000000000003.jpg\n")
    assert "no column 'label'" in fail(tmp_path / "in", tmp_path / "d", "--split=csv")


def test_a_folder_with_another_dataset_is_left_alone(folder, converted):
    line = fail(folder, converted, *SMALL)
    assert str(converted) in line and "not empty" in line
    assert not converted.with_name("d.partial").exists()


def test_an_output_that_cannot_be_made_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("precious")
    line = fail(folder, tmp_path / "file" / "d", *SMALL)
    assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "precious"


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(folder, converted, tmp_path):
    """The limit of a file's size stands for the disk's: the system refuses the same writes."""
    program = [sys.executable, "-m", "data_prep.convert"]
    command = [*program, f"--input={folder}", f"--output_dir={tmp_path}/d", *SMALL]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *command],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "d.partial" in line
    assert not (tmp_path / "d").exists()
    assert "going on with" in succeed(folder, tmp_path / "d", *SMALL)
    assert files(tmp_path / "d") == files(converted)


@pytest.fixture
def small_disk(tmp_path):
    with small_disk_at(tmp_path / "disk", size="200k") as disk:
        yield disk


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_disk_without_room_is_one_line_that_names_the_output(folder, small_disk, tmp_path, kind):
    source = folder
    if kind == "tar":  # its copy in the working folder is what finds no room
        source = Path(shutil.make_archive(str(tmp_path / "in"), "gztar", folder))
        (small_disk / "filler").write_bytes(bytes(150_000))
    line = fail(source, small_disk / "d", *SMALL)
    assert str(small_disk / "d.partial") in line and "o space left" in line


def test_without_beam_its_runner_says_how_to_get_it(folder, tmp_path):
    flags = [f"--input={folder}", f"--output_dir={tmp_path}/d", *SMALL, "--runner=beam"]
    done = run_module("tests.data_prep.conversion.convert_without_beam", *flags)
    assert done.returncode == 1
    assert done.stderr == "error: --runner=beam: install it with pip install 'fsdit[beam]'\n"


def test_the_command_in_dataset_json_makes_the_dataset_again(converted, tmp_path):
    command = json.loads((converted / "dataset.json").read_text())["command"].split()[1:]
    done = subprocess.run(
        [sys.executable, *command, f"--output_dir={tmp_path}/d"],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "d") == files(converted)


def test_every_file_of_a_newcomers_folder_is_in_the_dataset_or_told(folder, tmp_path):
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
    told = {
        row["file"].removeprefix("'"): row["reason"]
        for row in rows(tmp_path / "d [2]" / "skipped.csv")
    }
    assert told["class02/pipe.jpg"] == "a FIFO, not a regular file"
    assert told["cover.jpg"].startswith("no class")
    assert "not an image" in told["=HYPERLINK(1)/bad.jpg"]
    kept = {
        k
        for s in ("train", "val", "test")
        for ks in keys_by_class(tmp_path / "d [2]", s).values()
        for k in ks
    }
    images = {p.relative_to(source).as_posix() for p in source.rglob("*.jpg")}
    assert kept.isdisjoint(told) and images <= kept | told.keys()
    check_sound(tmp_path / "d [2]")


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
    told = [row["reason"] for row in rows(tmp_path / "d" / "skipped.csv") if row["class"] == small]
    assert told == ["2 usable images, --shots=5 needs 6"]
