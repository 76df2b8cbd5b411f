"""A plain PyTorch DiT with pooled support features, and its train step, to compare with.

It is SiT-S/2 (Ma et al., arXiv 2401.08740) as its authors write it: adaLN-Zero, scaled
dot-product attention, tanh-GELU, AdamW, clipped gradients, an EMA of the parameters, squared
error of the velocity. The condition is the mean of the supports' pooled features through an MLP,
with a learned null.
"""

import copy
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

_TIME_FEATURES = 256


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Block(nn.Module):
    """A block of the DiT: x (B, N, D), vector (B, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(vector).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self._attend(_modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(_modulate(self.norm2(x), shift2, scale2))

    def _attend(self, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(b, n, dim))


class DiT(nn.Module):
    """Latents (B, C, H, W), t (B,), pooled (B, K, E) -> velocity (B, C, H, W)."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        patch: int,
        latent: tuple[int, int, int],
        pooled: int,
    ):
        super().__init__()
        height, width, channels = latent
        self.patch, self.grid = patch, (height // patch, width // patch)
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        # The values of a fixed table make no difference to the time that a step takes.
        self.register_buffer("positions", torch.randn(1, math.prod(self.grid), dim))
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.condition = nn.Sequential(nn.Linear(pooled, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.null = nn.Parameter(0.02 * torch.randn(dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.final = nn.Linear(dim, patch * patch * channels)

    def forward(self, x: Tensor, t: Tensor, pooled: Tensor, dropped: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        condition = torch.where(dropped[:, None], self.null, self.condition(pooled.mean(1)))
        vector = self.time(self._time_features(t)) + condition
        for block in self.blocks:
            h = block(h, vector)
        shift, scale = self.final_modulation(vector).chunk(2, dim=1)
        h = self.final(_modulate(self.final_norm(h), shift, scale))
        h = h.reshape(-1, *self.grid, self.patch, self.patch, x.shape[1])
        return h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)

    def _time_features(self, t: Tensor) -> Tensor:
        half = _TIME_FEATURES // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        angles = 1_000 * t[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def make_train_step(
    model: DiT, *, compiled: bool, learning_rate: float = 1e-4
) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a function (latents (B, C, H, W), pooled (B, K, E)) -> loss that trains a step."""
    average = copy.deepcopy(model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    predict = torch.compile(model) if compiled else model
    count = itertools.count()

    def step(latents: Tensor, pooled: Tensor) -> Tensor:
        noise = torch.randn_like(latents)
        t = torch.sigmoid(torch.randn(len(latents)))
        wide = t[:, None, None, None]
        dropped = torch.rand(len(latents)) < 0.1
        velocity = predict((1 - wide) * noise + wide * latents, t, pooled, dropped)
        loss = functional.mse_loss(velocity, latents - noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done = next(count)
        weight = 1 - min(0.9999, (1 + done) / (10 + done))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)
        return loss.detach()

    return step
