"""Scaled dot-product attention: KERNELS holds three computations of it, by name.

"plain" is that of `plain.py`, which has the equations, on any device. "cudnn" is cuDNN's
FlashAttention, which makes no N x M array at all, on NVIDIA GPUs only. "packed" keeps N x M arrays
in the fast memory of a TPU's core. `fsdit.checks` and `fsdit.parallel.backend` refuse a kernel
where it cannot run.
"""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Array

from fsdit.models.attention.by_jax import attend_by_jax
from fsdit.models.attention.packed import attend_packed
from fsdit.models.attention.plain import KEPT, attend

Kernel = Literal["plain", "cudnn", "packed"]
KERNELS: dict[Kernel, Callable[[Array, Array, Array], Array]] = {
    "plain": attend,
    "cudnn": attend_by_jax,
    "packed": attend_packed,
}

__all__ = ["KEPT", "KERNELS", "Kernel", "attend", "attend_by_jax", "attend_packed"]
