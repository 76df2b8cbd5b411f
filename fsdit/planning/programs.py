"""The programs that a run compiles, lowered for devices that need not exist."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from fsdit.config import Config
from fsdit.data.layout import DatasetInfo
from fsdit.data.records import num_supports
from fsdit.errors import ConfigError
from fsdit.features.batches import compile_moments
from fsdit.features.frozen import Frozen
from fsdit.features.online import compile_encoder, encoded_rows
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.planning.published import abstract_networks
from fsdit.planning.target import Target
from fsdit.sampling.images import compile_sampling
from fsdit.training import flops, optimizer
from fsdit.training import state as train_state
from fsdit.training.alignment import with_projection
from fsdit.training.step import compile_train_step

STEPS = ("train", "encode", "sample")
_STORED = jnp.bfloat16  # assumed type of stored features and latents without their dataset

Lowered = jax.stages.Lowered


class Program(NamedTuple):
    """A lowered program of a step. images: number of images that one run of it works on.

    model_flops: of one chip, without what is computed again; None where nothing is.
    """

    name: str
    images: int
    mesh: Mesh
    lowered: Lowered
    model_flops: float | None = None


def lower(step: str, config: Config, info: DatasetInfo, target: Target) -> Iterator[Program]:
    """Lowers the programs of a step.

    train   the train step
    encode  the frozen networks: the encoder on one process's devices, the codec on the mesh
    sample  a batch of guided samples

    Raises ConfigError or DataError.
    """
    spec, frozen = abstract_networks(config, info)
    mesh = sharding.make_mesh(config, target.devices)
    if step == "train":
        spec.check_training(num_supports(config.data.shots))
        yield _train(with_projection(spec, config), frozen, config, info, mesh)
    elif step == "sample":
        rows = sharding.round_up(config.evaluation.batch_size, mesh.size)
        lowered = _sample(spec, frozen, config, info, mesh, rows)
        yield Program("sample", rows, mesh, lowered)
    else:
        yield from _encode(spec, frozen, config, mesh, sharding.local_mesh(target.one_process))


def _train(
    spec: ModelSpec, frozen: Frozen, config: Config, info: DatasetInfo, mesh: Mesh
) -> Program:
    tx = optimizer.transformation(config.optimizer)
    template = train_state.abstract(spec, tx, mesh, len(config.train.all_decays))
    batch = _placed(abstract_batch(spec, frozen, config, info), sharding.batch_sharding(mesh))
    lowered = compile_train_step(spec, config, tx, mesh, template).lower(template, batch)
    needed = flops.of_step(spec, config, spec.abstract_params(), batch)
    return Program("train", config.data.batch_size, mesh, lowered, needed / mesh.size)


def _sample(
    spec: ModelSpec, frozen: Frozen, config: Config, info: DatasetInfo, mesh: Mesh, rows: int
) -> Lowered:
    params = spec.abstract_params()
    params = jax.tree.map(_with_sharding, params, sharding.state_shardings(mesh, params))
    by_row = sharding.batch_sharding(mesh)
    arguments = (
        params,
        _placed(frozen.codec, sharding.replicated(mesh)),
        _placed(_supports(spec, frozen, config, info, rows), by_row),
        jax.ShapeDtypeStruct((rows,), jnp.uint32, sharding=by_row),
        jax.ShapeDtypeStruct((), jnp.uint32),
    )
    return compile_sampling(spec, config.sampling, mesh).lower(*arguments)


def _encode(
    spec: ModelSpec, frozen: Frozen, config: Config, mesh: Mesh, local: Mesh
) -> Iterator[Program]:
    image = (spec.image_size, spec.image_size, spec.channels)
    if frozen.encoder is None and not jax.tree.leaves(frozen.codec):
        raise ConfigError(
            "--steps=encode: this configuration has no frozen network "
            "(config.model.encoder.name=learned, config.model.codec.name=pixels)"
        )
    if frozen.encoder is not None:
        rows = encoded_rows(config, local)
        params = _placed(frozen.encoder_params, sharding.replicated(local))
        images = _images((rows, 1, *image), local)
        lowered = compile_encoder(frozen.encoder, local).lower(params, images)
        yield Program("encode supports", rows, local, lowered)
    if jax.tree.leaves(frozen.codec):
        rows = config.data.batch_size
        codec = _placed(frozen.codec, sharding.replicated(mesh))
        lowered = compile_moments(mesh).lower(codec, _images((rows, *image), mesh))
        yield Program("encode targets", rows, mesh, lowered)


def abstract_batch(
    spec: ModelSpec, frozen: Frozen, config: Config, info: DatasetInfo
) -> Mapping[str, Any]:
    """Shapes and types of a global batch of the train step."""
    rows, shape = config.data.batch_size, jax.ShapeDtypeStruct
    images = shape((rows, spec.image_size, spec.image_size, spec.channels), jnp.uint8)
    target: Any = jax.eval_shape(lambda codec, x: codec.moments(x), frozen.codec, images)
    if config.features.targets == "precomputed":
        target = jax.tree.map(lambda leaf: shape(leaf.shape, _stored(info.latents)), target)
    supports = _supports(spec, frozen, config, info, rows)
    batch = {
        "index": shape((rows,), jnp.uint32),
        "class_id": shape((rows,), jnp.int32),
        "target": target,
        "supports": supports,
    }
    if config.train.alignment and frozen.encoder is not None:
        tokens = supports["tokens"]
        aligned = shape((rows, *tokens.shape[2:]), tokens.dtype)
        batch["aligned"] = {"mirrored": shape((rows,), jnp.bool_), "tokens": aligned}
    return batch


def _supports(
    spec: ModelSpec, frozen: Frozen, config: Config, info: DatasetInfo, rows: int
) -> PyTree[jax.ShapeDtypeStruct]:
    size, count = spec.image_size, num_supports(config.data.shots)
    images = jax.ShapeDtypeStruct((rows, count, size, size, spec.channels), jnp.uint8)
    if frozen.encoder is None:
        return images
    pooled, tokens = jax.eval_shape(frozen.encoder, frozen.encoder_params, images)
    made = {"pooled": pooled, "tokens": tokens} if config.model.use_context else {"pooled": pooled}
    if config.features.supports == "online":
        return made
    kind = _stored(info.features)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind), made)


def _stored(described: Mapping[str, Any]) -> jnp.dtype:
    """The type of stored features or latents, if the dataset describes one type only."""
    kinds = {jnp.dtype(one.dtype) for one in described.values()}
    return kinds.pop() if len(kinds) == 1 else jnp.dtype(_STORED)


def _images(shape: tuple[int, ...], mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding.batch_sharding(mesh))


def _placed(tree: PyTree, placement: NamedSharding) -> PyTree:
    return jax.tree.map(lambda leaf: _with_sharding(leaf, placement), tree)


def _with_sharding(leaf: jax.ShapeDtypeStruct, placement: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement)
