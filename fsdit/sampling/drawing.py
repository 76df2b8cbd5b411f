"""Drawing new images from supports: the one way from a condition to pixels."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, UInt8, UInt32

from fsdit.config import SamplingConfig
from fsdit.flow import path, sampler
from fsdit.models.codec import LatentCodec
from fsdit.models.dit import Supports
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.randomness import example_keys, stream_key

# (params, codec, supports, index (B,) uint32, seed () uint32) -> images (B, H, W, C) uint8
Draw = Callable[..., UInt8[Array, "B H W C"]]


def make_draw(spec: ModelSpec, config: SamplingConfig, mesh: Mesh) -> Draw:
    """`draw_images`, compiled, its first two arguments given.

    codec: the networks' own, with its parameters on the mesh.
    """
    draw = functools.partial(draw_images, spec, config)
    return jax.jit(draw, out_shardings=sharding.batch_sharding(mesh))


def draw_images(
    spec: ModelSpec,
    config: SamplingConfig,
    params: dict,
    codec: LatentCodec,
    supports: Supports,
    index: UInt32[Array, "B"],
    seed: UInt32[Array, ""],
) -> UInt8[Array, "B H W C"]:
    """One image an episode. The noise follows (seed, index), so its batch does not matter."""
    model = spec.model(params)
    condition = model.condition(supports)
    null = model.conditioner.apply_null(condition, jnp.ones(index.shape, bool))
    field = sampler.guided_field(
        lambda x, t, c: model.velocity(x, t, c)[0], condition, null, config
    )
    start, steps = (example_keys(stream_key(seed, s), index) for s in ("drawing", "sde"))
    noise = path.sample_noise(start, spec.latent_shape)
    return codec.decode(sampler.solve(field, noise, config, steps))
