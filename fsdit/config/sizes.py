"""DiTs of published sizes."""

from typing import Any

from fsdit.config.settings import ModelConfig

# (hidden size, depth, heads): Peebles and Xie, arXiv 2212.09748, table 1.
DIT_SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


def dit_size(size: str) -> dict[str, int]:
    """The settings of a ModelConfig that make a DiT of a published size, "S", "B", "L", "XL"."""
    hidden_size, depth, num_heads = DIT_SIZES[size]
    return {"hidden_size": hidden_size, "depth": depth, "num_heads": num_heads}


def dit(size: str, **changes: Any) -> ModelConfig:
    """The model of a published size with other settings: dit("B", patch_size=2)."""
    return ModelConfig(**dit_size(size), **changes)
