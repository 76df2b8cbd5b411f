"""Distances between many pairs of images, in float64, tile by tile on the mesh.

Tiles bound the memory. Float64 is needed because distances are small differences of large
numbers, and because integers stay exact in it: equal images are at distance zero, and equal
distances compare as equal.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8

from fsdit.parallel import sharding

# The fewest and the most rows, and the most elements, of a tile (2^24 elements are 128 MiB in
# float64). Small sets are padded, so that sets of many sizes share one program: compiling one
# for each size took longer than all distances of a small evaluation.
_MIN_TILE_ROWS = 512
_MAX_TILE_ROWS = 2048
_MAX_TILE_SIZE = 2**24

# Squared distances below this share of the squared lengths count as zero. Rounding of equal
# rows leaves less; its root, 3e-7 of a length, is no difference between float32 features.
_ROUNDING = 1e-13

# A sum of so many products of two int8 stays within int32.
_INT32_PRODUCTS = 2**16

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The k nearest rows of a pool for each of N queries, nearest first.

    Of equally near rows, the one with the lower index comes first. Where a query may find
    fewer than k rows, the remaining places have index -1 and an infinite distance.
    """

    index: Int[np.ndarray, "N k"]
    squared_distance: Float[np.ndarray, "N k"]


def flat(rows: Shaped[Array, "N *D"]) -> Float[Array, "N d"]:
    """Rows as vectors of float64, for compiled code under x64."""
    return rows.reshape(len(rows), -1).astype(jnp.float64)


def squared_distances(a: Shaped[Array, "N *D"], b: Shaped[Array, "M *D"]) -> Float[Array, "N M"]:
    """Squared Euclidean distances between flattened rows, for compiled code under x64.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y. It is exact for uint8 images, and for other integers
    while the sums stay below 2^53. Equal rows of floats are at distance zero.
    """
    if a.dtype == b.dtype == jnp.uint8:
        a, b = (x.reshape(len(x), -1) for x in (a, b))
        starts = range(0, a.shape[1], _INT32_PRODUCTS)
        parts = [[x[:, i : i + _INT32_PRODUCTS] for x in (a, b)] for i in starts]
        return sum(_squared_distances_of_pixels(*part) for part in parts)
    exact = not any(jnp.issubdtype(x.dtype, jnp.floating) for x in (a, b))
    a, b = flat(a), flat(b)
    norms = jnp.square(a).sum(1)[:, None] + jnp.square(b).sum(1)[None]
    squared = norms - 2 * jnp.matmul(a, b.T, precision="highest")
    return squared if exact else jnp.where(squared < _ROUNDING * norms, 0, squared)


def _squared_distances_of_pixels(
    a: UInt8[Array, "N d"], b: UInt8[Array, "M d"]
) -> Float[Array, "N M"]:
    """As `squared_distances`, by products of int8: faster than float64, exact on any device."""
    a, b = ((x.astype(jnp.int32) - 128).astype(jnp.int8) for x in (a, b))
    norms = [jnp.square(x.astype(jnp.int32)).sum(1).astype(jnp.float64) for x in (a, b)]
    products = jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return norms[0][:, None] + norms[1][None] - 2 * products.astype(jnp.float64)


def reduce_pairs(
    step: Callable[[PyTree, PyTree, PyTree], PyTree],
    start: PyTree,
    queries: Rows,
    pool: Rows,
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> PyTree[np.ndarray]:
    """Reduces all pairs (query, row of the pool) to one result a query.

    queries, pool: dictionaries of arrays (N, ...) and (M, ...). step(carry, queries, pool)
    -> carry gets one tile of each, and in pool["valid"] which rows are not padding. It must be
    a function of a module, so that it is compiled only once for each shape. A carry has one
    row a query, and every row begins as `start`.

    Queries are sharded over all devices of the mesh (by default this process's); a tile of
    the pool is on each of them. The devices hold at most two tiles of `tile` rows at a time,
    and what the step computes from them. Without `tile`, tiles have a moderate size.
    """
    mesh = mesh or sharding.local_mesh()
    count, found = _length(queries), []
    query_rows, pool_rows = (
        min(tile, _length(x)) if tile else _tile_rows(x) for x in (queries, pool)
    )
    with jax.enable_x64(True):
        size = sharding.round_up(query_rows, mesh.size)
        for rows in _tiles(queries, size):
            part = _put(mesh, sharding.BATCH, rows)
            carry = _put(mesh, sharding.BATCH, _repeat(start, size))
            for rows in _tiles(pool, pool_rows):
                other = _put(mesh, PartitionSpec(), rows)
                carry = jax.block_until_ready(_advance(step, mesh, carry, part, other))
            found.append(sharding.to_host(carry))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)


@partial(jax.jit, static_argnums=(0, 1))
def _advance(step: Callable, mesh: Mesh, carry: PyTree, queries: PyTree, pool: PyTree) -> PyTree:
    specs = (sharding.BATCH, sharding.BATCH, PartitionSpec())
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=sharding.BATCH)
    return mapped(carry, queries, pool)


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values())))


def _tile_rows(rows: Rows) -> int:
    widest = max(int(np.prod(x.shape[1:])) for x in rows.values())
    most = max(1, min(_MAX_TILE_ROWS, _MAX_TILE_SIZE // max(widest, 1)))
    return min(most, max(_MIN_TILE_ROWS, 2 ** (_length(rows) - 1).bit_length()))


def _tiles(rows: Rows, size: int) -> Iterator[Rows]:
    """Tiles of exactly `size` rows, the last one padded with zeros; "valid" marks real rows."""
    for first in range(0, _length(rows), size):
        tile = {name: x[first : first + size] for name, x in rows.items()}
        missing = size - _length(tile)
        tile["valid"] = np.ones(size - missing, bool)
        yield {
            name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for name, x in tile.items()
        }


def _repeat(start: PyTree, count: int) -> PyTree[np.ndarray]:
    return jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), start)


def _put(mesh: Mesh, spec: PartitionSpec, tree: PyTree[np.ndarray]) -> PyTree[jax.Array]:
    """Arrays of which every process has a complete copy, laid out over the mesh."""
    placement = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, placement, lambda index: x[index]), tree
    )


def allowed_pairs(queries: PyTree[Array], pool: PyTree[Array]) -> Bool[Array, "n m"]:
    """Which pairs of a tile count: those without padding and without ids that are left out.

    The pool has "id" (m,), the queries "left_out" (n, K): the ids that a query must not find.
    """
    return pool["valid"] & ~(queries["left_out"][:, :, None] == pool["id"]).any(1)


def allowed_distances(queries: PyTree[Array], pool: PyTree[Array]) -> Float[Array, "n m"]:
    """Squared distances between the "x" of a tile's pairs; infinite for pairs not allowed."""
    squared = squared_distances(queries["x"], pool["x"])
    return jnp.where(allowed_pairs(queries, pool), squared, jnp.inf)


def with_left_out(
    queries: Shaped[np.ndarray, "N *D"],
    pool: Shaped[np.ndarray, "M *D"],
    left_out: Int[np.ndarray, "N K"] | None,
    ids: Int[np.ndarray, "M"] | None,
) -> tuple[Rows, Rows]:
    """Queries and pool as `allowed_pairs` takes them. Ids are by default the pool's indices."""
    # Nothing has the id -1. Queries that leave out one row or none then share programs.
    none = np.full((len(queries), 1), -1, np.int32)
    return (
        {"x": queries, "left_out": none if left_out is None else left_out.astype(np.int32)},
        {"x": pool, "id": (np.arange(len(pool)) if ids is None else ids).astype(np.int32)},
    )


def _smallest(values: Float[Array, "n m"], k: int) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """The k smallest values of each row and their places; of equal values the first comes first.

    They are taken one after the other, which on a CPU is ten times as fast as `top_k`'s sort.
    """
    places = jnp.arange(values.shape[1])

    def take(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        least = left.min(1, keepdims=True)
        place = jnp.where(left == least, places, len(places)).min(1, keepdims=True)
        return jnp.where(places == place, jnp.inf, left), (least[:, 0], place[:, 0])

    _, (least, place) = jax.lax.scan(take, values, None, length=k)
    return least.T, place.T


def _nearest_step(carry: PyTree, queries: PyTree, pool: PyTree) -> PyTree:
    squared = allowed_distances(queries, pool)
    index = jnp.broadcast_to(pool["index"], squared.shape)
    # Rows of earlier tiles stand first, so that of equal values the lower index comes first.
    squared = jnp.concatenate([carry["squared_distance"], squared], axis=1)
    index = jnp.concatenate([carry["index"], index], axis=1)
    squared, place = _smallest(squared, carry["index"].shape[1])
    index = jnp.take_along_axis(index, place, axis=1)
    return {"squared_distance": squared, "index": jnp.where(jnp.isfinite(squared), index, -1)}


def k_nearest(
    queries: Shaped[np.ndarray, "N *D"],
    pool: Shaped[np.ndarray, "M *D"],
    k: int,
    left_out: Int[np.ndarray, "N K"] | None = None,
    ids: Int[np.ndarray, "M"] | None = None,
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> Neighbours:
    """The k nearest rows of the pool (images or features), by Euclidean distance.

    left_out: for each query the ids that it must not find. ids: the ids of the pool's rows, by
    default their indices; equal images can share one. mesh, tile: as in `reduce_pairs`.
    """
    query_rows, pool_rows = with_left_out(queries, pool, left_out, ids)
    pool_rows["index"] = np.arange(len(pool), dtype=np.int32)
    start = {"squared_distance": np.full(k, np.inf), "index": np.full(k, -1, np.int32)}
    return Neighbours(**reduce_pairs(_nearest_step, start, query_rows, pool_rows, mesh, tile))


@jax.jit
def _episode_distances(a: Shaped[Array, "E R *D"], b: Shaped[Array, "E K *D"]) -> Array:
    return jnp.sqrt(jax.vmap(squared_distances)(a, b))


def episode_distances(
    a: Shaped[np.ndarray, "E R *D"],
    b: Shaped[np.ndarray, "E K *D"],
    mesh: Mesh | None = None,
    tile: int | None = None,
) -> Float[np.ndarray, "E R K"]:
    """Euclidean distances within each episode, such as from its samples to its supports.

    Episodes are sharded over the mesh (by default this process's devices), `tile` at a time.
    """
    mesh, rows = mesh or sharding.local_mesh(), {"a": a, "b": b}
    size = sharding.round_up(min(tile or _tile_rows(rows), len(a)), mesh.size)
    found = []
    with jax.enable_x64(True):
        for part in _tiles(rows, size):
            part = _put(mesh, sharding.BATCH, part)
            found.append(sharding.to_host(_episode_distances(part["a"], part["b"])))
    return np.concatenate(found)[: len(a)]
