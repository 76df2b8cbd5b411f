"""Small runs with terms of the objective, and batches for them that need no dataset."""

import dataclasses
from pathlib import Path

import numpy as np

from tests.conftest import small_run

SIZE = 24  # pixels a side

# Settings that change the objective, all at once.
ALL = {
    "contrastive": 0.1,
    "alignment": 0.5,
    "routing": 0.5,
    "routing_start": 1,
    "routing_end": 2,
}


def config_with(dropout=0.0, **train):
    config = small_run(Path("unread"))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=8),
        train=dataclasses.replace(config.train, condition_dropout=dropout, **train),
    )


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def batch_of(rows, start=0):
    """Examples `start`, `start` + 1, ...: random images; two neighbours are of one class."""
    return {
        "index": np.arange(start, start + rows, dtype=np.uint32),
        "class_id": np.array([max(i, 1) for i in range(rows)], np.int32),
        "target": random_images(rows, SIZE, SIZE, 1, seed=start),
        "supports": random_images(rows, 3, SIZE, SIZE, 1, seed=start + 1),
    }
