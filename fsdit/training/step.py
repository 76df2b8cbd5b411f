"""The train step: one pure function (state, batch) -> (state, metrics).

It minimises the mean of `fsdit.training.objective` over the batch. The moving average after
update s + 1 is

    ema <- d ema + (1 - d) theta,    d = min(ema_decay, (1 + s) / (10 + s))    (1)

where d begins at 0.1, so that early averages forget the initial parameters (TensorFlow's
`ExponentialMovingAverage` with `num_updates`). A run keeps one average for each decay of
`TrainConfig.all_decays`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from fsdit.config import Config
from fsdit.models.block import modulation_width, products
from fsdit.models.spec import ModelSpec
from fsdit.parallel import exchange, sharding
from fsdit.training import optimizer
from fsdit.training.objective import StepBatch, objective, with_negatives
from fsdit.training.state import TrainState
from fsdit.training.telemetry.running import TIME_BINS

Bins = tuple[Float[Array, "bins"], Float[Array, "bins"]]
# The time bins of the loss, and means of the batch by name.
Averages = tuple[Bins, dict[str, Float[Array, ""]]]


def time_bins(
    losses: Float[Array, "B"], t: Float[Array, "B"], weights: Float[Array, "B"] | float = 1.0
) -> Bins:
    """(sum of losses, number of examples) in each of TIME_BINS equal bins of t.

    weights: 1 for examples that count, 0 for those that do not.
    """
    member = jnp.floor(t * TIME_BINS).clip(0, TIME_BINS - 1).astype(jnp.int32)
    weight = jax.nn.one_hot(member, TIME_BINS) * jnp.broadcast_to(weights, t.shape)[:, None]
    return (losses[:, None] * weight).sum(0), weight.sum(0)


def make_train_step(
    spec: ModelSpec, config: Config, tx: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, StepBatch], tuple[TrainState, dict[str, Array]]]:
    """The train step of a configuration, not compiled yet; see `compile_train_step`."""
    schedule = optimizer.learning_rate(config.optimizer, config.train.num_steps)
    width = modulation_width(config.model)
    spec = dataclasses.replace(spec, products=exchange.by_columns(products, width), by_device=True)

    def loss_fn(params: dict, batch: StepBatch, step: Array) -> tuple[Array, Averages]:
        found = objective(spec, config, params, batch, step)
        means = {name: term.mean() for name, term in found.terms.items()}
        if means:
            means["loss"] = found.loss.mean()
        return found.total.mean(), (time_bins(found.loss, found.t), means)

    def gradients(params: dict, batch: StepBatch, step: Array) -> PyTree:
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        return _accumulated(differentiate, config.train.accumulate_steps, params, batch, step)

    gradients = exchange.sharded_gradients(
        mesh, gradients, jnp.dtype(config.model.dtype), by_column=True
    )

    def train_step(state: TrainState, batch: StepBatch) -> tuple[TrainState, dict[str, Array]]:
        negated = with_negatives(config, batch)
        (total, (bins, means)), grads = gradients(state.params, negated, state.step)
        grad_norm = optax.tree.norm(grads)

        rate = schedule(state.step)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        decays = [ema_decay(decay, state.step) for decay in config.train.all_decays]
        averages = [
            jax.tree.map(lambda e, p, d=d: d * e + (1 - d) * p, average, params)
            for d, average in zip(decays, state.averages, strict=True)
        ]

        finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
        # A finite gradient can still make an update that is not finite, by a rate or a decay.
        # An average needs no look: it lies between finite numbers if its decay is in [0, 1].
        valid = all_finite(params, opt_state)
        for decay in decays:
            valid = valid & (decay >= 0) & (decay <= 1)
        finite &= valid

        def guarded(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        skipped = (~finite).astype(jnp.int32)
        state = state.replace(
            step=state.step + 1,
            params=guarded(params, state.params),
            **state.fields_of(
                [guarded(*pair) for pair in zip(averages, state.averages, strict=True)]
            ),
            opt_state=guarded(opt_state, state.opt_state),
            nonfinite=state.nonfinite + skipped,
            nonfinite_in_row=(state.nonfinite_in_row + 1) * skipped,
        )
        return state, {
            "loss": total,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": rate,
            # `sharded_gradients` averages over devices; these are sums over all of them.
            "bin_losses": mesh.size * bins[0],
            "bin_counts": mesh.size * bins[1],
            "nonfinite": state.nonfinite,
            "nonfinite_in_row": state.nonfinite_in_row,
            **means,  # the terms, if there are any, and then the loss without them
        }

    return train_step


def all_finite(*trees: PyTree[Array]) -> Bool[Array, ""]:
    """Whether every element of the trees is finite."""
    broken = [~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]
    # A count is exact. A mean need not be 1 where all flags are: n (1 / n) rounds below for some n.
    count = jnp.stack(broken).astype(jnp.float32).sum()
    # XLA repeats cheap operations in each fusion that reads their result, so an "and" over all
    # leaves was repeated for each leaf that it guards. A square root is not repeated.
    return jnp.sqrt(count) == 0


def compile_train_step(
    spec: ModelSpec,
    config: Config,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    template: TrainState,
) -> Callable[[TrainState, StepBatch], tuple[TrainState, dict[str, Array]]]:
    """The compiled train step; the state has the shardings of `template`, and is donated."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    return jax.jit(
        make_train_step(spec, config, tx, mesh),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def ema_decay(decay: float, step: Int[Array, ""]) -> Float[Array, ""]:
    """The decay d of the average in the update after `step` completed ones, equation 1."""
    return jnp.minimum(decay, (1 + step) / (10 + step))


def _accumulated(
    gradients: Callable, count: int, params: dict, batch: StepBatch, step: Array
) -> PyTree:
    """Mean of `gradients` over `count` micro-batches, which run one after another.

    Micro-batch m holds the rows m, m + count, ... of the device. Sums are float32.
    """
    if count == 1:
        return gradients(params, batch, step)
    parts = jax.tree.map(
        lambda a: a.reshape(a.shape[0] // count, count, *a.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total: PyTree, part: StepBatch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradients(params, part, step)), None

    first = jax.tree.map(lambda a: a[0], parts)
    shapes = jax.eval_shape(gradients, params, first, step)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
    ((total, (bins, means)), grads), _ = jax.lax.scan(add, zeros, parts)
    total, means, grads = jax.tree.map(lambda s: s / count, (total, means, grads))
    return (total, (bins, means)), grads
