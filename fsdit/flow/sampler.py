"""Solvers of the flow from noise (t = 0) to data (t = 1), their schedules, and guidance.

A trajectory is one `lax.scan`, and so one dispatch. The state is float32. With a step of size
h from t to t + h, and v the velocity at (x, t):

    euler   x + h v                                                             (1)
    heun    x + h / 2 (v + velocity at (x + h v, t + h))                        (2)
    ab2     x + h ((1 + w / 2) v - w / 2 v_before),  w = h / h_before           (3)
    sde     x + h (v - c t e) + sqrt(2 c t (1 - t) h) n,  n ~ N(0, I)           (4)

The first three integrate the flow. Heun evaluates the velocity twice a step, the others once.

Equation 3 is the two-step Adams-Bashforth method for steps of unequal size (Hairer, Norsett
and Wanner, Solving Ordinary Differential Equations I, section III.5): it extrapolates v
linearly from its last two values; the first step is Euler's. Zhang and Chen, arXiv 2204.13902,
use multistep methods of this family for diffusion. DPM-Solver++(2M), arXiv 2211.01095, steps
in the log signal-to-noise ratio log(t / (1 - t)); that is infinite at both ends of this path,
where it has to fall back to first order. The velocity is finite at both ends.

Equation 4 is Euler-Maruyama for a stochastic equation with the marginals of the flow
(Ma et al., arXiv 2401.08740, section 2). For any g(t),

    dx = (velocity + g^2 / 2 score) dt + g dW                                   (5)

has the marginals of dx = velocity dt. On this path score = -e / (1 - t), where e is the
expected noise x - t v (`path`, equations 3 and 4). We take g^2 = 2 c t (1 - t) with the noise
level c. It is zero at both ends, and it cancels the division in the drift. The last step has
c = 0, which keeps the marginals too, because its noise would stay in the data. If the expected
data are held fixed, a step multiplies a difference of x by 1 - h (1 + c t) / (1 - t), which
for c <= 1 is within [-1, 1] on any schedule.

Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) in velocity form, with scale s:

    v = v_null + s (v_condition - v_null)                                       (6)

Autoguidance (Karras et al., arXiv 2406.02507, section 4) puts a weaker model of the same kind
in the place of the null. Its velocity is that at the same condition:

    v = v_guide + s (v_condition - v_guide)                                     (7)

Outside of the guidance interval (Kynkaanniemi et al., arXiv 2404.07724) s is 1. The velocity
jumps where the interval ends, and across that jump every solver is of first order.

A network of contrastive flow matching (Stoica et al., arXiv 2506.05350; equation 2 of
`fsdit.training.objective`) with weight l learns v = (u - l m) / (1 - l) in place of the velocity
u of the flow, where m is the mean velocity of all examples. Guidance enlarges that difference, so
their sampler takes it out where it guides. The weights of (6) add up to 1, so that this is the
same for the guided velocity as for each of its parts:

    u = (1 - l) v + l m                                                         (8)

Their m is a mean over the data set. Here the network gives it: at t = 0 the noise e is
independent of the data, so that v_null(e, 0) = m - e / (1 - l), and its mean over e is m.

The shifted schedule (Esser et al., arXiv 2403.03206, resolution-dependent shifting) divides
the odds of a uniform time s by a > 0:

    t = s / (s + a (1 - s)),  so that  t / (1 - t) = 1 / a  s / (1 - s)         (9)

With a > 1, steps near noise are smaller. Their formula r' = a r / (1 + (a - 1) r) is the same
with their times r = 1 - t, which are 1 at noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Key

from fsdit.config import SamplingConfig
from fsdit.flow import path

# (x (B, ...), t (B,), condition) -> velocity (B, ...)
Velocity = Callable[[Array, Array, Any], Array]
# (x (B, ...), t ()) -> velocity (B, ...)
Field = Callable[[Array, Array], Array]


class _Step(NamedTuple):
    """The times of one step, as scalars; or of all N steps, as arrays (N,)."""

    index: Int[Array, "*N"]
    start: Float[Array, "*N"]
    end: Float[Array, "*N"]
    size: Float[Array, "*N"]
    ratio: Float[Array, "*N"]  # size / size of the step before, w in (3); 0 for the first step


class _State(NamedTuple):
    """The state of a trajectory between two steps."""

    x: Float[Array, "B *D"]
    velocity: Float[Array, "B *D"]  # v at the start of the step before, for ab2


# (field, state, step, config, keys) -> state
_Advance = Callable[[Field, _State, _Step, SamplingConfig, Any], _State]


def _joined(*conditions: Any) -> Any:
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *conditions)


def guided_field(
    velocity: Velocity,
    condition: Any,
    null: Any,
    config: SamplingConfig,
    prepare: Callable[..., Any] = _joined,
    mean: Float[Array, "*D"] | None = None,
) -> Field:
    """The guided velocity, equation 6, and 8 where `config.contrastive` is not 0.

    Both velocities of equation 6 come from one call with 2 B rows.

    condition, null: pytrees of arrays, (B, ...) by default. Where the scale is 1, at all times or
    outside of the guidance interval, null is not used and the call has B rows. prepare: makes of
    conditions, each for B rows, what `velocity` takes, once for all calls. mean: m of equation 8,
    from `mean_velocity`.
    """
    scale, weight = config.guidance_scale, config.contrastive
    if scale == 1:
        return plain_field(velocity, condition, prepare)
    both = prepare(condition, null)

    def guided(x: Array, t: Array) -> Array:
        doubled = velocity(jnp.concatenate([x, x]), jnp.full(2 * x.shape[0], t), both)
        conditional, unconditional = jnp.split(doubled, 2)
        v = unconditional + scale * (conditional - unconditional)
        return (1 - weight) * v + weight * mean if weight else v

    if _acts_always(config):
        return guided
    plain = plain_field(velocity, condition, prepare)
    return lambda x, t: jax.lax.cond(_acts_at(config, t), guided, plain, x, t)


def autoguided_field(model: Field, guide: Field, config: SamplingConfig) -> Field:
    """The velocity of a model that another one guides, equation 7.

    Both fields are plain. Where the scale is 1, at all times or outside of the guidance
    interval, the guide is not evaluated.
    """
    if config.guidance_scale == 1:
        return model

    def guided(x: Array, t: Array, v: Array) -> Array:
        weaker = guide(x, t)
        return weaker + config.guidance_scale * (v - weaker)

    if _acts_always(config):
        return lambda x, t: guided(x, t, model(x, t))
    return lambda x, t: jax.lax.cond(
        _acts_at(config, t), guided, lambda x, t, v: v, x, t, model(x, t)
    )


def plain_field(velocity: Velocity, condition: Any, prepare: Callable[..., Any] = _joined) -> Field:
    """The velocity without guidance. Arguments are those of `guided_field`."""
    prepared = prepare(condition)
    return lambda x, t: velocity(x, jnp.full(x.shape[:1], t), prepared)


def _acts_always(config: SamplingConfig) -> bool:
    low, high = config.guidance_interval
    return low <= 0 and high >= 1


def _acts_at(config: SamplingConfig, t: Float[Array, ""]) -> Bool[Array, ""]:
    low, high = config.guidance_interval
    return (low <= t) & (t <= high)


def mean_velocity(velocity: Velocity, null: Any, noise: Float[Array, "M *D"]) -> Float[Array, "*D"]:
    """m of equation 8, from the velocities of the null condition at t = 0.

    null: pytree of arrays (2 M, ...), equal rows. noise: each sample serves with both signs, so
    that -e / (1 - l) adds nothing to the mean.
    """
    both = jnp.concatenate([noise, -noise])
    return velocity(both, jnp.zeros(both.shape[:1]), null).mean(0)


def schedule_times(config: SamplingConfig) -> Float64[np.ndarray, "M"]:
    """The M = num_steps + 1 times at which steps start and end, from 0 to 1.

    "uniform": s = 0, 1 / num_steps, ..., 1. "shifted": equation 9 of these, with a = shift.
    """
    s = np.arange(config.num_steps + 1) / config.num_steps
    return s if config.schedule == "uniform" else s / (s + config.shift * (1 - s))


def solve(
    field: Field,
    noise: Float[Array, "B *D"],
    config: SamplingConfig,
    keys: Key[Array, "B"] | None = None,
) -> Float[Array, "B *D"]:
    """Carries noise at t = 0 to data at t = 1 by the solver and schedule of `config`.

    keys: one for each example. The noise of "sde" is a function of an example's key and of the
    step; the other solvers are deterministic and ignore keys. Raises ValueError for "sde"
    without keys.
    """
    if config.solver == "sde" and keys is None:
        raise ValueError("the sde solver needs a key for each example")
    advance = _SOLVERS[config.solver]
    x = noise.astype(jnp.float32)
    state, _ = jax.lax.scan(
        lambda state, step: (advance(field, state, step, config, keys), None),
        _State(x, jnp.zeros_like(x)),
        _steps(schedule_times(config)),
    )
    return state.x


def _steps(times: Float64[np.ndarray, "M"]) -> _Step:
    """All N = M - 1 steps between the times."""
    sizes = np.diff(times)
    ratios = np.append(0.0, sizes[1:] / sizes[:-1])
    floats = (jnp.asarray(a, jnp.float32) for a in (times[:-1], times[1:], sizes, ratios))
    return _Step(jnp.arange(len(sizes)), *floats)


def _euler(field: Field, state: _State, step: _Step, config: SamplingConfig, keys: Any) -> _State:
    """Equation 1."""
    v = field(state.x, step.start)
    return _State(state.x + step.size * v, v)


def _heun(field: Field, state: _State, step: _Step, config: SamplingConfig, keys: Any) -> _State:
    """Equation 2."""
    v = field(state.x, step.start)
    ahead = field(state.x + step.size * v, step.end)
    return _State(state.x + step.size / 2 * (v + ahead), v)


def _ab2(field: Field, state: _State, step: _Step, config: SamplingConfig, keys: Any) -> _State:
    """Equation 3."""
    v = field(state.x, step.start)
    half = step.ratio / 2
    return _State(state.x + step.size * ((1 + half) * v - half * state.velocity), v)


def _sde(field: Field, state: _State, step: _Step, config: SamplingConfig, keys: Any) -> _State:
    """Equation 4."""
    x, t, h = state.x, step.start, step.size
    v = field(x, t)
    level = jnp.where(step.end < 1, config.noise_level, 0.0)
    drift = v - level * t * path.noise_from_velocity(x, v, jnp.full(x.shape[:1], t))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, step.index))(keys)
    spread = jnp.sqrt(2 * level * t * (1 - t) * h)
    return _State(x + h * drift + spread * path.sample_noise(keys, x.shape[1:]), v)


_SOLVERS: dict[str, _Advance] = {"euler": _euler, "heun": _heun, "ab2": _ab2, "sde": _sde}
