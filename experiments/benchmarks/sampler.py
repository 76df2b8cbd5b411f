"""A guided trajectory in one dispatch, against a Python loop over a jitted step.

    python -m experiments.benchmarks.sampler

A small DiT on pixels with random weights, Euler, guidance 3. Both sides start from the same
supports and noise; the loop dispatches one step after the other and waits at the end only.
They take turns in one process and the best turn counts.
"""

import itertools
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from fsdit.config import EncoderConfig, ModelConfig, SamplingConfig
from fsdit.flow import path, sampler
from fsdit.models.drawing import make_draw
from fsdit.models.networks import Networks
from fsdit.parallel.mesh import AXES
from fsdit.randomness import example_keys, stream_key

_STEPS = flags.DEFINE_integer("steps", 50, "Euler steps of a drawing.")
_BATCHES = flags.DEFINE_multi_integer("batch", [1, 8], "Drawings at once; may be repeated.")
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each side.")
_HIDDEN = flags.DEFINE_integer("hidden_size", 64, "Width of the DiT.")
_DEPTH = flags.DEFINE_integer("depth", 4, "Blocks of the DiT.")

_SIZE, _SHOTS = 24, 5


def main(argv: list[str]) -> None:
    del argv
    encoder = EncoderConfig(patch_size=6, hidden_size=64, depth=1, num_heads=4)
    model = ModelConfig(
        hidden_size=_HIDDEN.value,
        depth=_DEPTH.value,
        num_heads=4,
        patch_size=4,
        num_latents=0,
        encoder=encoder,
        dtype="float32",
    )
    networks = Networks(model, _SIZE, channels=1)
    params = random_params(networks)
    count = sum(p.size for p in jax.tree.leaves(params))
    print(f"{count / 1e6:.2f} M parameters, {_STEPS.value} guided Euler steps, float32")
    for batch in _BATCHES.value:
        compare(networks, params, batch)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def random_params(networks: Networks) -> dict:
    """Parameters under which the velocity is not zero, as it is before training."""
    leaves, tree = jax.tree.flatten(networks.init(0))
    random = np.random.default_rng(0)
    moved = [p + 0.05 * random.normal(size=p.shape).astype(p.dtype) for p in leaves]
    return tree.unflatten(moved)


def compare(networks: Networks, params: dict, batch: int) -> None:
    config = SamplingConfig(num_steps=_STEPS.value, guidance_scale=3.0)
    mesh = jax.make_mesh((1, 1), AXES, devices=jax.devices()[:1])
    draw = make_draw(networks, config, mesh)
    shape = (batch, _SHOTS, _SIZE, _SIZE, 1)
    supports = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    index = jnp.arange(batch, dtype=jnp.uint32)
    loop = python_loop(networks, config)
    seconds, drawn = measure(
        {
            "one dispatch": lambda: draw(params, networks.codec, supports, index, np.uint32(0)),
            "Python loop": lambda: loop(params, supports, index),
        }
    )
    apart = np.abs(np.subtract(*(np.asarray(d, int) for d in drawn.values()))).max()
    best = {side: min(values) for side, values in seconds.items()}
    print(f"batch {batch}: the loop takes {best['Python loop'] / best['one dispatch']:.2f} as long")
    for side, values in seconds.items():
        turns = ", ".join(f"{1e3 * s:.1f}" for s in values)
        print(f"  {side}: {1e3 * best[side]:.1f} ms (of {turns})")
    print(f"  largest difference of a pixel: {apart} of 255")


def python_loop(networks: Networks, config: SamplingConfig) -> Callable[..., jax.Array]:
    """What make_draw does, with a dispatch for every step."""

    @jax.jit
    def start(params, supports, index):
        model = networks.model(params)
        condition = model.condition(supports)
        null = model.conditioner.apply_null(condition, jnp.ones(index.shape, bool))
        keys = example_keys(stream_key(0, "drawing"), index)
        return path.sample_noise(keys, networks.latent_shape), condition, null

    @jax.jit
    def step(params, x, t, dt, condition, null):
        model = networks.model(params)
        velocity = sampler.guided_field(
            lambda x, t, c: model.velocity(x, t, c)[0], condition, null, config
        )
        return x + dt * velocity(x, t)

    decode = jax.jit(networks.codec.decode)
    times = sampler.schedule_times(config).astype(np.float32)

    def draw(params, supports, index):
        x, condition, null = start(params, supports, index)
        for t, end in itertools.pairwise(times):
            x = step(params, x, t, end - t, condition, null)
        return decode(x)

    return draw


def measure(
    sides: dict[str, Callable[[], jax.Array]],
) -> tuple[dict[str, list[float]], dict[str, jax.Array]]:
    """(seconds of each turn, result), by side; a first call of each is not counted."""
    results = {side: jax.block_until_ready(call()) for side, call in sides.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(_TURNS.value):
        for side, call in sides.items():
            begun = time.perf_counter()
            jax.block_until_ready(call())
            seconds[side].append(time.perf_counter() - begun)
    return seconds, results


if __name__ == "__main__":
    app.run(main)
