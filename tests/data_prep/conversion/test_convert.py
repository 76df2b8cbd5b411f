"""The conversion program as its user starts it: one input makes one dataset."""

import json
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

from fsdit.data.layout import read_dataset_info, read_manifest
from fsdit.data.readers import EpisodeReader
from fsdit.data.records import decode_pixels
from tests.data_prep.conversion.conversions import SMALL, check_valid, rows, succeed, write_lists
from tests.data_prep.conversion.photos import (
    files,
    keys_by_class,
    stored,
)
from tests.programs import ROOT, environment

pytestmark = pytest.mark.medium


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


def test_a_converted_dataset_is_valid(converted):
    check_valid(converted)


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


def test_a_conversion_for_0_shots_has_one_episode_a_set(folder, tmp_path):
    succeed(folder, tmp_path / "d", *SMALL, "--shots=0")
    info = read_dataset_info(tmp_path / "d").splits["val"]
    assert (info.shots, info.episodes) == (0, 4)


def test_images_are_resized_and_stored_in_the_chosen_format(folder, tmp_path):
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
    check_valid(tmp_path / "d")


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
