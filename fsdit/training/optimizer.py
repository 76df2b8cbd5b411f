"""AdamW, or Muon for matrices, with linear warm-up, cosine decay and gradient clipping.

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

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the fraction in
equation 3, for the kernels of blocks, by an orthogonal matrix near Nesterov's mean of gradients:

    m <- b m + (1 - b) g,    O = NewtonSchulz(b m^ + (1 - b) g^)           (6)
    theta <- theta - r (0.2 sqrt(max(i, o)) O + w theta)                   (7)

for a matrix of i x o. The factor gives its elements the size that AdamW's have, so that one
learning rate serves both (Liu et al., arXiv 2502.16982, equation 4).
"""

import jax
import optax
import optax.contrib
from jaxtyping import Array, Float, PyTree

from fsdit.config import OptimizerConfig

# Parts of a block, by the names of their parameters, and of these the linear layers that
# compute several vectors at once.
_PARTS = frozenset(("attention", "cross", "mlp", "modulation"))
_SIDE_BY_SIDE = frozenset(("qkv", "modulation"))
_RMS = 0.2  # root mean square of the elements of a Muon update, before the learning rate


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


def methods(params: PyTree) -> PyTree[str]:
    """Which method updates a parameter under "muon": "muon" the kernels of blocks, else "adamw".

    A modulation that all blocks share is one of theirs.
    """

    def method(path: tuple, _: object) -> str:
        names = [part.key for part in path]
        return "muon" if names[-1] == "kernel" and not _PARTS.isdisjoint(names) else "adamw"

    return jax.tree.map_with_path(method, params)


def transformation(config: OptimizerConfig) -> optax.GradientTransformation:
    """Equations 1 to 3, or 6 and 7, without the learning rate, which the train step multiplies in.

    The state holds arrays for the parameters that each method updates.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if config.method == "muon":
        adam = optax.partition({"muon": _muon(config.momentum), "adamw": adam}, methods)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        adam,
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
    )


def _muon(momentum: float) -> optax.GradientTransformation:
    """Equations 6 and 7 by optax, for kernels as `_split` has them."""
    inner = optax.contrib.scale_by_muon(
        beta=momentum,
        weight_dimension_numbers=lambda tree: jax.tree.map(
            lambda _: optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=3), tree
        ),
    )

    def split(tree: PyTree) -> PyTree:
        return jax.tree.map_with_path(
            lambda path, x: _split(x, path[-2].key in _SIDE_BY_SIDE), tree
        )

    def init(params: PyTree) -> optax.OptState:
        return inner.init(split(params))

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        found, state = inner.update(split(updates), state)
        return jax.tree.map(_joined, found, updates), state

    return optax.GradientTransformation(init, update)


def _split(kernel: Float[Array, "..."], cut: bool) -> Float[Array, "L i n o"]:
    """The matrices of each layer's kernel: n square ones side by side if `cut`, else one."""
    rows, columns = kernel.shape[-2:]
    parts = columns // rows if cut else 1
    return kernel.reshape(-1, rows, parts, columns // parts)


def _joined(found: Float[Array, "L i n o"], like: Float[Array, "..."]) -> Float[Array, "..."]:
    _, rows, _, columns = found.shape
    return (_RMS * max(rows, columns) ** 0.5 * found).reshape(like.shape)
