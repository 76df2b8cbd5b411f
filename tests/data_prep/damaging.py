"""Ways to damage a small dataset, and what a verification of it finds."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from data_prep.verify import verify
from fsdit.data import layout, records
from fsdit.data.records import Episode, FeatureRecord, LatentRecord
from fsdit.data.shards import shard_name, write_shard
from tests.data_prep import datasets
from tests.data_prep.datasets import flip, rewrite, shard

TRAIN_1 = "train/images-00001-of-00002.array_record"
EPISODES = "train/episodes-00000-of-00001.array_record"


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


def swap_splits_completely(directory: Path) -> None:
    """Swaps val and test: each is valid, and each fits the description of the other."""
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
    """Adds features and latents for each image file; the flags say which dataset.json names."""
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
