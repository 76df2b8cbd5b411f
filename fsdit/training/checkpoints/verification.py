"""Verifies checkpoints: fingerprints of their arrays, and reading a new one back.

The fingerprint of an array with words x_p (its elements' bits as integers) at the places
p = (p_1, ..., p_n) in a shape (s_1, ..., s_n) is

    sum over p of x_p w_p  mod 2^32,    w_p = w_n,  w_0 = 1,
    w_i = w_(i-1) (2 s_i + 1) + 2 p_i                                          (1)

All weights w_p are odd and so invertible modulo 2^32: a single changed word always shows. Sums
of integers do not depend on their order: any mesh computes the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from fsdit import storage
from fsdit.errors import CheckpointError, first_line
from fsdit.training.checkpoints import metadata
from fsdit.training.checkpoints.metadata import DamagedCheckpointError


@jax.jit  # of its own, so that the many arrays of one shape are traced once
def _weighted_sum(leaf: jax.Array) -> jax.Array:
    """The fingerprint () uint32 of an array, equation 1."""
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    weights = jnp.ones(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        position = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        weights = weights * jnp.uint32(2 * size + 1) + 2 * position
    return (bits * weights).sum(dtype=jnp.uint32)


@jax.jit
def _leaf_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    """The fingerprint () uint32 of each array."""
    return [_weighted_sum(leaf) for leaf in leaves]


def fingerprint(state: PyTree[jax.Array]) -> dict[str, int]:
    """The fingerprint of each array of a state, by its path, such as "params/embed/kernel"."""
    leaves = jax.tree.leaves_with_path(state)
    sums = jax.device_get(_leaf_sums([leaf for _, leaf in leaves]))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(value)
        for (path, _), value in zip(leaves, sums, strict=True)
    }


def read_back(folder: storage.AnyPath) -> None:
    """Reads the small parts of a checkpoint that was just written.

    Raises CheckpointError where they cannot be read: in some folders files can be written and
    not be found again.
    """
    scalar = {"step": jax.ShapeDtypeStruct((), np.int32)}
    as_numpy = {"step": ocp.RestoreArgs(restore_type=np.ndarray)}
    args = ocp.args.PyTreeRestore(scalar, as_numpy, partial_restore=True)
    try:
        metadata.read(folder)
        ocp.StandardCheckpointHandler().metadata(folder / "state")  # opens each array
        found = ocp.PyTreeCheckpointHandler().restore(folder / "state", args=args)
        if int(found["step"]) != int(folder.name):
            raise DamagedCheckpointError(folder, f"it holds the state of step {found['step']}")
    except Exception as error:
        raise CheckpointError(
            f"{folder} was written and cannot be read back: {first_line(error)[:300]}; look at "
            "the file system, or name another --workdir"
        ) from error
