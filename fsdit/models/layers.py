"""Building blocks shared by the DiT, the Perceiver and the learned encoder.

Parameters are float32; matmuls run in `dtype`; norms and softmax in float32.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from fsdit.models.attention import KEPT

Norm = Literal["layer", "rms"]

_XAVIER = nnx.initializers.xavier_uniform()


class Linear(nnx.Linear):
    """Dense layer over the last axis, Xavier-uniform, biases zero.

    In float32, all leading axes are folded into one, because XLA's CPU backend multiplies one
    matrix faster than a batch of them. In bfloat16, which is meant for accelerators, they stay:
    on a TPU, folding copies the array where the second last axis does not fill the tiles.
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
    """2-D sine-cosine positions of a grid, row by row: half of D for y, half for x.

    The patch at row r and column c has y = (r + 0.5) / height and x = (c + 0.5) / width, and

        position(r, c) = [sin(y f), cos(y f), sin(x f), cos(x f)]

    with D / 4 frequencies f in geometric progression from pi / 2 to 16 pi: wavelengths 2 pi / f
    from four images to an eighth of one. It is a constant, not a parameter, as in DiT (arXiv
    2212.09748). Because y and x are fractions of the image, a patch of a support and one of the
    target at the same place have equal positions, whatever the patch sizes. With the usual base
    of 10,000, most of the width would be constant on grids this small.
    """
    frequencies = np.geomspace(np.pi / 2, 16 * np.pi, dim // 4)

    def encode(position: np.ndarray) -> np.ndarray:
        angles = position[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    y, x = np.divmod(np.arange(height * width), width)
    y, x = (y + 0.5) / height, (x + 0.5) / width
    return np.concatenate([encode(y), encode(x)], axis=1).astype(np.float32)


def time_features(t: Float[Array, "B"], dim: int) -> Float[Array, "B D"]:
    """Sine-cosine features of a time t in [0, 1], as in DiT's TimestepEmbedder.

    [cos(1000 t f_i), sin(1000 t f_i)] with f_i = 10000^(-2 i / D) for i = 0 ... D / 2 - 1.
    """
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(dim // 2) / (dim // 2))
    angles = 1_000.0 * t[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


def layer_norm(x: Float[Array, "*S D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*S D"]:
    """Layer norm without learned scale and shift: `modulated_norm` with both zero."""
    zero = jnp.zeros((1,))
    return modulated_norm(x, zero, zero, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def modulated_norm(
    x: Float[Array, "*S D"],
    shift: Float[Array, "*#S #D"],
    scale: Float[Array, "*#S #D"],
    dtype: DTypeLike,
    norm: Norm = "layer",
) -> Float[Array, "*S D"]:
    """Layer norm or RMS norm with adaptive scale and shift, in float32, returned in `dtype`.

    Layer norm (Ba et al., arXiv 1607.06450, equation 3, with 1e-6 added to the variance) over
    the last axis, and the modulation of adaLN (Peebles and Xie, arXiv 2212.09748, section 3.2):

        (1)  n = (x - mean(x)) r,    r = 1 / sqrt(mean((x - mean(x))^2) + 1e-6)
        (2)  y = n (1 + scale) + shift

    With g, the gradient of the loss by y, and a = g (1 + scale), differentiating (1) and (2) gives

        (3)  dx = r (a - mean(a) - n mean(a n))
        (4)  dshift = sum of g,    dscale = sum of g n

    where the sums run over the axes along which shift and scale were broadcast. RMS norm (Zhang
    and Sennrich, arXiv 1910.07467, equation 4) does not subtract the mean: (1) and (3) without
    mean(x) and mean(a) are

        (5)  n = x r,    r = 1 / sqrt(mean(x^2) + 1e-6)
        (6)  dx = r (a - n mean(a n))

    The backward pass keeps x in its own type and mean(x) and r of each token; automatic
    differentiation would keep arrays of the size of x in float32.
    """
    return _normalize(x, shift, scale, dtype, norm)[0]


def _normalize(
    x: Array, shift: Array, scale: Array, dtype: DTypeLike, norm: Norm
) -> tuple[Array, tuple[Array | None, ...]]:
    """Equations (1) or (5), and (2), and what the backward pass needs."""
    x32 = x.astype(jnp.float32)
    mean = checkpoint_name(x32.mean(-1, keepdims=True), KEPT) if norm == "layer" else None
    variance = jnp.square(_centred(x32, mean)).mean(-1, keepdims=True)
    inverse = checkpoint_name(jax.lax.rsqrt(variance + 1e-6), KEPT)
    normal = _centred(x32, mean) * inverse
    y = normal * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)
    return y.astype(dtype), (x, shift, scale, mean, inverse)


def _normalize_backward(
    dtype: DTypeLike, norm: Norm, residuals: tuple[Array | None, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    """Gradients by x, shift and scale: equations (3) or (6), and (4)."""
    del dtype
    x, shift, scale, mean, inverse = residuals
    gradient = gradient.astype(jnp.float32)
    normal = _centred(x.astype(jnp.float32), mean) * inverse
    scaled = gradient * (1 + scale.astype(jnp.float32))
    along = (scaled * normal).mean(-1, keepdims=True)
    centred = _centred(scaled, scaled.mean(-1, keepdims=True) if norm == "layer" else None)
    d_x = inverse * (centred - normal * along)
    return (
        d_x.astype(x.dtype),
        _sum_to(gradient, shift),
        _sum_to(gradient * normal, scale),
    )


def _centred(x: Array, mean: Array | None) -> Array:
    return x if mean is None else x - mean


def _sum_to(gradient: Array, like: Array) -> Array:
    """Sums a gradient over the axes along which `like` was broadcast to its shape."""
    axes = range(-1, -gradient.ndim - 1, -1)
    wide = [i for i in axes if -i > like.ndim or like.shape[i] != gradient.shape[i]]
    return gradient.sum(wide, keepdims=True).reshape(like.shape).astype(like.dtype)


modulated_norm.defvjp(_normalize, _normalize_backward)


def patchify(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B N P"]:
    """Cuts images into N square patches, row by row, each flattened from (size, size, C)."""
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


# The backward pass keeps GELU's argument only and computes the intermediate values again.
_gelu = jax.checkpoint(jax.nn.gelu, prevent_cse=False)


class Mlp(nnx.Module):
    """down(gelu(up(x))), GELU in its tanh approximation (arXiv 1606.08415)."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.up = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        return self.down(_gelu(self.up(x)))


# Like GELU: the backward pass keeps both arguments, and computes SiLU and the product again.
_gated = jax.checkpoint(lambda gate, x: jax.nn.silu(gate) * x, prevent_cse=False)


class SwiGlu(nnx.Module):
    """down(silu(gate(x)) up(x)) (Shazeer, arXiv 2002.05202, equation 6, with biases)."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.gate = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.up = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        return self.down(_gated(self.gate(x), self.up(x)))


def swiglu_width(hidden: int) -> int:
    """Hidden width of a SwiGLU with about as many parameters as an MLP of width `hidden` has.

    An MLP has two matrices of D x hidden and SwiGLU has three, so its width is 2 hidden / 3
    (arXiv 2002.05202, section 2), here rounded to a multiple of 8, as tensor cores want it.
    """
    return 8 * max(1, round(hidden / 12))


def stack(depth: int, make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> nnx.Module:
    """Makes `depth` layers as one module whose parameters have a leading layer axis L."""
    build = nnx.vmap(make, in_axes=0, out_axes=0)
    return nnx.split_rngs(splits=depth)(build)(rngs)


def run_stack(
    layers: nnx.Module,
    call: Callable[[nnx.Module, Array, PyTree], tuple[Array, dict[str, Array]]],
    x: Array,
    *,
    scan: bool,
    remat: str = "none",
    own: PyTree = None,
    span: slice = slice(None),
) -> tuple[Array, dict[str, Array]]:
    """Applies stacked layers one after another.

    call: (layer, x, own) -> (x, diagnostics); the diagnostics are returned with a leading axis
    L. own: arrays (L, ...) of which each layer gets its row; by default nothing.
    scan: whether all layers share one compiled body, which compiles quickly, or each has its
    own. The parameters are stacked in both cases, so a checkpoint serves both.
    remat: what the backward pass computes again: "none", "dots" (all but matmuls and
    attention) or "full".
    span: which layers, by default all.
    """
    graph, parameters = nnx.split(layers)
    if span != slice(None):
        parameters, own = jax.tree.map(lambda a: a[span], (parameters, own))

    def body(x: Array, layer: tuple[nnx.State, PyTree]) -> tuple[Array, dict[str, Array]]:
        state, row = layer
        return call(nnx.merge(graph, state), x, row)

    if remat != "none":
        dots = jax.checkpoint_policies.save_only_these_names(KEPT)
        body = jax.checkpoint(
            body, policy={"dots": dots, "full": None}[remat], prevent_cse=not scan
        )
    return jax.lax.scan(body, x, (parameters, own), unroll=1 if scan else True)
