"""Fidelity to the set: two sets of features, or of pixels, compared as distributions.

`real` is (N, *D), `samples` is (M, *D). Every metric depends on N and M, the FD most of all.
So a value compares only with values of equally many images, such as that between two halves
of the real images.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, Shaped

from fsdit.errors import DataError
from fsdit.evaluation.figures.blas import one_blas_thread
from fsdit.evaluation.figures.distances import (
    Rows,
    allowed_distances,
    allowed_pairs,
    flat,
    reduce_pairs,
    with_left_out,
)

# Kernel bandwidth, for unit vectors, and scale of the CMMD paper.
CMMD_BANDWIDTH = 10.0
CMMD_SCALE = 1000.0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The value of a metric and its standard error."""

    value: float
    standard_error: float


def check_enough(least: int, what: str, *sets: np.ndarray) -> None:
    """Raises DataError where a set has fewer images than the metric needs."""
    fewest = min(map(len, sets))
    if fewest < least:
        raise DataError(
            f"{what} needs {least} images or more of each kind, got {fewest}: "
            "evaluate more episodes"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian fitted to N rows: its mean, and R with R^T R = the unbiased covariance."""

    mean: Float[np.ndarray, "D"]
    root: Float[np.ndarray, "_ D"]  # min(N, D) rows


def fit_gaussian(rows: Shaped[np.ndarray, "N *D"]) -> Gaussian:
    """Fits by a QR decomposition of the centred rows, so that no covariance is formed."""
    check_enough(2, "the FD", rows)
    with one_blas_thread():
        rows = rows.reshape(len(rows), -1).astype(np.float64)
        mean = rows.mean(0)
        return Gaussian(mean, np.linalg.qr((rows - mean) / np.sqrt(len(rows) - 1), mode="r"))


def gaussians_apart(real: Gaussian, samples: Gaussian) -> float:
    """The Fréchet distance of two Gaussians.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with means m and covariances S (Heusel et al.,
    arXiv 1706.08500, equation 6). The trace of the root is the sum of the singular values of
    R1 R2^T, where S = R^T R. So neither a covariance nor the root of a matrix is formed, and no
    digits are lost where S is singular, that is, with no more images than dimensions.
    """
    with one_blas_thread():
        cross = np.linalg.svd(real.root @ samples.root.T, compute_uv=False).sum()
    traces = np.square(real.root).sum() + np.square(samples.root).sum()
    return float(np.square(real.mean - samples.mean).sum() + traces - 2 * cross)


def frechet_distance(
    real: Shaped[np.ndarray, "N *D"], samples: Shaped[np.ndarray, "M *D"]
) -> float:
    """Fréchet distance (FD) of Gaussians fitted to two sets: the formula of the FID."""
    return gaussians_apart(fit_gaussian(real), fit_gaussian(samples))


def kernel_distance(
    real: Shaped[np.ndarray, "N *D"],
    samples: Shaped[np.ndarray, "M *D"],
    subsets: int = 10,
    seed: int = 0,
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> Estimate:
    """Kernel distance (KID; Binkowski et al., arXiv 1801.01401). Unbiased, may be below zero.

    The squared maximum mean discrepancy under the kernel k(x, y) = (x.y / D + 1)^3, over all
    pairs of two different images. The standard error is that of the mean over `subsets`
    disjoint random subsets, which is no smaller than that over all pairs.
    """
    return _discrepancy(_cubic_step, real, samples, subsets, seed, mesh, tile)


def gaussian_distance(
    real: Shaped[np.ndarray, "N *D"],
    samples: Shaped[np.ndarray, "M *D"],
    bandwidth: float = CMMD_BANDWIDTH,
    scale: float = CMMD_SCALE,
    subsets: int = 10,
    seed: int = 0,
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> Estimate:
    """CMMD (Jayasumana et al., arXiv 2401.09603), but in any encoder's features. Unbiased.

    `scale` times the squared maximum mean discrepancy under the Gaussian kernel
    k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)) of features scaled to unit length, over all
    pairs of two different images. The paper's code also counts each image with itself,
    which adds (1 - k1) / N + (1 - k2) / M, where k1 and k2 are the mean kernels of
    different images within the sets. The standard error is that of `kernel_distance`.
    """
    # Scaled like this, the kernel is exp(-|x - y|^2).
    real, samples = (_unit(x) / (np.sqrt(2) * bandwidth) for x in (real, samples))
    found = _discrepancy(_gaussian_step, real, samples, subsets, seed, mesh, tile)
    return Estimate(scale * found.value, scale * found.standard_error)


def _unit(rows: Shaped[np.ndarray, "N *D"]) -> Float[np.ndarray, "N d"]:
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)


def _cubic_kernel(queries: PyTree[Array], pool: PyTree[Array]) -> Float[Array, "n m"]:
    x, y = flat(queries["x"]), flat(pool["x"])
    return (jnp.matmul(x, y.T, precision="highest") / x.shape[1] + 1) ** 3


def _gaussian_kernel(queries: PyTree[Array], pool: PyTree[Array]) -> Float[Array, "n m"]:
    return jnp.exp(-allowed_distances(queries, pool))


def _kernel_sums(
    kernel: Callable, carry: PyTree[Array], queries: PyTree[Array], pool: PyTree[Array]
) -> PyTree[Array]:
    """Adds the kernel of each query and the pool: over all rows, and over those of its subset."""
    values = jnp.where(allowed_pairs(queries, pool), kernel(queries, pool), 0)
    same_subset = queries["subset"][:, None] == pool["subset"][None]
    return {
        "all": carry["all"] + values.sum(1),
        "subset": carry["subset"] + jnp.where(same_subset, values, 0).sum(1),
    }


# `reduce_pairs` compiles a step once for each object.
_cubic_step = functools.partial(_kernel_sums, _cubic_kernel)
_gaussian_step = functools.partial(_kernel_sums, _gaussian_kernel)


def _discrepancy(
    step: Callable,
    real: np.ndarray,
    samples: np.ndarray,
    subsets: int,
    seed: int,
    mesh: Mesh | None,
    tile: int | None,
) -> Estimate:
    """The unbiased squared MMD (Gretton et al. 2012, equation 3). step: sums the kernel."""
    check_enough(2 * subsets, f"a kernel distance with {subsets} subsets", real, samples)
    rng = np.random.default_rng(seed)
    real, samples = (
        {"x": rows, "subset": _disjoint(len(rows), subsets, rng)} for rows in (real, samples)
    )
    means = functools.partial(_mean_kernels, step, subsets, mesh=mesh, tile=tile)
    # Each holds the mean over all pairs, then those over the pairs within each subset.
    squared = (
        means(real, real, same=True)
        + means(samples, samples, same=True)
        - 2 * means(real, samples, same=False)
    )
    return Estimate(float(squared[0]), float(np.std(squared[1:], ddof=1) / np.sqrt(subsets)))


def _disjoint(count: int, subsets: int, rng: np.random.Generator) -> Int[np.ndarray, "N"]:
    """The subset of each of `count` rows; fewer than `subsets` rows are in none, and get -1.

    Subsets have one size, share no row, and are random.
    """
    size = count // subsets
    chosen = rng.permutation(count)[: subsets * size]
    found = np.full(count, -1, np.int32)
    found[chosen] = np.repeat(np.arange(subsets), size)
    return found


def _mean_kernels(
    step: Callable,
    subsets: int,
    a: Rows,
    b: Rows,
    *,
    same: bool,
    mesh: Mesh | None,
    tile: int | None,
) -> Float[np.ndarray, "means"]:
    """Mean kernel of all pairs of a and b, then that of the pairs within each subset.

    same: whether a and b are one set, where no row is a pair with itself.
    """
    rows, others = len(a["x"]), len(b["x"])
    itself = np.arange(rows)[:, None] if same else None
    queries, pool = with_left_out(a["x"], b["x"], itself, None)
    queries["subset"], pool["subset"] = a["subset"], b["subset"]
    start = {"all": np.zeros(()), "subset": np.zeros(())}
    sums = reduce_pairs(step, start, queries, pool, mesh, tile)
    by_subset = np.bincount(a["subset"] + 1, sums["subset"], minlength=subsets + 1)[1:]
    size, size_of_others = rows // subsets, others // subsets
    return np.append(
        sums["all"].sum() / (rows * (others - same)),
        by_subset / (size * (size_of_others - same)),
    )
