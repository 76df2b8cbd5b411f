"""Fidelity to the class by retrieval: is the nearest real image of a sample of its class?"""

import hashlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from fsdit.evaluation.figures.distances import allowed_distances, reduce_pairs, with_left_out


def image_digest(image: Shaped[np.ndarray, "*D"]) -> bytes:
    """A digest of an image, equal for images that are equal in every pixel."""
    return hashlib.blake2b(np.ascontiguousarray(image)).digest()


def same_as_first(digests: Iterable[bytes]) -> Int[np.ndarray, "M"]:
    """For each image the index of the first image that equals it.

    digests: the `image_digest` of each. The index serves as an id that equal images share,
    whether or not they are of one class.
    """
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], np.int32)


def lookalikes(
    ids: Int[np.ndarray, "M"], classes: Int[np.ndarray, "M"], num_classes: int
) -> Bool[np.ndarray, "C C"]:
    """Which pairs of classes share an image, as Latin and Greek A do; a class pairs with itself.

    ids: one for each image, the same for equal images (`same_as_first`).
    """
    alike = np.eye(num_classes, dtype=bool)
    holders = np.zeros((ids.max() + 1, num_classes), dtype=bool)
    holders[ids, classes] = True
    for members in holders[holders.sum(1) > 1]:
        alike |= members[:, None] & members[None]
    return alike


def _class_step(
    carry: Float[Array, "n C"], queries: PyTree[Array], pool: PyTree[Array]
) -> Float[Array, "n C"]:
    squared = allowed_distances(queries, pool)
    nearest = jax.ops.segment_min(squared.T, pool["class"], carry.shape[1])
    return jnp.minimum(carry, nearest.T)


def class_distances(
    queries: Shaped[np.ndarray, "N *D"],
    pool: Shaped[np.ndarray, "M *D"],
    pool_classes: Int[np.ndarray, "M"],
    num_classes: int,
    left_out: Int[np.ndarray, "N K"] | None = None,
    ids: Int[np.ndarray, "M"] | None = None,
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> Float[np.ndarray, "N C"]:
    """Squared Euclidean distance of each query to the nearest pool image of each class.

    Queries and pool are images or features; distances of uint8 images are exact.

    left_out: for each query the ids that it must not find: its episode's supports. A class
    with no other image is at infinite distance. ids: the ids of the pool's rows, by default
    their indices; with those of `same_as_first`, copies of a support are left out too.
    mesh, tile: as in `reduce_pairs`.
    """
    query_rows, pool_rows = with_left_out(queries, pool, left_out, ids)
    pool_rows["class"] = pool_classes.astype(np.int32)
    start = np.full(num_classes, np.inf)
    return reduce_pairs(_class_step, start, query_rows, pool_rows, mesh, tile)


def in_nearest_classes(
    squared: Float[np.ndarray, "N C"], right: Bool[np.ndarray, "N C"], k: int
) -> Bool[np.ndarray, "N"]:
    """Top-k retrieval: whether one of a query's k nearest classes is right for it.

    A class is as near as its nearest image, so for k = 1 the nearest image decides. Of equally
    near classes, a right one comes first. A query without any right class in reach is wrong.

    squared: the distances of `class_distances`. right: for each query its class and the
    classes that count as it.
    """
    nearest_right = np.where(right, squared, np.inf).min(1)
    nearer = (squared < nearest_right[:, None]).sum(1)
    return (nearer < k) & np.isfinite(nearest_right)
