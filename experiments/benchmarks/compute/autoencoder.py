"""Images/s of the SD VAE's encoder and decoder, here and in diffusers' PyTorch, on the CPU.

    python -m experiments.benchmarks.compute.autoencoder

Both have the size of stabilityai/sd-vae-ft-mse and the same random weights, in float32. They
take turns in one process. The ratio is ours / PyTorch's. Then 3 x 3 convolutions of the network
are measured in several forms, the form in use first.
"""

import copy
import os
import tempfile
import time
from collections.abc import Callable

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags

from fsdit import program
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.autoencoder_kl import AutoencoderKL

_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the images.")
_BATCH = flags.DEFINE_integer("batch", 1, "Images at once.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each side; the best counts.")

# (side, channels in, channels out) of the convolutions that take most time at 224 pixels.
_CONVOLUTIONS = ((224, 128, 128), (112, 256, 256), (56, 512, 512), (28, 512, 512))


def main(argv: list[str]) -> None:
    del argv
    torch.set_num_threads(os.cpu_count())
    images = np.random.default_rng(0).integers(
        0, 256, (_BATCH.value, _SIZE.value, _SIZE.value, 3), dtype=np.uint8
    )
    with torch.inference_mode():
        networks(images)
        for shape in _CONVOLUTIONS:
            convolutions(*shape)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def networks(images: np.ndarray) -> None:
    """Prints images/s of encoder and decoder."""
    model = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        codec = jax.device_put(autoencoder_kl.load(directory))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
    z = model.encode(pixels).latent_dist.mean
    ours_z = jnp.asarray(z.numpy().transpose(0, 2, 3, 1))
    moments = jax.jit(AutoencoderKL.moments)
    decode = jax.jit(lambda codec, z: codec.network.decode(z))
    last, nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last), torch.channels_last
    last_pixels, last_z = (a.contiguous(memory_format=nhwc) for a in (pixels, z))
    works = {
        "encode": {
            "ours": lambda: moments(codec, images),
            "PyTorch": lambda: model.encode(pixels),
            "PyTorch, channels last": lambda: last.encode(last_pixels),
        },
        "decode": {
            "ours": lambda: decode(codec, ours_z),
            "PyTorch": lambda: model.decode(z),
            "PyTorch, channels last": lambda: last.decode(last_z),
        },
    }
    for name, sides in works.items():
        rates = {side: len(images) / s for side, s in fastest(sides).items()}
        ours = rates.pop("ours")
        print(f"{name}, {_SIZE.value} px, batch {len(images)}: {ours:.3f} images/s; ", end="")
        print("; ".join(f"{k} {v:.3f}, ratio {ours / v:.2f}" for k, v in rates.items()))


def fastest(sides: dict[str, Callable]) -> dict[str, float]:
    """Seconds of each side's best round. Sides take turns, so that a disturbance affects all."""
    for run in sides.values():
        jax.block_until_ready(run())  # compiles
    seconds = {name: [] for name in sides}
    for _ in range(_ROUNDS.value):
        for name, run in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


def convolutions(side: int, inputs: int, outputs: int) -> None:
    """Prints GFLOP/s of a 3 x 3 convolution in several forms."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1, side, side, inputs)).astype(np.float32)
    kernel = random.normal(size=(3, 3, inputs, outputs)).astype(np.float32)
    x_nchw, kernel_oihw = x.transpose(0, 3, 1, 2).copy(), kernel.transpose(3, 2, 0, 1).copy()
    sides = {
        "NHWC": jitted(convolve("NHWC", "HWIO"), x, kernel),
        "NCHW": jitted(convolve("NCHW", "OIHW"), x_nchw, kernel_oihw),
        "nine matrix products": jitted(nine_products, x, kernel),
        "one matrix product of patches": jitted(patches_product, x, kernel),
    }
    arguments = (torch.from_numpy(x_nchw), torch.from_numpy(kernel_oihw))
    last = tuple(a.to(memory_format=torch.channels_last) for a in arguments)
    sides["PyTorch"] = lambda: torch.nn.functional.conv2d(*arguments, padding=1)
    sides["PyTorch, channels last"] = lambda: torch.nn.functional.conv2d(*last, padding=1)
    seconds = fastest(sides)
    operations = 2 * 9 * side**2 * inputs * outputs
    print(f"3 x 3 convolution, {side} x {side}, {inputs} -> {outputs} channels, GFLOP/s:")
    print("  " + ", ".join(f"{name} {operations / s / 1e9:.0f}" for name, s in seconds.items()))


def jitted(function: Callable, *arguments: np.ndarray) -> Callable:
    """A compiled call of the function with arguments that lie on the device already."""
    compiled, placed = jax.jit(function), jax.device_put(arguments)
    return lambda: compiled(*placed)


def convolve(layout: str, kernel_layout: str) -> Callable:
    """XLA's 3 x 3 convolution in a layout of images and of kernels."""
    return lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=(layout, kernel_layout, layout)
    )


def shifted(x: jax.Array) -> list[jax.Array]:
    """The image shifted to each of the nine places of a 3 x 3 kernel, row by row."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, h, w, _ = x.shape
    return [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]


def nine_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3 x 3 convolution as the sum of nine matrix products."""
    inputs, outputs = kernel.shape[2:]
    products = zip(shifted(x), kernel.reshape(9, inputs, outputs), strict=True)
    flat = sum(part.reshape(-1, inputs) @ matrix for part, matrix in products)
    return flat.reshape(*x.shape[:3], outputs)


def patches_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3 x 3 convolution as one matrix product of patches of 9 pixels."""
    width = 9 * kernel.shape[2]
    patches = jnp.concatenate(shifted(x), -1).reshape(-1, width)
    return (patches @ kernel.reshape(width, -1)).reshape(*x.shape[:3], -1)


if __name__ == "__main__":
    program.run(main)
