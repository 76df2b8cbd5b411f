"""A block of the Diffusion Transformer, and the modulation of its norms.

A block is that of DiT with adaLN-Zero (Peebles and Xie, arXiv 2212.09748, section 3.2), with
cross-attention to the support context between self-attention and MLP. Each of its branches F
(self-attention, cross-attention, MLP) has a shift, a scale and a gate of its own:

    (1)  [shift, scale, gate, ...] = W silu(vector) + b,    W = 0 and b = 0 at the start
    (2)  x <- x + gate F(norm(x) (1 + scale) + shift)

so a new block is the identity. `vector` is the sum of the time's embedding and of the condition.

With config.modulation="single", W and b are one for all blocks, and block l adds an offset E_l
(adaLN-single: Chen et al., arXiv 2310.00426, section 2.3):

    (3)  [shift, scale, gate, ...] = W silu(vector) + b + E_l,    E_l = 0 at the start

In PixArt-alpha E_l starts at random, and the last matrices of the branches at zero. Here
adaLN-Zero's start is kept: all of (3) is zero, and a new block is the identity.

Neither depends on the tokens, so both are computed for all blocks at once, before the first. A
block holds the parameters of its modulation, and is called with its result.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fsdit.config import ModelConfig
from fsdit.models import layers
from fsdit.models.multihead import Attention, Context, Grid

Diagnostics = dict[str, Array]


# (vector (B, D), kernels (L, D, E)) -> (L, B, E), as `products` computes them.
Products = Callable[[Array, Array], Array]


def products(x: Float[Array, "B D"], kernels: Float[Array, "L D E"]) -> Float[Array, "L B E"]:
    """The products of one vector with the kernels of L layers, in the type of the kernels.

    The vector is repeated before it takes that type, so that its gradients by all layers are
    added in its own.
    """
    repeated = jnp.broadcast_to(x, (kernels.shape[0], *x.shape)).astype(kernels.dtype)
    return jnp.einsum("lbd,lde->lbe", repeated, kernels)


class Modulation(layers.Linear):
    """Equation (1): vector (B, D) -> shifts, scales and gates (B, E), zero at the start."""

    def __init__(self, dim: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        super().__init__(dim, width, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, vector: Float[Array, "B D"]) -> Float[Array, "B E"]:
        return super().__call__(nnx.silu(vector).astype(self.dtype))

    def of_all(self, vector: Float[Array, "B D"], products: Products) -> Float[Array, "L B E"]:
        """Equation (1) for each of L blocks, of whose modulations this is the stack."""
        kernel, bias = (p[...].astype(self.dtype) for p in (self.kernel, self.bias))
        return products(nnx.silu(vector), kernel) + bias[:, None]


class Offset(nnx.Module):
    """Equation (3) from the `Modulation` of all blocks on: it adds E_l in float32."""

    def __init__(self, width: int, *, dtype: jnp.dtype):
        self.dtype = dtype
        self.offset = nnx.Param(jnp.zeros(width))

    def of_all(self, shared: Float[Array, "B E"]) -> Float[Array, "L B E"]:
        """Equation (3) for each of L blocks, of whose offsets this is the stack.

        The sum is float32, so that the gradients of all blocks are added in float32.
        """
        offsets = self.offset[...].astype(jnp.float32)[:, None]
        return (shared.astype(jnp.float32) + offsets).astype(self.dtype)


def modulation_width(config: ModelConfig) -> int:
    """Shift, scale and gate, D each, of every branch of a block."""
    branches = 3 if config.use_context else 2
    return 3 * branches * config.hidden_size


class DiTBlock(nnx.Module):
    """Self-attention, cross-attention (if the model uses a context) and MLP, with adaLN-Zero.

    grid: rows and columns of the patches, which are the last tokens.
    """

    def __init__(self, config: ModelConfig, grid: Grid, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        dim, hidden = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.norm = config.norm
        self.cls_only = config.cross_attention == "cls"
        width, single = modulation_width(config), config.modulation == "single"
        self.modulation = (
            Offset(width, dtype=dtype) if single else Modulation(dim, width, dtype=dtype, rngs=rngs)
        )
        attention = functools.partial(
            Attention,
            dim,
            config.num_heads,
            rngs=rngs,
            dtype=dtype,
            kernel=config.attention,
            qk_norm=config.qk_norm,
        )
        self.attention = attention(rotary=grid if config.rotary else None)
        self.cross = attention(cross=True) if config.use_context else None
        if config.mlp == "swiglu":
            self.mlp = layers.SwiGlu(dim, layers.swiglu_width(hidden), rngs=rngs, dtype=dtype)
        else:
            self.mlp = layers.Mlp(dim, hidden, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        modulation: Float[Array, "B E"],
        context: Context | None,
        diagnose: bool,
        patches: Int[Array, "B P"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Diagnostics]:
        """Returns the block's output and, if `diagnose`, statistics of its activations.

        modulation: the block's own result of equation (1) or (3).
        patches: numbers of the patches that the last tokens are; None: those of the grid.
        """
        modulation = modulation[:, None]
        parts = jnp.split(modulation, modulation.shape[-1] // x.shape[-1], axis=-1)
        stats: Diagnostics = {}

        def modulated(h: Array, shift: Array, scale: Array) -> Array:
            return layers.modulated_norm(h, shift, scale, h.dtype, self.norm)

        shift, scale, gate = parts[:3]
        h = modulated(x, shift, scale)
        if diagnose:
            stats["self_attention_entropy"] = self.attention.entropy(h, patches=patches)
        x = x + gate * self.attention(h, patches=patches)

        if self.cross is not None:
            shift, scale, gate = parts[3:6]
            # In the "cls" form only token 0 attends; self-attention spreads what it finds.
            attending = x[:, :1] if self.cls_only else x
            h = modulated(attending, shift, scale)
            if diagnose:
                stats["cross_attention_entropy"] = self.cross.entropy(h, context)
            found = gate * self.cross(h, context)
            x = x.at[:, :1].add(found) if self.cls_only else x + found

        shift, scale, gate = parts[-3:]
        x = x + gate * self.mlp(modulated(x, shift, scale))
        if diagnose:
            x32 = x.astype(jnp.float32)
            stats["activation_mean_abs"] = jnp.abs(x32).mean()
            stats["activation_rms"] = jnp.sqrt(jnp.square(x32).mean())
            stats["modulation_norm"] = jnp.linalg.norm(
                modulation.astype(jnp.float32), axis=-1
            ).mean()
        return x, stats

    def without_modulation(self) -> "DiTBlock":
        """The same block without the parameters of its modulation, which its call does not use."""
        bare = nnx.merge(*nnx.split(self))
        bare.modulation = None
        return bare
