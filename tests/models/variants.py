"""The variants of the DiT's blocks that tests go through: settings of ModelConfig by name."""

import pytest

VARIANTS = {
    "qk_norm": {"qk_norm": True},
    "norm": {"norm": "rms"},
    "mlp": {"mlp": "swiglu"},
    "rotary": {"rotary": True},
    "modulation": {"modulation": "single"},
}
ALL = {name: value for settings in VARIANTS.values() for name, value in settings.items()}


def each_variant() -> list:
    """Cases (settings) for `pytest.mark.parametrize`, in `make test-all` only."""
    return [
        pytest.param(settings, id=name, marks=pytest.mark.large)
        for name, settings in VARIANTS.items()
    ]
