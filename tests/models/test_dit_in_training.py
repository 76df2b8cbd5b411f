"""The forward pass of training: tokens of a block, and patches that skip blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.config import EncoderConfig, ModelConfig
from fsdit.models.dit import Route
from fsdit.models.spec import ModelSpec
from tests.models.variants import ALL

pytestmark = pytest.mark.medium

BATCH, SIZE = 3, 12


def spec(cross_attention, depth=2, scan_layers=True, **settings) -> ModelSpec:
    config = ModelConfig(
        hidden_size=16,
        depth=depth,
        num_heads=2,
        patch_size=6,
        cross_attention=cross_attention,
        num_latents=3,
        encoder=EncoderConfig(patch_size=6, hidden_size=16, depth=1, num_heads=2),
        dtype="float32",
        scan_layers=scan_layers,
        **settings,
    )
    return ModelSpec(config, SIZE, channels=1)


def params_of(nets):
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(random.normal(0, 0.2, s.shape), s.dtype), nets.abstract_params()
    )


def inputs():
    random = np.random.default_rng(0)
    supports = jnp.asarray(random.integers(0, 256, (BATCH, 2, SIZE, SIZE, 1)), jnp.uint8)
    x = jnp.asarray(random.normal(size=(BATCH, SIZE, SIZE, 1)), jnp.float32)
    return x, jnp.linspace(0.1, 0.9, BATCH), supports


@functools.partial(jax.jit, static_argnames="nets")
def velocity(nets, params, x, t, supports):
    model = nets.model(params)
    return model.velocity(x, t, model.condition(supports))[0]


@functools.partial(jax.jit, static_argnames=("nets", "layer", "span"))
def in_training(nets, params, x, t, supports, layer=0, kept=None, span=None):
    model = nets.model(params)
    route = None if span is None else Route(kept, *span)
    return model.velocity_in_training(x, t, model.condition(supports), layer, route)


# "cls" has a token that is no patch.
FORMS = ["cls", pytest.param("patches", marks=pytest.mark.large)]


@pytest.mark.large
@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_tokens_after_a_block_are_the_last_ones_of_a_shallower_model(form, scan):
    nets = spec(form, scan_layers=scan)
    params = params_of(nets)
    first = {**params, "blocks": jax.tree.map(lambda a: a[:1], params["blocks"])}
    expected = velocity(nets, params, *inputs())
    found, tokens = in_training(nets, params, *inputs(), layer=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    shallow = spec(form, depth=1)
    expected = in_training(shallow, first, *inputs(), layer=1)[1]
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    assert tokens.shape == (BATCH, 4, 16)


KEPT = jnp.array([[2, 0], [1, 3], [3, 2]])  # of four patches, for each example
SKIPPED = np.array([[1, 3], [0, 2], [0, 1]])
ROWS = np.arange(BATCH)[:, None]


@pytest.mark.parametrize("form", FORMS)
def test_patches_that_skip_blocks_are_in_their_places_after_them(form):
    nets = spec(form)
    params = params_of(nets)
    before = in_training(nets, params, *inputs(), 1, KEPT, (1, 2))[1]
    after = in_training(nets, params, *inputs(), 2, KEPT, (1, 2))[1]
    np.testing.assert_array_equal(after[ROWS, SKIPPED], before[ROWS, SKIPPED])
    assert np.all(np.abs(after[ROWS, KEPT] - before[ROWS, KEPT]).max(-1) > 1e-3)


@pytest.mark.large
@pytest.mark.parametrize("form", FORMS)
def test_patches_that_pass_do_not_see_those_that_skip(form):
    nets = spec(form)
    params = params_of(nets)
    x, t, supports = inputs()
    patches = x.reshape(BATCH, 2, 6, 2, 6).swapaxes(2, 3).reshape(BATCH, 4, 6, 6)
    other = patches.at[ROWS, SKIPPED].add(1.0).reshape(BATCH, 2, 2, 6, 6).swapaxes(2, 3)
    runs = [
        in_training(nets, params, x, t, supports, 1, KEPT, (0, 1))[1]
        for x in (x, other.reshape(x.shape))
    ]
    np.testing.assert_array_equal(runs[0][ROWS, KEPT], runs[1][ROWS, KEPT])
    assert np.abs(runs[0] - runs[1])[ROWS, SKIPPED].max() > 0.1


@pytest.mark.parametrize("blocks", [{}, ALL], ids=["DiT", "all variants"])
@pytest.mark.parametrize("form", FORMS)
def test_blocks_that_all_patches_pass_in_another_order_are_the_same(form, blocks):
    nets = spec(form, **blocks)
    params = params_of(nets)
    kept = jnp.array([[2, 0, 1, 3], [1, 3, 2, 0], [3, 2, 1, 0]])
    found, tokens = in_training(nets, params, *inputs(), 0, kept, (0, 1))
    assert tokens is None
    expected = velocity(nets, params, *inputs())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
