"""Random keys as a pure function of (seed, stream, step, example).

Nothing random is stored. A key depends on what it is for and on the example's
index in the global stream, never on where the example lies in an array, so a
step draws the same numbers on any mesh and on any number of processes.
"""

import zlib

import jax
from jaxtyping import Array, Int, Key, UInt32


def stream_key(
    seed: int | UInt32[Array, ""], stream: str, step: int | Int[Array, ""] | UInt32[Array, ""] = 0
) -> Key[Array, ""]:
    """Key of one named stream ("noise", "time", "dropout", ...) at one step."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)


def example_keys(key: Key[Array, ""], index: UInt32[Array, "B"]) -> Key[Array, "B"]:
    """One key an example, from its index in the global stream."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
