"""PyTorch originals with random weights, saved as checkpoints in the hub's layout."""

from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from fsdit.models.pretrained.encoder import load_encoder

# Values differ from the defaults where they can, so that a port cannot rely on a default.
SIGLIP = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "layer_norm_eps": 1e-3,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
DINOV2 = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 3,
    "image_size": 70,
    "patch_size": 14,
    "layer_norm_eps": 1e-3,
}


def siglip_vision(**fields):
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIGLIP | fields))


def siglip_full(**fields):
    config = transformers.SiglipConfig(vision_config=SIGLIP | fields, text_config=TEXT)
    return transformers.SiglipModel(config)


def dinov2(**fields):
    return transformers.Dinov2Model(transformers.Dinov2Config(**DINOV2 | fields))


def dinov2_with_registers(**fields):
    config = transformers.Dinov2WithRegistersConfig(**DINOV2 | fields)
    return transformers.Dinov2WithRegistersModel(config)


def siglip_processor(size: int = 28, **fields):
    return transformers.SiglipImageProcessorPil(size={"height": size, "width": size}, **fields)


def bit_processor(edge: int = 48, crop: int = 42, **fields):
    """Make a processor like DINOv2's: shortest edge, centre crop, ImageNet's mean and deviation."""
    return transformers.BitImageProcessorPil(
        size={"shortest_edge": edge},
        crop_size={"height": crop, "width": crop},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        **fields,
    )


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Randomise each parameter, so that no scale is one, no bias zero, no attention uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:
                scale = name.endswith("weight") or "lambda" in name
                value.copy_(0.3 * noise + (0.8 if scale else 0.0))
            elif any(word in name for word in ("position", "token", "probe")):
                value.copy_(0.7 * noise)
            else:
                value.copy_(1.5 * noise / value[0].numel() ** 0.5)


def save(model, processor, directory: Path, **options) -> Path:
    """Save `model` with random weights, and `processor`, as a checkpoint."""
    randomise(model)
    model.eval().save_pretrained(directory, **options)
    processor.save_pretrained(directory)
    return directory


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def prepared(processor, images: np.ndarray) -> torch.Tensor:
    return processor(list(images), return_tensors="pt", input_data_format="channels_last")[
        "pixel_values"
    ]


def original_outputs(model, processor, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pooled, all tokens) of the original in float32 for uint8 images (B, H, W, 3)."""
    tower = getattr(model, "vision_model", model)
    with torch.inference_mode():
        out = tower(prepared(processor, images))
    return out.pooler_output.numpy(), out.last_hidden_state.numpy()


def relative_error(value, expected: np.ndarray) -> float:
    value = np.asarray(value, np.float64).reshape(expected.shape)
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def errors(model, processor, directory: Path, dtype: str, images: np.ndarray) -> list[float]:
    """Relative errors of (pooled, tokens) of our encoder; the original runs in float32."""
    encoder, params = load_encoder(str(directory), dtype)
    pooled, tokens = jax.jit(encoder)(params, images[None])
    assert pooled.dtype == tokens.dtype == dtype
    assert pooled.shape == (1, len(images), encoder.dim)
    assert tokens.shape == (1, len(images), encoder.grid[0] * encoder.grid[1], encoder.dim)
    wanted_pooled, wanted = original_outputs(model, processor, images)
    # The original puts its class token and registers first; our encoder leaves them out.
    return [
        relative_error(pooled, wanted_pooled),
        relative_error(tokens, wanted[:, -tokens.shape[2] :]),
    ]
