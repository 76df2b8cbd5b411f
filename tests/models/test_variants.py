"""The whole model with variants of its blocks: forms that must agree, and sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.config import ModelConfig, dit
from fsdit.models.encoder import FeatureShape
from fsdit.models.layers import swiglu_width
from fsdit.models.spec import ModelSpec
from tests.models.variants import ALL, each_variant

pytestmark = pytest.mark.medium

BATCH, DEPTH, HEADS, SIZE = 2, 2, 2, 8
FEATURES = FeatureShape(6, (2, 2))


def spec(**settings) -> ModelSpec:
    small = {"hidden_size": 16, "num_heads": HEADS, "depth": DEPTH, "dtype": "float32"}
    config = ModelConfig(**small | {"num_latents": 0, "patch_size": 2} | settings)
    return ModelSpec(config, SIZE, channels=1, features=FEATURES)


def perturbed(params):
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return tree.unflatten([p + 0.2 * rng.normal(size=p.shape).astype(np.float32) for p in leaves])


def inputs():
    rng = np.random.default_rng(1)
    shapes = (BATCH, SIZE, SIZE, 1), (BATCH, 3, 6), (BATCH, 3, 4, 6)
    x, pooled, tokens = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    return x, jnp.linspace(0.2, 0.8, BATCH), {"pooled": pooled, "tokens": tokens}


@functools.partial(jax.jit, static_argnames=("nets", "prepared"))
def velocity(nets, params, prepared=False):
    x, t, supports = inputs()
    model = nets.model(params)
    condition = model.condition(supports)
    condition = model.prepare(condition, rows=BATCH) if prepared else condition
    assert isinstance(condition.context, tuple) == prepared
    return model.velocity(x, t, condition, diagnose=not prepared)


CASES = [
    *each_variant(),
    pytest.param(ALL, id="all", marks=pytest.mark.large),
    pytest.param(ALL | {"cross_attention": "cls"}, id="all, cls"),
]


@pytest.mark.parametrize("settings", CASES)
def test_scanned_unrolled_and_prepared_forms_agree(settings):
    params = perturbed(spec(**settings).init(0))
    expected, stats = velocity(spec(**settings), params)
    assert np.abs(expected).max() > 0.1
    unrolled, their_stats = velocity(spec(**settings, scan_layers=False, remat="dots"), params)
    np.testing.assert_allclose(unrolled, expected, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), stats, their_stats)
    assert stats["modulation_norm"].shape == (DEPTH,) and (stats["modulation_norm"] > 0).all()
    for name, tokens in (("self", 17), ("cross", 12)):
        entropy = stats[f"{name}_attention_entropy"]
        assert entropy.shape == (DEPTH, HEADS)
        assert (entropy > 0).all() and (entropy <= np.log(tokens) + 1e-5).all()
    np.testing.assert_allclose(velocity(spec(**settings), params, True)[0], expected, atol=1e-4)


def test_the_offsets_of_layers_are_what_differs_between_them():
    """With one modulation, moving the offset of a layer by that of another moves that layer."""
    nets = spec(**ALL)
    params = perturbed(nets.init(0))
    offset = params["blocks"]["modulation"]["offset"]
    assert offset.shape == (DEPTH, 9 * 16) and params["modulation"]["kernel"].shape == (16, 9 * 16)
    norms = velocity(nets, params)[1]["modulation_norm"]
    params["blocks"]["modulation"]["offset"] = jnp.stack([offset[1], offset[1]])
    moved = velocity(nets, params)[1]["modulation_norm"]
    assert moved[0] != norms[0]
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-6)
    np.testing.assert_allclose(moved[1], norms[1], rtol=1e-6)


def size(params) -> int:
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


def abstract(size, **settings):
    return ModelSpec(dit(size, **settings), 32, 4, features=FEATURES).abstract_params()


def test_swiglu_has_as_many_parameters_and_a_single_modulation_one_matrix():
    plain, swiglu, single = (
        abstract("B", **s) for s in ({}, {"mlp": "swiglu"}, {"modulation": "single"})
    )
    # D x 2,048 three times, in place of D x 3,072 twice; biases make the difference.
    assert swiglu["blocks"]["mlp"]["gate"]["kernel"].shape == (12, 768, 2048)
    difference = size(swiglu["blocks"]["mlp"]) - size(plain["blocks"]["mlp"])
    assert difference == 12 * (2 * 2048 - 3072)
    matrix = 768 * 9 * 768
    assert size(plain) - size(single) == 11 * matrix - 9 * 768  # and 12 offsets for 12 biases


@pytest.mark.parametrize("width", [12, 64, 640, 1024, 4096, 4608])
def test_the_width_of_swiglu_is_two_thirds_in_eights(width):
    assert swiglu_width(width) % 8 == 0
    assert abs(swiglu_width(width) - 2 * width / 3) <= 4
