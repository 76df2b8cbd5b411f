"""Fidelity to the set by neighbourhoods: which images lie in the balls around which others.

`real` is (N, *D), `samples` is (M, *D). The ball of an image reaches to its k-th nearest other
image of its set. The metrics depend on N and M, as those of distributions.py do.
"""

import dataclasses

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from fsdit.evaluation.figures.distances import (
    allowed_distances,
    k_nearest,
    reduce_pairs,
    with_left_out,
)
from fsdit.evaluation.figures.distributions import check_enough

# The neighbour that ends a ball, of the papers.
PRECISION_K, DENSITY_K = 3, 5


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """One value an image, to be resampled by episode. The metrics are the means."""

    precision: Bool[np.ndarray, "M"]  # whether the sample is near a real image
    recall: Bool[np.ndarray, "N"]  # whether the real image is near a sample


@dataclasses.dataclass(frozen=True)
class DensityCoverage:
    """One value an image, to be resampled by episode. The metrics are the means."""

    density: Float[np.ndarray, "M"]  # number of real images' balls that hold the sample, over k
    coverage: Bool[np.ndarray, "N"]  # whether the real image has a sample in its ball


def precision_recall(
    real: Shaped[np.ndarray, "N *D"],
    samples: Shaped[np.ndarray, "M *D"],
    k: int = PRECISION_K,
    mesh: Mesh | None = None,
    tile: int | None = None,
    radii: Float[np.ndarray, "N"] | None = None,
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991).

    The ball of an image reaches to its k-th nearest other image of its set. Precision is the
    share of samples in the ball of any real image, recall the share of real images in the
    ball of any sample. radii: of the real images' balls, where they are known (`ball_radii`).
    """
    check_enough(k + 1, f"precision and recall with k = {k}", real, samples)
    radii = ball_radii(real, k, mesh, tile)[:, -1] if radii is None else radii
    of_samples = ball_radii(samples, k, mesh, tile)[:, -1]
    return PrecisionRecall(
        precision=_balls_around(samples, real, radii, mesh, tile) > 0,
        recall=_balls_around(real, samples, of_samples, mesh, tile) > 0,
    )


def density_coverage(
    real: Shaped[np.ndarray, "N *D"],
    samples: Shaped[np.ndarray, "M *D"],
    k: int = DENSITY_K,
    mesh: Mesh | None = None,
    tile: int | None = None,
    radii: Float[np.ndarray, "N"] | None = None,
) -> DensityCoverage:
    """Density and coverage (Naeem et al., arXiv 2002.09797).

    Density is the number of real images' balls in which a sample lies, over k: about 1 where
    the distributions are equal. Coverage is the share of real images with a sample in their
    ball. Balls are as in `precision_recall`, but only real images have them, so that outliers
    among the samples gain nothing. radii: as there.
    """
    check_enough(k + 1, f"density and coverage with k = {k}", real)
    radii = ball_radii(real, k, mesh, tile)[:, -1] if radii is None else radii
    nearest = k_nearest(real, samples, 1, mesh=mesh, tile=tile).squared_distance[:, 0]
    return DensityCoverage(
        density=_balls_around(samples, real, radii, mesh, tile) / k, coverage=nearest <= radii
    )


def ball_radii(
    rows: Shaped[np.ndarray, "N *D"], k: int, mesh: Mesh | None = None, tile: int | None = None
) -> Float[np.ndarray, "N k"]:
    """Squared distances of each row to its 1st to k-th nearest other rows, and 1e-9 of it more.

    With the surplus, a copy of the k-th neighbour is in the ball however it is rounded.
    """
    # k + 1, because the nearest row is the row itself.
    found = k_nearest(rows, rows, k + 1, mesh=mesh, tile=tile).squared_distance
    return found[:, 1:] * (1 + 1e-9)


def _ball_step(carry: Float[Array, "n"], queries: PyTree[Array], pool: PyTree[Array]) -> Array:
    return carry + (allowed_distances(queries, pool) <= pool["radius"]).sum(1)


def _balls_around(
    queries: np.ndarray, pool: np.ndarray, radii: np.ndarray, mesh: Mesh | None, tile: int | None
) -> Float[np.ndarray, "N"]:
    """The number of the pool's balls in which each query lies."""
    query_rows, pool_rows = with_left_out(queries, pool, None, None)
    pool_rows["radius"] = radii
    return reduce_pairs(_ball_step, np.zeros(()), query_rows, pool_rows, mesh, tile)
