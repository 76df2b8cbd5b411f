"""diffusers' autoencoder with random weights."""

import diffusers
import torch

SD = {"block_out_channels": (16, 32, 32, 32), "layers_per_block": 2}


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
