"""Step time, MFU and memory of a recipe's train step on the first device, beside PyTorch.

    python -m experiments.benchmarks.compute.recipe_step \
      --config=experiments/miniimagenet_b2.py \
      --side=model.attention=plain --side=model.attention=cudnn,model.remat=none

Weights and features are random; neither a dataset nor published weights are needed, and the
frozen networks do not run. Each --side is the recipe with some settings changed. A plain PyTorch
DiT of the same shape, which learns from the same features, joins them under torch.compile. The
sides take turns in one process and all have to fit into the device together. XLA reserves
memory for itself at the start: XLA_PYTHON_CLIENT_PREALLOCATE=false leaves PyTorch its part.

* MFU is the share of the published bfloat16 peak, also in float32. PyTorch's model counts the
  same FLOPs as ours.
* Memory is what the compiled step holds (JAX), and the most that was allocated (PyTorch).
* In float32 both sides multiply in TF32 where the device has it.

--parts times the forward pass and the gradient alone, --sample the sampler of the recipe with
its VAE, --kernels sums up the kernels that a GPU ran.
"""

import json
import statistics
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from experiments.benchmarks.compute import device_time, recipe_sides
from experiments.benchmarks.compute.recipe_sides import Side
from experiments.benchmarks.turns import machine, take_turns
from fsdit import program
from fsdit.config import Config, apply_overrides
from fsdit.errors import ConfigError
from fsdit.parallel import backend
from fsdit.parallel.chips import find_chip

_PYTORCH_SIDE = "PyTorch"


def main(argv: list[str]) -> None:
    del argv
    config = _CONFIG()
    backend.open_devices()
    sides = make_sides(config, _SIDES.value)
    if _PYTORCH.value:
        sides[_PYTORCH_SIDE] = recipe_sides.pytorch_side(config)
    print(heading(config), flush=True)
    result: dict[str, Any] = {"machine": machine(), "train": measure(sides, _TURNS.value)}
    if _KERNELS.value:
        result["kernels"] = {name: kernels(name, side) for name, side in sides.items()}
    sides.clear()  # frees what the train steps hold
    if _PARTS.value:
        result["parts"] = {
            name or "recipe": measure(recipe_sides.parts(changed(config, name)), _TURNS.value)
            for name in _SIDES.value
        }
    if _SAMPLE.value:
        samplers = {n or "recipe": recipe_sides.sampler(changed(config, n)) for n in _SIDES.value}
        result["sample"] = measure(samplers, turns=3)
    print(json.dumps(result))


def settings_of(text: str, flag: str = "side") -> dict[str, str]:
    """Settings like "model.attention=cudnn,model.remat=none" by dotted path.

    flag: where they come from. Raises ConfigError.
    """
    settings = {}
    for setting in filter(None, text.split(",")):
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--{flag}={text}: write {name}=VALUE")
        settings[name] = value
    return settings


def changed(config: Config, text: str, flag: str = "side") -> Config:
    """The configuration with the settings of `settings_of`. Raises ConfigError."""
    return apply_overrides(config, settings_of(text, flag))


def make_sides(config: Config, settings: list[str]) -> dict[str, Side]:
    """Our side for each of the settings, by name; all are compiled. Raises ConfigError."""
    return {text or "recipe": recipe_sides.jax_side(changed(config, text)) for text in settings}


def heading(config: Config) -> str:
    model, device = config.model, jax.devices()[0].device_kind
    size = f"width {model.hidden_size}, depth {model.depth}"
    return f"{config.name}: {size}, {model.dtype}, batch {config.data.batch_size}, {device}"


def measure(
    sides: dict[str, Side], turns: int, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """The figures of each side, whose calls take turns."""
    chip = find_chip(jax.devices()[0].device_kind)
    seconds, _ = take_turns({name: side.call for name, side in sides.items()}, turns)
    found = {
        name: figures(side, seconds[name], chip.flops if chip else None)
        for name, side in sides.items()
    }
    for name, side in found.items():
        say(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in side.items()))
    return found


def figures(side: Side, seconds: list[float], peak: float | None) -> dict[str, float]:
    """Figures of a side whose turns took these seconds. peak: FLOP/s of the device, if known."""
    times = [s / side.steps for s in seconds]
    median = statistics.median(times)
    found = {
        "median_ms": 1e3 * median,
        "best_ms": 1e3 * min(times),
        "images_per_second": side.images / median,
    }
    if side.flops:
        found["tflops"] = side.flops / median / 1e12
        if peak:
            found["mfu"] = side.flops / median / peak
    memory = side.memory()
    if memory is not None:
        found["memory_gb"] = memory / 1e9
    return found | {"compile_seconds": side.compile_seconds}


def kernels(name: str, side: Side, say: Callable[[str], None] = print) -> dict[str, float]:
    """Seconds a step of each kind of kernel; says which ones take longest."""
    traced = device_time.of_pytorch if name == _PYTORCH_SIDE else device_time.of_jax
    events = traced(side.call)
    kinds = device_time.by_kind(events, side.steps)
    say(f"{name}: " + ", ".join(f"{k} {1e3 * s:.2f} ms" for k, s in kinds.items()))
    for kernel, duration in device_time.longest(events, side.steps):
        say(f"  {1e3 * duration:8.3f} ms  {kernel[:110]}")
    return kinds


if __name__ == "__main__":
    _CONFIG = program.define_config()
    _SIDES = flags.DEFINE_multi_string("side", [""], "Changed settings; may be repeated.")
    _TURNS = flags.DEFINE_integer("turns", 5, "Turns of each side.", lower_bound=1)
    _PYTORCH = flags.DEFINE_boolean("pytorch", True, "Compare with PyTorch.")
    _PARTS = flags.DEFINE_boolean("parts", False, "Also time parts of the step.")
    _SAMPLE = flags.DEFINE_boolean("sample", False, "Also time sampling.")
    _KERNELS = flags.DEFINE_boolean("kernels", False, "Also list kernels; GPUs only.")
    program.run(main)
