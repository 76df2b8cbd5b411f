"""Time and error of each kernel of attention on this machine's first device.

    python -m experiments.benchmarks.compute.attention

Values and gradients in bfloat16, at the shapes of a DiT-B/2 on latents of 28 x 28: self-attention
of 196 tokens, and cross-attention to the 980 tokens of five supports. The sides take turns in
one process. The error of a side is its largest difference from the plain kernel in full float32,
divided by the largest magnitude there; the value and the three gradients have one each. "xla" is
JAX's own attention without cuDNN, to compare with. A kernel that this device lacks is named.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks.turns import machine, take_turns
from fsdit import program
from fsdit.config import Config, EncoderConfig, dit
from fsdit.errors import ConfigError
from fsdit.models.attention import KERNELS, attend, attend_by_jax
from fsdit.parallel import backend

_RESULTS = ("value", "d query", "d key", "d value")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured. calls: in a turn. keys: tokens that are attended to, for each form."""

    turns: int = 5
    calls: int = 20
    batch: int = 32
    queries: int = 196
    keys: tuple[tuple[str, int], ...] = (("self", 196), ("cross", 980))


def main(argv: list[str]) -> None:
    del argv
    backend.open_devices()
    result = measure(Settings(_TURNS.value, _CALLS.value, _BATCH.value))
    if result["missing"]:
        print(result["missing"])
    for form, sides in result["forms"].items():
        for side, found in sides.items():
            errors = ", ".join(f"{name} {error:.4f}" for name, error in found["errors"].items())
            print(f"{form}, {side}: {found['milliseconds']:.3f} ms; error of {errors}")
    print(json.dumps(result["machine"]))


def measure(settings: Settings) -> dict[str, Any]:
    """Milliseconds of the best turn, and errors, of each side at each form.

    missing: why cuDNN's kernel is left out, or "".
    """
    sides = {"plain": attend, "xla": functools.partial(attend_by_jax, implementation="xla")}
    missing = _missing()
    if not missing:
        sides["cudnn"] = KERNELS["cudnn"]
    return {
        "forms": {form: _compare(sides, keys, settings) for form, keys in settings.keys},
        "missing": missing,
        "machine": machine(),
    }


def _missing() -> str:
    """Why the first device lacks cuDNN's kernel, or ""."""
    try:
        backend.check_attention(_config(), jax.devices()[:1])
    except ConfigError as error:
        return str(error)
    return ""


def _config() -> Config:
    encoder = EncoderConfig(name="frozen", location="google/siglip2-base-patch16-224")
    return Config(model=dit("B", patch_size=2, attention="cudnn", encoder=encoder))


def _compare(
    sides: dict[str, Callable[..., jax.Array]], keys: int, settings: Settings
) -> dict[str, dict[str, Any]]:
    arrays = _arrays(keys, settings)
    with jax.default_matmul_precision("highest"):
        exact = _both_passes(attend)(*(a.astype(jnp.float32) for a in arrays))

    def turn(kernel: Callable[..., jax.Array]) -> Callable[[], Any]:
        both = _both_passes(kernel)
        return lambda: [both(*arrays) for _ in range(settings.calls)][-1]

    turns = {side: turn(kernel) for side, kernel in sides.items()}
    seconds, found = take_turns(turns, settings.turns)
    return {
        side: {
            "milliseconds": 1e3 * min(values) / settings.calls,
            "errors": dict(zip(_RESULTS, map(_error, found[side], exact), strict=True)),
        }
        for side, values in seconds.items()
    }


def _arrays(keys: int, settings: Settings) -> list[jax.Array]:
    """Query, key, value and the gradient by the result, in bfloat16; the query is scaled."""
    model, random = _config().model, np.random.default_rng(0)
    width = model.hidden_size // model.num_heads
    scales = (width**-0.5, 1.0, 1.0, 1.0)
    tokens = (settings.queries, keys, keys, settings.queries)
    return [
        jnp.asarray(
            scale * random.standard_normal((settings.batch, model.num_heads, count, width)),
            jnp.bfloat16,
        )
        for scale, count in zip(scales, tokens, strict=True)
    ]


def _both_passes(kernel: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """(query, key, value, gradient) -> value of the kernel, and its gradients."""

    @jax.jit
    def call(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        mixed, pull = jax.vjp(kernel, *arrays[:3])
        return mixed, *pull(arrays[3])

    return call


def _error(found: jax.Array, exact: jax.Array) -> float:
    difference = jnp.abs(found.astype(jnp.float32) - exact).max()
    return float(difference / jnp.abs(exact).max())


if __name__ == "__main__":
    _TURNS = flags.DEFINE_integer("turns", Settings.turns, "Turns of each side.", lower_bound=1)
    _CALLS = flags.DEFINE_integer("calls", Settings.calls, "Calls of a turn.", lower_bound=1)
    _BATCH = flags.DEFINE_integer("batch", Settings.batch, "Images at once.", lower_bound=1)
    program.run(main)
