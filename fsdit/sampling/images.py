"""Samples new images from supports: the one way from a condition to pixels."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8, UInt32

from fsdit.config import SamplingConfig
from fsdit.flow import path, sampler
from fsdit.models.codec import LatentCodec
from fsdit.models.conditioning import Condition
from fsdit.models.dit import FewShotDiT, Supports
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.randomness import example_keys, stream_key

_MEAN_SAMPLES = 16  # of noise, for the mean velocity of `sampler.mean_velocity`

# (params, codec, supports, index (B,) uint32, seed () uint32[, guide_params])
# -> images (B, H, W, C) uint8
SampleImages = Callable[..., UInt8[Array, "B H W C"]]


def compile_sampling(
    spec: ModelSpec, config: SamplingConfig, mesh: Mesh, guide: ModelSpec | None = None
) -> SampleImages:
    """`sample_images` of these networks and settings, compiled for a mesh.

    The function's codec is that of `spec`, with its parameters on the mesh.
    """
    sample = functools.partial(sample_images, spec, guide, config)
    return jax.jit(sample, out_shardings=sharding.batch_sharding(mesh))


def sample_images(
    spec: ModelSpec,
    guide: ModelSpec | None,
    config: SamplingConfig,
    params: dict,
    codec: LatentCodec,
    supports: Supports,
    index: UInt32[Array, "B"],
    seed: UInt32[Array, ""],
    guide_params: dict | None = None,
) -> UInt8[Array, "B H W C"]:
    """One image for each of B episodes, guided away from the null, or from what a guide draws.

    guide: the model that guides, with parameters `guide_params`; None: the null does. The noise
    of a row depends on (seed, index) alone, not on its batch or its place in it.
    """
    model = spec.model(params)
    condition = model.condition(supports)
    velocity = _velocity(model)
    if guide is None:
        null = model.conditioner.apply_null(condition, jnp.ones(index.shape, bool))
        mean = _mean_velocity(velocity, null, spec.latent_shape) if config.contrastive else None
        field = sampler.guided_field(velocity, condition, null, config, model.prepare, mean)
    else:
        weaker = guide.model(guide_params)
        field = sampler.autoguided_field(
            sampler.plain_field(velocity, condition, model.prepare),
            sampler.plain_field(_velocity(weaker), weaker.condition(supports), weaker.prepare),
            config,
        )
    noise = path.sample_noise(example_keys(stream_key(seed, "drawing"), index), spec.latent_shape)
    step_keys = example_keys(stream_key(seed, "sde"), index)
    return codec.decode(sampler.solve(field, noise, config, step_keys))


def _velocity(model: FewShotDiT) -> sampler.Velocity:
    return lambda x, t, condition: model.velocity(x, t, condition)[0]


def _mean_velocity(
    velocity: sampler.Velocity, null: Condition, shape: tuple[int, int, int]
) -> Float[Array, "h w c"]:
    """`sampler.mean_velocity` of fixed noise: a property of the weights, the same in any batch."""
    keys = example_keys(stream_key(0, "mean velocity"), jnp.arange(_MEAN_SAMPLES, dtype=jnp.uint32))
    rows = jax.tree.map(lambda a: jnp.repeat(a[:1], 2 * _MEAN_SAMPLES, axis=0), null)
    return sampler.mean_velocity(velocity, rows, path.sample_noise(keys, shape))
