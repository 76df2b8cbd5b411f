"""Rotary positions on a grid of patches: attention logits that depend on relative places only.

A vector of width d is d / 2 pairs (a_i, b_i), and the token at row r and column c has every pair
turned by an angle of its own (Su et al., arXiv 2104.09864, equation 13 for one pair):

    (1)  (a_i, b_i) -> (a_i cos w_i - b_i sin w_i, a_i sin w_i + b_i cos w_i)
    (2)  w_i = r f_i                for i = 0 ... d / 4 - 1,        f_i = 100^(-4 i / d)
         w_i = c f_(i - d / 4)      for i = d / 4 ... d / 2 - 1

The product of a query and a key that are turned by w and w' is that of the query turned by w - w'
and the key as it was, so it depends on the differences of rows and of columns. Half of the pairs
turn with the row and half with the column, and the base is 100 in place of 10,000, because a row
or column of a grid is the square root of a sequence: both are the axial form of Heo et al.
(arXiv 2403.13298, section 3.2). a_i is element i of the vector, and b_i is element i + d / 2.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Grid = tuple[int, int]  # rows and columns of patches

_BASE = 100.0


def angles(grid: Grid, dim: int) -> Float[np.ndarray, "N P"]:
    """Equation (2): the angles of the N patches, row by row, of P = dim / 2 pairs.

    dim: width of a head, a multiple of 4.
    """
    frequencies = _BASE ** (-np.arange(dim // 4) / (dim // 4))
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return np.concatenate([np.outer(rows, frequencies), np.outer(columns, frequencies)], axis=1)


def rotate(x: Float[Array, "B heads M d"], grid: Grid) -> Float[Array, "B heads M d"]:
    """Equation (1), in float32, on the last N of M tokens, which are the patches of `grid`.

    Tokens before them, such as a class token, have no place and are left as they are.
    """
    turned = angles(grid, x.shape[-1])
    turned = np.pad(turned, ((x.shape[-2] - len(turned), 0), (0, 0)))
    cos, sin = np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
