"""torch-fidelity's own functions on features, with which ours are compared."""

import importlib
import importlib.util
import sys
from types import ModuleType
from unittest import mock

import pytest

_IMAGES = ("", ".datasets", ".models", ".transforms", ".transforms.functional")


def fidelity(metric: str) -> ModuleType:
    """Import torch-fidelity's module `metric_{metric}`, or skip the test where it is missing.

    torch-fidelity imports torchvision, which its functions on features do not use. The package
    index has torchvision only for CUDA builds of PyTorch. Beside a CPU build its import fails and
    breaks transformers, so empty modules stand in for it.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed: pip install --no-deps torch-fidelity")
    stand_ins = {f"torchvision{name}": mock.MagicMock() for name in _IMAGES}
    here = importlib.util.find_spec("torchvision") is not None
    sys.modules.update({} if here else stand_ins)
    try:
        return importlib.import_module(f"torch_fidelity.metric_{metric}")
    finally:
        for name in () if here else stand_ins:
            del sys.modules[name]
