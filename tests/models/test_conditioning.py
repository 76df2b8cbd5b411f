import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.config import EncoderConfig, ModelConfig, SamplingConfig
from fsdit.flow import sampler
from fsdit.models.conditioning import Condition, between
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.sampling.images import compile_sampling

pytestmark = pytest.mark.medium

BATCH, SHOTS, SIZE = 4, 3, 12
MASK = jnp.array([True, False, True, False])


def spec(**settings) -> ModelSpec:
    encoder = EncoderConfig(patch_size=6, hidden_size=16, depth=1, num_heads=2)
    defaults = {"dtype": "float32", "num_latents": 3, "patch_size": 6, "depth": 1}
    config = ModelConfig(hidden_size=16, num_heads=2, encoder=encoder, **defaults | settings)
    return ModelSpec(config, SIZE, channels=1)


@functools.cache
def model(**settings):
    nets = spec(**settings)
    return nets.model(nets.init(0))


def supports(shots=SHOTS, seed=0):
    shape = (BATCH, shots, SIZE, SIZE, 1)
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, shape), jnp.uint8)


def assert_same(a: Condition, b: Condition, rows=slice(None)):
    np.testing.assert_array_equal(a.vector[rows], b.vector[rows])
    np.testing.assert_array_equal(a.context[rows], b.context[rows])
    assert (a.vector.dtype, a.context.dtype) == (b.vector.dtype, b.context.dtype)


def test_the_order_of_the_supports_does_not_matter():
    dit, images = model(), supports()
    straight, turned = dit.condition(images), dit.condition(images[:, jnp.array([2, 0, 1])])
    np.testing.assert_allclose(straight.vector, turned.vector, atol=1e-5)
    np.testing.assert_allclose(straight.context, turned.context, atol=1e-5)


def test_every_support_matters_to_vector_and_context():
    dit, images = model(), supports()
    before = dit.condition(images)
    for k in range(SHOTS):
        after = dit.condition(images.at[:, k].set(supports(seed=1)[:, k]))
        assert jnp.abs(after.vector - before.vector).max(axis=1).min() > 1e-3
        assert jnp.abs(after.context - before.context).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("shots", [1, 2, 7])
def test_any_number_of_supports_gives_a_condition_of_the_same_shape(shots):
    condition = model().condition(supports(shots))
    assert condition.vector.shape == (BATCH, 16)
    assert condition.context.shape == (BATCH, 3, 16)


@pytest.mark.parametrize("shots", [1, 2, 7])
def test_without_latents_the_context_is_every_token_of_every_support(shots):
    dit = model(num_latents=0)
    condition = dit.condition(supports(shots))
    assert condition.context.shape == (BATCH, shots * (SIZE // 6) ** 2, 16)
    dropped = dit.conditioner.apply_null(condition, MASK)
    null = dit.conditioner.apply_null(condition, jnp.ones(BATCH, bool))
    assert_same(dropped, null, rows=np.array([0, 2]))
    assert_same(dropped, condition, rows=np.array([1, 3]))
    assert (null.context == null.context[:1, :1]).all()


def test_an_example_does_not_see_the_supports_of_another():
    dit, images = model(), supports()
    changed = images.at[1].set(supports(seed=1)[1])
    before, after = dit.condition(images), dit.condition(changed)
    others = np.array([0, 2, 3])
    np.testing.assert_allclose(before.context[others], after.context[others], atol=1e-6)
    np.testing.assert_allclose(before.vector[others], after.vector[others], atol=1e-6)


@pytest.mark.parametrize(("dtype", "attending"), [("bfloat16", "patches"), ("float32", "none")])
def test_a_condition_between_two_lies_on_the_line_and_its_ends_are_the_two(dtype, attending):
    dit = model(dtype=dtype, cross_attention=attending)
    first, second = dit.condition(supports()), dit.condition(supports(7, seed=1))
    weight = np.array([0, 1, 0.25, 0.5], np.float32)
    found = between(first, second, jnp.asarray(weight))
    for name in ("vector", "context") if attending == "patches" else ("vector",):
        a, b, c = (np.asarray(getattr(x, name), np.float32) for x in (first, second, found))
        np.testing.assert_array_equal(c[0], a[0])
        np.testing.assert_array_equal(c[1], b[1])
        np.testing.assert_allclose(c[2], a[2] + (b[2] - a[2]) / 4, rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(c[3], (a[3] + b[3]) / 2, rtol=1e-2, atol=1e-2)
        assert getattr(found, name).dtype == getattr(first, name).dtype
    assert (found.context is None) == (attending == "none")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropped_rows_are_bitwise_the_null_of_guidance_and_the_others_untouched(dtype):
    dit = model(dtype=dtype)
    condition = dit.condition(supports())
    null = dit.conditioner.apply_null(condition, jnp.ones(BATCH, bool))
    dropped = dit.conditioner.apply_null(condition, MASK)
    assert_same(dropped, null, rows=np.array([0, 2]))
    assert_same(dropped, condition, rows=np.array([1, 3]))
    assert_same(dit.conditioner.apply_null(condition, jnp.zeros(BATCH, bool)), condition)


def test_the_null_replaces_vector_and_context_together():
    dit = model()
    condition = dit.condition(supports())
    dropped = dit.conditioner.apply_null(condition, MASK)
    vector_changed = (dropped.vector != condition.vector).any(1)
    context_changed = (dropped.context != condition.context).any((1, 2))
    assert vector_changed.tolist() == context_changed.tolist() == MASK.tolist()


def test_the_null_is_the_same_for_all_supports_and_is_learned():
    nets = spec()
    params = nets.init(0)

    def null(params, seed):
        dit = nets.model(params)
        return dit.conditioner.apply_null(dit.condition(supports(seed=seed)), jnp.ones(BATCH, bool))

    assert_same(null(params, 0), null(params, 1))

    @jax.jit
    @jax.grad
    def gradient_of_sum(params):
        both = null(params, 0)
        return both.vector.sum() + both.context.sum()

    gradient = gradient_of_sum(params)
    assert (gradient["conditioner"]["null"] == BATCH).all()
    del gradient["conditioner"]["null"]
    assert not any(jnp.any(g) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("settings", [{"use_support_tokens": False}, {"cross_attention": "none"}])
def test_without_support_tokens_there_is_no_context(settings):
    dit = model(**settings)
    condition = dit.condition(supports())
    dropped = dit.conditioner.apply_null(condition, MASK)
    assert condition.context is None and dropped.context is None
    assert condition.vector.shape == (BATCH, 16)
    assert (dropped.vector != condition.vector).any(1).tolist() == MASK.tolist()


def test_sampling_guides_with_the_null_of_training(monkeypatch):
    nets = spec()
    params = nets.init(0)
    seen = {}

    def spy(velocity, condition, null, *_):
        jax.debug.callback(lambda c, n: seen.update(condition=c, null=n), condition, null)
        return lambda x, t: jnp.zeros_like(x)

    monkeypatch.setattr(sampler, "guided_field", spy)
    mesh = sharding.local_mesh(jax.devices()[:1])
    draw = compile_sampling(nets, SamplingConfig(num_steps=1), mesh)
    index = jnp.arange(BATCH, dtype=jnp.uint32)
    jax.block_until_ready(draw(params, nets.codec, supports(), index, np.uint32(0)))
    jax.effects_barrier()
    trained = nets.model(params).conditioner.apply_null(seen["condition"], MASK)
    for row in (0, 2):
        assert_same(trained.replace(**_row(trained, row)), seen["null"])
    assert_same(trained, seen["condition"], rows=np.array([1, 3]))


def _row(condition, row):
    return {"vector": condition.vector[row, None], "context": condition.context[row, None]}
