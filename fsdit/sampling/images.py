"""Samples new images from supports: the one way from a condition to pixels."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, PyTree, UInt8, UInt32

from fsdit.config import SamplingConfig
from fsdit.flow import path, sampler
from fsdit.models import conditioning
from fsdit.models.codec import LatentCodec
from fsdit.models.conditioning import Condition
from fsdit.models.dit import FewShotDiT, Supports
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.randomness import example_keys, stream_key

WHOLE, ROWS = PartitionSpec(), sharding.BATCH  # of an argument, on each device

_MEAN_SAMPLES = 16  # of noise, for the mean velocity of `sampler.mean_velocity`

# (params, codec, supports, index (B,) uint32, seed () uint32[, guide_params])
# -> images (B, H, W, C) uint8
SampleImages = Callable[..., UInt8[Array, "B H W C"]]
# (supports of one episode, weight (B,) in [0, 1])
Towards = tuple[Supports, Array]


def compile_sampling(
    spec: ModelSpec,
    config: SamplingConfig,
    mesh: Mesh,
    guide: ModelSpec | None = None,
    each: int = 1,
) -> SampleImages:
    """`sample_images` of these networks and settings, compiled for a mesh.

    The function's codec is that of `spec`, with its parameters on the mesh. each: how many images
    it makes of every episode; those of the episode with index i have the indices i * each,
    i * each + 1 and so on. Episodes are split over the devices (`by_rows`).
    """

    def local(
        params: dict,
        codec: LatentCodec,
        supports: Supports,
        index: Array,
        seed: Array,
        guide_params: dict | None,
    ) -> Array:
        rows = (index[:, None] * each + jnp.arange(each, dtype=index.dtype)).reshape(-1)
        given = params, codec, supports, rows, seed, guide_params
        return sample_images(spec, guide, config, *given)

    split = by_rows(local, mesh, (WHOLE, WHOLE, ROWS, ROWS, WHOLE, WHOLE))

    def sample(params, codec, supports, index, seed, guide_params=None):
        return split(params, codec, supports, index, seed, guide_params)

    return jax.jit(sample)


def by_rows(
    sample: Callable[..., Array], mesh: Mesh, inputs: tuple[PyTree[PartitionSpec], ...]
) -> Callable[..., Array]:
    """Splits a sampling over the devices of a mesh, each of which samples its own rows.

    inputs: for each argument, whether a device has its rows of it (ROWS) or all of it (WHOLE);
    parameters that are split are gathered once. (XLA's partitioner, if left to itself, exchanges
    activations in every layer of every step instead.)
    """
    return jax.shard_map(sample, mesh=mesh, in_specs=inputs, out_specs=ROWS, check_vma=False)


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
    towards: Towards | None = None,
) -> UInt8[Array, "B H W C"]:
    """B images, guided away from the null, or from what a guide draws.

    supports: those of E episodes, which divides B; the images of an episode follow each other,
    and its supports are encoded once. guide: the model that guides, with parameters
    `guide_params`; None: the null does. The noise of a row depends on (seed, index) alone, not on
    its batch or its place in it. towards: other supports, and how far the condition of each row
    lies on the way to theirs, for E = 1; None: not at all.
    """
    model, rows = spec.model(params), len(index)
    if guide is None:
        null = model.conditioner.null_condition()
        prepare = functools.partial(model.prepare, rows=rows)
        mean = _mean_velocity(model, null, spec.latent_shape) if config.contrastive else None
        condition = _condition(model, supports, towards)
        field = sampler.guided_field(_velocity(model), condition, null, config, prepare, mean)
    else:
        weaker = guide.model(guide_params)
        own, other = (_plain_field(each, supports, towards, rows) for each in (model, weaker))
        field = sampler.autoguided_field(own, other, config)
    noise = path.sample_noise(example_keys(stream_key(seed, "drawing"), index), spec.latent_shape)
    step_keys = example_keys(stream_key(seed, "sde"), index)
    return codec.decode(sampler.solve(field, noise, config, step_keys))


def _condition(model: FewShotDiT, supports: Supports, towards: Towards | None) -> Condition:
    condition = model.condition(supports)
    if towards is None:
        return condition
    others, weight = towards
    return conditioning.between(condition, model.condition(others), weight)


def _velocity(model: FewShotDiT) -> sampler.Velocity:
    return lambda x, t, condition: model.velocity(x, t, condition)[0]


def _plain_field(
    model: FewShotDiT, supports: Supports, towards: Towards | None, rows: int
) -> sampler.Field:
    prepare = functools.partial(model.prepare, rows=rows)
    return sampler.plain_field(_velocity(model), _condition(model, supports, towards), prepare)


def _mean_velocity(
    model: FewShotDiT, null: Condition, shape: tuple[int, int, int]
) -> Float[Array, "h w c"]:
    """`sampler.mean_velocity` of fixed noise: a property of the weights, the same in any batch."""
    keys = example_keys(stream_key(0, "mean velocity"), jnp.arange(_MEAN_SAMPLES, dtype=jnp.uint32))
    prepared = model.prepare(null, rows=2 * _MEAN_SAMPLES)
    return sampler.mean_velocity(_velocity(model), prepared, path.sample_noise(keys, shape))
