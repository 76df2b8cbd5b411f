"""A plain PyTorch DiT with features of supports, and its train step, to compare with.

It is SiT (Ma et al., arXiv 2401.08740) as its authors write it: adaLN-Zero, scaled
dot-product attention, tanh-GELU, AdamW, clipped gradients, an EMA of the parameters, squared
error of the velocity. The condition is the mean of the supports' pooled features through an MLP,
with a learned null. With tokens, a one-layer Perceiver makes latents of them, to which every
patch attends in each block, as in `fsdit.models`.
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


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


def _mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
    )


class SelfAttention(nn.Module):
    """x (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(b, n, dim))


class CrossAttention(nn.Module):
    """x (B, N, D), context (B, M, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, n, dim = x.shape
        query = self.query(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        pair = self.key_value(context).reshape(b, -1, 2, self.heads, dim // self.heads)
        key, value = pair.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(b, n, dim))


class Perceiver(nn.Module):
    """Tokens of supports (B, K, T, E) -> context (B, M, D), with M learned latents."""

    def __init__(self, dim: int, heads: int, latents: int, tokens: int, width: int):
        super().__init__()
        self.embed, self.norm = nn.Linear(width, dim), _norm(dim)
        self.register_buffer("positions", torch.randn(1, 1, tokens, dim))
        self.latents = nn.Parameter(0.02 * torch.randn(latents, dim))
        self.attention, self.mlp = CrossAttention(dim, heads), _mlp(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.norm(self.embed(tokens)) + self.positions).flatten(1, 2)
        latents = self.latents.expand(len(tokens), -1, -1)
        z = latents + self.attention(self.norm(latents), x)
        return self.norm(z + self.mlp(self.norm(z)))


class Block(nn.Module):
    """A block of the DiT: x (B, N, D), vector (B, D), context (B, M, D) -> (B, N, D).

    cross: whether patches attend to the context.
    """

    def __init__(self, dim: int, heads: int, cross: bool):
        super().__init__()
        self.norm = _norm(dim)
        self.attention, self.mlp = SelfAttention(dim, heads), _mlp(dim)
        self.cross = CrossAttention(dim, heads) if cross else None
        self.branches = 3 if cross else 2
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * self.branches * dim))

    def forward(self, x: Tensor, vector: Tensor, context: Tensor | None) -> Tensor:
        parts = self.modulation(vector).chunk(3 * self.branches, dim=1)
        shift, scale, gate = parts[:3]
        x = x + gate.unsqueeze(1) * self.attention(_modulate(self.norm(x), shift, scale))
        if self.cross is not None:
            shift, scale, gate = parts[3:6]
            x = x + gate.unsqueeze(1) * self.cross(_modulate(self.norm(x), shift, scale), context)
        shift, scale, gate = parts[-3:]
        return x + gate.unsqueeze(1) * self.mlp(_modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """Latents (B, C, H, W), t (B,), pooled (B, K, E) -> velocity (B, C, H, W).

    tokens: (T, M) where the patches also attend to M latents made of the supports' tokens
    (B, K, T, E); None where the model has no tokens.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        patch: int,
        latent: tuple[int, int, int],
        pooled: int,
        tokens: tuple[int, int] | None = None,
    ):
        super().__init__()
        height, width, channels = latent
        self.patch, self.grid = patch, (height // patch, width // patch)
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        # The values of a fixed table make no difference to the time that a step takes.
        self.register_buffer("positions", torch.randn(1, math.prod(self.grid), dim))
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.condition = nn.Sequential(nn.Linear(pooled, dim), nn.SiLU(), nn.Linear(dim, dim))
        count, latents = tokens or (0, 0)
        self.null = nn.Parameter(0.02 * torch.randn(1 + latents, dim))
        self.perceiver = Perceiver(dim, heads, latents, count, pooled) if tokens else None
        self.blocks = nn.ModuleList(Block(dim, heads, tokens is not None) for _ in range(depth))
        self.final_norm = _norm(dim)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.final = nn.Linear(dim, patch * patch * channels)

    def forward(
        self, x: Tensor, t: Tensor, dropped: Tensor, pooled: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        found = self.condition(pooled.float().mean(1))
        vector = self.time(self._time_features(t))
        vector = vector + torch.where(dropped[:, None], self.null[0], found)
        context = None
        if self.perceiver is not None:
            null = self.null[1:]
            context = torch.where(dropped[:, None, None], null, self.perceiver(tokens))
        for block in self.blocks:
            h = block(h, vector, context)
        shift, scale = self.final_modulation(vector).chunk(2, dim=1)
        h = self.final(_modulate(self.final_norm(h), shift, scale))
        h = h.reshape(-1, *self.grid, self.patch, self.patch, x.shape[1])
        return h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)

    def _time_features(self, t: Tensor) -> Tensor:
        half = _TIME_FEATURES // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
        angles = 1_000 * t[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def make_train_step(
    model: DiT, *, compiled: bool, bfloat16: bool = False, learning_rate: float = 1e-4
) -> Callable[..., Tensor]:
    """Returns a function (latents (B, C, H, W), features of supports) -> loss that trains a step.

    The features are those of the model: pooled (B, K, E), and tokens (B, K, T, E) if it has them.
    bfloat16: the model computes in it under autocast; what is trained stays float32.
    """
    average = copy.deepcopy(model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    predict = torch.compile(model) if compiled else model
    count = itertools.count()

    def step(latents: Tensor, *supports: Tensor) -> Tensor:
        noise, rows = torch.randn_like(latents), len(latents)
        t = torch.sigmoid(torch.randn(rows, device=latents.device))
        wide = t[:, None, None, None]
        dropped = torch.rand(rows, device=latents.device) < 0.1
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=bfloat16):
            velocity = predict((1 - wide) * noise + wide * latents, t, dropped, *supports)
        loss = functional.mse_loss(velocity.float(), latents - noise)
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
