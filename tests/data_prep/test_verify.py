import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from data_prep.verify import EXIT_LEAKAGE, conclude, damage_lines, table, verify
from fsdit.data import layout, records
from fsdit.data.records import Episode, FeatureRecord, ImageRecord, LatentRecord
from fsdit.data.shards import shard_name, write_shard
from fsdit.errors import DataError
from tests.data_prep import datasets
from tests.data_prep.datasets import flip, rewrite, shard
from tests.programs import run_module

TRAIN_1 = "train/images-00001-of-00002.array_record"
EPISODES = "train/episodes-00000-of-00001.array_record"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("sound") / "d")


@pytest.fixture
def dataset(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "d"))


def lines(directory: Path, fast: bool = False, workers: int = 0) -> list[str]:
    """The damages, with paths relative to the dataset."""
    report = verify(directory, fast, workers)
    return [damage.text.replace(f"{directory}/", "") for damage in report.damages]


def change_image(directory: Path, place: int, **changes) -> None:
    """Changes one image of the second file of train."""

    def change(payloads):
        record = dataclasses.replace(records.decode_image(payloads[place]), **changes)
        payloads[place] = records.encode_image(record)
        return payloads

    rewrite(shard(directory), change)


def change_episode(directory: Path, place: int, episode: Episode) -> None:
    def change(payloads):
        payloads[place] = records.encode_episode(episode)
        return payloads

    rewrite(shard(directory, kind="episodes"), change)


def describe(directory: Path, **changes) -> None:
    info = layout.read_dataset_info(directory)
    layout.write_dataset_json(directory, dataclasses.replace(info, **changes))


def flip_pixels(directory: Path) -> None:
    content = shard(directory).read_bytes()
    flip(shard(directory), content.index(records.encode_pixels(datasets.pixels("train", 8))) + 30)


def truncate(directory: Path) -> None:
    shard(directory).write_bytes(shard(directory).read_bytes()[:-70_000])


def swap_whole_splits(directory: Path) -> None:
    """Each is sound, and what dataset.json says of the one holds of the other."""
    (directory / "val").rename(directory / "other")
    (directory / "test").rename(directory / "val")
    (directory / "other").rename(directory / "test")


def swap_shard(directory: Path) -> None:
    other = datasets.write(directory.with_name("other"), seed=1)
    shutil.copy(shard(other), shard(directory))


def swap_splits(directory: Path) -> None:
    shutil.copy(shard(directory, "val"), shard(directory))


def same_picture_in_test(directory: Path) -> None:
    change_image(directory, 2, data=records.encode_pixels(datasets.pixels("test", 0)))


def forget_a_shard(directory: Path) -> None:
    manifest = layout.read_manifest(directory / "train")
    del manifest[shard(directory).name]
    layout.write_json(directory / "train" / "manifest.json", manifest)


def same_class_in_val(directory: Path) -> None:
    splits = dict(layout.read_dataset_info(directory).splits)
    splits["val"] = dataclasses.replace(splits["val"], classes=("dog", "bee"))
    describe(directory, splits=splits)


FEATURES = layout.FeaturesInfo("e", "12", {}, "float16", 3, (2, 2), tokens=True)
LATENTS = layout.LatentsInfo("v", "34", "bfloat16", (2, 2, 4))
FEATURES_1 = "train/features-siglip2-00001-of-00002.array_record"
LATENTS_0 = "val/latents-sd-00000-of-00002.array_record"


def features_of(index: int, **changes) -> FeatureRecord:
    pooled = np.full(3, index, np.float16)
    tokens = np.full((4, 3), -index, np.float16)
    return dataclasses.replace(FeatureRecord(pooled, tokens), **changes)


def latents_of(index: int, **changes) -> LatentRecord:
    array = np.full((2, *LATENTS.shape), index, ml_dtypes.bfloat16)
    return dataclasses.replace(LatentRecord(array, -array), **changes)


def precompute(directory: Path, features: bool = True, latents: bool = True) -> None:
    """Adds features and latents beside each image file; dataset.json names them if asked."""
    for split in layout.read_dataset_info(directory).splits:
        manifest = layout.read_manifest(directory / split)
        for i, file in enumerate(layout.files_of(manifest, "images")):
            count = manifest[file]["records"]
            for kind, payload in (
                ("features-siglip2", lambda j: records.encode_features(features_of(j))),
                ("latents-sd", lambda j: records.encode_latents(latents_of(j))),
            ):
                name = shard_name(kind, i, 2)
                manifest[name] = write_shard(directory / split / name, map(payload, range(count)))
        layout.write_json(directory / split / "manifest.json", manifest)
    describe(
        directory,
        features={"siglip2": FEATURES} if features else {},
        latents={"sd": LATENTS} if latents else {},
    )


def one_feature_less(directory: Path) -> None:
    precompute(directory)
    rewrite(shard(directory, "val", "features-siglip2"), lambda payloads: payloads[1:])


def features_move_to_another_file(directory: Path) -> None:
    precompute(directory)
    moved = []
    rewrite(shard(directory, kind="features-siglip2"), lambda p: moved.append(p[0]) or p[1:])
    rewrite(shard(directory, kind="features-siglip2", index=0), lambda p: p + moved)


def change_features(place: int, **changes) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        precompute(directory)
        payload = records.encode_features(features_of(place, **changes))
        rewrite(
            shard(directory, kind="features-siglip2"),
            lambda payloads: [*payloads[:place], payload, *payloads[place + 1 :]],
        )

    return damage


def change_latents(place: int, **changes) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        precompute(directory)
        payload = records.encode_latents(latents_of(place, **changes))
        rewrite(
            shard(directory, "val", "latents-sd", index=0),
            lambda payloads: [*payloads[:place], payload, *payloads[place + 1 :]],
        )

    return damage


def flip_a_feature(directory: Path) -> None:
    precompute(directory)
    file = shard(directory, kind="features-siglip2")
    flip(file, file.read_bytes().index(features_of(3).tokens.tobytes()) + 5)


def no_latents(directory: Path) -> None:
    precompute(directory)
    file = shard(directory, "val", "latents-sd", index=0)
    rewrite(file, lambda payloads: [b"x"] * len(payloads))


def not_finite() -> np.ndarray:
    array = np.full((2, *LATENTS.shape), 1, ml_dtypes.bfloat16)
    array[1, 0, 1, 2:] = np.nan, np.inf
    return array


# Records 0 to 5 of the second image file of train are images 6 to 11.
DAMAGES = {
    "flipped bit": (
        flip_pixels,
        f"{TRAIN_1}: its sha256 is not the manifest's",
        f"{TRAIN_1}, record 2: damaged: .*mismatch",
    ),
    "flipped bit between records": (
        lambda d: flip(shard(d), -3),
        f"{TRAIN_1}: its sha256 .* each of its records is valid",
    ),
    "truncated shard": (
        truncate,
        f"{TRAIN_1}: truncated: 61072 bytes, the manifest says 131072: images 6 to 11 of train",
    ),
    "missing shard": (
        lambda d: shard(d).unlink(),
        f"{TRAIN_1}: missing, though the manifest lists it: images 6 to 11 of train",
    ),
    "shard of another dataset": (
        swap_shard,
        f"{TRAIN_1}: its sha256 .* a file of another dataset",
    ),
    "shard of another split": (
        swap_splits,
        f"{TRAIN_1}: has 4 records, the manifest says 6: images 6 to 11 of train",
    ),
    "episode out of range": (
        lambda d: change_episode(d, 4, Episode(0, 1, (99, 2))),
        rf"{EPISODES}, record 4: image 99 is not of class 0 \(its images are 0 to 3\)",
    ),
    "episode of another class": (
        lambda d: change_episode(d, 0, Episode(1, 4, (5, 3))),
        f"{EPISODES}, record 0: image 3 is not of class 1",
    ),
    "episode of no class": (
        lambda d: change_episode(d, 8, Episode(3, 4, (5, 3))),
        f"{EPISODES}, record 8: class 3 does not exist",
    ),
    "episode with its target as support": (
        lambda d: change_episode(d, 1, Episode(0, 1, (1, 2))),
        f"{EPISODES}, record 1: .* are not 3 distinct images",
    ),
    "episode of another K": (
        lambda d: change_episode(d, 1, Episode(0, 1, (2,))),
        f"{EPISODES}, record 1: 1 supports, not 2",
    ),
    "splits exchanged whole": (
        swap_whole_splits,
        "val/manifest.json: lists other images than .* of another split or dataset",
        "test/manifest.json: lists other images than",
    ),
    "image in two splits": (
        same_picture_in_test,
        f"test/images-00000-of-00002.array_record, record 0: leakage: .* as {TRAIN_1}, record 2",
    ),
    "class in two splits": (
        same_class_in_val,
        "dataset.json: leakage: class 'bee' is in train and in val",
    ),
    "image of another class": (
        lambda d: change_image(d, 3, class_id=0),
        f"{TRAIN_1}, record 3: image of class 0 in the place of one of 2",
    ),
    "image of another size": (
        lambda d: change_image(d, 3, data=records.encode_pixels(datasets.pixels("x", 0)[1:])),
        rf"{TRAIN_1}, record 3: image of shape \(5, 6, 1\), the dataset says \(6, 6, 1\)",
    ),
    "height of another image": (
        lambda d: change_image(d, 3, height=7),
        f"{TRAIN_1}, record 3: says 7 x 6, its image is 6 x 6",
    ),
    "no image": (
        lambda d: change_image(d, 0, data=b"no picture"),
        f"{TRAIN_1}, record 0: image cannot be decoded",
    ),
    "no record": (
        lambda d: rewrite(shard(d), lambda payloads: [*payloads[:5], b"\xc1"]),
        f"{TRAIN_1}, record 5: not a ImageRecord",
    ),
    "unlisted file": (
        lambda d: (d / "val" / "notes.txt").write_text("x"),
        "val/notes.txt: not in the manifest",
    ),
    "unlisted split": (
        lambda d: shutil.copytree(d / "val", d / "dev"),
        "dev: not part of the dataset",
    ),
    "left by an interrupted program": (
        lambda d: (d / "dataset.json.partial").write_text("{"),
        "dataset.json.partial: not part of the dataset",
    ),
    "left by an interrupted encoding": (
        lambda d: (d / layout.ENCODING / "train").mkdir(parents=True),
        "encode.partial: left by data_prep.encode: start it again with the same",
    ),
    "missing manifest": (
        lambda d: (d / "val" / "manifest.json").unlink(),
        "val/manifest.json: no such file",
    ),
    "manifest without a shard": (
        forget_a_shard,
        "train/manifest.json: images-00001-of-00002.array_record is not listed",
        "train/manifest.json: lists 6 images records, dataset.json makes it 12",
        f"{TRAIN_1}: not in the manifest",
    ),
    "manifest naming a path": (
        lambda d: layout.write_json(
            d / "val" / "manifest.json",
            {"../train/x": {"records": 0, "bytes": 0, "sha256": ""}},
        ),
        "val/manifest.json: '../train/x' is no file name of this format",
    ),
    "features that are missing": (
        lambda d: describe(d, features={"siglip2": FEATURES}),
        "train/manifest.json: features-siglip2-00000-of-00001.array_record is not listed",
    ),
    "features that are not described": (
        lambda d: precompute(d, features=False),
        "val/manifest.json: lists features-siglip2 files, dataset.json does not",
    ),
    "features of fewer images": (
        one_feature_less,
        "val/manifest.json: lists 6 features-siglip2 records, dataset.json makes it 7",
    ),
    "features cut otherwise than images": (
        features_move_to_another_file,
        "train/manifest.json: features-siglip2-00000-of-00002.array_record has 7 records, "
        "images-00000-of-00002.array_record 6 images",
    ),
    "flipped bit in features": (
        flip_a_feature,
        f"{FEATURES_1}: its sha256 is not the manifest's",
        f"{FEATURES_1}, record 3: damaged: .*mismatch",
    ),
    "features of another type": (
        change_features(
            2, pooled=np.ones(3, ml_dtypes.bfloat16), tokens=np.ones((4, 3), ml_dtypes.bfloat16)
        ),
        f"{FEATURES_1}, record 2: features of .*'bfloat16', .* the dataset says .*'float16'",
    ),
    "features without tokens": (
        change_features(2, tokens=None),
        f"{FEATURES_1}, record 2: features of .*None",
    ),
    "features that are not a number": (
        change_features(4, pooled=np.array([1, np.nan, 1], np.float16)),
        f"{FEATURES_1}, record 4: pooled: 1 of 3 values are not finite",
    ),
    "tokens that are infinite": (
        change_features(4, tokens=np.full((4, 3), np.inf, np.float16)),
        f"{FEATURES_1}, record 4: tokens: 12 of 12 values are not finite",
    ),
    "latents that are not finite": (
        change_latents(1, log_variance=not_finite()),
        f"{LATENTS_0}, record 1: log_variance: 2 of 32 values are not finite",
    ),
    "latents of another shape": (
        change_latents(
            1,
            mean=np.ones((2, 2, 2, 8), ml_dtypes.bfloat16),
            log_variance=np.ones((2, 2, 2, 8), ml_dtypes.bfloat16),
        ),
        rf"{LATENTS_0}, record 1: latents of .*8\)\), the dataset says .*4\)\)",
    ),
    "no latents": (
        no_latents,
        f"{LATENTS_0}, record 0: not a LatentRecord",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_found_and_named(dataset, name):
    damage, *expected = DAMAGES[name]
    damage(dataset)
    found = lines(dataset)
    for pattern in expected:
        assert any(re.match(pattern, line) for line in found), (pattern, found)


def test_a_sound_dataset_has_no_damage(dataset):
    assert lines(dataset) == []
    precompute(dataset)
    assert lines(dataset) == []


@pytest.mark.medium
@pytest.mark.parametrize("flags", [[], ["--fast"]])
def test_the_glyph_dataset_is_sound(glyphs, flags):
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
    capsys.readouterr()  # what shows the progress
    assert conclude(dataset, report) == EXIT_LEAKAGE == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {dataset}: leakage, 1 found") and "copy" not in line
    assert all(remedy in line for remedy in remedies)
    assert "leakage (1)" in table(report) and "damaged" not in table(report)
    (dataset / "val" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="damaged, 1 found, and 1 leaks between splits"):
        conclude(dataset, verify(dataset, False, 0))


def test_a_sound_dataset_has_status_0(dataset):
    assert conclude(dataset, verify(dataset, False, 0)) == 0


@pytest.mark.medium
@pytest.mark.parametrize("damage", ["flipped bit", "missing shard", "episode out of range"])
def test_the_program_exits_1_and_names_the_damage(dataset, damage):
    make, *expected = DAMAGES[damage]
    make(dataset)
    done = run_module("data_prep.verify", f"--dataset_dir={dataset}", "--workers=2")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {dataset}: damaged, ")
    told = [line.replace(f"{dataset}/", "") for line in done.stdout.splitlines()]
    for pattern in expected:
        assert any(re.match(pattern, line) for line in told)
    states = {line.split()[0]: line for line in told}
    assert "damaged" in states["train"]
    assert states["val"].endswith("valid")


@pytest.mark.medium
def test_a_dataset_that_is_not_there_is_one_line(tmp_path):
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


def test_several_damages_are_all_found(dataset):
    for name in ("missing shard", "unlisted file", "class in two splits"):
        DAMAGES[name][0](dataset)
    found = lines(dataset)
    for name in ("missing shard", "unlisted file", "class in two splits"):
        assert any(re.match(DAMAGES[name][1], line) for line in found)


def test_a_file_whose_sum_is_wrong_is_read_in_full_though_others_are_sampled(tmp_path):
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


def test_of_a_file_with_many_damages_the_first_are_told_and_the_rest_counted(dataset):
    rewrite(shard(dataset), lambda payloads: [b"\xc1"] * len(payloads))
    (dataset / "val" / "notes.txt").write_text("x")
    told = list(damage_lines(verify(dataset, False, 0).damages, most=2))
    assert sum("not a ImageRecord" in line for line in told) == 2
    assert any(line.endswith("4 more damages; --max_lines=6 shows them") for line in told)
    assert any("notes.txt" in line for line in told)


def test_an_interrupted_rebuild_names_the_command_that_mends_it(dataset):
    (dataset / "dataset.json").rename(dataset / layout.REBUILDING)
    with pytest.raises(DataError, match=r"run `python -m data_prep.episodes"):
        verify(dataset, False, 0)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.medium
def test_no_flipped_byte_goes_unnoticed_and_none_crashes(dataset, seed):
    """In a process of its own, where a crash is seen; it prints each flip before it is tried."""
    done = run_module("tests.data_prep.flip_bytes", dataset, 300, seed, timeout=120)
    tried = done.stdout.splitlines()
    assert done.returncode == 0, (tried[-1:], done.stderr[-2000:])
    assert len(tried) == 301
    noticed = int(tried[-1])
    assert noticed > 250
