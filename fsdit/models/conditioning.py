"""From support embeddings to the condition of the DiT, and the one null.

    pooled (B, K, D_e) -> mean over K -> MLP                 -> vector  (B, D)
    tokens (B, K, T, D_e) -> one-layer Perceiver, M latents  -> context (B, M, D)

Both do not depend on the order of the supports and are defined for any K. The Perceiver (Jaegle
et al., arXiv 2103.03206) makes the context M learned latents long, whatever K and T are, as the
resampler of Flamingo does (Alayrac et al., arXiv 2204.14198). With z the latents, s the K T
tokens with their positions, and LN a layer norm:

    (1)  x = z + attention(LN(z), s)        queries from the latents, keys and values from s
    (2)  context = LN(x + mlp(LN(x)))

With no latents the tokens themselves are the context, M = K T.

Unconditional means one learned null of vector and context together: `null_condition`. Sampling's
guidance calls it, and training's dropout calls `apply_null`, which puts it in place of rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.struct import dataclass
from jaxtyping import Array, Bool, Float

from fsdit.config import ModelConfig
from fsdit.models import layers
from fsdit.models.multihead import Attention


@dataclass
class Condition:
    """What the DiT is conditioned on: vector (B, D), and context (B, M, D).

    context: None for a model that does not attend to the supports' tokens. In its place there
    may be what `FewShotDiT.prepare` makes of the contexts of several conditions.
    """

    vector: Array
    context: Array | tuple[tuple[Array, Array], ...] | None


def between(first: Condition, second: Condition, weight: Float[Array, "B"]) -> Condition:
    """The conditions on straight lines from `first` (weight 0) to `second` (weight 1).

    Vector and context are interpolated alike: (1 - weight) first + weight second. Both have B
    rows, or one row that serves all. The contexts have the same length M; with latents that is so
    whatever the numbers of supports are.
    """

    def mixed(a: Array, b: Array) -> Array:
        w = weight.reshape(-1, *[1] * (a.ndim - 1))
        return ((1 - w) * a + w * b).astype(a.dtype)

    return jax.tree.map(mixed, first, second)


class SupportConditioner(nnx.Module):
    """Makes the condition of supports, and holds the null.

    encoder_dim: width E of the encoder's outputs. encoder_grid: rows and columns of patches
    that its T tokens stand for.
    """

    def __init__(
        self,
        config: ModelConfig,
        encoder_dim: int,
        encoder_grid: tuple[int, int],
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        dim = config.hidden_size
        self.grid = encoder_grid
        self.num_latents = config.num_latents
        self.use_context = config.use_context
        self.vector_in = layers.Linear(encoder_dim, dim, rngs=rngs)
        self.vector_out = layers.Linear(dim, dim, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        # Row 0 replaces the vector. The others replace the context: one for each latent, or
        # one for all tokens.
        rows = 1 + max(1, config.num_latents) if self.use_context else 1
        self.null = nnx.Param(normal(rngs.params(), (rows, dim)))
        if not self.use_context:
            return
        self.dtype = dtype
        self.token_in = layers.Linear(encoder_dim, dim, dtype=dtype, rngs=rngs)
        if config.num_latents:
            self.latents = nnx.Param(normal(rngs.params(), (config.num_latents, dim)))
            self.attention = Attention(
                dim,
                config.num_heads,
                rngs=rngs,
                dtype=dtype,
                cross=True,
                kernel=config.attention,
            )
            self.mlp = layers.Mlp(dim, int(dim * config.mlp_ratio), rngs=rngs, dtype=dtype)

    def __call__(
        self, pooled: Float[Array, "B K E"], tokens: Float[Array, "B K T E"] | None
    ) -> Condition:
        hidden = nnx.silu(self.vector_in(pooled.astype(jnp.float32).mean(1)))
        context = self._context(tokens) if self.use_context else None
        return Condition(self.vector_out(hidden), context)

    def _context(self, tokens: Float[Array, "B K T E"]) -> Float[Array, "B M D"]:
        b, k, t, width = tokens.shape
        # K and T are joined first: joining them later would copy wider arrays.
        x = self.token_in(tokens.astype(self.dtype).reshape(b, k * t, width))
        positions = np.tile(layers.position_table(*self.grid, x.shape[-1]), (k, 1))
        x = layers.layer_norm(x, self.dtype) + positions.astype(self.dtype)
        x = layers.layer_norm(x, self.dtype)
        return self._resample(x) if self.num_latents else x

    def _resample(self, tokens: Float[Array, "B S D"]) -> Float[Array, "B M D"]:
        """Equations (1) and (2); S = K T."""
        latents = self.latents[...].astype(self.dtype)[None]
        x = latents + self.attention(layers.layer_norm(latents, self.dtype), tokens)
        x = x + self.mlp(layers.layer_norm(x, self.dtype))
        return layers.layer_norm(x, self.dtype)

    def null_condition(self) -> Condition:
        """The null, of one row: vector (1, D), and context (1, M, D).

        Without latents M is 1: tokens that are all equal are attended to as one of them would be.
        """
        null = self.null[...]
        context = null[None, 1:].astype(self.dtype) if self.use_context else None
        return Condition(null[:1], context)

    def apply_null(self, condition: Condition, mask: Bool[Array, "B"]) -> Condition:
        """Replaces the condition by the null where `mask` is true."""
        null = self.null_condition()
        vector = jnp.where(mask[:, None], null.vector, condition.vector)
        if condition.context is None:
            return Condition(vector, None)
        context = condition.context
        context = jnp.where(mask[:, None, None], null.context, context)
        return Condition(vector, context)
