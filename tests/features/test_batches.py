"""Batches through the frozen networks: cached or not, read or computed, on host or devices."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from fsdit.config import MeshConfig, apply_overrides
from fsdit.data import layout, pipeline
from fsdit.data.layout import read_dataset_info
from fsdit.errors import ConfigError, DataError
from fsdit.features.batches import Feed
from fsdit.features.frozen import open_networks
from fsdit.features.online import OnlineFeatures
from fsdit.features.resident import ResidentFeatures
from fsdit.models.pretrained.encoder import load_encoder
from fsdit.parallel import sharding

pytestmark = pytest.mark.medium


def changed(config, **overrides):
    return apply_overrides(config, {k.replace("__", "."): str(v) for k, v in overrides.items()})


def batches(config, count=3, start=0):
    """Training batches as NumPy, and the feed that made them."""
    _, frozen = open_networks(config, read_dataset_info(config.data.dataset_dir))
    mesh = sharding.make_mesh(config)
    resident = ResidentFeatures(config, mesh) if config.features.location == "device" else None
    feed = Feed(config, mesh, frozen, resident)
    read, size = pipeline.training_examples(config), config.data.batch_size
    made = list(feed.batches(read, size, count, start=start * size))
    return jax.device_get(made), feed


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def online(config):
    encoder, params = load_encoder(config.model.encoder.location, config.model.encoder.dtype)
    return OnlineFeatures(encoder, params, config)


def test_a_batch_has_features_and_moments_of_its_images(frozen_config):
    made, feed = batches(frozen_config)
    read = pipeline.training_examples(frozen_config)
    location = frozen_config.model.encoder.location
    encoder, params = load_encoder(location, "float32")
    for batch in made:
        indices = [int(i) for i in batch["index"]]
        supports = np.stack([read.pictures(i)[0] for i in indices])
        pooled, tokens = jax.jit(encoder)(params, supports)
        np.testing.assert_allclose(batch["supports"]["pooled"], pooled, atol=1e-5)
        np.testing.assert_allclose(batch["supports"]["tokens"], tokens, atol=1e-5)
        targets = np.stack([read(i)["target"] for i in indices])
        moments = jax.jit(lambda codec, x: codec.moments(x))(feed.codec, targets)
        for ours, expected in zip(batch["target"], moments, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_pooled_condition_computes_and_keeps_no_tokens(frozen_config):
    (batch, *_), feed = batches(changed(frozen_config, model__use_support_tokens=False))
    assert batch["supports"].keys() == {"pooled"}
    _, whole = batches(frozen_config)
    assert 0 < feed.counters()["encoder_cache/bytes"] < whole.counters()["encoder_cache/bytes"] / 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_changes_no_bit(frozen_config, dtype):
    config = changed(frozen_config, model__encoder__dtype=dtype)
    expected, feed = batches(changed(config, features__cache_mb=0))
    assert feed.counters()["encoder_cache/hits"] == feed.counters()["encoder_cache/bytes"] == 0
    actual, feed = batches(config)
    assert feed.counters()["encoder_cache/hits"] > 0
    assert_same(actual, expected)


def test_where_a_batch_begins_changes_no_bit(frozen_config):
    """After a restart the cache lacks other images, so a row is encoded beside other rows."""
    whole, _ = batches(frozen_config, count=4)
    resumed, _ = batches(frozen_config, count=2, start=2)
    assert_same(resumed, whole[2:])


def test_each_distinct_image_is_encoded_once_a_batch_and_found_again(frozen_config):
    features = online(frozen_config)
    read = pipeline.training_examples(frozen_config)
    numbers = np.array([[3, 5, 3], [5, 3, 9]], np.int32)
    first = features(read.images, "train", numbers)
    counters = features.counters()
    assert (counters["encoder_cache/misses"], counters["encoder_cache/hits"]) == (3, 0)
    assert counters["encoder_cache/bytes"] == 3 * (1 + 16) * 32 * 4
    again = features(read.images, "train", numbers[:, ::-1])
    assert features.counters()["encoder_cache/misses"] == 3
    assert features.counters()["encoder_cache/hits"] == 3
    assert_same(again, jax.tree.map(lambda a: a[:, ::-1], first))
    np.testing.assert_array_equal(first["tokens"][0, 0], first["tokens"][1, 1])
    assert not np.array_equal(first["tokens"][0, 0], first["tokens"][0, 1])


def test_the_same_index_of_another_split_is_another_image(frozen_config):
    features = online(frozen_config)
    numbers = np.array([[0]], np.int32)
    train = pipeline.training_examples(frozen_config).images
    val = pipeline.evaluation_examples(frozen_config, "val")[0].images
    seen, unseen = features(train, "train", numbers), features(val, "val", numbers)
    assert not np.array_equal(seen["pooled"], unseen["pooled"])


def test_the_cache_stays_within_its_budget_and_forgets_the_oldest(frozen_config):
    one = (1 + 16) * 32 * 4
    features = online(changed(frozen_config, features__cache_mb=2.5 * one / 1e6))
    read = pipeline.training_examples(frozen_config)
    for number in (0, 1, 0, 2, 0, 1):  # 1 is the least recently used when 2 comes
        features(read.images, "train", np.array([[number]], np.int32))
        assert features.counters()["encoder_cache/bytes"] <= 2 * one
    assert features.counters()["encoder_cache/misses"] == 4
    assert features.counters()["encoder_cache/hits"] == 2


def test_a_cache_that_holds_less_than_a_batch_is_refused(frozen_config):
    info = read_dataset_info(frozen_config.data.dataset_dir)
    one = (1 + 16) * 32 * 4 / 1e6
    supports = frozen_config.data.batch_size * frozen_config.data.shots
    open_networks(changed(frozen_config, features__cache_mb=supports * one), info)
    small = changed(frozen_config, features__cache_mb=(supports - 1) * one)
    with pytest.raises(ConfigError, match=r"config\.features\.cache_mb=.* less than one batch"):
        open_networks(small, info)


@pytest.mark.parametrize(
    ("field", "folder", "words"),
    [
        ("model.encoder.location", "vae", "model_type is None"),
        ("model.codec.location", "siglip", "_class_name is None"),
        (
            "model.encoder.location",
            "nothing",
            "nothing.*neither a directory.*model.safe",
        ),
        (
            "model.codec.location",
            "nothing",
            "nothing.*neither a directory.*model.safe",
        ),
    ],
)
def test_weights_that_are_missing_or_of_another_network_are_named(
    frozen_config, weights, field, folder, words
):
    config = apply_overrides(frozen_config, {field: str(weights / folder)})
    with pytest.raises(DataError, match=words):
        open_networks(config, read_dataset_info(config.data.dataset_dir))


def test_weights_and_preprocessing_identify_an_encoder(frozen_config, stored, tmp_path):
    info = read_dataset_info(stored.data.dataset_dir)
    _, online = open_networks(frozen_config, info)
    _, read = open_networks(stored, info)
    assert online.weights == read.weights and online.weights.keys() == {"encoder", "codec"}
    other = tmp_path / "siglip"
    shutil.copytree(frozen_config.model.encoder.location, other)
    config = changed(frozen_config, model__encoder__location=other)
    assert open_networks(config, info)[1].weights == online.weights
    path = other / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.4, 0.5, 0.5]}))
    assert open_networks(config, info)[1].weights["encoder"] != online.weights["encoder"]
    with pytest.raises(DataError, match=r"'siglip' .* is not config\.model\.encoder\.location"):
        open_networks(changed(stored, model__encoder__location=other), info)


def test_a_size_of_images_that_the_codec_cannot_take_is_refused(frozen_config):
    info = read_dataset_info(frozen_config.data.dataset_dir)
    with pytest.raises(ConfigError, match="multiples of 4, these are 34 x 34"):
        open_networks(frozen_config, dataclasses.replace(info, image_size=34))


@pytest.fixture
def stored(frozen_config, encoded):
    """A config that reads features and latents made by the networks of `frozen_config`."""
    return changed(
        frozen_config,
        data__dataset_dir=encoded,
        features__supports="precomputed",
        features__targets="precomputed",
    )


def test_stored_features_and_moments_equal_online_ones_to_their_precision(frozen_config, stored):
    online, _ = batches(frozen_config)
    read, _ = batches(stored)
    for ours, expected in zip(read, online, strict=True):
        np.testing.assert_array_equal(ours["index"], expected["index"])
        for name in ("supports", "target"):
            assert {leaf.dtype.name for leaf in jax.tree.leaves(ours[name])} == {"float16"}
            leaves = zip(*(jax.tree.leaves(batch[name]) for batch in (ours, expected)), strict=True)
            for stored_leaf, leaf in leaves:
                np.testing.assert_allclose(stored_leaf.astype(np.float32), leaf, 1e-3, 2e-3)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_resident_features_equal_what_the_host_reads_bit_for_bit(stored, shape, workers):
    config = dataclasses.replace(stored, mesh=MeshConfig(*shape))
    expected, _ = batches(changed(config, data__workers=workers))
    actual, _ = batches(changed(config, features__location="device"))
    assert_same(actual, expected)
    numbers = pipeline.training_examples(changed(config, features__location="device"))(0)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(numbers)) == 4 * (2 + 1 + 5)


def test_targets_alone_may_be_stored(frozen_config, stored):
    mixed = changed(stored, features__supports="online")
    (ours, *_), feed = batches(mixed)
    (online, *_), _ = batches(frozen_config)
    (read, *_), _ = batches(stored)
    assert_same(ours["supports"], online["supports"])
    assert_same(ours["target"], read["target"])
    assert feed.counters()["encoder_cache/misses"] > 0


def test_latents_of_another_codec_are_refused(stored):
    info = read_dataset_info(stored.data.dataset_dir)
    other = dataclasses.replace(info.latents["vae"], codec="elsewhere/vae", sha256="0" * 64)
    with pytest.raises(DataError, match=r"'vae' .* made by elsewhere/vae, whose weights are not"):
        open_networks(stored, dataclasses.replace(info, latents={"vae": other}))


def test_a_model_that_attends_to_tokens_needs_stored_ones(stored, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(stored.data.dataset_dir, copy)
    info = read_dataset_info(copy)
    pooled_only = dataclasses.replace(info.features["siglip"], tokens=False)
    layout.write_dataset_json(copy, dataclasses.replace(info, features={"siglip": pooled_only}))
    with pytest.raises(DataError, match=r"'siglip' hold no tokens.*--tokens"):
        pipeline.training_examples(changed(stored, data__dataset_dir=copy))


def test_a_damaged_support_is_named_by_the_batch_that_needs_it(frozen_config, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(frozen_config.data.dataset_dir, copy)
    shard = next((copy / "train").glob("images-*"))
    data = bytearray(shard.read_bytes())
    for i in range(len(data) // 8, len(data), 499):
        data[i] ^= 0xFF
    shard.write_bytes(data)
    config = changed(frozen_config, data__dataset_dir=copy)
    with pytest.raises(DataError, match=f"{shard}.*record"):
        batches(config)


@pytest.mark.parametrize(
    "place", ["host", *(pytest.param(p, marks=pytest.mark.large) for p in ("online", "device"))]
)
def test_the_encoders_tokens_of_the_target_come_with_the_batch(frozen_config, stored, place):
    stored = changed(stored, features__location="host" if place == "online" else place)
    config = changed(frozen_config if place == "online" else stored, train__alignment=0.5)
    (batch, *_), _ = batches(config, count=1)
    read = pipeline.training_examples(frozen_config)
    encoder, params = load_encoder(frozen_config.model.encoder.location, "float32")
    targets = np.stack([read.pictures(int(i))[1] for i in batch["index"]])
    _, tokens = jax.jit(encoder)(params, targets[:, None])
    aligned = batch["aligned"]
    np.testing.assert_allclose(aligned["tokens"].astype(np.float32), tokens[:, 0], 1e-3, 2e-3)
    shown = np.stack([read(int(i))["target"] for i in batch["index"]])
    mirrored = (shown == targets[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(aligned["mirrored"], mirrored)
    assert 0 < mirrored.sum() < len(mirrored)
    assert batch["supports"]["tokens"].shape[1] == config.data.shots
