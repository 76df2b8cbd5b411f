"""diffusers' autoencoder with random weights, small ones of ours, and their comparison."""

import diffusers
import jax
import numpy as np
import pytest
import torch

from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.autoencoder_kl import AutoencoderKL
from fsdit.models.pretrained.autoencoder_network import AutoencoderConfig

SD = {"block_out_channels": (16, 32, 32, 32), "layers_per_block": 2}
# config.json of stabilityai/sd-vae-ft-mse; that of FLUX differs in the fields below.
SD_TRUE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
FLUX_TRUE = SD_TRUE | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def original(**config) -> diffusers.AutoencoderKL:
    """diffusers' module with random parameters, scales and biases too."""
    blocks = len(config["block_out_channels"])
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        **{
            "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * blocks,
            "up_block_types": ("UpDecoderBlock2D",) * blocks,
        }
        | config
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model.eval()


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def to_torch(array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32).transpose(0, 3, 1, 2))


def relative_error(ours, theirs: torch.Tensor) -> float:
    ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs.permute(0, 2, 3, 1)))
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def key(seed: int = 0) -> jax.Array:
    return jax.random.key(seed)


def small(seed: int = 0, **settings) -> AutoencoderKL:
    options = {name: settings.pop(name) for name in ("dtype", "max_batch") if name in settings}
    config = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, **settings)
    return autoencoder_kl.init(config, seed, **options)


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)
