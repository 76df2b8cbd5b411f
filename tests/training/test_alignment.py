"""Representation alignment: its targets, its term and gradient, and where it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fsdit.errors import ConfigError
from fsdit.evaluation.critics.gradients import GRID, cell_width, gradient_cells, gradient_features
from fsdit.models import projection
from fsdit.models.encoder import FeatureShape
from fsdit.models.spec import PROJECTION, ModelSpec
from fsdit.training.alignment import alignment_term, with_projection, without_projection
from tests.training.objectives import SIZE, config_with, random_images

pytestmark = pytest.mark.medium

ON = {"alignment": 0.5, "num_steps": 10, "alignment_stop": 0.25}  # the last step with it is step 2


@pytest.mark.parametrize("channels", [1, 3])
def test_cells_on_the_critics_grid_are_the_critics_features(channels):
    images = random_images(2, 30, 30, channels)
    found = jax.jit(lambda x: gradient_cells(x, (GRID, GRID)))(images)
    assert found.shape == (2, GRID * GRID, cell_width(channels))
    bins, colours = np.split(np.asarray(found), [12], axis=-1)
    joined = [x.reshape(2, -1) for x in (bins, colours)]
    np.testing.assert_allclose(np.concatenate(joined, 1), gradient_features(images), atol=1e-4)


def reference(kernel, bias, tokens, targets, grid):
    """Equation 1 in NumPy, with a loop over the convolution's window."""
    b, n, d = tokens.shape
    padded = np.pad(tokens.reshape(b, *grid, d), ((0, 0), (1, 1), (1, 1), (0, 0)))
    projected = bias + sum(
        padded[:, i : i + grid[0], j : j + grid[1]] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    ).reshape(b, n, -1)
    targets = (targets - targets.mean(1, keepdims=True)) / targets.std(1, keepdims=True)
    cosine = (projected * targets).sum(-1)
    lengths = np.linalg.norm(projected, axis=-1) * np.linalg.norm(targets, axis=-1)
    return -(cosine / lengths).mean(1)


def frozen_case():
    """(spec, config, parameters, tokens, batch) with a frozen encoder of 4 x 4 tokens."""
    config = config_with(**ON)
    spec = ModelSpec(config.model, SIZE, 1, features=FeatureShape(5, (4, 4)))
    spec = with_projection(spec, config)
    random = np.random.default_rng(1)
    params = {PROJECTION: projection.init(jax.random.key(0), 32, 5)}
    tokens = jnp.asarray(random.normal(size=(2, 16, 32)), jnp.float32)
    targets = jnp.asarray(random.normal(size=(2, 16, 5)), jnp.float32)
    batch = {"aligned": {"tokens": targets, "mirrored": jnp.array([False, True])}}
    return spec, config, params, tokens, batch


def test_the_term_is_the_mean_cosine_to_normalized_tokens_of_the_target():
    spec, config, params, tokens, batch = frozen_case()
    kernel, bias = (np.asarray(params[PROJECTION][name]) for name in ("kernel", "bias"))
    targets = np.array(batch["aligned"]["tokens"])
    targets[1] = targets[1].reshape(4, 4, 5)[:, ::-1].reshape(16, 5)  # its image is mirrored
    expected = reference(kernel, bias, np.asarray(tokens), targets, (4, 4))

    term = jax.jit(lambda step: alignment_term(spec, config, params, tokens, batch, step))
    np.testing.assert_allclose(term(2), expected, rtol=1e-4)
    assert not term(3).any() and not term(9).any()


def test_its_gradient_is_that_of_finite_differences():
    spec, config, params, tokens, batch = frozen_case()

    @jax.jit
    def term(params, tokens):
        return alignment_term(spec, config, params, tokens, batch, 0).mean()

    check_grads(term, (params, tokens), order=1, modes=["rev"], eps=1e-3, atol=2e-3, rtol=1e-2)


def test_a_learned_encoder_aligns_with_gradients_of_the_target():
    config = config_with(alignment=0.5)
    spec = with_projection(ModelSpec(config.model, SIZE, 1), config)
    assert spec.projection == cell_width(1) == 12
    images = random_images(2, SIZE, SIZE, 1)
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 32)), jnp.float32)
    params = {PROJECTION: projection.init(jax.random.key(0), 32, 12)}
    term = jax.jit(lambda batch: alignment_term(spec, config, params, tokens, batch, 0))
    kernel, bias = (np.asarray(params[PROJECTION][name]) for name in ("kernel", "bias"))
    cells = np.asarray(gradient_cells(jnp.asarray(images), (4, 4)), np.float64)
    expected = reference(kernel, bias, np.asarray(tokens), cells, (4, 4))
    np.testing.assert_allclose(term({"target": images}), expected, rtol=1e-3)


def test_the_projection_is_there_for_training_only():
    config = config_with(alignment=0.5)
    plain = ModelSpec(config.model, SIZE, 1)
    spec = with_projection(plain, config)
    shapes = spec.abstract_params()
    assert shapes[PROJECTION]["kernel"].shape == (3, 3, 32, 12)
    assert without_projection(shapes) == plain.abstract_params()
    assert with_projection(plain, config_with()) is plain


def test_grids_that_differ_are_refused():
    config = config_with(alignment=0.5)
    spec = ModelSpec(config.model, SIZE, 1, features=FeatureShape(5, (3, 3)))
    with pytest.raises(ConfigError, match=r"the DiT has 4 x 4 tokens, the frozen encoder 3 x 3"):
        with_projection(spec, config)
    fitting = ModelSpec(config.model, SIZE, 1, features=FeatureShape(5, (2, 2)))
    with pytest.raises(ConfigError, match=rf"choose config.model.patch_size={SIZE // 2}, or 0"):
        with_projection(fitting, config)


@pytest.mark.parametrize(("given", "depth", "blocks"), [(0, 12, 4), (0, 2, 1), (2, 2, 2)])
def test_the_layer_is_a_third_of_the_depth_or_the_given_one(given, depth, blocks):
    config = config_with(alignment=0.5, alignment_layer=given)
    assert config.train.aligned_layer(depth) == blocks
