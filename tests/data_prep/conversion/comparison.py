"""Comparison of images up to a number of levels."""

import numpy as np


def close(actual, expected, levels):
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= levels
