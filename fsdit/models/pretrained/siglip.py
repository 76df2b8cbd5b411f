"""The vision tower of SigLIP (Zhai et al., arXiv 2303.15343) and of SigLIP 2 at a fixed
resolution (Tschannen et al., arXiv 2502.14786): B/16, L/16, So400m/14, So400m/16.

The tower is a plain vision transformer with learned positions and no class token; the pooled
vector comes from one learned query that attends to all tokens. A port of transformers' siglip
model.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fsdit.config.bounds import Depth, Epsilon, ImageSize, Width
from fsdit.config.problems import shown
from fsdit.errors import DataError
from fsdit.models import layers
from fsdit.models.multihead import Attention
from fsdit.models.pretrained import vit
from fsdit.models.pretrained.stored.checkpoint import Checkpoint
from fsdit.models.pretrained.stored.weights import Mapped, Source, linear, norm

# Tensors of a checkpoint that do not belong to the vision tower.
IGNORED = ("text_model.", "logit_scale", "logit_bias", "vision_model.embeddings.position_ids")


@dataclass(frozen=True)
class SiglipConfig:
    """vision_config of config.json, with transformers' defaults: SigLIP B/16-224."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Width = 12
    num_channels: int = 3
    image_size: ImageSize = 224
    patch_size: ImageSize = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6
    vision_use_head: bool = True

    @property
    def block(self) -> vit.BlockShape:
        return vit.BlockShape(
            self.hidden_size,
            self.num_attention_heads,
            self.intermediate_size,
            self.hidden_act,
            self.layer_norm_eps,
        )

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side


class _PoolingHead(nnx.Module):
    """x = attention(probe, tokens), then x + mlp(LN(x)): one learned query over all tokens."""

    def __init__(self, config: SiglipConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        dim = config.hidden_size
        self.probe = nnx.Param(jnp.zeros(dim))
        self.attention = Attention(
            dim, config.num_attention_heads, rngs=rngs, dtype=dtype, cross=True
        )
        self.norm = vit.layer_norm(dim, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = vit.VitMlp(config.block, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        b, _, d = tokens.shape
        probe = jnp.broadcast_to(self.probe[...].astype(tokens.dtype), (b, 1, d))
        x = self.attention(probe, tokens)
        return (x + self.mlp(self.norm(x)))[:, 0]


class SiglipTower(nnx.Module):
    """Prepared images -> (pooled, tokens), both after the last layer norm."""

    def __init__(self, config: SiglipConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.patch_size, self.dtype = config.patch_size, dtype
        dim = config.hidden_size
        pixels = config.patch_size**2 * config.num_channels
        self.embed = layers.Linear(pixels, dim, dtype=dtype, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((config.grid[0] * config.grid[1], dim)))
        self.blocks = vit.stack(config.num_hidden_layers, config.block, dtype=dtype, rngs=rngs)
        self.norm = vit.layer_norm(dim, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.head = _PoolingHead(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B T D"]]:
        x = self.embed(vit.complete_patches(images, self.patch_size).astype(self.dtype))
        x = x + self.position[...].astype(self.dtype)
        tokens = self.norm(vit.run_stack(self.blocks, x))
        return self.head(tokens), tokens


def read_config(checkpoint: Checkpoint, image_size: tuple[int, int]) -> SiglipConfig:
    """Reads the tower's configuration. image_size: (height, width) of the prepared images.

    Errors:
        DataError: a field has a value that this tower cannot take.
    """
    kind = checkpoint.require("model_type", "siglip", "siglip_vision_model")
    section = "vision_config" if kind == "siglip" else ""
    config = checkpoint.parse(SiglipConfig, section)
    where = f"{checkpoint.config_file}: {section}".rstrip(": ")
    if config.hidden_act not in vit.ACTIVATIONS:
        raise DataError(f"{where}: hidden_act {shown(config.hidden_act)} is not known")
    if not config.vision_use_head:
        raise DataError(f"{where}: vision_use_head is false; the pooled vector needs the head")
    if image_size != (config.image_size, config.image_size):
        raise DataError(
            f"{where}: image_size is {config.image_size}, but preprocessor_config.json makes "
            f"images of {image_size[0]} x {image_size[1]}; this tower takes one size only"
        )
    return config


def mapping(checkpoint: Checkpoint, config: SiglipConfig) -> Mapped:
    """Sources of all parameters.

    Tensors are named "vision_model.…" in full checkpoints and in the vision-only ones of
    transformers 4; version 5 leaves the prefix out in the latter.
    """
    full = any(name.startswith("vision_model.") for name in checkpoint.files)
    root = "vision_model." if full else ""
    layer, depth = root + "encoder.layers.{}.", config.num_hidden_layers
    attention = f"{layer}self_attn."
    embeddings, head = f"{root}embeddings.", f"{root}head."
    return {
        "embed/kernel": Source((f"{embeddings}patch_embedding.weight",), vit.patch_kernel),
        "embed/bias": Source((f"{embeddings}patch_embedding.bias",)),
        "position": Source((f"{embeddings}position_embedding.weight",)),
        **norm("blocks/norm1", f"{layer}layer_norm1", depth),
        **linear("blocks/attention/qkv", *(f"{attention}{x}_proj" for x in "qkv"), layers=depth),
        **linear("blocks/attention/out", f"{attention}out_proj", layers=depth),
        **norm("blocks/norm2", f"{layer}layer_norm2", depth),
        **linear("blocks/mlp/up", f"{layer}mlp.fc1", layers=depth),
        **linear("blocks/mlp/down", f"{layer}mlp.fc2", layers=depth),
        **norm("norm", f"{root}post_layernorm"),
        "head/probe": Source((f"{head}probe",), lambda x: x.reshape(x.shape[-1])),
        **_pooling_attention(head, config.hidden_size),
        **linear("head/attention/out", f"{head}attention.out_proj"),
        **norm("head/norm", f"{head}layernorm"),
        **linear("head/mlp/up", f"{head}mlp.fc1"),
        **linear("head/mlp/down", f"{head}mlp.fc2"),
    }


def _pooling_attention(head: str, dim: int) -> dict[str, Source]:
    """Sources of query, key and value, which PyTorch's MultiheadAttention keeps in one tensor."""
    parts = {"query": slice(dim), "key": slice(dim, 2 * dim), "value": slice(2 * dim, None)}
    sources = {}
    for name, rows in parts.items():
        part = functools.partial(lambda x, rows: x[rows].T, rows=rows)
        sources[f"head/attention/{name}/kernel"] = Source(
            (f"{head}attention.in_proj_weight",), part
        )
        sources[f"head/attention/{name}/bias"] = Source((f"{head}attention.in_proj_bias",), part)
    return sources
