"""Building blocks shared by the DiT, the Perceiver and the learned encoder.

Parameters are float32; matmuls run in `dtype`; norms and softmax in float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

_XAVIER = nnx.initializers.xavier_uniform()


class Linear(nnx.Linear):
    """Dense layer over the last axis, Xavier-uniform, biases zero.

    All other axes are folded into one: XLA's CPU backend multiplies a plain matrix
    about 1.5 times faster, forward and backward, than a batch of them.
    """

    def __init__(self, *args, kernel_init=_XAVIER, **kwargs):
        super().__init__(*args, kernel_init=kernel_init, **kwargs)

    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S E"]:
        flat = super().__call__(x.reshape(-1, x.shape[-1]))
        return flat.reshape(*x.shape[:-1], flat.shape[-1])


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


def layer_norm(x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
    """Layer norm without learned scale and shift, in float32."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6)


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
    ) -> list[Float[Array, "B _ heads d"]]:
        """Queries, keys and values, split into heads."""
        if self.cross:
            parts = [self.query(x), self.key(context), self.value(context)]
        else:
            parts = jnp.split(self.qkv(x), 3, axis=-1)
        return [p.reshape(*p.shape[:2], self.num_heads, -1) for p in parts]

    def __call__(
        self, x: Float[Array, "B N D"], context: Float[Array, "B M D"] | None = None
    ) -> Float[Array, "B N D"]:
        mixed = jax.nn.dot_product_attention(*self.project(x, context))
        return self.out(mixed.reshape(x.shape))

    def entropy(
        self, x: Float[Array, "B N D"], context: Float[Array, "B M D"] | None = None
    ) -> Float[Array, "heads"]:
        """Mean entropy in nats of the attention rows of each head, for diagnostics."""
        query, key, _ = self.project(x, context)
        logits = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(logits / query.shape[-1] ** 0.5)
        return -(jnp.exp(log_p) * log_p).sum(-1).mean((0, 2))


class Mlp(nnx.Module):
    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.up = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        return self.down(jax.nn.gelu(self.up(x)))


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
    remat: what the backward pass recomputes: "none", "dots" (all but matmuls), "full".
    """
    graph, parameters = nnx.split(layers)

    def body(x: Array, layer: nnx.State) -> tuple[Array, dict[str, Array]]:
        return call(nnx.merge(graph, layer), x)

    if remat != "none":
        policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
        body = jax.checkpoint(body, policy=policies[remat], prevent_cse=not scan)
    return jax.lax.scan(body, x, parameters, unroll=1 if scan else True)
