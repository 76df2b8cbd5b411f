"""Records of features and latents survive their codec; damaged ones are refused."""

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdit.data import records
from fsdit.data.records import FeatureRecord, LatentRecord
from fsdit.errors import DataError
from tests.data.feature_sets import (
    array,
    assert_same,
    features,
    latents,
)


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


def test_a_transposed_array_survives_its_codec():
    tokens = array(0, "float16", 3, 4).T
    record = FeatureRecord(array(1, "float16", 3), tokens)
    assert_same(records.decode_features(records.encode_features(record)).tokens, tokens)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_half_precision_is_stored(dtype):
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


def test_a_value_that_is_not_finite_survives_for_verify_to_find():
    pooled = np.array([np.nan, np.inf, 1], ml_dtypes.bfloat16)
    decoded = records.decode_features(records.encode_features(FeatureRecord(pooled, None)))
    assert_same(decoded.pooled, pooled)
