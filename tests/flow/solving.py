"""Noise, keys and a compiled run of a solver, which the tests of the solvers share."""

import jax
import jax.numpy as jnp
import numpy as np

from fsdit.config import SamplingConfig
from fsdit.flow.sampler import solve
from fsdit.randomness import example_keys, stream_key

NOISE = jnp.linspace(-2, 2, 9).reshape(3, 3)
SOLVERS = ["euler", "heun", "ab2", "sde"]
DETERMINISTIC = SOLVERS[:3]
SCHEDULES = ["uniform", "shifted"]


def keys(count, seed=0, first=0):
    return example_keys(stream_key(seed, "sde"), jnp.arange(first, first + count, dtype=jnp.uint32))


def run(field, noise, solver, num_steps, seed=0, **settings):
    """Run the compiled solver; row i of the SDE has key i."""
    config = SamplingConfig(solver=solver, num_steps=num_steps, **settings)
    compiled = jax.jit(lambda noise, keys: solve(field, noise, config, keys))
    return np.asarray(compiled(noise, keys(len(noise), seed)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
