"""The sides that `recipe_step` measures: our step, its parts, our sampler, and PyTorch's step."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.benchmarks.compute import train_step
from fsdit.config import Config
from fsdit.data.records import num_supports
from fsdit.errors import ConfigError
from fsdit.models.spec import ModelSpec
from fsdit.parallel import exchange, sharding
from fsdit.planning.plan import memory_of
from fsdit.sampling.images import compile_sampling
from fsdit.training import flops
from fsdit.training.objective import objective, with_negatives

_STEPS = 10  # of a turn


@dataclasses.dataclass(frozen=True)
class Side:
    """Something to be timed.

    call: runs `steps` steps and returns a result to wait for. images: of a step, as are the
    model's FLOPs; 0 where they are not counted. memory: returns bytes of the device, or None
    where they are unknown.
    """

    call: Callable[[], Any]
    steps: int
    images: int
    flops: int
    memory: Callable[[], int | None]
    compile_seconds: float


def jax_side(config: Config) -> Side:
    """Our train step. Raises ConfigError where the first device cannot run it."""
    spec, mesh, batch = _prepared(config)
    step, state = train_step.step_and_state(config, spec, mesh)
    compiled, seconds = _compiled(step, state, batch)
    count = flops.of_step(spec, config, state.params, batch)

    def train() -> jax.Array:
        nonlocal state
        for _ in range(_STEPS):
            state, metrics = compiled(state, batch)
        return metrics["loss"]

    return _side(config, train, compiled, seconds, count, _STEPS)


def parts(config: Config) -> dict[str, Side]:
    """The forward pass to the loss, and the loss with its gradient."""
    spec, mesh, batch = _prepared(config)
    spec = dataclasses.replace(spec, by_device=True)  # the train step's kernel of attention
    params = jax.jit(lambda: spec.init(config.seed), out_shardings=sharding.replicated(mesh))()
    count = flops.of_step(spec, config, params, batch)

    def loss(params: PyTree, batch: PyTree, step: jax.Array) -> jax.Array:
        return objective(spec, config, params, with_negatives(config, batch), step).total.mean()

    def both(params: PyTree, batch: PyTree, step: jax.Array) -> tuple[jax.Array, PyTree]:
        return jax.value_and_grad(loss)(params, batch, step)

    gradient = exchange.sharded_gradients(mesh, both, jnp.dtype(config.model.dtype))
    step = jnp.zeros((), jnp.int32)
    sides = {}
    for name, function, share in (("forward", loss, 3), ("gradient", gradient, 1)):
        compiled, seconds = _compiled(jax.jit(function), params, batch, step)
        call = _repeated(compiled, params, batch, step)
        sides[name] = _side(config, call, compiled, seconds, count // share, _STEPS)
    return sides


def sampler(config: Config) -> Side:
    """One batch of guided samples, from features to images; the weights of the VAE are random."""
    spec, mesh, _ = _prepared(config)
    rows = config.evaluation.batch_size
    batch = train_step.example_batch(spec, _with_batch(config, rows))
    params = jax.jit(lambda: spec.init(config.seed))()
    codec = jax.tree.map(_random, spec.codec)
    sample = compile_sampling(spec, config.sampling, mesh)
    supports = jax.device_put(batch["supports"])
    arguments = (params, codec, supports, jnp.asarray(batch["index"]), jnp.uint32(0))
    compiled, seconds = _compiled(sample, *arguments)
    call = _repeated(compiled, *arguments, times=1)
    return _side(_with_batch(config, rows), call, compiled, seconds, 0, 1)


def _with_batch(config: Config, rows: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=rows))


def _random(shape: jax.ShapeDtypeStruct) -> jax.Array:
    values = 0.02 * np.random.default_rng(0).standard_normal(shape.shape, np.float32)
    return jnp.asarray(values, shape.dtype)


def _prepared(config: Config) -> tuple[ModelSpec, Mesh, PyTree]:
    """The model, a mesh of the first device, and a batch on it. Raises ConfigError."""
    if config.model.encoder.name != "frozen":
        raise ConfigError("recipe_step measures recipes with a frozen encoder")
    spec = train_step.networks_of(config)
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    spec.check_training(num_supports(config.data.shots))
    place = sharding.global_batch(mesh, config.data.batch_size)
    return spec, mesh, place(train_step.example_batch(spec, config))


def _compiled(function: Callable, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    """A compiled function, and the seconds that tracing and compiling took."""
    begun = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - begun


def _repeated(compiled: Callable, *arguments: Any, times: int = _STEPS) -> Callable[[], Any]:
    def call() -> Any:
        for _ in range(times):
            result = compiled(*arguments)
        return result

    return call


def _side(
    config: Config,
    call: Callable[[], Any],
    compiled: jax.stages.Compiled,
    seconds: float,
    count: int,
    steps: int,
) -> Side:
    memory = memory_of(compiled)
    total = memory.total if memory else None
    return Side(call, steps, config.data.batch_size, count, lambda: total, seconds)


def pytorch_side(config: Config) -> Side:
    """PyTorch's train step of the same shape, on its GPU if it finds one. Raises ConfigError."""
    import torch  # belongs to the test extra

    model = config.model
    if model.cross_attention == "cls" or (model.use_context and not model.num_latents):
        raise ConfigError("the PyTorch model has no such condition: give --nopytorch")
    spec = train_step.networks_of(config)
    on_gpu = torch.cuda.is_available()
    train = train_step.pytorch_trainer(
        config, torch.get_num_threads(), "cuda" if on_gpu else "cpu", compiled=True
    )
    batch = train_step.example_batch(spec, config)
    count = flops.of_step(spec, config, spec.abstract_params(), batch)
    begun = time.perf_counter()
    train(1)  # compiles
    seconds = time.perf_counter() - begun
    memory = torch.cuda.max_memory_allocated if on_gpu else lambda: None
    images = config.data.batch_size
    return Side(lambda: train(_STEPS), _STEPS, images, count, memory, seconds)
