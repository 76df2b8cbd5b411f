import dataclasses
import shutil
import weakref

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fsdit.config import Config, EncoderConfig, EvaluationConfig, FeaturesConfig, ModelConfig
from fsdit.data.layout import DatasetInfo, SplitInfo, read_dataset_info
from fsdit.data.readers import ImageReader
from fsdit.errors import ConfigError, DataError
from fsdit.evaluation.critics.critic import kind_of, open_critic
from fsdit.models.pretrained.encoder import FrozenEncoder
from fsdit.parallel import sharding
from tests.models.pretrained import originals


def config_of(critic, conditions="", rows=64, dataset="", supports="online"):
    encoder = EncoderConfig(location=str(conditions), name="frozen" if conditions else "learned")
    return dataclasses.replace(
        Config(),
        data=dataclasses.replace(Config().data, dataset_dir=str(dataset)),
        model=ModelConfig(encoder=encoder),
        features=FeaturesConfig(encode_batch=rows, supports=supports),
        evaluation=EvaluationConfig(critic=str(critic)),
    )


SMALL = DatasetInfo(24, 3, {"train": SplitInfo(("class",), (4,), 0, 1)}, command="", seed=0)


def opened(config):
    return open_critic(config, SMALL)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    processor = originals.bit_processor(48, 42)
    return originals.save(originals.dinov2(), processor, tmp_path_factory.mktemp("dinov2"))


def on_devices(monkeypatch, count):
    mesh = sharding.local_mesh(jax.devices()[:count])
    monkeypatch.setattr(sharding, "local_mesh", lambda: mesh)


def test_pixels_are_the_images_themselves():
    images = originals.random_images(5, 6, 7, 1)
    for name in ("pixels", ""):  # older versions called them ""
        critic = opened(config_of(name))
        assert critic.name == "pixels"
        for given in (images, list(images), iter(images)):
            found = critic.features(given)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, images)


def test_the_critic_of_large_images_is_named():
    for size in (8, 64):
        assert kind_of("auto", size) == "trained" and kind_of("", size) == "pixels"
    assert kind_of("trained", 224) == "trained" and kind_of("some/encoder", 224) == "encoder"
    for critic in ("auto", "pixels", ""):
        with pytest.raises(ConfigError, match=r"65 x 65 are too large .* name a frozen encoder"):
            kind_of(critic, 65)


def test_features_are_the_originals_pooled_output(dinov2):
    critic = opened(config_of(dinov2))
    images = originals.random_images(11, 50, 50, 3)
    found = critic.features(images)
    model = originals.dinov2()
    originals.randomise(model)
    expected, _ = originals.original_outputs(model.eval(), originals.bit_processor(48, 42), images)
    assert critic.name == str(dinov2)
    assert found.dtype == np.float32
    assert originals.relative_error(found, expected) < 1e-4


def test_greyscale_counts_as_rgb(dinov2):
    critic = opened(config_of(dinov2))
    images = originals.random_images(3, 24, 24, 1)
    repeated = critic.features(images.repeat(3, -1))
    np.testing.assert_allclose(critic.features(images), repeated, atol=1e-5)


@pytest.mark.parametrize(("rows", "devices"), [(1, 1), (3, 8), (16, 8), (5, 2), (64, 3)])
def test_features_do_not_depend_on_batches_devices_or_order(dinov2, monkeypatch, rows, devices):
    images = originals.random_images(21, 24, 24, 3)
    expected = opened(config_of(dinov2, rows=32)).features(images)
    order = np.random.default_rng(1).permutation(21)
    on_devices(monkeypatch, devices)
    found = opened(config_of(dinov2, rows=rows)).features(images[i] for i in order)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(found, expected[order], atol=1e-4)


def test_images_are_read_while_they_are_encoded_in_batches_of_one_shape(dinov2, monkeypatch):
    on_devices(monkeypatch, 2)
    shapes, made, alive = [], [], []
    encode = FrozenEncoder.__call__

    def traced(self, params, supports):
        shapes.append(supports.shape)
        return encode(self, params, supports)

    monkeypatch.setattr(FrozenEncoder, "__call__", traced)

    def images():
        for number in range(70):
            image = originals.random_images(20, 20, 3, seed=number)
            made.append(weakref.ref(image))
            alive.append(sum(each() is not None for each in made))
            yield image

    found = opened(config_of(dinov2, rows=7)).features(images())
    assert found.shape == (70, 48)
    assert shapes == [(8, 1, 20, 20, 3)]  # one program for all nine batches
    assert max(alive) <= 2 * 8  # the batch being encoded and the one being read


def test_a_splits_images_are_encoded_as_its_reader_gives_them(dinov2, photos):
    info = read_dataset_info(photos)
    reader = ImageReader(photos / "train", info.image_size, info.channels)
    critic = opened(config_of(dinov2))
    whole = np.stack([reader[i] for i in range(len(reader))])
    np.testing.assert_array_equal(critic.features(reader), critic.features(whole))
    np.testing.assert_array_equal(opened(config_of("")).features(reader), whole)


def refused(config, error_type=ConfigError):
    with pytest.raises(error_type) as error:
        opened(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_encoder_that_conditions_is_refused_as_critic(dinov2, tmp_path):
    words = f"config.evaluation.critic={dinov2} is the encoder that conditions"
    assert refused(config_of(dinov2, conditions=dinov2)).startswith(words)
    copy = tmp_path / "copy"
    shutil.copytree(dinov2, copy)
    assert refused(config_of(dinov2, conditions=copy)).startswith(words)
    named = load_file(copy / "model.safetensors")
    save_file(named | {"layernorm.bias": named["layernorm.bias"] + 1}, copy / "model.safetensors")
    assert opened(config_of(dinov2, conditions=copy)).name == str(dinov2)


@pytest.mark.medium
def test_the_encoder_of_stored_features_is_refused_as_critic(dinov2, encoded, weights, tmp_path):
    """The run's encoder location may be a hub id, from which nothing is fetched."""
    copy = tmp_path / "siglip"
    shutil.copytree(weights / "siglip", copy)
    moved = config_of(copy, "hub/siglip", dataset=encoded, supports="precomputed")
    assert "is the encoder that conditions" in refused(moved)
    other = config_of(dinov2, "hub/siglip", dataset=encoded, supports="precomputed")
    assert opened(other).name == str(dinov2)


def test_a_critic_other_than_the_conditioning_encoder_is_accepted(dinov2):
    assert opened(config_of("", conditions=dinov2)).name == "pixels"
    assert opened(config_of(dinov2)).name == str(dinov2)


def test_a_critic_that_cannot_be_opened_is_named_before_any_device_is_used(dinov2, tmp_path):
    before = len(jax.live_arrays())
    message = refused(config_of(tmp_path / "none"), DataError)
    assert "none' is neither a directory nor a hub id" in message
    copy = tmp_path / "copy"
    shutil.copytree(dinov2, copy)
    (copy / "model.safetensors").write_bytes(b"no weights")
    assert "damaged" in refused(config_of(copy), DataError)
    opened(config_of(dinov2))
    assert len(jax.live_arrays()) == before
