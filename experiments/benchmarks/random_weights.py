"""Writes checkpoints of a support encoder and of an autoencoder with random weights.

    python -m experiments.benchmarks.random_weights --output_dir=weights   # tiny
    python -m experiments.benchmarks.random_weights --output_dir=weights/base --size=base

They are for smoke runs without a network: every program reads OUT/siglip and OUT/vae like
published checkpoints, but nothing in them was learned, so the samples show nothing. "base" has
the sizes of SigLIP 2 B/16-224 and of the SD VAE (0.7 GB together); "tiny" runs in milliseconds on
a CPU. The same size and seed give the same bytes.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from flax import traverse_util
from safetensors.numpy import save

from fsdit import program
from fsdit.data import layout
from fsdit.errors import ConfigError
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.autoencoder_network import AutoencoderConfig
from fsdit.models.pretrained.siglip import SiglipConfig

_OUTPUT_DIR = program.define_path(
    "output_dir", None, "Where to write the folders siglip and vae.", required=True
)
_SIZE = flags.DEFINE_enum("size", "tiny", ["tiny", "base"], "tiny: for tests; base: as published.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides the values.", lower_bound=0)


def _autoencoder(channels: tuple[int, ...], layers: int, groups: int) -> AutoencoderConfig:
    return AutoencoderConfig(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=groups,
    )


ENCODERS = {
    "tiny": SiglipConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    ),
    "base": SiglipConfig(),  # SigLIP 2 B/16-224
}
AUTOENCODERS = {
    "tiny": _autoencoder((16, 32, 32), layers=1, groups=8),  # f4
    "base": _autoencoder((128, 256, 512, 512), layers=2, groups=32),  # the SD VAE, f8
}

# Standard deviations; every other matrix and convolution has 1 / sqrt(fan-in).
_DEVIATIONS = {"embeddings.position_embedding.weight": 0.02, "head.probe": 1.0}


def write_encoder(directory: Path, config: SiglipConfig, seed: int) -> None:
    """Writes a vision-only SigLIP checkpoint in transformers' layout."""
    random = np.random.default_rng(seed)
    shapes = _encoder_shapes(config)
    tensors = {name: _draw(random, name, shape) for name, shape in shapes.items()}
    directory.mkdir(parents=True)
    _write_json(
        directory / "config.json",
        {
            "architectures": ["SiglipVisionModel"],
            "model_type": "siglip_vision_model",
            **dataclasses.asdict(config),
        },
    )
    size = {"height": config.image_size, "width": config.image_size}
    _write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "SiglipImageProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": size,
        },
    )
    _write_tensors(directory / "model.safetensors", tensors)


def _encoder_shapes(config: SiglipConfig) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every tensor, as transformers saves them."""
    dim, mlp, patch = config.hidden_size, config.intermediate_size, config.patch_size
    projections = {"mlp.fc1": (mlp, dim), "mlp.fc2": (dim, mlp)}
    layer = {
        "layer_norm1": (dim,),
        "layer_norm2": (dim,),
        **{f"self_attn.{name}_proj": (dim, dim) for name in ("q", "k", "v", "out")},
        **projections,
    }
    weights = {
        "embeddings.patch_embedding": (dim, config.num_channels, patch, patch),
        "post_layernorm": (dim,),
        "head.attention.out_proj": (dim, dim),
        "head.layernorm": (dim,),
        **{f"head.{name}": shape for name, shape in projections.items()},
    }
    for i in range(config.num_hidden_layers):
        weights |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {
        "embeddings.position_embedding.weight": (math.prod(config.grid), dim),
        "head.probe": (1, 1, dim),
        "head.attention.in_proj_weight": (3 * dim, dim),
        "head.attention.in_proj_bias": (3 * dim,),
        **{f"{name}.weight": shape for name, shape in weights.items()},
        **{f"{name}.bias": shape[:1] for name, shape in weights.items()},
    }


def _draw(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return np.full(shape, 0 if name.endswith("bias") else 1, np.float32)
    deviation = _DEVIATIONS.get(name, math.prod(shape[1:]) ** -0.5)
    return random.standard_normal(shape, np.float32) * np.float32(deviation)


def write_autoencoder(directory: Path, config: AutoencoderConfig, seed: int) -> None:
    """Writes an AutoencoderKL checkpoint in diffusers' layout."""
    params = traverse_util.flatten_dict(autoencoder_kl.init(config, seed).params)
    named = {"/".join(map(str, path)): value for path, value in params.items()}
    tensors = {
        source.names[0]: _as_published(source.names[0], named[path])
        for path, source in autoencoder_kl.mapping(config).items()
    }
    directory.mkdir(parents=True)
    _write_json(
        directory / "config.json",
        {"_class_name": "AutoencoderKL", **dataclasses.asdict(config)},
    )
    _write_tensors(directory / "diffusion_pytorch_model.safetensors", tensors)


def _as_published(name: str, value: np.ndarray) -> np.ndarray:
    """Returns a parameter in PyTorch's order of axes: (out, in) or (out, in, height, width)."""
    if value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    elif value.ndim == 2:
        value = value.T
        if "attentions" not in name:
            value = value[:, :, None, None]  # in diffusers it is a 1 x 1 convolution
    return np.ascontiguousarray(value)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    path.write_bytes(save(tensors, {"format": "pt"}))


def write(directory: Path, size: str = "tiny", seed: int = 0) -> None:
    """Writes directory/siglip and directory/vae. size: a key of ENCODERS."""
    write_encoder(directory / "siglip", ENCODERS[size], seed)
    write_autoencoder(directory / "vae", AUTOENCODERS[size], seed)


def main(argv: list[str]) -> None:
    del argv
    output = Path(_OUTPUT_DIR.value).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output_dir={output} exists and is not empty: name a new folder")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial, _SIZE.value, _SEED.value)
    layout.publish(partial, output)
    for name in ("siglip", "vae"):
        print(f"{output / name}: random weights, size {_SIZE.value}, seed {_SEED.value}")


if __name__ == "__main__":
    program.run(main)
