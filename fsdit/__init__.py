"""Few-shot image generation with a flow-matching Diffusion Transformer.

Importing this package touches no device and imports no JAX: input worker
processes import it too.
"""

__version__ = "0.1.0"
