"""A guided trajectory in one dispatch, compared with a Python loop over a compiled step.

    python -m experiments.benchmarks.compute.sampler

A small DiT on pixels with random weights; Euler, guidance 3. Both sides start from the same
supports and noise. The loop dispatches one step after the other, and waits only at the end.
The sides take turns in one process, and the best turn of each counts.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks.turns import machine, take_turns
from fsdit import program
from fsdit.config import EncoderConfig, ModelConfig, SamplingConfig
from fsdit.flow import path, sampler
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.randomness import example_keys, stream_key
from fsdit.sampling.images import compile_sampling

_SIZE, _SHOTS = 24, 5
_DISPATCH, _LOOP = "one dispatch", "Python loop"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured. steps: of Euler. batches: batch sizes. turns: of each side."""

    steps: int = 50
    batches: tuple[int, ...] = (1, 8)
    turns: int = 5
    hidden_size: int = 64
    depth: int = 4


def main(argv: list[str]) -> None:
    del argv
    sizes = (_TURNS.value, _HIDDEN.value, _DEPTH.value)
    result = measure(Settings(_STEPS.value, tuple(_BATCHES.value), *sizes))
    print(
        f"{result['parameters'] / 1e6:.2f} M parameters, {_STEPS.value} guided Euler steps, float32"
    )
    for batch, found in result["batches"].items():
        print(f"batch {batch}: the loop takes {found['loop / one dispatch']:.2f} as long")
        for side in (_DISPATCH, _LOOP):
            turns = ", ".join(f"{1e3 * s:.1f}" for s in found[side])
            print(f"  {side}: {1e3 * min(found[side]):.1f} ms (of {turns})")
        print(f"  largest difference of a pixel: {found['pixel_difference']} of 255")
    print(f"load of the machine: {result['machine']['load']:.1f}")


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of each turn of each side, for each batch size, and figures that follow."""
    encoder = EncoderConfig(patch_size=6, hidden_size=64, depth=1, num_heads=4)
    model = ModelConfig(
        hidden_size=settings.hidden_size,
        depth=settings.depth,
        num_heads=4,
        patch_size=4,
        num_latents=0,
        encoder=encoder,
        dtype="float32",
    )
    spec = ModelSpec(model, _SIZE, channels=1)
    params = random_params(spec)
    return {
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "batches": {b: compare(spec, params, b, settings) for b in settings.batches},
        "machine": machine(),
    }


def random_params(spec: ModelSpec) -> dict:
    """Random parameters. With the initial ones the velocity would be zero everywhere."""
    leaves, tree = jax.tree.flatten(spec.init(0))
    random = np.random.default_rng(0)
    moved = [p + 0.05 * random.normal(size=p.shape).astype(p.dtype) for p in leaves]
    return tree.unflatten(moved)


def compare(spec: ModelSpec, params: dict, batch: int, settings: Settings) -> dict[str, Any]:
    """Seconds of each turn of both sides for one batch size, and how far their images differ."""
    config = SamplingConfig(num_steps=settings.steps, guidance_scale=3.0)
    mesh = sharding.local_mesh(jax.devices()[:1])
    sample = compile_sampling(spec, config, mesh)
    shape = (batch, _SHOTS, _SIZE, _SIZE, 1)
    supports = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    index = jnp.arange(batch, dtype=jnp.uint32)
    loop = python_loop(spec, config)
    sides = {
        _DISPATCH: lambda: sample(params, spec.codec, supports, index, np.uint32(0)),
        _LOOP: lambda: loop(params, supports, index),
    }
    seconds, images = take_turns(sides, settings.turns)
    apart = np.abs(np.asarray(images[_DISPATCH], int) - np.asarray(images[_LOOP], int)).max()
    best = {side: min(values) for side, values in seconds.items()}
    return {
        **seconds,
        "loop / one dispatch": best[_LOOP] / best[_DISPATCH],
        "images_per_second": batch / best[_DISPATCH],
        "pixel_difference": int(apart),
    }


def python_loop(spec: ModelSpec, config: SamplingConfig) -> Callable[..., jax.Array]:
    """Computes what compile_sampling's function computes, with a dispatch for every step."""

    @jax.jit
    def start(params, supports, index):
        model = spec.model(params)
        condition = model.condition(supports)
        null = model.conditioner.apply_null(condition, jnp.ones(index.shape, bool))
        keys = example_keys(stream_key(0, "drawing"), index)
        return path.sample_noise(keys, spec.latent_shape), condition, null

    @jax.jit
    def step(params, x, t, dt, condition, null):
        model = spec.model(params)
        velocity = sampler.guided_field(
            lambda x, t, c: model.velocity(x, t, c)[0], condition, null, config
        )
        return x + dt * velocity(x, t)

    decode = jax.jit(spec.codec.decode)
    times = sampler.schedule_times(config).astype(np.float32)

    def sample(params, supports, index):
        x, condition, null = start(params, supports, index)
        for t, end in itertools.pairwise(times):
            x = step(params, x, t, end - t, condition, null)
        return decode(x)

    return sample


if __name__ == "__main__":
    _STEPS = flags.DEFINE_integer("steps", 50, "Euler steps of a sample.")
    _BATCHES = flags.DEFINE_multi_integer("batch", [1, 8], "Samples at once; may be repeated.")
    _TURNS = flags.DEFINE_integer("turns", 5, "Turns of each side.")
    _HIDDEN = flags.DEFINE_integer("hidden_size", 64, "Width of the DiT.")
    _DEPTH = flags.DEFINE_integer("depth", 4, "Blocks of the DiT.")
    program.run(main)
