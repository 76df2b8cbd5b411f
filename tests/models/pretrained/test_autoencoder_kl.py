"""The latent codec: sampling, sharding, parts of a batch, images that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.config import Config, EncoderConfig, MeshConfig, ModelConfig
from fsdit.errors import ConfigError
from fsdit.models.codec import LatentCodec, PixelCodec
from fsdit.models.pretrained.autoencoder_kl import AutoencoderKL
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.training.objective import example_losses
from tests.models.pretrained.autoencoder_originals import (
    key,
    one_line,
    pictures,
    small,
)

pytestmark = pytest.mark.medium


def test_samples_have_the_posterior_s_mean_and_variance():
    codec = small(scaling_factor=2.0, shift_factor=0.5)
    draws = 20_000
    mean = jnp.broadcast_to(jnp.array([-1.0, 0.0, 2.0, 5.0]), (draws, 1, 1, 4))
    log_variance = jnp.broadcast_to(jnp.array([0.0, -4.0, 1.0, -30.0]), mean.shape)
    drawn = np.asarray(codec.sample((mean, log_variance), jax.random.split(key(), draws)))
    drawn = drawn.reshape(draws, 4)
    std = 2 * np.exp(np.array([0.0, -4.0, 1.0, -30.0]) / 2)
    error = (drawn.mean(0) - 2 * (np.array([-1.0, 0.0, 2.0, 5.0]) - 0.5)) / (std / draws**0.5)
    assert np.abs(error[:3]).max() < 4
    np.testing.assert_allclose(drawn.std(0)[:3], std[:3], rtol=0.03)
    np.testing.assert_allclose(drawn[:, 3], 9.0, rtol=1e-5)
    assert np.abs(np.corrcoef(drawn[:, :3].T) - np.eye(3)).max() < 0.03


def test_without_factors_latents_are_z():
    codec = small(scaling_factor=None)
    z = jax.random.normal(key(), (2, 3, 3, 4))
    drawn = codec.sample((z, jnp.full(z.shape, -jnp.inf)), jax.random.split(key(), 2))
    np.testing.assert_array_equal(drawn, z)


def test_an_example_s_latents_follow_its_key_alone():
    codec, images = small(), jnp.asarray(pictures(3, 16, 16, 3))
    keys = jax.random.split(key(), 3)
    encode = jax.jit(lambda codec, images, keys: codec.sample(codec.moments(images), keys))
    latents = encode(codec, images, keys)
    np.testing.assert_array_equal(latents, encode(codec, images, keys))
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(encode(codec, images[order], keys[order]), latents[order], atol=1e-5)
    other = encode(codec, images, jax.random.split(key(1), 3))
    assert np.abs(other - latents).mean((1, 2, 3)).min() > 0.1 * codec.config.scaling_factor


@pytest.mark.several_devices
def test_parameters_are_arguments_of_a_compiled_program():
    """One compiled program serves all parameters, sharded ones too; it may split the batch."""
    mesh = sharding.make_mesh(Config(mesh=MeshConfig(2, 4)))
    codec, other = small(latent_channels=16), small(latent_channels=16, seed=1)
    images, keys = jnp.asarray(pictures(16, 16, 16, 3)), jax.random.split(key(), 16)

    def both(codec: AutoencoderKL, images, keys):
        latents = codec.sample(codec.moments(images), keys)
        return latents, codec.decode(latents)

    run = jax.jit(both)
    expected = run(codec, images, keys)
    assert np.abs(run(other, images, keys)[0] - expected[0]).mean() > 1e-3
    assert run._cache_size() == 1

    shardings = sharding.state_shardings(mesh, jax.eval_shape(lambda: codec))
    placed = jax.device_put(codec, shardings)
    rows = jax.device_put((images, keys), sharding.batch_sharding(mesh))
    for max_batch in (None, 8):
        latents, decoded = jax.jit(both)(placed.replace(max_batch=max_batch), *rows)
        np.testing.assert_allclose(latents, expected[0], atol=1e-5)
        difference = np.abs(np.asarray(decoded, int) - np.asarray(expected[1], int))
        assert difference.max() <= 1


@pytest.mark.parametrize(
    ("rows", "max_batch", "at_once"),
    [
        pytest.param(6, 4, 3, marks=pytest.mark.large),
        (7, 3, 1),
        pytest.param(5, 8, 5, marks=pytest.mark.large),
    ],
)
def test_a_batch_is_done_in_parts_that_fit(rows, max_batch, at_once):
    codec = small()
    latents = jax.random.normal(key(), (rows, 4, 4, 4))
    limited = codec.replace(max_batch=max_batch)
    np.testing.assert_allclose(
        np.asarray(limited.decode(latents), int), np.asarray(codec.decode(latents), int), atol=1
    )
    program = str(jax.make_jaxpr(AutoencoderKL.decode)(limited, latents))
    assert f"f32[{at_once},8,8,3]" in program  # pixels of one part
    assert at_once == rows or f"f32[{rows},8,8,3]" not in program


def test_the_loss_depends_on_the_latents_of_the_codec():
    codec = small()
    settings = ModelConfig(
        hidden_size=16,
        depth=1,
        num_heads=2,
        patch_size=2,
        num_latents=0,
        encoder=EncoderConfig(patch_size=4, hidden_size=16, depth=1, num_heads=2),
        dtype="float32",
    )
    spec = ModelSpec(settings, 16, 3, codec)
    assert spec.latent_shape == (8, 8, 4)
    assert isinstance(codec, LatentCodec) and isinstance(PixelCodec(), LatentCodec)
    batch = {
        "index": jnp.arange(2, dtype=jnp.uint32),
        "supports": jnp.asarray(pictures(2, 5, 16, 16, 3)),
    }
    images = jnp.asarray(pictures(2, 16, 16, 3))

    @jax.jit
    def losses(params: dict, batch: dict):
        return example_losses(spec, Config(model=settings), params, batch, "train")[0]

    params = jax.jit(lambda: spec.init(0))()
    moments = jax.jit(AutoencoderKL.moments)
    first = losses(params, {**batch, "target": moments(codec, images)})
    other = losses(params, {**batch, "target": moments(small(seed=1), images)})
    assert np.isfinite(first).all()
    assert not np.allclose(first, other)


@pytest.mark.parametrize(
    ("size", "channels", "words"), [(15, 3, "multiples of 2"), (16, 1, "--channels=3")]
)
def test_images_that_do_not_fit_are_refused(size, channels, words):
    codec = small()
    images = jnp.asarray(pictures(2, size, size, channels))
    for call in (
        lambda: codec.latent_shape(size, channels),
        lambda: codec.moments(images),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert words in one_line(error)
