"""Turned, mirrored and recoloured images: more classes from those that there are.

An episode whose images are all changed alike is an episode of another class. Turning characters
by multiples of 90 degrees is how few-shot learners have augmented Omniglot's classes since
Santoro et al. (arXiv 1605.06065, section 4.1); mirroring, and exchanging the channels of a colour
image, make further ones.
"""

import itertools
import math

import numpy as np
from jaxtyping import Shaped

_GEOMETRIES = 8  # four turns, each as it is or mirrored


def count(channels: int) -> int:
    """The number of symmetries of images with so many channels, the unchanged image included."""
    return _GEOMETRIES * math.factorial(channels)


def transformed(
    images: Shaped[np.ndarray, "*S H W C"], number: int
) -> Shaped[np.ndarray, "*S H W C"]:
    """Images (square) after the symmetry of this number, below `count`; 0 leaves them as they are.

    The image is turned by 90 degrees number % 4 times and mirrored if number // 4 is odd;
    number // 8 says the order of the channels.
    """
    order, geometry = divmod(number, _GEOMETRIES)
    mirrored, turns = divmod(geometry, 4)
    images = np.rot90(images, turns, axes=(-3, -2))
    if mirrored:
        images = images[..., ::-1, :]
    if order:
        orders = list(itertools.permutations(range(images.shape[-1])))
        images = images[..., orders[order]]
    return np.ascontiguousarray(images)


def sampled(random: np.random.Generator, share: float, channels: int) -> int:
    """The number of a symmetry: 0, or with probability `share` any of the others."""
    if random.random() >= share:
        return 0
    return int(random.integers(1, count(channels)))
