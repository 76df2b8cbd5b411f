"""Small pictures of classes, and a fixed encoder, which tests of metrics use."""

import numpy as np
from scipy.ndimage import gaussian_filter

SIZE = 16


def pictures(classes: int, each: int, seed: int) -> np.ndarray:
    """(classes, each, SIZE, SIZE, 1) uint8. A class is a sharp pattern, the same for any seed;
    its pictures are shifted, brightened and noisy."""
    patterns = np.random.default_rng(99).normal(size=(classes, 8, 8)).repeat(2, 1).repeat(2, 2)
    rng = np.random.default_rng(seed)
    found = np.empty((classes, each, SIZE, SIZE, 1))
    for c in range(classes):
        for i in range(each):
            moved = np.roll(patterns[c], rng.integers(-1, 2, 2), axis=(0, 1))
            found[c, i, ..., 0] = rng.uniform(0.7, 1.3) * moved + 0.3 * rng.normal(size=moved.shape)
    return np.clip(127 + 50 * found, 0, 255).astype(np.uint8)


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    spread = (0,) * (images.ndim - 3) + (sigma, sigma, 0)
    return gaussian_filter(images.astype(np.float32), spread).round().astype(np.uint8)


def features(images: np.ndarray) -> np.ndarray:
    """(..., 64) float32: rectified responses of random 3 x 3 filters, averaged over quarters."""
    filters = np.random.default_rng(7).normal(size=(9, 16)) / 3
    pixels = images[..., 0].astype(np.float32) / 127 - 1
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(-2, -1))
    windows = windows[..., :14, :14, :, :]
    found = np.maximum(windows.reshape(*windows.shape[:-2], 9) @ filters, 0)
    found = found.reshape(*found.shape[:-3], 2, 7, 2, 7, 16).mean((-4, -2))
    return found.reshape(*found.shape[:-3], 64).astype(np.float32)


def flattened(images: np.ndarray) -> np.ndarray:
    """(classes, each, ...) -> (classes * each, ...)."""
    return images.reshape(-1, *images.shape[2:])
