"""ODE solvers for the flow, from noise (t = 0) to data (t = 1), and guidance.

A whole trajectory is one `lax.scan`, so it is one dispatch. The state stays float32.
Classifier-free guidance: Ho and Salimans, arXiv 2207.12598, in velocity form; the
guidance interval: Kynkaanniemi et al., arXiv 2404.07724.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsdit.config import SamplingConfig

# (x (B, ...), t (B,), condition) -> velocity (B, ...)
Velocity = Callable[[Array, Array, Any], Array]
# (x (B, ...), t ()) -> velocity (B, ...)
Field = Callable[[Array, Array], Array]


def guided_field(velocity: Velocity, condition: Any, null: Any, config: SamplingConfig) -> Field:
    """v = v_null + scale (v_condition - v_null), both halves in one batched call.

    condition, null: pytrees of arrays (B, ...). A scale of 1 needs no null and
    makes a single call. Outside the guidance interval the scale is 1.
    """
    scale = config.guidance_scale

    def plain(x: Array, t: Array) -> Array:
        return velocity(x, jnp.full(x.shape[:1], t), condition)

    if scale == 1:
        return plain
    both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, null)
    low, high = config.guidance_interval

    def guided(x: Array, t: Array) -> Array:
        doubled = velocity(jnp.concatenate([x, x]), jnp.full(2 * x.shape[0], t), both)
        conditional, unconditional = jnp.split(doubled, 2)
        s = jnp.where((low <= t) & (t <= high), scale, 1.0)
        return unconditional + s * (conditional - unconditional)

    return guided


def solve(
    field: Field, noise: Float[Array, "B *D"], solver: str, num_steps: int
) -> Float[Array, "B *D"]:
    """Integrates dx/dt = field(x, t) from t = 0 to 1 in equal steps.

    solver: "euler" (first order, num_steps evaluations) or "heun" (second order,
    two evaluations a step).
    """
    dt = 1.0 / num_steps

    def euler(x: Array, t: Array) -> Array:
        return x + dt * field(x, t)

    def heun(x: Array, t: Array) -> Array:
        first = field(x, t)
        return x + dt / 2 * (first + field(x + dt * first, t + dt))

    step = {"euler": euler, "heun": heun}[solver]
    times = jnp.arange(num_steps, dtype=jnp.float32) / num_steps
    x, _ = jax.lax.scan(lambda x, t: (step(x, t), None), noise.astype(jnp.float32), times)
    return x
