"""Each kind of damage is found, and the line about it names the file and the record."""

import re
import shutil

import ml_dtypes
import numpy as np
import pytest

from fsdit.data import layout, records
from fsdit.data.records import Episode
from tests.data_prep import datasets
from tests.data_prep.damaging import (
    EPISODES,
    FEATURES,
    FEATURES_1,
    LATENTS_0,
    TRAIN_1,
    change_episode,
    change_features,
    change_image,
    change_latents,
    describe,
    features_move_to_another_file,
    flip_a_feature,
    flip_pixels,
    forget_a_shard,
    lines,
    no_latents,
    not_finite,
    one_feature_less,
    precompute,
    same_class_in_val,
    same_picture_in_test,
    swap_shard,
    swap_splits,
    swap_splits_completely,
    truncate,
)
from tests.data_prep.datasets import flip, rewrite, shard
from tests.programs import run_module

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
    "splits exchanged": (
        swap_splits_completely,
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


def test_a_valid_dataset_has_no_damage(dataset):
    assert lines(dataset) == []
    precompute(dataset)
    assert lines(dataset) == []


def test_several_damages_are_all_found(dataset):
    for name in ("missing shard", "unlisted file", "class in two splits"):
        DAMAGES[name][0](dataset)
    found = lines(dataset)
    for name in ("missing shard", "unlisted file", "class in two splits"):
        assert any(re.match(DAMAGES[name][1], line) for line in found)


@pytest.mark.medium
@pytest.mark.parametrize("damage", ["flipped bit", "missing shard", "episode out of range"])
def test_the_program_exits_1_and_names_the_damage(dataset, damage):
    make, *expected = DAMAGES[damage]
    make(dataset)
    done = run_module("data_prep.verify", f"--dataset_dir={dataset}", "--workers=2")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {dataset}: damaged, ")
    reported = [line.replace(f"{dataset}/", "") for line in done.stdout.splitlines()]
    for pattern in expected:
        assert any(re.match(pattern, line) for line in reported)
    states = {line.split()[0]: line for line in reported}
    assert "damaged" in states["train"]
    assert states["val"].endswith("valid")
