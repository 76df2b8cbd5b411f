"""Imports the input pipeline where JAX cannot be imported; prints the modules that it loaded.

Grain itself imports JAX where it is installed, so JAX is hidden here.
"""

import sys

sys.modules["jax"] = sys.modules["jaxlib"] = None
import fsdit.data.pipeline  # noqa: E402, F401

print(*(name for name, module in sys.modules.items() if module))
