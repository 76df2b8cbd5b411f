"""The training state, which a train step transforms and a checkpoint holds."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
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

    @property
    def averages(self) -> tuple[dict, ...]:
        """The average of each decay of `TrainConfig.all_decays`."""
        return (self.ema,)

    def fields_of(self, averages: Sequence[dict]) -> dict[str, Any]:
        """The fields that hold these averages, for `replace`."""
        (ema,) = averages
        return {"ema": ema}


@dataclass
class ManyAverages(TrainState):
    """The state of a run with `train.ema_decays`.

    It is a class of its own because Orbax records an empty field too: checkpoints of runs with
    one average would not fit a state that has a place for more.
    """

    further: tuple[dict, ...]  # the averages of train.ema_decays

    @property
    def averages(self) -> tuple[dict, ...]:
        return (self.ema, *self.further)

    def fields_of(self, averages: Sequence[dict]) -> dict[str, Any]:
        ema, *further = averages
        return {"ema": ema, "further": tuple(further)}


def fresh(
    spec: ModelSpec,
    tx: optax.GradientTransformation,
    seed: int,
    num_averages: int = 1,
    given: Mapping[str, jax.Array] = MappingProxyType({}),
) -> TrainState:
    """The state before the first step. The averages begin at the initial parameters.

    given: the parameters of these names, such as "blocks/attention/qkv/kernel", begin at copies
    of these arrays.
    """
    params = spec.init(seed)
    if given:
        flat = traverse_util.flatten_dict(params, sep="/") | jax.tree.map(jnp.copy, dict(given))
        params = traverse_util.unflatten_dict(flat, sep="/")
    zero = jnp.zeros((), jnp.int32)
    ema, *further = (jax.tree.map(jnp.copy, params) for _ in range(num_averages))
    fields = {
        "step": zero,
        "params": params,
        "ema": ema,
        "opt_state": tx.init(params),
        "nonfinite": zero,
        "nonfinite_in_row": zero,
    }
    return ManyAverages(**fields, further=tuple(further)) if further else TrainState(**fields)


def abstract(
    spec: ModelSpec, tx: optax.GradientTransformation, mesh: Mesh, num_averages: int = 1
) -> PyTree[jax.ShapeDtypeStruct]:
    """The template of the state: shapes, types and shardings. Nothing is allocated."""
    shapes = jax.eval_shape(lambda: fresh(spec, tx, 0, num_averages))
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
    given: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> TrainState:
    """A fresh state, created with the shardings of `template`.

    given: as for `fresh`, on the host; every process holds all of it.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    count = len(template.averages)
    flat = traverse_util.flatten_dict(template.params, sep="/")
    placed = {
        name: jax.make_array_from_callback(array.shape, flat[name].sharding, array.__getitem__)
        for name, array in given.items()
    }
    made = jax.jit(lambda given: fresh(spec, tx, seed, count, given), out_shardings=shardings)
    return made(placed)
