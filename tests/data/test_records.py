import dataclasses
import json
import pickle

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fsdit.data import layout, records
from fsdit.data.readers import EpisodeReader, ImageReader, RecordReader
from fsdit.data.records import Episode, ImageRecord
from fsdit.errors import DataError

SPLIT = layout.SplitInfo(classes=("a", "b"), images_per_class=(3, 4), episodes=2, shots=2)
EPISODES = [Episode(0, 0, (1, 2)), Episode(1, 6, (3, 5))]
FEATURES = layout.FeaturesInfo(
    "google/siglip2", "12ab", {"mean": [0.5, 0.5, 0.5]}, "bfloat16", 3, (2, 2), tokens=True
)
LATENTS = layout.LatentsInfo("stabilityai/sd-vae", "34cd", "float16", (2, 2, 4))
IDS = st.integers(0, 2**31 - 1)


def picture(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (4, 4, 1), np.uint8)


@pytest.fixture
def split(tmp_path):
    """Seven images in two shards (3 and 4 records) and two episodes."""
    images = [
        ImageRecord(f"k{i}", int(i >= 3), records.encode_pixels(picture(i)), 4, 4) for i in range(7)
    ]
    layout.write_split(tmp_path, images, EPISODES, shards=2)
    return tmp_path


def with_episode(directory, episode: Episode):
    layout.write_split(directory, [], [episode])
    return EpisodeReader(directory, SPLIT, shots=2)


@given(st.builds(ImageRecord, st.text(), IDS, st.binary(), IDS, IDS))
def test_an_image_record_survives_its_codec(record):
    assert records.decode_image(records.encode_image(record)) == record


@given(IDS, IDS, st.lists(IDS, max_size=9))
def test_an_episode_survives_its_codec(class_id, target, supports):
    episode = Episode(class_id, target, tuple(supports))
    assert records.decode_episode(records.encode_episode(episode)) == episode


@given(
    st.sampled_from([1, 3]).flatmap(
        lambda c: hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 9)] * 2, st.just(c)))
    )
)
def test_pixels_survive_png(pixels):
    decoded = records.decode_pixels(records.encode_pixels(pixels), pixels.shape[-1])
    np.testing.assert_array_equal(decoded, pixels, strict=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_decoded_to_the_channels_of_the_dataset(channels):
    stored = np.full((2, 5, 4 - channels), 77, np.uint8)
    decoded = records.decode_pixels(records.encode_pixels(stored), channels)
    np.testing.assert_array_equal(decoded, np.full((2, 5, channels), 77, np.uint8), strict=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, "format version 2, this program reads 1"),
        ({"extra": 1}, "has fields .*extra"),
        ({"v": None}, "format version None"),
    ],
)
def test_a_record_of_another_version_or_shape_is_refused(change, message):
    fields = {"v": 1, **dataclasses.asdict(EPISODES[0])}
    assert records.decode_episode(msgpack.packb(fields)) == EPISODES[0]
    with pytest.raises(DataError, match=message):
        records.decode_episode(msgpack.packb(fields | change))


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb({})])
def test_bytes_that_are_no_record_are_refused(payload):
    with pytest.raises(DataError, match="not a ImageRecord"):
        records.decode_image(payload)


def test_bytes_that_are_no_image_are_refused():
    with pytest.raises(DataError, match="cannot be decoded"):
        records.decode_pixels(b"no picture", 1)


def test_images_are_read_across_shards_in_order(split):
    reader = ImageReader(split, 4, 1)
    assert len(reader) == 7
    for i in (6, 0, 3, 2):
        np.testing.assert_array_equal(reader[i], picture(i), strict=True)


def test_a_reader_that_was_used_can_be_sent_to_a_worker(split):
    reader = ImageReader(split, 4, 1)
    _ = reader[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))[5], picture(5))


def test_a_split_leaves_no_temporary_files(split):
    assert sorted(path.name for path in split.iterdir()) == [
        "episodes-00000-of-00001.array_record",
        "images-00000-of-00002.array_record",
        "images-00001-of-00002.array_record",
        "manifest.json",
    ]


def test_a_truncated_shard_is_named_when_the_split_is_opened(split):
    shard = split / "images-00001-of-00002.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{shard.name}: \d+ bytes, the manifest says \d+"):
        RecordReader(split, "images")


def test_a_missing_shard_is_named_when_the_split_is_opened(split):
    (split / "images-00000-of-00002.array_record").unlink()
    with pytest.raises(DataError, match=r"images-00000-of-00002.array_record: missing"):
        RecordReader(split, "images")


def test_a_flipped_byte_names_file_and_record_and_spares_the_others(split):
    shard = split / "images-00001-of-00002.array_record"
    content = bytearray(shard.read_bytes())
    content[content.index(records.encode_pixels(picture(4))) + 20] ^= 0xFF
    shard.write_bytes(content)
    reader = ImageReader(split, 4, 1)
    with pytest.raises(DataError, match=rf"{shard.name}, record 1"):
        reader[4]
    for i in (0, 3, 5):
        np.testing.assert_array_equal(ImageReader(split, 4, 1)[i], picture(i))


@pytest.mark.parametrize("index", [-1, 7])
def test_an_index_out_of_range_is_refused(split, index):
    with pytest.raises(DataError, match=f"images record {index} does not exist, there are 7"):
        ImageReader(split, 4, 1)[index]


def test_an_image_of_another_size_names_file_and_record(split):
    with pytest.raises(DataError, match=r"images-00001-of-00002.array_record, record 2: .*\(4, 4"):
        ImageReader(split, 5, 1)[5]


def test_an_unfinished_split_is_refused(split):
    (split / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest.json: no such file; .*run it again"):
        RecordReader(split, "images")


def test_episodes_are_read_as_they_were_written(split):
    reader = EpisodeReader(split, SPLIT, shots=2)
    assert [reader[i] for i in range(len(reader))] == EPISODES


def test_episodes_of_another_k_name_the_setting(split):
    with pytest.raises(DataError, match=r"record 0: 2 supports, config.data.shots is 5"):
        EpisodeReader(split, SPLIT, shots=5)[0]


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (Episode(0, 3, (1, 2)), "image 3 is not of class 0 .*0 to 2"),
        (Episode(1, 3, (4, 2)), "image 2 is not of class 1 .*3 to 6"),
        (Episode(2, 0, (1, 2)), "class 2 does not exist"),
        (Episode(1, 3, (4, 7)), "image 7 is not of class 1"),
        (Episode(1, 3, (4, 3)), r"target and supports \(3, 4, 3\) are not 3 distinct images"),
    ],
)
def test_an_episode_that_does_not_fit_its_split_names_file_and_record(tmp_path, episode, message):
    with pytest.raises(
        DataError, match=rf"episodes-00000-of-00001.array_record, record 0: {message}"
    ):
        with_episode(tmp_path, episode)[0]


def test_a_dataset_description_survives_and_its_version_is_checked(tmp_path):
    info = layout.DatasetInfo(
        24, 1, {"train": SPLIT}, "command", 3, {"siglip2": FEATURES}, {"sd": LATENTS},
        sources={"a set": {"license": "MIT"}},
    )  # fmt: skip
    layout.write_dataset_json(tmp_path, info)
    assert layout.read_dataset_info(tmp_path) == info
    with pytest.raises(DataError, match="no split 'dev' in the dataset; it has train"):
        info.split("dev")
    change_json(tmp_path / "dataset.json", version=9)
    with pytest.raises(DataError, match=r"dataset.json: format version 9"):
        layout.read_dataset_info(tmp_path)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def described(tmp_path):
    info = layout.DatasetInfo(24, 1, {"train": SPLIT}, "command", 3)
    layout.write_dataset_json(tmp_path, info)
    return tmp_path / "dataset.json"


def test_a_changed_description_is_noticed_by_its_checksum(described):
    change_json(described, command="another")
    with pytest.raises(DataError, match=r"dataset.json: damaged or edited"):
        layout.read_dataset_info(described.parent)


def test_an_old_description_without_checksum_and_newer_fields_is_read(described):
    values = json.loads(described.read_text())
    assert "preparation" not in values  # what is not known is not written
    for name in ("sha256", "shared_classes", "features", "latents"):
        del values[name]
    described.write_text(json.dumps(values | {"encoders": [], "vaes": []}))
    info = layout.read_dataset_info(described.parent)
    assert info.command == "command"
    assert info.preparation is None
    layout.write_dataset_json(described.parent, info)
    assert layout.read_dataset_info(described.parent).preparation is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"channels": "1"}, "channels"),
        ({"image_size": 0}, "image_size"),
        ({"splits": {"train": {"classes": ["a"]}}}, "splits.train.images_per_class"),
        ({"splits": [1]}, "splits"),
        ({"colour": 1}, "colour"),
        ({"preparation": {"background": "whyte"}}, "preparation: .*whyte"),
        ({"preparation": {"resize": "fill"}}, "preparation.resize"),
        ({"preparation": {"blur": 1}}, "preparation.blur"),
        (
            {"splits": {"train": dataclasses.asdict(SPLIT) | {"classes": ["a"]}}},
            "classes and images_per_class differ in length",
        ),
    ],
)
def test_a_field_of_a_description_that_is_wrong_is_named(described, change, named):
    change_json(described, sha256=None, **change)
    with pytest.raises(DataError, match=rf"dataset.json: .*{named}"):
        layout.read_dataset_info(described.parent)


@pytest.mark.parametrize(
    "change", [{"records": "3"}, {"bytes": -1}, {"records": 10**30}, {"sha256": [0]}, {"x": 1}]
)
def test_a_manifest_entry_that_is_wrong_is_named(split, change):
    manifest = layout.read_manifest(split)
    name = "images-00001-of-00002.array_record"
    layout.write_json(split / "manifest.json", manifest | {name: manifest[name] | change})
    with pytest.raises(DataError, match=rf"manifest.json: not a manifest: '{name}'"):
        RecordReader(split, "images")


def test_a_shard_with_another_number_of_records_than_the_manifest_says_is_named(split):
    manifest = layout.read_manifest(split)
    name = "images-00001-of-00002.array_record"
    layout.write_json(split / "manifest.json", manifest | {name: manifest[name] | {"records": 3}})
    with pytest.raises(DataError, match=rf"{name}: has 4 records, the manifest says 3"):
        RecordReader(split, "images")[4]


def test_a_manifest_that_would_shift_the_images_of_later_files_is_refused(split):
    assert len(ImageReader(split, 4, 1, count=7)) == 7
    manifest = layout.read_manifest(split)
    name = "images-00000-of-00002.array_record"
    layout.write_json(split / "manifest.json", manifest | {name: manifest[name] | {"records": 2}})
    with pytest.raises(DataError, match=r"lists 6 images, dataset.json makes it 7"):
        ImageReader(split, 4, 1, count=7)


def test_a_shard_whose_index_is_damaged_is_named(split):
    shard = split / "images-00000-of-00002.array_record"
    shard.write_bytes(shard.read_bytes()[: -(2**16)] + bytes(2**16))  # the index is at the end
    with pytest.raises(DataError, match=rf"{shard.name}: cannot be opened, no record can be read"):
        RecordReader(split, "images")[0]


@pytest.mark.parametrize(
    "change", [{"class_id": "0"}, {"target": None}, {"supports": 3}, {"target": True}]
)
def test_a_record_with_a_value_of_the_wrong_type_is_refused(change):
    (name,) = change
    fields = {"v": 1, **dataclasses.asdict(EPISODES[0])}
    with pytest.raises(DataError, match=f"Episode: {name} is "):
        records.decode_episode(msgpack.packb(fields | change))
