"""Blocks of the frozen vision transformers (Dosovitskiy et al., arXiv 2010.11929, equations 2, 3):

    (1)  x <- x + scale1 attention(LN(x))
    (2)  x <- x + scale2 mlp(LN(x))

Layer scales (Touvron et al., arXiv 2103.17239) are learned vectors in DINOv2 and absent in
SigLIP. Parameters are float32; matmuls and activations are in `dtype`; norms and softmax are
float32.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fsdit.models import layers
from fsdit.models.multihead import Attention

# Activation functions by the names that transformers gives them.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@dataclass(frozen=True)
class BlockShape:
    """Sizes of a block. activation: a key of ACTIVATIONS, or "swiglu"."""

    dim: int
    num_heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    layer_scale: bool = False


def layer_norm(dim: int, eps: float, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Makes a layer norm with learned scale and bias.

    Its statistics are computed in float32 from the centred values; the result is in `dtype`.
    """
    return nnx.LayerNorm(dim, epsilon=eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


class VitMlp(nnx.Module):
    """down(act(up(x))), or SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, shape: BlockShape, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = shape.activation
        # SwiGLU computes its gate and the values that it gates side by side, in one product.
        up = 2 * shape.mlp_dim if shape.activation == "swiglu" else shape.mlp_dim
        self.up = layers.Linear(shape.dim, up, dtype=dtype, rngs=rngs)
        self.down = layers.Linear(shape.mlp_dim, shape.dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        h = self.up(x)
        if self.activation == "swiglu":
            gate, h = jnp.split(h, 2, axis=-1)
            return self.down(jax.nn.silu(gate) * h)
        return self.down(ACTIVATIONS[self.activation](h))


class VitBlock(nnx.Module):
    """Pre-norm transformer layer, equations (1) and (2)."""

    def __init__(self, shape: BlockShape, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        norm = functools.partial(layer_norm, shape.dim, shape.norm_eps, dtype=dtype, rngs=rngs)
        self.norm1, self.norm2 = norm(), norm()
        self.attention = Attention(shape.dim, shape.num_heads, rngs=rngs, dtype=dtype)
        self.mlp = VitMlp(shape, dtype=dtype, rngs=rngs)
        self.layer_scale = shape.layer_scale
        if shape.layer_scale:
            self.scale1 = nnx.Param(jnp.ones(shape.dim))
            self.scale2 = nnx.Param(jnp.ones(shape.dim))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        h = self.attention(self.norm1(x))
        x = x + (h * self.scale1[...].astype(h.dtype) if self.layer_scale else h)
        h = self.mlp(self.norm2(x))
        return x + (h * self.scale2[...].astype(h.dtype) if self.layer_scale else h)


def stack(depth: int, shape: BlockShape, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """Makes `depth` blocks whose parameters have a leading layer axis."""
    return layers.stack(depth, lambda r: VitBlock(shape, dtype=dtype, rngs=r), rngs)


def run_stack(blocks: nnx.Module, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Applies stacked blocks one after another, with one compiled body for all of them."""
    return layers.run_stack(blocks, lambda block, h, _: (block(h), {}), x, scan=True)[0]


def complete_patches(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B N P"]:
    """Cuts images into N patches, row by row, each flattened from (size, size, C).

    Pixels at the lower and right edge that do not fill a patch are dropped.
    """
    height, width = (side // size * size for side in images.shape[1:3])
    return layers.patchify(images[:, :height, :width], size)


def patch_kernel(weight: np.ndarray) -> np.ndarray:
    """PyTorch's convolution (D, C, size, size) -> a matrix (size size C, D) for `patchify`."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
