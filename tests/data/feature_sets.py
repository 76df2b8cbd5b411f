"""Small sets of features and latents, and a dataset that describes them."""

import numpy as np

from fsdit.data import layout, records
from fsdit.data.records import Episode, FeatureRecord, ImageRecord, LatentRecord
from fsdit.data.shards import shard_name, write_shard
from tests.data_prep import datasets

FEATURES = layout.FeaturesInfo("e", "12", {"size": 28}, "bfloat16", 3, (2, 2), tokens=True)
POOLED = layout.FeaturesInfo("e", "12", {}, "float16", 5, (2, 2), tokens=False)
LATENTS = layout.LatentsInfo("v", "34", "float16", (2, 3, 4))
COUNTS = (3, 4)  # records of the two files


def array(seed: int, dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(records.HALF_TYPES[dtype])


def features(seed: int, info: layout.FeaturesInfo = FEATURES) -> FeatureRecord:
    tokens = array(seed + 1000, info.dtype, info.num_tokens, info.dim) if info.tokens else None
    return FeatureRecord(array(seed, info.dtype, info.dim), tokens)


def latents(seed: int, info: layout.LatentsInfo = LATENTS) -> LatentRecord:
    return LatentRecord(
        array(seed, info.dtype, 2, *info.shape), array(seed + 1000, info.dtype, 2, *info.shape)
    )


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(one.view(np.uint16), other.view(np.uint16), strict=True)
    assert one.dtype == other.dtype


def write(directory, kind: str, payloads: list[bytes], counts=COUNTS) -> None:
    """Adds the files of a kind to the manifest of a split."""
    path = directory / "manifest.json"
    manifest = layout.read_manifest(directory) if path.exists() else {}
    bounds = np.cumsum([0, *counts])
    for i in range(len(counts)):
        name = shard_name(kind, i, len(counts))
        part = payloads[bounds[i] : bounds[i + 1]]
        manifest[name] = write_shard(directory / name, part)
    layout.write_json(path, manifest)


def described(directory, **changes) -> None:
    info = layout.SplitInfo(("a",), (7,), episodes=1, shots=2)
    images = [
        ImageRecord(str(i), 0, records.encode_pixels(datasets.pixels("s", i)), 6, 6)
        for i in range(7)
    ]
    layout.write_split(directory / "train", images, [Episode(0, 1, (2, 3))], shards=2)
    layout.write_dataset_json(
        directory, layout.DatasetInfo(6, 1, {"train": info}, "command", 0, **changes)
    )
