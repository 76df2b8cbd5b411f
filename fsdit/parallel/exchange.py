"""What devices exchange in a train step: parameters, gradients, and vectors in their place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from fsdit.parallel import sharding


def sharded_gradients(
    mesh: Mesh,
    gradients: Callable[..., tuple[PyTree[Array], PyTree[Array]]],
    dtype: jnp.dtype,
    by_column: bool = False,
) -> Callable[..., tuple[PyTree[Array], PyTree[Array]]]:
    """Makes `gradients` work on a batch and on parameters that are split over the devices.

    gradients: (params, batch, step) -> (aux, gradients), means over the given batch. The
    returned function has the same form, with means over the global batch. Each device gathers
    the parameters once, computes on its own rows, and keeps its share of the mean gradient.
    (XLA's partitioner, if left to itself, gathers the activations of the whole batch in every
    layer instead.) Stacked layers are gathered and reduced in `dtype`, in which they are used.
    by_column: whether kernels that are split by columns stay so, because `gradients` multiplies
    with them through `by_columns`.
    """

    def stays(path: tuple[Any, ...], leaf: Array, spec: PartitionSpec) -> bool:
        return by_column and sharding.is_by_column(path) and len(spec) == leaf.ndim

    def gather(path: tuple[Any, ...], leaf: Array, spec: PartitionSpec) -> Array:
        leaf = leaf.astype(dtype) if sharding.is_stacked(path) else leaf
        if not spec or stays(path, leaf, spec):
            return leaf
        return jax.lax.all_gather(leaf, "fsdp", axis=len(spec) - 1, tiled=True)

    def scatter(path: tuple[Any, ...], gradient: Array, spec: PartitionSpec, param: Array) -> Array:
        if stays(path, param, spec):  # it is that of all rows along fsdp already
            total = jax.lax.psum(gradient, "data")
        elif spec:
            axis = len(spec) - 1
            share = jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=axis, tiled=True)
            total = jax.lax.psum(share, "data")
        else:
            total = jax.lax.psum(gradient, sharding.AXES)
        return total.astype(param.dtype) / mesh.size

    def call(params: PyTree[Array], batch: PyTree[Array], step: Array):
        specs = jax.tree.map(lambda s: s.spec, sharding.state_shardings(mesh, params))

        def local(shares: PyTree[Array], rows: PyTree[Array], step: Array):
            complete = jax.tree.map_with_path(gather, shares, specs)
            aux, found = gradients(complete, rows, step)
            found = jax.tree.map_with_path(scatter, found, specs, shares)
            return jax.lax.pmean(aux, sharding.AXES), found

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, sharding.BATCH, PartitionSpec()),
            out_specs=(PartitionSpec(), specs),
            check_vma=False,
        )(params, batch, step)

    return call


def by_columns(products: Callable[[Array, Array], Array], width: int) -> Callable:
    """Makes `products` work inside of `sharded_gradients`, where kernels are split by columns.

    products: (x (b, D), kernels (L, D, E)) -> (L, b, E). width: E of complete kernels. Each
    device multiplies the vectors of all devices along fsdp with its columns, and then each gets
    all columns of the results of its own vectors. Kernels that are complete are multiplied with
    by `products` alone.
    """

    def call(x: Array, kernels: Array) -> Array:
        if kernels.shape[-1] == width:
            return products(x, kernels)
        found = products(jax.lax.all_gather(x, "fsdp", tiled=True), kernels)
        return jax.lax.all_to_all(found, "fsdp", split_axis=1, concat_axis=2, tiled=True)

    return call
