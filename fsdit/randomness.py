"""Random keys as a pure function of (seed, stream, step, example):

    key = fold_in(fold_in(fold_in(key(seed), crc32(stream)), step), index)

Nothing random is stored. The index of an example is its place in the global stream of
examples, not its place in an array, so a step gets the same random numbers on any mesh and
with any number of processes.
"""

import zlib

import jax
from jaxtyping import Array, Int, Key, UInt32


def stream_key(
    seed: int | UInt32[Array, ""], stream: str, step: int | Int[Array, ""] | UInt32[Array, ""] = 0
) -> Key[Array, ""]:
    """The key of a named stream, such as "train/noise", at one step."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)


def example_keys(key: Key[Array, ""], index: UInt32[Array, "B"]) -> Key[Array, "B"]:
    """One key for each example, from its index in the global stream."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
