"""Support encoders: K support images -> pooled vectors and tokens of each.

The learned encoder is a small ViT trained together with the DiT, as in Few-Shot
Diffusion Models (Giannone et al., arXiv 2205.15463), with layer norm before and after
the patch embedding (Dual PatchNorm, Kumar et al., arXiv 2302.01327).
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from fsdit.config import EncoderConfig
from fsdit.models import layers
from fsdit.models.attention import Kernel
from fsdit.models.codec import scale_pixels
from fsdit.models.multihead import Attention


@dataclasses.dataclass(frozen=True)
class FeatureShape:
    """Shape of an encoder's outputs: width of pooled and tokens, rows and columns of tokens."""

    dim: int
    grid: tuple[int, int]


class _TransformerLayer(nnx.Module):
    """Pre-norm transformer layer."""

    def __init__(
        self, dim: int, num_heads: int, *, rngs: nnx.Rngs, dtype: jnp.dtype, kernel: Kernel
    ):
        self.attention = Attention(dim, num_heads, rngs=rngs, dtype=dtype, kernel=kernel)
        self.mlp = layers.Mlp(dim, 4 * dim, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = x + self.attention(layers.layer_norm(x, x.dtype))
        return x + self.mlp(layers.layer_norm(x, x.dtype))


class LearnedEncoder(nnx.Module):
    """ViT over each support; the pooled vector is one linear map of all its tokens.

    A mean would forget where in the image each token lay, and with characters, place is most
    of what tells them apart.
    """

    def __init__(
        self,
        config: EncoderConfig,
        image_size: int,
        channels: int,
        *,
        scan_layers: bool,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        kernel: Kernel = "plain",
    ):
        self.dim = config.hidden_size
        self.patch_size = config.patch_size
        self.scan_layers = scan_layers
        self.remat = remat
        self.dtype = dtype
        pixels = config.patch_size**2 * channels
        self.embed = layers.Linear(pixels, self.dim, dtype=dtype, rngs=rngs)
        self.blocks = layers.stack(
            config.depth,
            lambda r: _TransformerLayer(
                self.dim, config.num_heads, rngs=r, dtype=dtype, kernel=kernel
            ),
            rngs,
        )
        grid = image_size // config.patch_size
        self.grid = (grid, grid)
        self.pool = layers.Linear(grid * grid * self.dim, self.dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, supports: UInt8[Array, "B K H W C"]
    ) -> tuple[Float[Array, "B K D"], Float[Array, "B K T D"]]:
        """Returns pooled vectors and tokens of each support; tokens are a grid, row by row."""
        b, k = supports.shape[:2]
        images = scale_pixels(supports.reshape(b * k, *supports.shape[2:]))
        patches = layers.layer_norm(layers.patchify(images, self.patch_size))
        x = layers.layer_norm(self.embed(patches.astype(self.dtype)), self.dtype)
        x = x + layers.position_table(*self.grid, self.dim).astype(self.dtype)
        x, _ = layers.run_stack(
            self.blocks,
            lambda block, h, _: (block(h), {}),
            x,
            scan=self.scan_layers,
            remat=self.remat,
        )
        tokens = layers.layer_norm(x).reshape(b, k, -1, self.dim)
        return self.pool(tokens.reshape(b, k, -1)), tokens
