"""The training state, which a train step transforms and a checkpoint holds."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import dataclass
from jax.sharding import Mesh
from jaxtyping import PyTree

from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding


@dataclass
class TrainState:
    """The training state; parameters, averages and optimizer are float32.

    Leaves are arrays, or in templates their shapes or shardings.
    """

    step: Any  # () int32: completed steps, including those whose update was skipped
    params: dict
    ema: dict  # moving average of the parameters after each update
    opt_state: Any
    nonfinite: Any  # () int32: updates skipped so far
    nonfinite_in_row: Any  # () int32: updates skipped since the last one that was not


def fresh(spec: ModelSpec, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step. The average begins at the initial parameters."""
    params = spec.init(seed)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=tx.init(params),
        nonfinite=zero,
        nonfinite_in_row=zero,
    )


def abstract(
    spec: ModelSpec, tx: optax.GradientTransformation, mesh: Mesh
) -> PyTree[jax.ShapeDtypeStruct]:
    """The template of the state: shapes, types and shardings. Nothing is allocated."""
    shapes = jax.eval_shape(lambda: fresh(spec, tx, 0))
    return jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        shapes,
        sharding.state_shardings(mesh, shapes),
    )


def init(
    spec: ModelSpec,
    tx: optax.GradientTransformation,
    seed: int,
    template: PyTree[jax.ShapeDtypeStruct],
) -> TrainState:
    """A fresh state, created with the shardings of `template`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    return jax.jit(lambda: fresh(spec, tx, seed), out_shardings=shardings)()
