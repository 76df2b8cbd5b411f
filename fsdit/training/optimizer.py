"""AdamW with linear warm-up, cosine decay and gradient clipping.

With a gradient g over all parameters theta, Adam's moments m and v and their corrections for
the start at zero m^ = m / (1 - b1^n) and v^ = v / (1 - b2^n) in update n, the learning rate r
and the weight decay w:

    g <- g min(1, clip_norm / |g|)                                         (1)
    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2                    (2)
    theta <- theta - r (m^ / (sqrt(v^) + eps) + w theta)                   (3)

Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; w applies to matrices only. The rate of
the update after s completed steps, with a warm-up of u of n steps:

    r(s) = r_peak s / u                                     for s < u      (4)
    r(s) = r_final + (r_peak - r_final) (1 + cos(pi (s - u) / (n - u))) / 2
                                                            from u to n    (5)
"""

import jax
import optax
from jaxtyping import PyTree

from fsdit.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate by the number of completed steps, equations 4 and 5.

    A run that is no longer than its warm-up warms up over its first tenth instead.
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
    """Whether weight decay applies to a parameter: to kernels, not to biases or learned tokens."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def transformation(config: OptimizerConfig) -> optax.GradientTransformation:
    """Equations 1 to 3 without the learning rate, which the train step multiplies in."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
    )
