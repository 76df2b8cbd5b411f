"""Settings of the DiT, the support encoder and the latent codec."""

from typing import Any, Literal

import pydantic
from pydantic_core import ArgsKwargs

from fsdit.config.bounds import (
    BatchSize,
    Depth,
    PatchSize,
    PathText,
    Ratio,
    Shots,
    Width,
)
from fsdit.config.problems import settings
from fsdit.config.renamed import with_cross_attention


@settings
class EncoderConfig:
    """The support encoder, which turns support images into a pooled vector and tokens.

    "learned": a small ViT of the sizes below, trained together with the DiT. "frozen": the
    published SigLIP, SigLIP 2 or DINOv2 at `location`.
    """

    name: Literal["learned", "frozen"] = "learned"
    patch_size: PatchSize = 8  # of the learned encoder, in pixels
    hidden_size: Width = 384  # of the learned encoder, as are depth and num_heads
    depth: Depth = 4
    num_heads: Width = 6
    location: PathText = ""  # of the frozen encoder: a directory in the hub's layout, or a hub id
    # Type that the frozen encoder computes in, and of the features that it gives.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


@settings
class CodecConfig:
    """The latent codec, which maps images to what the flow works on, and back.

    "pixels": the flow works on the images themselves. "autoencoder_kl": on the latents of the
    frozen VAE at `location`.
    """

    name: Literal["pixels", "autoencoder_kl"] = "pixels"
    location: PathText = ""  # of the VAE: a directory in the hub's layout, or a hub id
    subfolder: str = ""  # of the VAE in `location`: "vae" in a pipeline's checkpoint
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16"  # type that the VAE's convolutions compute in
    )
    max_batch: BatchSize = 64  # images encoded or decoded at once, over all devices


@settings
class ModelConfig:
    """The DiT, how it is conditioned, and the networks around it."""

    hidden_size: Width = 768  # width of the tokens
    depth: Depth = 12  # number of blocks
    num_heads: Width = 12  # heads of each attention
    patch_size: PatchSize = 2  # side of a patch, in latents (pixels where the codec has none)
    mlp_ratio: Ratio = 4.0  # hidden width of an MLP, in multiples of hidden_size
    # The next five change the DiT's blocks (docs/training.md; figures: docs/results/ablation.md).
    # RMS norm of the queries and keys of each head, in self- and cross-attention.
    qk_norm: bool = False
    norm: Literal["layer", "rms"] = "layer"  # norm that the modulation acts on
    # "swiglu" takes 2/3 of the width that mlp_ratio says, so that it has as many parameters.
    mlp: Literal["gelu", "swiglu"] = "gelu"
    # Rotary positions of patches in self-attention, beside the position table.
    rotary: bool = False
    # Matrix of the adaptive norms: one a block, or one for all blocks and an offset a block.
    modulation: Literal["block", "single"] = "block"
    # Which tokens of the DiT attend to the supports' tokens: all patches, one class token, or
    # none; with "none" only the pooled vector conditions the model.
    cross_attention: Literal["patches", "cls", "none"] = "patches"
    # Latents of the Perceiver that turns support tokens into the context; 0: no Perceiver, the
    # tokens are the context.
    num_latents: Shots = 64
    encoder: EncoderConfig = EncoderConfig()
    codec: CodecConfig = CodecConfig()
    # Type that matmuls compute in; parameters, norms and softmax are float32.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    # Kernel of attention: "plain" on any device; "cudnn" in bfloat16 on NVIDIA GPUs from A100 on,
    # where it is faster (docs/gpu.md); "packed" in bfloat16 on TPUs, in the train step, where it is
    # predicted to be faster and was not run (docs/pods.md).
    attention: Literal["plain", "cudnn", "packed"] = "plain"
    scan_layers: bool = True  # one compiled body for all blocks, which compiles quickly
    # What the backward pass computes again to save memory: nothing, all but matmuls, or all.
    remat: Literal["none", "dots", "full"] = "none"

    @property
    def use_context(self) -> bool:
        """Whether the model attends to the supports' tokens."""
        return self.cross_attention != "none"

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_support_tokens(cls, given: Any) -> Any:
        """Reads `use_support_tokens=False` of older versions as `cross_attention="none"`."""
        if not isinstance(given, ArgsKwargs):
            return with_cross_attention(given)
        return ArgsKwargs(given.args, with_cross_attention(given.kwargs))
