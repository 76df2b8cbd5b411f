"""Fidelity to the set: two sets of features, or of pixels, compared as distributions.

`real` is (N, *D), `drawn` is (M, *D). Every figure depends on N and M, the Frechet distance
most: compare figures of equal numbers only, and with the same figure between two halves of
the real images.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from fsdit.errors import DataError
from fsdit.evaluation.figures.blas import one_blas_thread
from fsdit.evaluation.figures.distances import (
    allowed_distances,
    allowed_pairs,
    flat,
    k_nearest,
    reduce_pairs,
    with_left_out,
)

# Between unit vectors, as in the CMMD paper.
CMMD_BANDWIDTH = 10.0
CMMD_SCALE = 1000.0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    standard_error: float


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """A row an image, so that they can be resampled by episode; the figures are the means."""

    precision: Bool[np.ndarray, "M"]  # of drawings: near a real image
    recall: Bool[np.ndarray, "N"]  # of real images: near a drawing


@dataclasses.dataclass(frozen=True)
class DensityCoverage:
    """A row an image, so that they can be resampled by episode; the figures are the means."""

    density: Float[np.ndarray, "M"]  # of drawings: balls of real images around it, over k
    coverage: Bool[np.ndarray, "N"]  # of real images: has a drawing in its ball


def _need(least: int, what: str, *sets: np.ndarray) -> None:
    fewest = min(map(len, sets))
    if fewest < least:
        raise DataError(
            f"{what} needs {least} images or more of each kind, got {fewest}: "
            "evaluate more episodes"
        )


def frechet_distance(real: Shaped[np.ndarray, "N *D"], drawn: Shaped[np.ndarray, "M *D"]) -> float:
    """Frechet distance of two Gaussians (Heusel et al., arXiv 1706.08500), the FID's formula.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with unbiased covariances. The trace of the
    root is the sum of the singular values of R1 R2^T, where S = R^T R from a QR
    decomposition of the centred rows: no covariance and no root of a matrix is formed, so
    nothing is lost where S is singular, that is with no more images than dimensions.
    """
    _need(2, "the Frechet distance", real, drawn)
    with one_blas_thread():
        means, roots = zip(*map(_mean_and_root, (real, drawn)), strict=True)
        cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    traces = sum(np.square(root).sum() for root in roots)
    return float(np.square(means[0] - means[1]).sum() + traces - 2 * cross)


def _mean_and_root(rows: Shaped[np.ndarray, "N *D"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and R (min(N, D), D) with R^T R the covariance."""
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    mean = rows.mean(0)
    return mean, np.linalg.qr((rows - mean) / np.sqrt(len(rows) - 1), mode="r")


def kernel_distance(
    real: Shaped[np.ndarray, "N *D"],
    drawn: Shaped[np.ndarray, "M *D"],
    subsets: int = 10,
    seed: int = 0,
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> Estimate:
    """Kernel distance (KID; Binkowski et al., arXiv 1801.01401), unbiased, may be below zero.

    The squared maximum mean discrepancy under k(x, y) = (x.y / D + 1)^3, over all pairs of
    two different images. The standard error is that of the mean over `subsets` disjoint
    random subsets, which is no smaller than that of all pairs.
    """
    return _discrepancy(_cubic_step, real, drawn, subsets, seed, mesh, tile)


def gaussian_distance(
    real: Shaped[np.ndarray, "N *D"],
    drawn: Shaped[np.ndarray, "M *D"],
    bandwidth: float = CMMD_BANDWIDTH,
    scale: float = CMMD_SCALE,
    subsets: int = 10,
    seed: int = 0,
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> Estimate:
    """As CMMD (Jayasumana et al., arXiv 2401.09603), in any encoder's features; unbiased.

    `scale` times the squared maximum mean discrepancy under the Gaussian kernel
    k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)) of features scaled to unit length, over all
    pairs of two different images. The paper's code also counts each image with itself,
    which adds (1 - k1) / N + (1 - k2) / M, where k1 and k2 are the mean kernels of
    different images within the sets. Standard error as in `kernel_distance`.
    """
    # What is left to the kernel is exp(-|x - y|^2).
    real, drawn = (_unit(x) / (np.sqrt(2) * bandwidth) for x in (real, drawn))
    found = _discrepancy(_gaussian_step, real, drawn, subsets, seed, mesh, tile)
    return Estimate(scale * found.value, scale * found.standard_error)


def _unit(rows: Shaped[np.ndarray, "N *D"]) -> Float[np.ndarray, "N d"]:
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)


def _cubic_step(carry: Float[Array, "n"], queries: PyTree[Array], pool: PyTree[Array]) -> Array:
    x, y = flat(queries["x"]), flat(pool["x"])
    kernel = (jnp.matmul(x, y.T, precision="highest") / x.shape[1] + 1) ** 3
    return carry + jnp.where(allowed_pairs(queries, pool), kernel, 0).sum(1)


def _gaussian_step(carry: Float[Array, "n"], queries: PyTree[Array], pool: PyTree[Array]) -> Array:
    return carry + jnp.exp(-allowed_distances(queries, pool)).sum(1)


def _discrepancy(
    step: Callable,
    real: np.ndarray,
    drawn: np.ndarray,
    subsets: int,
    seed: int,
    mesh: Mesh | None,
    tile: int | None,
) -> Estimate:
    """Squared MMD, unbiased (Gretton et al. 2012, equation 3); `step` sums the kernel."""
    _need(2 * subsets, f"a kernel distance with {subsets} subsets", real, drawn)

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        itself = np.arange(len(a))[:, None] if same else None
        sums = reduce_pairs(step, np.zeros(()), *with_left_out(a, b, itself, None), mesh, tile)
        return sums.sum() / (len(a) * (len(b) - same))

    def squared(a: np.ndarray, b: np.ndarray) -> float:
        return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)

    rng = np.random.default_rng(seed)
    pairs = zip(*(_disjoint(x, subsets, rng) for x in (real, drawn)), strict=True)
    error = np.std([squared(*pair) for pair in pairs], ddof=1) / np.sqrt(subsets)
    return Estimate(float(squared(real, drawn)), float(error))


def _disjoint(rows: np.ndarray, subsets: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random subsets of one size that share no row; less than `subsets` rows are left."""
    order = rng.permutation(len(rows))[: len(rows) // subsets * subsets]
    return [rows[chosen] for chosen in np.split(order, subsets)]


def precision_recall(
    real: Shaped[np.ndarray, "N *D"],
    drawn: Shaped[np.ndarray, "M *D"],
    k: int = 3,
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991).

    The ball of an image reaches to its k-th nearest other image of its set. Precision: the
    share of drawings in the ball of any real image. Recall: the share of real images in
    the ball of any drawing.
    """
    _need(k + 1, f"precision and recall with k = {k}", real, drawn)
    return PrecisionRecall(
        precision=_balls_around(drawn, real, _radii(real, k, mesh, tile), mesh, tile) > 0,
        recall=_balls_around(real, drawn, _radii(drawn, k, mesh, tile), mesh, tile) > 0,
    )


def density_coverage(
    real: Shaped[np.ndarray, "N *D"],
    drawn: Shaped[np.ndarray, "M *D"],
    k: int = 5,
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> DensityCoverage:
    """Density and coverage (Naeem et al., arXiv 2002.09797).

    Density: in how many balls of real images a drawing lies, over k; about 1 where the
    distributions are equal. Coverage: the share of real images with a drawing in their
    ball. Only real images have balls, so that outliers among the drawings are no gain.
    """
    _need(k + 1, f"density and coverage with k = {k}", real)
    radii = _radii(real, k, mesh, tile)
    nearest = k_nearest(real, drawn, 1, mesh=mesh, tile=tile).squared_distance[:, 0]
    return DensityCoverage(
        density=_balls_around(drawn, real, radii, mesh, tile) / k, coverage=nearest <= radii
    )


def _radii(rows: np.ndarray, k: int, mesh: Mesh | None, tile: int | None) -> Float[np.ndarray, "N"]:
    """Squared distance to the k-th nearest other row; the nearest is the row itself.

    A hair more, so that a copy of the k-th neighbour is in the ball however it is rounded.
    """
    return k_nearest(rows, rows, k + 1, mesh=mesh, tile=tile).squared_distance[:, -1] * (1 + 1e-9)


def _ball_step(carry: Float[Array, "n"], queries: PyTree[Array], pool: PyTree[Array]) -> Array:
    return carry + (allowed_distances(queries, pool) <= pool["radius"]).sum(1)


def _balls_around(
    queries: np.ndarray, pool: np.ndarray, radii: np.ndarray, mesh: Mesh | None, tile: int | None
) -> Float[np.ndarray, "N"]:
    """In how many balls of the pool each query lies."""
    query_rows, pool_rows = with_left_out(queries, pool, None, None)
    pool_rows["radius"] = radii
    return reduce_pairs(_ball_step, np.zeros(()), query_rows, pool_rows, mesh, tile)
