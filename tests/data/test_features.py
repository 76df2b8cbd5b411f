"""Reading precomputed features and latents by index."""

import dataclasses
import pickle

import pytest

from fsdit.data import records
from fsdit.data.readers import FeatureReader, LatentReader, RecordReader
from fsdit.errors import DataError
from tests.data.feature_sets import (
    FEATURES,
    LATENTS,
    POOLED,
    assert_same,
    features,
    latents,
    write,
)
from tests.data_prep import datasets


@pytest.fixture
def split(tmp_path):
    """Latents, and two sets of features, where one set's name begins the other's."""
    write(tmp_path, "features-a", [records.encode_features(features(i)) for i in range(7)])
    other = [records.encode_features(features(i, POOLED)) for i in range(7)]
    write(tmp_path, "features-a-b", other, counts=(7,))
    write(tmp_path, "latents-a", [records.encode_latents(latents(i)) for i in range(7)])
    return tmp_path


def test_features_are_read_across_files_in_order(split):
    reader = FeatureReader(split, "a", FEATURES, 7)
    assert len(reader) == 7
    for i in (6, 0, 3, 2):
        found, expected = reader[i], features(i)
        assert found.keys() == {"pooled", "tokens"}
        assert_same(found["pooled"], expected.pooled)
        assert_same(found["tokens"], expected.tokens)


def test_a_set_whose_name_begins_another_name_is_kept_apart(split):
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
