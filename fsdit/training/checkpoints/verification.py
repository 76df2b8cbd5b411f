"""What shows that a checkpoint is what was saved: fingerprints of arrays, and reading it back."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from fsdit.errors import CheckpointError, first_line
from fsdit.training.checkpoints import metadata
from fsdit.training.checkpoints.metadata import DamagedCheckpointError


@jax.jit
def _leaf_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    def weighted_sum(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        weights = jnp.ones(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            position = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            weights = weights * jnp.uint32(2 * size + 1) + 2 * position
        return (bits * weights).sum(dtype=jnp.uint32)

    return [weighted_sum(leaf) for leaf in leaves]


def fingerprint(state: PyTree[jax.Array]) -> dict[str, int]:
    """One number an array, from its bits and their places, modulo 2**32.

    Integer sums do not depend on their order, so any mesh computes the same. The
    weights are odd: one changed word always shows.
    """
    leaves = jax.tree.leaves_with_path(state)
    sums = jax.device_get(_leaf_sums([leaf for _, leaf in leaves]))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(value)
        for (path, _), value in zip(leaves, sums, strict=True)
    }


def read_back(folder: Path) -> None:
    """Reads what is small of a checkpoint that was just written.

    Raises CheckpointError where it cannot be read: a folder may take what it does not give.
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
