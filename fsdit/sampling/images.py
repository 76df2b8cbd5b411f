"""Samples new images from supports: the one way from a condition to pixels."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, UInt8, UInt32

from fsdit.config import SamplingConfig
from fsdit.flow import path, sampler
from fsdit.models.codec import LatentCodec
from fsdit.models.dit import FewShotDiT, Supports
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.randomness import example_keys, stream_key

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
    if guide is None:
        null = model.conditioner.apply_null(condition, jnp.ones(index.shape, bool))
        field = sampler.guided_field(_velocity(model), condition, null, config, model.prepare)
    else:
        weaker = guide.model(guide_params)
        field = sampler.autoguided_field(
            sampler.plain_field(_velocity(model), condition, model.prepare),
            sampler.plain_field(_velocity(weaker), weaker.condition(supports), weaker.prepare),
            config,
        )
    noise = path.sample_noise(example_keys(stream_key(seed, "drawing"), index), spec.latent_shape)
    step_keys = example_keys(stream_key(seed, "sde"), index)
    return codec.decode(sampler.solve(field, noise, config, step_keys))


def _velocity(model: FewShotDiT) -> sampler.Velocity:
    return lambda x, t, condition: model.velocity(x, t, condition)[0]
