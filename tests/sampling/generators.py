"""Inputs of a generator, and how far its images are from others."""

import numpy as np


def supports_for(generator, count=3, seed=0):
    spec = generator.spec
    shape = (count, spec.image_size, spec.image_size, spec.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def differ(left, right):
    return int(np.abs(left.astype(int) - right.astype(int)).max())
