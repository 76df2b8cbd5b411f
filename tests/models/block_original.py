"""A DiT block with every variant, in PyTorch as the papers write it, on our parameters.

Tensors are float64, and gradients are those of autograd.
"""

import torch
from torch import Tensor
from torch.nn import functional

Parameters = dict  # nested: those of `DiTBlock`, as tensors

EPSILON = 1e-6


def block(
    p: Parameters, x: Tensor, vector: Tensor, context: Tensor | None, settings: dict, grid, heads
) -> Tensor:
    """x (B, N, D), vector (B, D) or (B, E), context (B, M, D) -> (B, N, D)."""
    dim = x.shape[-1]
    if settings.get("modulation") == "single":
        modulation = vector + p["modulation"]["offset"]
    else:
        modulation = linear(p["modulation"], functional.silu(vector))
    parts = list(modulation[:, None].split(dim, dim=-1))

    def branch(x: Tensor, layer) -> Tensor:
        shift, scale, gate = (parts.pop(0) for _ in range(3))
        norm = functional.rms_norm if settings.get("norm") == "rms" else functional.layer_norm
        return gate * layer(norm(x, (dim,), eps=EPSILON) * (1 + scale) + shift)

    placed = grid if settings.get("rotary") else None
    x = x + branch(x, lambda h: self_attention(p["attention"], h, heads, placed))
    if settings["cross_attention"] == "patches":
        x = x + branch(x, lambda h: cross_attention(p["cross"], h, context, heads))
    elif settings["cross_attention"] == "cls":
        found = branch(x[:, :1], lambda h: cross_attention(p["cross"], h, context, heads))
        x = torch.cat([x[:, :1] + found, x[:, 1:]], dim=1)
    return x + branch(x, lambda h: mlp(p["mlp"], h))


def linear(p: Parameters, x: Tensor) -> Tensor:
    return x @ p["kernel"] + p["bias"]


def mlp(p: Parameters, x: Tensor) -> Tensor:
    if "gate" in p:
        hidden = functional.silu(linear(p["gate"], x)) * linear(p["up"], x)
    else:
        hidden = functional.gelu(linear(p["up"], x), approximate="tanh")
    return linear(p["down"], hidden)


def self_attention(p: Parameters, x: Tensor, heads: int, grid: tuple[int, int] | None) -> Tensor:
    query, key, value = linear(p["qkv"], x).chunk(3, dim=-1)
    return attention(p, query, key, value, heads, grid)


def cross_attention(p: Parameters, x: Tensor, context: Tensor, heads: int) -> Tensor:
    query, (key, value) = linear(p["query"], x), (linear(p[n], context) for n in ("key", "value"))
    return attention(p, query, key, value, heads, None)


def attention(p: Parameters, query: Tensor, key: Tensor, value: Tensor, heads: int, grid) -> Tensor:
    query, key, value = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    if "query_scale" in p:
        width = (query.shape[-1],)
        query = functional.rms_norm(query, width, 1 + p["query_scale"], EPSILON)
        key = functional.rms_norm(key, width, 1 + p["key_scale"], EPSILON)
    if grid is not None:
        query, key = turned(query, grid), turned(key, grid)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return linear(p["out"], mixed.transpose(1, 2).flatten(-2))


def turned(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rotary positions by complex numbers, patch by patch; tokens before the patches stay.

    A pair is (element i, element i + d / 2); the first half of the pairs turns with the row.
    """
    half = x.shape[-1] // 2
    numbers = torch.complex(x[..., :half], x[..., half:])
    rows, columns = grid
    angles = torch.zeros(x.shape[-2], half, dtype=torch.float64)
    first = x.shape[-2] - rows * columns
    for row in range(rows):
        for column in range(columns):
            for i in range(half // 2):
                frequency = 100.0 ** (-i / (half // 2))
                token = first + row * columns + column
                angles[token, i] = row * frequency
                angles[token, half // 2 + i] = column * frequency
    numbers = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([numbers.real, numbers.imag], dim=-1)
