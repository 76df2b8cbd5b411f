"""Building blocks shared by the DiT, the Perceiver and the learned encoder.

Parameters are float32; matmuls run in `dtype`; norms and softmax in float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fsdit.models.attention import KEPT, attend

_XAVIER = nnx.initializers.xavier_uniform()


class Linear(nnx.Linear):
    """Dense layer over the last axis, Xavier-uniform, biases zero.

    In float32 all other axes are folded into one: XLA's CPU backend multiplies a plain matrix
    faster, forward and backward, than a batch of them. In bfloat16, meant for accelerators,
    they stay: on a TPU folding copies, where the second last axis does not fill its tiles.
    """

    def __init__(self, *args, kernel_init=_XAVIER, **kwargs):
        super().__init__(*args, kernel_init=kernel_init, **kwargs)

    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S E"]:
        if self.dtype == jnp.bfloat16:
            return checkpoint_name(super().__call__(x), KEPT)
        flat = super().__call__(x.reshape(-1, x.shape[-1]))
        return checkpoint_name(flat.reshape(*x.shape[:-1], flat.shape[-1]), KEPT)


ZeroLinear = functools.partial(Linear, kernel_init=nnx.initializers.zeros_init())


def position_table(height: int, width: int, dim: int) -> Float[np.ndarray, "N D"]:
    """2-D sine-cosine positions of a grid, row by row: half for y, half for x.

    A constant, not a parameter, as in DiT. Positions are fractions of the image, so that
    the patches of a support and of the target have equal positions where they lie at the
    same place, whatever their sizes; wavelengths go from four images to an eighth of one.
    The usual 10,000 as base leaves most of the width constant on grids this small.
    """
    frequencies = np.geomspace(np.pi / 2, 16 * np.pi, dim // 4)

    def encode(position: np.ndarray) -> np.ndarray:
        angles = position[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    y, x = np.divmod(np.arange(height * width), width)
    y, x = (y + 0.5) / height, (x + 0.5) / width
    return np.concatenate([encode(y), encode(x)], axis=1).astype(np.float32)


def time_features(t: Float[Array, "B"], dim: int) -> Float[Array, "B D"]:
    """Sine-cosine features of a time in [0, 1]."""
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(dim // 2) / (dim // 2))
    angles = 1_000.0 * t[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


def layer_norm(x: Float[Array, "*S D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*S D"]:
    """Layer norm without learned scale and shift; computed in float32, returned in `dtype`."""
    zero = jnp.zeros((1,))
    return modulated_norm(x, zero, zero, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def modulated_norm(
    x: Float[Array, "*S D"],
    shift: Float[Array, "*#S #D"],
    scale: Float[Array, "*#S #D"],
    dtype: DTypeLike,
) -> Float[Array, "*S D"]:
    """layer_norm(x) * (1 + scale) + shift in float32, returned in `dtype`.

    The backward pass needs x as it came, a mean and a deviation of each token, and nothing
    in float32 of the size of x.
    """
    return _normalize(x, shift, scale, dtype)[0]


def _normalize(
    x: Array, shift: Array, scale: Array, dtype: DTypeLike
) -> tuple[Array, tuple[Array, ...]]:
    x32 = x.astype(jnp.float32)
    mean = checkpoint_name(x32.mean(-1, keepdims=True), KEPT)
    variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
    inverse = checkpoint_name(jax.lax.rsqrt(variance + 1e-6), KEPT)
    y = (x32 - mean) * inverse * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)
    return y.astype(dtype), (x, shift, scale, mean, inverse)


def _normalize_backward(
    dtype: DTypeLike, residuals: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    del dtype
    x, shift, scale, mean, inverse = residuals
    gradient = gradient.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    slope = gradient * (1 + scale.astype(jnp.float32))
    along = (slope * normal).mean(-1, keepdims=True)
    d_x = inverse * (slope - slope.mean(-1, keepdims=True) - normal * along)
    return (
        d_x.astype(x.dtype),
        _sum_to(gradient, shift),
        _sum_to(gradient * normal, scale),
    )


def _sum_to(gradient: Array, like: Array) -> Array:
    """The gradient of what was broadcast."""
    axes = range(-1, -gradient.ndim - 1, -1)
    wide = [i for i in axes if -i > like.ndim or like.shape[i] != gradient.shape[i]]
    return gradient.sum(wide, keepdims=True).reshape(like.shape).astype(like.dtype)


modulated_norm.defvjp(_normalize, _normalize_backward)


def patchify(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B N P"]:
    """Square patches row by row, each flattened to (size, size, C)."""
    b, h, w, c = images.shape
    grid = images.reshape(b, h // size, size, w // size, size, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)


def unpatchify(
    patches: Float[Array, "B N P"], height: int, width: int, size: int
) -> Float[Array, "B H W C"]:
    """Inverse of `patchify`."""
    b, _, p = patches.shape
    c = p // size**2
    grid = patches.reshape(b, height // size, width // size, size, size, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, c)


class Attention(nnx.Module):
    """Multi-head attention of `x` over `context` (over itself by default).

    Across, queries and keys start equal, so that attention starts as likeness of place
    and content instead of having to find it (Trockman and Kolter, arXiv 2305.09828).
    """

    def __init__(
        self, dim: int, num_heads: int, *, rngs: nnx.Rngs, dtype: jnp.dtype, cross: bool = False
    ):
        self.num_heads = num_heads
        self.cross = cross
        if cross:
            self.query = Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.key = Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.value = Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.key.kernel[...] = self.query.kernel[...]
        else:
            self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def project(
        self, x: Float[Array, "B N D"], context: Float[Array, "B M D"] | None
    ) -> list[Float[Array, "B heads _ d"]]:
        """Queries, scaled for the softmax, keys and values, split into heads."""
        if self.cross:
            parts = [self.query(x), self.key(context), self.value(context)]
        else:
            parts = jnp.split(self.qkv(x), 3, axis=-1)
        query, key, value = (self._heads(p) for p in parts)
        scaled = query * query.shape[-1] ** -0.5
        return [checkpoint_name(p, KEPT) for p in (scaled, key, value)]

    def _heads(self, x: Float[Array, "B N D"]) -> Float[Array, "B heads N d"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)

    def __call__(
        self, x: Float[Array, "#B N D"], context: Float[Array, "B M D"] | None = None
    ) -> Float[Array, "B N D"]:
        """Over a context, x may have one row for the whole batch."""
        if self.cross and x.shape[1] * self.num_heads <= x.shape[2]:
            mixed = self._over_few(x, context)
        else:
            rows = x.shape[0] if context is None else context.shape[0]
            mixed = attend(*self.project(jnp.broadcast_to(x, (rows, *x.shape[1:])), context))
        return self.out(mixed.swapaxes(1, 2).reshape(-1, *x.shape[1:]))

    def _over_few(
        self, x: Float[Array, "#B N D"], context: Float[Array, "B M D"]
    ) -> Float[Array, "B heads N d"]:
        """The same by few queries, without keys and values of the whole context.

        (W_q x) . (W_k c) = (W_k^T W_q x) . c, and the mean of W_v c is W_v of the mean. The
        key's bias adds the same to all logits of a query, which softmax does not see; the
        value's bias passes through a mean as it is.
        """
        (b, _, dim), heads = context.shape, self.num_heads
        query = self._heads(self.query(x)) * (dim // heads) ** -0.5
        key, value = (
            linear.kernel[...].astype(query.dtype).reshape(dim, heads, -1)
            for linear in (self.key, self.value)
        )
        query = jnp.einsum("bhnd,Dhd->bhnD", query, key).reshape(x.shape[0], 1, -1, dim)
        query = jnp.broadcast_to(query, (b, *query.shape[1:]))
        context = context.astype(query.dtype)[:, None]
        mixed = attend(query, context, context).reshape(b, heads, -1, dim)
        mixed = jnp.einsum("bhnD,Dhd->bhnd", mixed, value)
        return mixed + self.value.bias[...].astype(mixed.dtype).reshape(heads, 1, -1)

    def entropy(
        self, x: Float[Array, "B N D"], context: Float[Array, "B M D"] | None = None
    ) -> Float[Array, "heads"]:
        """Mean entropy in nats of the attention rows of each head, for diagnostics."""
        query, key, _ = self.project(x, context)
        logits = jnp.einsum("bhnd,bhmd->bhnm", query, key, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        return -(jnp.exp(log_p) * log_p).sum(-1).mean((0, 2))


# Kept for the backward pass: what goes in, not what lies between.
_gelu = jax.checkpoint(jax.nn.gelu, prevent_cse=False)


class Mlp(nnx.Module):
    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.up = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        return self.down(_gelu(self.up(x)))


def stack(depth: int, make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> nnx.Module:
    """`depth` layers as one module whose parameters carry a leading layer axis."""
    build = nnx.vmap(make, in_axes=0, out_axes=0)
    return nnx.split_rngs(splits=depth)(build)(rngs)


def run_stack(
    layers: nnx.Module,
    call: Callable[[nnx.Module, Array], tuple[Array, dict[str, Array]]],
    x: Array,
    *,
    scan: bool,
    remat: str = "none",
) -> tuple[Array, dict[str, Array]]:
    """Applies stacked layers in turn.

    call: (layer, x) -> (x, diagnostics); the diagnostics come back with a layer axis.
    scan: one compiled body for all layers (quick to compile), or each its own. The
    parameters are stacked either way, so a checkpoint serves both.
    remat: what the backward pass recomputes: "none", "dots" (all but matmuls and attention),
    "full".
    """
    graph, parameters = nnx.split(layers)

    def body(x: Array, layer: nnx.State) -> tuple[Array, dict[str, Array]]:
        return call(nnx.merge(graph, layer), x)

    if remat != "none":
        dots = jax.checkpoint_policies.save_only_these_names(KEPT)
        body = jax.checkpoint(
            body, policy={"dots": dots, "full": None}[remat], prevent_cse=not scan
        )
    return jax.lax.scan(body, x, parameters, unroll=1 if scan else True)
