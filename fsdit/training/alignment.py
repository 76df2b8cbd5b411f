"""Representation alignment: tokens of a block are drawn to features of the target image.

With the tokens h_n of a block, the projection W of `fsdit.models.projection` and tokens y_n of
the target image, the term of an example is the mean over its N tokens of

    -cos(W(h)_n, (y_n - mean(y)) / std(y))                                     (1)

where mean and standard deviation are over the N tokens, for each of their elements. That is REPA
(Yu et al., arXiv 2410.06940, equation 8) with the projection and the spatial normalization of
iREPA (Singh et al., arXiv 2512.10794). It stops before the end of the run, as HASTE advises
(arXiv 2505.16792).

The tokens y are those of the frozen encoder where the model has one, and otherwise the cells of
the gradients of the trained critic (`fsdit.evaluation.critics.gradients`), which need no network.
The projection is a part of the training state that no sampler uses.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fsdit.config import Config
from fsdit.errors import ConfigError
from fsdit.evaluation.critics.gradients import cell_width, gradient_cells
from fsdit.models.projection import project
from fsdit.models.spec import PROJECTION, ModelSpec

_EPSILON = 1e-6  # added to variances and to squared lengths


def with_projection(spec: ModelSpec, config: Config) -> ModelSpec:
    """The networks of training: those of `spec`, and the projection where alignment is on.

    Raises ConfigError where the encoder's tokens and the DiT's have different grids.
    """
    if not config.train.alignment:
        return spec
    if spec.features is None:
        return dataclasses.replace(spec, projection=cell_width(spec.channels))
    if spec.features.grid != spec.grid:
        ours, theirs = (" x ".join(map(str, g)) for g in (spec.grid, spec.features.grid))
        side, wanted = spec.latent_shape[0], spec.features.grid[0]
        patch = f"={side // wanted}" if side % wanted == 0 else " so that they are equal"
        raise ConfigError(
            f"config.train.alignment={config.train.alignment:g}: the DiT has {ours} tokens, the "
            f"frozen encoder {theirs}; choose config.model.patch_size{patch}, or 0"
        )
    return dataclasses.replace(spec, projection=spec.features.dim)


def without_projection(params: dict) -> dict:
    """The parameters that sampling uses."""
    return {name: leaf for name, leaf in params.items() if name != PROJECTION}


def alignment_term(
    spec: ModelSpec,
    config: Config,
    params: dict,
    tokens: Float[Array, "B N D"],
    batch: PyTree[Array],
    step: int | Array,
) -> Float[Array, "B"]:
    """Equation 1 for each example, and 0 from the step on at which alignment has stopped."""

    def term() -> Float[Array, "B"]:
        projected = project(params[PROJECTION], tokens, spec.grid)
        return _distance(projected, jax.lax.stop_gradient(_targets(spec, batch)))

    stop = math.ceil(config.train.alignment_stop * config.train.num_steps)
    if stop >= config.train.num_steps:
        return term()
    return jax.lax.cond(step < stop, term, lambda: jnp.zeros(tokens.shape[:1]))


def _targets(spec: ModelSpec, batch: PyTree[Array]) -> Float[Array, "B N E"]:
    """Normalized tokens of the target images."""
    if spec.features is None:
        found = gradient_cells(batch["target"], spec.grid)
    else:
        found = _as_the_target(spec, **batch["aligned"])
    centred = found - found.mean(1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(1, keepdims=True) + _EPSILON)


def _as_the_target(spec: ModelSpec, tokens: Array, mirrored: Array) -> Float[Array, "B N E"]:
    """The encoder's tokens of unmirrored images, with the grid mirrored where the target is."""
    b, n, e = tokens.shape
    grid = tokens.astype(jnp.float32).reshape(b, *spec.grid, e)
    return jnp.where(mirrored[:, None, None, None], grid[:, :, ::-1], grid).reshape(b, n, e)


def _distance(a: Float[Array, "B N E"], b: Float[Array, "B N E"]) -> Float[Array, "B"]:
    """The negative mean cosine."""

    def unit(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + _EPSILON)

    return -(unit(a) * unit(b)).sum(-1).mean(1)
