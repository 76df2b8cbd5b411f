"""Few-shot image generation with a flow-matching Diffusion Transformer.

Importing this package touches no device and imports no JAX, because worker processes of the
input pipeline import it too.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

__version__ = "0.1.0"


def load(directory: str | Path, overrides: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Loads an exported model as a `fsdit.sampling.generator.Generator`.

    directory: its folder, or the name of a model that comes with the package: "glyphs".
    See `fsdit.sampling.exported.load` for the parameters and errors.
    """
    from fsdit.sampling import exported

    return exported.load(directory, overrides)
