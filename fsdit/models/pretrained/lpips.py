"""The network of LPIPS (Zhang et al., arXiv 1801.03924): VGG16, and weights of its channels.

With f_l the features of block l at each of its H_l x W_l places, scaled to length one (equation 1
there; w_l are the published weights of the squared differences, one for each channel):

    d(a, b) = sum_l 1 / (H_l W_l) sum_places w_l . (f_l(a) - f_l(b))^2

The weights are version 0.1, net "vgg". They come as .pth files, which may run code when they are
read, so they are converted once, with PyTorch's safe loading:

    import torch
    from safetensors.torch import save_file

    vgg16 = torch.load("vgg16-397923af.pth", weights_only=True)  # torchvision's
    vgg16 = {name: value for name, value in vgg16.items() if name.startswith("features.")}
    save_file(vgg16, "lpips/vgg16.safetensors")
    save_file(torch.load("vgg.pth", weights_only=True), "lpips/lpips.safetensors")  # v0.1
"""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from fsdit.models.codec import scale_pixels
from fsdit.models.pretrained.stored import weights
from fsdit.models.pretrained.stored.checkpoint import open_files

# Widths of the convolutions of each block; the last one's output is compared.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Index of each block's first convolution among torchvision's `features`.
_FIRST = (0, 5, 10, 17, 24)
# Mean and deviation of each channel, for images in [-1, 1].
_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
# Heads of torchvision's and timm's VGG16, which LPIPS does not use.
_IGNORED = ("classifier.", "pre_logits.", "head.")

FILES = ("vgg16.safetensors", "lpips.safetensors")
MIN_SIZE = 16  # pixels a side, of which four halvings leave one

Features = list[Float[Array, "B _ _ _"]]  # (B, h, w, D) for each block


class LpipsNetwork(nnx.Module):
    """VGG16's convolutions and the weights of channels; it computes in float32."""

    def __init__(self, *, rngs: nnx.Rngs):
        inputs, blocks = 3, []
        for widths in _BLOCKS:
            convs = []
            for width in widths:
                convs.append(nnx.Conv(inputs, width, (3, 3), padding=1, rngs=rngs))
                inputs = width
            blocks.append(nnx.List(convs))
        self.blocks = nnx.List(blocks)
        self.channels = nnx.List([nnx.Param(jnp.zeros(widths[-1])) for widths in _BLOCKS])

    def features(self, images: UInt8[Array, "B H W C"]) -> Features:
        """Returns, for each block, a vector of length one at each place.

        Greyscale images (C = 1) are repeated to three channels.
        """
        x = jnp.broadcast_to(scale_pixels(images), (*images.shape[:3], 3))
        x = (x - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
        found = []
        for i, convs in enumerate(self.blocks):
            if i:
                x = nnx.max_pool(x, (2, 2), (2, 2))
            for conv in convs:
                x = nnx.relu(conv(x))
            length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
            found.append(x / (length + _EPSILON))
        return found

    def distance(self, a: Features, b: Features) -> Float[Array, "B"]:
        """Returns LPIPS between the images of `a` and of `b`, pair by pair, from their features."""
        parts = (
            (jnp.square(x - y) @ w[...]).mean((1, 2))
            for x, y, w in zip(a, b, self.channels, strict=True)
        )
        return sum(parts)


@functools.cache
def _abstract() -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and shapes; nothing is computed."""
    return nnx.split(nnx.eval_shape(lambda: LpipsNetwork(rngs=nnx.Rngs(0))))


def network(params: dict) -> LpipsNetwork:
    """The network with these parameters."""
    return nnx.merge(_abstract()[0], nnx.State(params))


def load(location: str) -> dict:
    """Loads parameters, float32 NumPy arrays, from a directory of safetensors files.

    vgg16.safetensors has torchvision's names (`features.0.weight`), as timm's `vgg16.tv_in1k`
    has; lpips.safetensors has those of the published v0.1 (`lin0.model.1.weight`).

    Errors:
        DataError: no such directory; a file missing or damaged; a tensor missing, left
            over or misshapen.
    """
    checkpoint = open_files(Path(location).expanduser(), *FILES)
    template = nnx.to_pure_dict(_abstract()[1])
    return weights.load_params(checkpoint, template, mapping(), _IGNORED)


def mapping() -> weights.Mapped:
    """Sources of all parameters."""
    sources = {}
    for i, (widths, first) in enumerate(zip(_BLOCKS, _FIRST, strict=True)):
        for j in range(len(widths)):  # torchvision counts the ReLU behind each convolution too
            sources |= weights.conv(f"blocks/{i}/{j}", f"features.{first + 2 * j}")
        sources[f"channels/{i}"] = weights.Source((f"lin{i}.model.1.weight",), _channels)
    return sources


def _channels(tensor: np.ndarray) -> np.ndarray:
    """(1, in, 1, 1) of a 1 x 1 convolution -> (in,)."""
    return tensor.squeeze((0, 2, 3))
