"""Variety: how much the samples of one episode differ from one another."""

import numpy as np
from jaxtyping import Float


def mean_pairwise(distances: Float[np.ndarray, "E R R"]) -> Float[np.ndarray, "E"]:
    """Mean distance between two different samples of each episode, which has R >= 2.

    Its expected value does not depend on R, so it compares with that of any number of real
    images of the class.

    distances: `episode_distances` of the samples with themselves, or another symmetric
    distance, such as LPIPS.
    """
    samples = distances.shape[-1]
    off_diagonal = distances.sum((1, 2)) - np.trace(distances, axis1=1, axis2=2)
    return off_diagonal / (samples * (samples - 1))
