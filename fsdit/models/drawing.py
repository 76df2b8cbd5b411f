"""Drawing new images from supports: the one way from a condition to pixels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, UInt8, UInt32

from fsdit.config import SamplingConfig
from fsdit.flow import path, sampler
from fsdit.models.codec import LatentCodec
from fsdit.models.dit import Supports
from fsdit.models.networks import Networks
from fsdit.parallel import mesh as meshes
from fsdit.randomness import example_keys, stream_key

# (params, codec, supports, index (B,) uint32) -> images (B, H, W, C) uint8
Draw = Callable[[dict, LatentCodec, Supports, UInt32[Array, "B"]], UInt8[Array, "B H W C"]]


def make_draw(networks: Networks, config: SamplingConfig, seed: int, mesh: Mesh) -> Draw:
    """A jitted function that draws one image an episode.

    codec: the networks' own, with its parameters on the mesh. The noise follows (seed,
    index), so a drawing does not depend on its batch.
    """

    def draw(params: dict, codec: LatentCodec, supports: Supports, index: Array) -> Array:
        return draw_images(networks, config, seed, params, codec, supports, index)

    return jax.jit(draw, out_shardings=meshes.batch_sharding(mesh))


def draw_images(
    networks: Networks,
    config: SamplingConfig,
    seed: int | UInt32[Array, ""],
    params: dict,
    codec: LatentCodec,
    supports: Supports,
    index: UInt32[Array, "B"],
) -> UInt8[Array, "B H W C"]:
    """What `make_draw` compiles; here the seed may be an argument of the compiled program."""
    model = networks.model(params)
    condition = model.condition(supports)
    null = model.conditioner.apply_null(condition, jnp.ones(index.shape, bool))
    field = sampler.guided_field(
        lambda x, t, c: model.velocity(x, t, c)[0], condition, null, config
    )
    start, steps = (example_keys(stream_key(seed, s), index) for s in ("drawing", "sde"))
    noise = path.sample_noise(start, networks.latent_shape)
    return codec.decode(sampler.solve(field, noise, config, steps))
