"""DINOv2 (Oquab et al., arXiv 2304.07193), and with registers (Darcet et al., arXiv
2309.16588): S/14, B/14, L/14 and, with SwiGLU, g/14.

The tower is a vision transformer with a class token, layer scale, and positions that are
resampled where the image has another size than in training. A port of transformers' dinov2
models.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fsdit.config.bounds import Depth, Epsilon, ImageSize, Ratio, Registers, Width
from fsdit.config.problems import shown
from fsdit.errors import DataError
from fsdit.models import layers
from fsdit.models.pretrained import resampling, vit
from fsdit.models.pretrained.stored.checkpoint import Checkpoint
from fsdit.models.pretrained.stored.weights import Mapped, Source, linear, norm

# What the names of tensors begin with. Checkpoints with a classifier have one of the first two.
_PREFIXES = ("dinov2.", "dinov2_with_registers.", "")
# Tensors that the tower's outputs do not depend on: the mask token of its training, a classifier.
IGNORED = (*(f"{prefix}embeddings.mask_token" for prefix in _PREFIXES), "classifier.")


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """Fields of config.json, with transformers' defaults: B/14.

    image_size: that of training, in pixels. num_register_tokens: 0 in models without registers.
    """

    patch_size: ImageSize
    hidden_size: Width = 768
    num_hidden_layers: Depth = 12
    num_attention_heads: Width = 12
    mlp_ratio: Ratio = 4.0
    num_channels: int = 3
    image_size: ImageSize = 224
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    num_register_tokens: Registers = 4

    @property
    def block(self) -> vit.BlockShape:
        mlp_dim = int(self.hidden_size * self.mlp_ratio)
        if self.use_swiglu_ffn:  # two thirds of the width, rounded up to a multiple of 8
            mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
        return vit.BlockShape(
            self.hidden_size,
            self.num_attention_heads,
            mlp_dim,
            "swiglu" if self.use_swiglu_ffn else self.hidden_act,
            self.layer_norm_eps,
            layer_scale=True,
        )


class Dinov2Tower(nnx.Module):
    """Prepared images -> (class token, patch tokens), both after the last layer norm."""

    def __init__(self, config: Dinov2Config, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        dim = config.hidden_size
        pixels = config.patch_size**2 * config.num_channels
        self.embed = layers.Linear(pixels, dim, dtype=dtype, rngs=rngs)
        self.cls = nnx.Param(jnp.zeros(dim))
        positions = 1 + (config.image_size // config.patch_size) ** 2
        self.position = nnx.Param(jnp.zeros((positions, dim)))
        if config.num_register_tokens:
            self.registers = nnx.Param(jnp.zeros((config.num_register_tokens, dim)))
        self.blocks = vit.stack(config.num_hidden_layers, config.block, dtype=dtype, rngs=rngs)
        self.norm = vit.layer_norm(dim, config.layer_norm_eps, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B T D"]]:
        size, registers = self.config.patch_size, self.config.num_register_tokens
        position = self.position[...]
        grid = (images.shape[1] // size, images.shape[2] // size)
        x = self.embed(vit.complete_patches(images, size).astype(self.dtype))
        x = x + self._patch_positions(position[1:], grid).astype(self.dtype)
        extra = (self.cls[...] + position[0])[None]
        if registers:
            extra = jnp.concatenate([extra, self.registers[...]])
        extra = jnp.broadcast_to(extra.astype(self.dtype), (x.shape[0], *extra.shape))
        x = vit.run_stack(self.blocks, jnp.concatenate([extra, x], axis=1))
        x = self.norm(x)
        return x[:, 0], x[:, 1 + registers :]

    def _patch_positions(
        self, position: Float[Array, "N D"], grid: tuple[int, int]
    ) -> Float[Array, "T D"]:
        """Resamples the positions to another grid, as transformers does.

        It does so with antialiasing in models with registers, and without it in the others.
        """
        side = self.config.image_size // self.config.patch_size
        if grid == (side, side):
            return position
        if self.config.num_register_tokens:
            rows, columns = (resampling.antialiased(side, n, "bicubic") for n in grid)
        else:
            rows, columns = (resampling.pointwise_bicubic(side, n) for n in grid)
        table = position.reshape(side, side, -1)
        return jnp.einsum(
            "yh,xw,hwd->yxd",
            *(jnp.asarray(m, jnp.float32) for m in (rows, columns)),
            table,
            precision=jax.lax.Precision.HIGHEST,
        ).reshape(-1, table.shape[-1])


def read_config(checkpoint: Checkpoint, image_size: tuple[int, int]) -> Dinov2Config:
    """Reads the tower's configuration. image_size: (height, width) of the prepared images.

    Errors:
        DataError: a field has a value that this tower cannot take.
    """
    kind = checkpoint.require("model_type", "dinov2", "dinov2_with_registers")
    # The defaults of transformers, for a config.json that leaves it out.
    patch_size = {"dinov2": 14, "dinov2_with_registers": 16}[kind]
    config = checkpoint.parse(Dinov2Config, defaults={"patch_size": patch_size})
    if kind == "dinov2":
        config = dataclasses.replace(config, num_register_tokens=0)
    where = checkpoint.config_file
    if config.hidden_act not in vit.ACTIVATIONS:
        raise DataError(f"{where}: hidden_act {shown(config.hidden_act)} is not known")
    if not config.qkv_bias:
        raise DataError(f"{where}: qkv_bias is false; this tower reads checkpoints with it only")
    if any(side % config.patch_size for side in image_size):
        raise DataError(
            f"{where}: patch_size {config.patch_size} does not divide the images of "
            f"{image_size[0]} x {image_size[1]} that preprocessor_config.json makes"
        )
    return config


def mapping(checkpoint: Checkpoint, config: Dinov2Config) -> Mapped:
    """Sources of all parameters."""
    root = next((p for p in _PREFIXES if f"{p}layernorm.weight" in checkpoint.files), "")
    layer, depth = root + "encoder.layer.{}.", config.num_hidden_layers
    attention, embeddings = f"{layer}attention.", f"{root}embeddings."
    parts = [f"{attention}attention.{part}" for part in ("query", "key", "value")]
    swiglu = config.use_swiglu_ffn
    up, down = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
    sources = {
        "embed/kernel": Source(
            (f"{embeddings}patch_embeddings.projection.weight",), vit.patch_kernel
        ),
        "embed/bias": Source((f"{embeddings}patch_embeddings.projection.bias",)),
        "cls": Source((f"{embeddings}cls_token",), lambda x: x.reshape(x.shape[-1])),
        "position": Source(
            (f"{embeddings}position_embeddings",), lambda x: x.reshape(x.shape[-2:])
        ),
        **norm("blocks/norm1", f"{layer}norm1", depth),
        **linear("blocks/attention/qkv", *parts, layers=depth),
        **linear("blocks/attention/out", f"{attention}output.dense", layers=depth),
        "blocks/scale1": Source((f"{layer}layer_scale1.lambda1",), layers=depth),
        **norm("blocks/norm2", f"{layer}norm2", depth),
        **linear("blocks/mlp/up", f"{layer}mlp.{up}", layers=depth),
        **linear("blocks/mlp/down", f"{layer}mlp.{down}", layers=depth),
        "blocks/scale2": Source((f"{layer}layer_scale2.lambda1",), layers=depth),
        **norm("norm", f"{root}layernorm"),
    }
    if config.num_register_tokens:
        name = f"{embeddings}register_tokens"
        sources["registers"] = Source((name,), lambda x: x.reshape(x.shape[-2:]))
    return sources
