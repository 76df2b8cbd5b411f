"""The objective: what a train step minimises, example by example.

With data x, noise e, time t and the path x_t and its velocity u of `fsdit.flow.path`, the
velocity network v with parameters theta and the condition c (or the null condition, with
probability `condition_dropout`), the loss of an example is the mean over elements of

    |v(x_t, t, c; theta) - u|^2                                                (1)

(conditional flow matching: Lipman et al., arXiv 2210.02747, equation 9). Contrastive flow
matching (Stoica et al., arXiv 2506.05350) also pushes the velocity away from the velocity u' of
an example of another class, with a weight l:

    |v - u|^2 - l |v - u'|^2                                                   (2)

where the second term is 0 if the other example has the same class. As u' does not depend on
x_t, the minimum of (2) is v = (E[u | x_t, c] - l E[u']) / (1 - l). `fsdit.flow.sampler` has the
inverse. `fsdit.training.alignment` has a further term.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fsdit.config import Config
from fsdit.flow import path
from fsdit.models.conditioning import Condition
from fsdit.models.dit import FewShotDiT, Route
from fsdit.models.spec import ModelSpec
from fsdit.randomness import example_keys, stream_key
from fsdit.training import alignment

# Names of the terms that the objective may hold beside the loss.
TERMS = ("contrastive", "alignment")

# index (B,), class_id (B,), target: moments of the latents, supports: as the model takes them; and
# where targets are aligned with a frozen encoder, aligned: its tokens of the target (B, N, E), and
# whether the target is mirrored (B,).
StepBatch = dict[str, PyTree[Array]]


class Objective(NamedTuple):
    """The objective of each example of a batch.

    total: what is minimised. loss: equation 1. t: the times. terms: what `total` holds beside
    `loss`, without its weight, by name; empty where `total` is `loss`.
    """

    total: Float[Array, "B"]
    loss: Float[Array, "B"]
    t: Float[Array, "B"]
    terms: dict[str, Float[Array, "B"]]


def noised(
    spec: ModelSpec, config: Config, batch: StepBatch, stream: str, step: int | Array
) -> tuple[Array, Array, Array]:
    """(x_t (B, h, w, c), velocity u (B, h, w, c), t (B,)) of a batch.

    Latents, noise and times are random by (seed, stream, step, index of the example).
    """

    def keys(name: str) -> Array:
        return example_keys(stream_key(config.seed, f"{stream}/{name}", step), batch["index"])

    data = spec.codec.sample(batch["target"], keys("latent"))
    noise = path.sample_noise(keys("noise"), spec.latent_shape)
    t = path.sample_time(config.flow, keys("time"))
    return path.interpolate(noise, data, t), path.velocity(noise, data), t


def example_losses(
    spec: ModelSpec,
    config: Config,
    params: dict,
    batch: StepBatch,
    stream: str,
    step: int | Array = 0,
    dropout: float = 0.0,
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """(loss, t) of each example, equation 1.

    dropout: probability of the null condition. stream, step: as for `noised`.
    """
    model = spec.model(params)
    x_t, target, t, condition = _inputs(spec, config, model, batch, stream, step, dropout)
    predicted, _ = model.velocity(x_t, t, condition)
    return _squared(predicted, target), t


def objective(
    spec: ModelSpec, config: Config, params: dict, batch: StepBatch, step: int | Array
) -> Objective:
    """The objective that `config.train` asks for, in training step `step`.

    spec: from `alignment.with_projection`. batch: from `with_negatives`, or a part of it.
    """
    train, model = config.train, spec.model(params)
    x_t, target, t, condition = _inputs(
        spec, config, model, batch, "train", step, train.condition_dropout
    )
    terms = {}
    layer = train.aligned_layer(config.model.depth) if train.alignment else 0
    if layer or train.routing:
        route = routed(spec, config, batch, step) if train.routing else None
        predicted, tokens = model.velocity_in_training(x_t, t, condition, layer, route)
    else:
        predicted, _ = model.velocity(x_t, t, condition)
    if train.alignment:
        terms["alignment"] = alignment.alignment_term(spec, config, params, tokens, batch, step)
    loss = _squared(predicted, target)
    total = loss + train.alignment * terms["alignment"] if train.alignment else loss
    if train.contrastive:
        other = batch["negative"]
        _, negative, _ = noised(spec, config, other, "train", step)
        differs = batch["class_id"] != other["class_id"]
        terms["contrastive"] = jnp.where(differs, _squared(predicted, negative), 0)
        total = total - train.contrastive * terms["contrastive"]
    return Objective(total, loss, t, terms)


def with_negatives(config: Config, batch: StepBatch) -> StepBatch:
    """The batch with the example before each, in cyclic order, as its negative, if there are any.

    The batch must be the global one, before it is split over devices and micro-batches, so that
    a negative depends on neither.
    """
    if not config.train.contrastive:
        return batch
    names = ("index", "class_id", "target")
    rolled = jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), {name: batch[name] for name in names})
    return {**batch, "negative": rolled}


def routed(spec: ModelSpec, config: Config, batch: StepBatch, step: int | Array) -> Route:
    """Token routing (TREAD: Krause et al., arXiv 2501.04765) for a batch.

    In each step, a share `config.train.routing` of the patches of an example, rounded down to an
    even number, skips the blocks between routing_start and routing_end. They are random by
    (seed, step, index of the example).
    """
    train, patches = config.train, math.prod(spec.grid)
    # An even number of tokens stays even, which cuDNN's attention needs.
    skipping = 2 * int(train.routing * patches / 2)
    keys = example_keys(stream_key(config.seed, "train/routing", step), batch["index"])
    order = jax.vmap(lambda key: jax.random.permutation(key, patches))(keys)
    return Route(order[:, skipping:], train.routing_start, train.routing_last(config.model.depth))


def _inputs(
    spec: ModelSpec,
    config: Config,
    model: FewShotDiT,
    batch: StepBatch,
    stream: str,
    step: int | Array,
    dropout: float,
) -> tuple[Array, Array, Array, Condition]:
    """(x_t (B, h, w, c), velocity u (B, h, w, c), t (B,), condition) of a batch."""
    x_t, target, t = noised(spec, config, batch, stream, step)
    condition = model.condition(batch["supports"])
    if dropout:
        keys = example_keys(stream_key(config.seed, f"{stream}/dropout", step), batch["index"])
        dropped = jax.vmap(jax.random.uniform)(keys) < dropout
        condition = model.conditioner.apply_null(condition, dropped)
    return x_t, target, t, condition


def _squared(a: Float[Array, "B h w c"], b: Float[Array, "B h w c"]) -> Float[Array, "B"]:
    return jnp.square(a - b).mean(axis=(1, 2, 3))
