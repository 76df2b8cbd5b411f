"""Precomputed features and latents: their records, their files, and their description."""

import dataclasses
import hashlib
import json
import pickle

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdit.data import layout, records
from fsdit.data.readers import FeatureReader, LatentReader, RecordReader
from fsdit.data.records import Episode, FeatureRecord, ImageRecord, LatentRecord
from fsdit.data.shards import shard_name, write_shard
from fsdit.errors import DataError
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


@pytest.fixture
def split(tmp_path):
    """Two sets of features, one's name the beginning of the other's, and latents."""
    write(tmp_path, "features-a", [records.encode_features(features(i)) for i in range(7)])
    other = [records.encode_features(features(i, POOLED)) for i in range(7)]
    write(tmp_path, "features-a-b", other, counts=(7,))
    write(tmp_path, "latents-a", [records.encode_latents(latents(i)) for i in range(7)])
    return tmp_path


@given(
    st.sampled_from(["float16", "bfloat16"]),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(1, 5)),
    st.integers(0, 99),
)
def test_features_survive_their_codec(dtype, dim, num_tokens, seed):
    tokens = array(seed, dtype, num_tokens, dim) if num_tokens else None
    record = FeatureRecord(array(seed + 1, dtype, dim), tokens)
    decoded = records.decode_features(records.encode_features(record))
    assert_same(decoded.pooled, record.pooled)
    if tokens is None:
        assert decoded.tokens is None
    else:
        assert_same(decoded.tokens, tokens)


@given(st.sampled_from(["float16", "bfloat16"]), st.tuples(*[st.integers(1, 4)] * 3))
def test_latents_survive_their_codec(dtype, shape):
    record = LatentRecord(array(0, dtype, 2, *shape), array(1, dtype, 2, *shape))
    decoded = records.decode_latents(records.encode_latents(record))
    assert_same(decoded.mean, record.mean)
    assert_same(decoded.log_variance, record.log_variance)


def test_a_transposed_array_is_stored_as_it_reads():
    tokens = array(0, "float16", 3, 4).T
    record = FeatureRecord(array(1, "float16", 3), tokens)
    assert_same(records.decode_features(records.encode_features(record)).tokens, tokens)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_halves_are_stored(dtype):
    with pytest.raises(ValueError, match="stored as float16 or bfloat16"):
        records.encode_features(FeatureRecord(np.zeros(3, dtype), None))


DAMAGED_ARRAYS = [
    ({"dtype": "float32"}, "pooled is of type 'float32'"),
    ({"dtype": "object"}, "pooled is of type 'object'"),
    ({"dtype": ["float16"]}, "pooled is of type"),
    ({"dtype": None}, "pooled is of type None"),
    ({"shape": [4]}, r"pooled: 6 bytes do not fill shape \(4,\) of float16"),
    ({"shape": [3, 1]}, "pooled has shape"),
    ({"shape": [-3]}, "pooled has shape"),
    ({"shape": [True]}, "pooled has shape"),
    ({"shape": [2**62]}, "do not fill"),
    ({"shape": 3}, "pooled has shape 3"),
    ({"data": b"\0" * 5}, "pooled: 5 bytes do not fill"),
    ({"data": "abcdef"}, "pooled: str do not fill"),
    ({"more": 1}, "pooled has fields"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGED_ARRAYS)
def test_a_damaged_array_is_refused(change, message):
    fields = {"dtype": "float16", "shape": [3], "data": b"\0" * 6}

    def payload(pooled):
        return msgpack.packb({"v": 1, "pooled": pooled, "tokens": None})

    assert records.decode_features(payload(fields)).pooled.tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=message):
        records.decode_features(payload(fields | change))


@pytest.mark.parametrize(
    "values",
    [
        {"v": 2, "pooled": {}, "tokens": None},
        {"v": 1, "pooled": {}},
        {"v": 1, "pooled": None, "tokens": None},
        {"v": 1, "pooled": {}, "tokens": []},
        {"v": 1, "mean": {}, "log_variance": {}},
    ],
)
def test_a_record_of_another_kind_is_refused(values):
    with pytest.raises(DataError):
        records.decode_features(msgpack.packb(values))


def with_field(payload: bytes, field: str, array: np.ndarray) -> bytes:
    packed = {"dtype": array.dtype.name, "shape": list(array.shape), "data": array.tobytes()}
    return msgpack.packb(msgpack.unpackb(payload) | {field: packed})


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (array(0, "float16", 4, 3), "tokens are float16"),
        (array(0, "bfloat16", 4, 2), r"tokens are bfloat16 \(4, 2\)"),
        (array(0, "bfloat16", 3), "tokens has shape"),
    ],
)
def test_tokens_that_do_not_belong_to_pooled_are_refused(tokens, message):
    with pytest.raises(DataError, match=message):
        records.decode_features(with_field(records.encode_features(features(0)), "tokens", tokens))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", array(0, "bfloat16", 2, 2, 3, 4)),
        ("mean", array(0, "float16", 2, 3, 2, 4)),
        ("log_variance", array(0, "float16", 3, 2, 3, 4)),
    ],
)
def test_moments_that_do_not_belong_together_are_refused(field, value):
    payload = records.encode_latents(latents(0))
    with pytest.raises(DataError, match=r"should be of one type and \(2, h, w, c\)"):
        records.decode_latents(with_field(payload, field, value))


def test_features_are_read_across_files_in_order(split):
    reader = FeatureReader(split, "a", FEATURES, 7)
    assert len(reader) == 7
    for i in (6, 0, 3, 2):
        found, expected = reader[i], features(i)
        assert found.keys() == {"pooled", "tokens"}
        assert_same(found["pooled"], expected.pooled)
        assert_same(found["tokens"], expected.tokens)


def test_a_name_that_another_begins_with_is_another_set(split):
    assert len(RecordReader(split, "features-a")) == 7
    found = FeatureReader(split, "a-b", POOLED, 7)[4]
    assert found.keys() == {"pooled"}
    assert_same(found["pooled"], features(4, POOLED).pooled)
    with pytest.raises(DataError, match="lists no features- files"):
        FeatureReader(split, "", FEATURES, 7)


def test_latents_are_read_across_files_in_order(split):
    reader = LatentReader(split, "a", LATENTS, 7)
    for i in (6, 0, 3, 2):
        mean, log_variance = reader[i]
        assert_same(mean, latents(i).mean)
        assert_same(log_variance, latents(i).log_variance)


def test_readers_that_were_used_can_be_sent_to_a_worker(split):
    reader, other = FeatureReader(split, "a", FEATURES, 7), LatentReader(split, "a", LATENTS, 7)
    assert_same(pickle.loads(pickle.dumps(reader))[5]["tokens"], reader[5]["tokens"])
    assert_same(pickle.loads(pickle.dumps(other))[5][0], other[5][0])


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float16"}, {"dim": 4}, {"grid": (2, 3)}, {"tokens": False}],
    ids=str,
)
def test_features_that_are_not_as_described_name_file_and_record(split, change):
    reader = FeatureReader(split, "a", dataclasses.replace(FEATURES, **change), 7)
    name = "features-a-00001-of-00002.array_record"
    with pytest.raises(DataError, match=rf"{name}, record 1: features of .* the dataset says"):
        reader[4]


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"shape": (2, 3, 5)}], ids=str)
def test_latents_that_are_not_as_described_name_file_and_record(split, change):
    reader = LatentReader(split, "a", dataclasses.replace(LATENTS, **change), 7)
    name = "latents-a-00000-of-00002.array_record"
    with pytest.raises(DataError, match=rf"{name}, record 2: latents of .* the dataset says"):
        reader[2]


def test_another_number_of_records_than_images_is_refused(split):
    for open_set in (
        lambda: FeatureReader(split, "a", FEATURES, 8),
        lambda: LatentReader(split, "a", LATENTS, 6),
    ):
        with pytest.raises(DataError, match=r"lists 7 .*-a records for [86] images"):
            open_set()


def test_a_flipped_byte_names_file_and_record(split):
    path = split / "features-a-00000-of-00002.array_record"
    datasets.flip(path, path.read_bytes().index(features(1).pooled.tobytes()) + 2)
    reader = FeatureReader(split, "a", FEATURES, 7)
    with pytest.raises(DataError, match=rf"{path.name}, record 1: damaged"):
        reader[1]
    assert_same(reader[2]["pooled"], features(2).pooled)


def test_a_value_that_is_not_finite_survives_for_verify_to_find():
    pooled = np.array([np.nan, np.inf, 1], ml_dtypes.bfloat16)
    decoded = records.decode_features(records.encode_features(FeatureRecord(pooled, None)))
    assert_same(decoded.pooled, pooled)


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


def test_the_fingerprint_is_of_images_and_episodes_and_of_what_is_named(tmp_path):
    described(tmp_path)
    before = layout.dataset_fingerprint(tmp_path)
    with pytest.raises(DataError, match="train: the manifest lists no features-a files"):
        layout.dataset_fingerprint(tmp_path, ["features-a"])
    payloads = [records.encode_features(features(i)) for i in range(7)]
    write(tmp_path / "train", "features-a-b", payloads)
    with pytest.raises(DataError, match="lists no features-a files"):
        layout.dataset_fingerprint(tmp_path, ["features-a"])
    write(tmp_path / "train", "features-a", payloads)
    assert layout.dataset_fingerprint(tmp_path) == before
    both = layout.dataset_fingerprint(tmp_path, ["features-a"])
    assert both != before
    write(tmp_path / "train", "features-a-b", payloads[::-1])
    assert layout.dataset_fingerprint(tmp_path, ("features-a",)) == both
    write(tmp_path / "train", "features-a", payloads[::-1])
    assert layout.dataset_fingerprint(tmp_path, ("features-a",)) != both


def test_the_fingerprint_of_a_dataset_without_features_is_that_of_all_its_files(tmp_path):
    """As it was when datasets had no other files, so that older runs go on."""
    described(tmp_path)
    digest = hashlib.sha256()
    for name, entry in sorted(layout.read_manifest(tmp_path / "train").items()):
        digest.update(f"train/{name} {entry['sha256']}\n".encode())
    assert layout.dataset_fingerprint(tmp_path) == digest.hexdigest()


def test_descriptions_survive_dataset_json(tmp_path):
    described(tmp_path, features={"a": FEATURES, "a-b": POOLED}, latents={"a": LATENTS})
    info = layout.read_dataset_info(tmp_path)
    assert info.features == {"a": FEATURES, "a-b": POOLED}
    assert info.latents == {"a": LATENTS}


def test_a_description_of_before_is_read_and_its_sum_checked(tmp_path):
    described(tmp_path)
    path = tmp_path / "dataset.json"
    values = json.loads(path.read_text())
    for name in ("features", "latents", "sha256"):
        del values[name]
    values |= {"encoders": [], "vaes": []}
    text = json.dumps(values, ensure_ascii=False, sort_keys=True)
    signed = {**values, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    path.write_text(json.dumps(signed))
    info = layout.read_dataset_info(tmp_path)
    assert info.features == info.latents == {}
    path.write_text(json.dumps(signed | {"encoders": ["a"]}))
    with pytest.raises(DataError, match=r"dataset.json: damaged or edited"):
        layout.read_dataset_info(tmp_path)


@pytest.mark.parametrize("fields", [{"dtype": "float32"}, {"dim": 0}, {"grid": [2]}, {"x": 1}])
def test_a_description_that_is_wrong_is_named(tmp_path, fields):
    described(tmp_path, features={"a": FEATURES})
    path = tmp_path / "dataset.json"
    values = json.loads(path.read_text())
    values["features"]["a"] |= fields
    path.write_text(json.dumps(values | {"sha256": None}))
    with pytest.raises(DataError, match=rf"dataset.json: .*features.a.{next(iter(fields))}"):
        layout.read_dataset_info(tmp_path)
