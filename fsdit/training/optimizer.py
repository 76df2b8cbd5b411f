"""AdamW with linear warm-up, cosine decay and gradient clipping."""

import jax
import optax
from jaxtyping import PyTree

from fsdit.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of the update that follows `step` completed ones.

    A run no longer than its warm-up warms up over its first tenth instead.
    """
    warmup = config.warmup_steps if config.warmup_steps < num_steps else num_steps // 10
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.peak_learning_rate,
        peak_value=config.peak_learning_rate,
        warmup_steps=warmup,
        decay_steps=max(num_steps, 1),
        end_value=config.final_learning_rate,
    )


def matrices(params: PyTree) -> PyTree[bool]:
    """Which parameters weight decay acts on: kernels, not biases nor learned tokens."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def transformation(config: OptimizerConfig) -> optax.GradientTransformation:
    """Everything but the learning rate, which the step multiplies in.

    Loshchilov and Hutter, arXiv 1711.05101.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
    )
