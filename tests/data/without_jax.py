"""Imports the input pipeline where JAX cannot be imported, and prints the loaded modules.

Grain imports JAX if it is installed, so this program hides JAX.
"""

import sys

sys.modules["jax"] = sys.modules["jaxlib"] = None
import fsdit.data.pipeline  # noqa: E402, F401

print(*(name for name, module in sys.modules.items() if module))
