"""Time of the train step's matrix products alone, in JAX and in PyTorch, on this machine.

    python -m experiments.benchmarks.compute.products

The products of the blocks of the step that `train_step` measures, forward and backward, in
float32: what they take together is the least time of a step, were all else free. The two sides
take turns in one process. PyTorch belongs to the test extra.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks.compute.train_step import BATCH, config, networks_of
from experiments.benchmarks.turns import machine, take_turns
from fsdit import program

SIDES = ("JAX", "PyTorch")


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of two matrices, or of two stacks of them, whose shapes are left and right.

    transposed: which of the two is transposed first. count: how often a block computes the
    product in a train step.
    """

    name: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    transposed: Literal["neither", "left", "right"] = "neither"
    count: int = 1

    def __call__(self, left: Any, right: Any) -> Any:
        """The product of arrays of JAX or of PyTorch."""
        if self.transposed == "left":
            return left.swapaxes(-1, -2) @ right
        return left @ (right.swapaxes(-1, -2) if self.transposed == "right" else right)

    @property
    def gigaflops(self) -> float:
        """Of one call: a product and a sum for each element of `left` and column of the result."""
        columns = self.right[-2 if self.transposed == "right" else -1]
        return 2e-9 * math.prod(self.left) * columns


def products_of_block(
    images: int, tokens: int, width: int, heads: int, mlp_width: int
) -> Iterator[Product]:
    """The products of a block with self-attention and an MLP, with those of its gradients."""
    rows = images * tokens
    layers = {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, mlp_width),
        "down": (mlp_width, width),
    }
    for name, (inner, outer) in layers.items():
        yield Product(f"{name}: x w", (rows, inner), (inner, outer))
        yield Product(f"{name}: g w^T", (rows, outer), (inner, outer), "right")
        yield Product(f"{name}: x^T g", (rows, inner), (rows, outer), "left")
    head, square = (images, heads, tokens, width // heads), (images, heads, tokens, tokens)
    # The backward pass of attention computes the logits again.
    yield Product("attention: q k^T", head, head, "right", count=3)
    yield Product("attention: p v", square, head, count=2)
    yield Product("attention: p^T g", square, head, "left", count=2)


def measure(turns: int = 5, calls: int = 20, threads: int = 2) -> dict[str, Any]:
    """GFLOP/s of each product, and images/s of a step of nothing else, by side.

    The best of the turns; calls: of one turn; threads: of PyTorch.
    """
    settings = config(tokens=False, scan=True)
    model, (height, breadth, _) = settings.model, networks_of(settings).latent_shape
    tokens = height * breadth // model.patch_size**2
    width = model.hidden_size
    block = products_of_block(BATCH, tokens, width, model.num_heads, int(width * model.mlp_ratio))
    rates, seconds = {}, dict.fromkeys(SIDES, 0.0)
    for product in block:
        best = seconds_of(product, turns, calls, threads)
        rates[product.name] = {side: product.gigaflops / best[side] for side in SIDES}
        for side in SIDES:
            seconds[side] += model.depth * product.count * best[side]
    return {
        "gigaflops_per_second": rates,
        "images_per_second": {side: BATCH / seconds[side] for side in SIDES},
        "machine": machine(),
    }


def seconds_of(product: Product, turns: int, calls: int, threads: int) -> dict[str, float]:
    """Seconds of one call by side, the best of the turns."""
    import torch  # belongs to the test extra

    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(s, np.float32) for s in (product.left, product.right)]

    def turn(call: Callable[..., Any], given: list[Any]) -> Any:
        return [call(*given) for _ in range(calls)][-1]

    sides = {
        "JAX": functools.partial(turn, jax.jit(product), [jnp.asarray(a) for a in arrays]),
        "PyTorch": functools.partial(turn, product, [torch.from_numpy(a) for a in arrays]),
    }
    seconds, _ = take_turns(sides, turns)
    return {side: min(found) / calls for side, found in seconds.items()}


def main(argv: list[str]) -> None:
    del argv
    result = measure(_TURNS.value, _CALLS.value, _THREADS.value)
    print(f"| product, GFLOP/s | {' | '.join(SIDES)} |\n| --- | --- | --- |")
    for name, rates in result["gigaflops_per_second"].items():
        print(f"| {name} | {' | '.join(f'{rates[side]:.0f}' for side in SIDES)} |")
    whole = result["images_per_second"]
    print(f"| images/s, were these all | {' | '.join(f'{whole[side]:.2f}' for side in SIDES)} |")
    print(json.dumps(result["machine"]))


if __name__ == "__main__":
    _TURNS = flags.DEFINE_integer("turns", 5, "Turns of each side.", lower_bound=1)
    _CALLS = flags.DEFINE_integer("calls", 20, "Calls of a turn.", lower_bound=1)
    _THREADS = flags.DEFINE_integer("threads", 2, "Threads of PyTorch.", lower_bound=1)
    program.run(main)
