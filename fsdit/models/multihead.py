"""Multi-head attention, the module around the kernels of `fsdit.models.attention`.

Rotary positions make the logits of patches depend on their relative places only. A query or key
of width d is d / 2 pairs (a_i, b_i), elements i and i + d / 2, and those of the patch at row r
and column c are turned by angles w_i (Su et al., arXiv 2104.09864, equation 13 for one pair):

    (1)  (a_i, b_i) -> (a_i cos w_i - b_i sin w_i, a_i sin w_i + b_i cos w_i)
    (2)  w_i = r f_i                for i = 0 ... d / 4 - 1,        f_i = 100^(-4 i / d)
         w_i = c f_(i - d / 4)      for i = d / 4 ... d / 2 - 1

The product of a query and a key that are turned by w and w' is that of the query turned by w - w'
and the key as it was. Half of the pairs turn with the row and half with the column, and the base
is 100 in place of 10,000, because a row or column of a grid is about the square root of a
sequence: both are the axial form of Heo et al. (arXiv 2403.13298).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from fsdit.models import layers
from fsdit.models.attention import KEPT, KERNELS, Kernel, attend

# Keys and values of C contexts of M tokens, (C, heads, M, d) each.
KeysAndValues = tuple[Float[Array, "_ heads _ d"], Float[Array, "_ heads _ d"]]
# What cross-attention attends to: a context of each row, or keys and values in parts, each of
# which serves an equal share of the rows, in order; each context of a part, a run of its share.
Context = Float[Array, "B M D"] | tuple[KeysAndValues, ...]

Grid = tuple[int, int]  # rows and columns of patches

_BASE = 100.0  # of equation (2)


def angles(grid: Grid, dim: int) -> Float[np.ndarray, "N pairs"]:
    """Equation (2): the angles of all N patches, row by row, for dim / 2 pairs.

    dim: width of a head, a multiple of 4.
    """
    frequencies = _BASE ** (-np.arange(dim // 4) / (dim // 4))
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return np.concatenate([np.outer(rows, frequencies), np.outer(columns, frequencies)], axis=1)


def rotate(
    x: Float[Array, "B heads n d"], grid: Grid, patches: Int[Array, "B P"] | None = None
) -> Float[Array, "B heads n d"]:
    """Equation (1), in float32, on the last tokens, which are patches of a grid.

    patches: which ones, by their numbers row by row; None: all, in order. Tokens before them,
    such as a class token, have no place and are left as they are.
    """
    turned = angles(grid, x.shape[-1])
    cos, sin = (part.astype(np.float32) for part in (np.cos(turned), np.sin(turned)))
    if patches is not None:
        cos, sin = (jnp.asarray(part)[patches][:, None] for part in (cos, sin))
    first = x.shape[2] - cos.shape[-2]
    a, b = jnp.split(x[:, :, first:].astype(jnp.float32), 2, axis=-1)
    placed = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
    return jnp.concatenate([x[:, :, :first], placed], axis=2)


def is_few(queries: int, num_heads: int, dim: int) -> bool:
    """Whether cross-attention by so many queries is too small for another kernel than `attend`.

    It then projects its queries instead of its context, where keys have no norm.
    """
    return queries * num_heads <= dim


def _normed(
    heads: Float[Array, "B heads N d"], scale: nnx.Param | None
) -> Float[Array, "B heads N d"]:
    """RMS norm of each head's queries or keys, times 1 + scale; without a scale, no norm."""
    if scale is None:
        return heads
    return layers.modulated_norm(heads, jnp.zeros((1,)), scale[...], heads.dtype, "rms")


class Attention(nnx.Module):
    """Multi-head attention of `x` over itself or, with `cross`, over a context.

    Cross-attention starts with equal query and key kernels, so that at first a token attends to
    those like it in place and content (the idea of Trockman and Kolter, arXiv 2305.09828).
    kernel: what computes equations (1) to (3) of `fsdit.models.attention`, by name.
    qk_norm: whether the queries and keys of each head go through an RMS norm with a learned
    scale for each of their d elements, which all heads share (Esser et al., arXiv 2403.03206,
    section 5.3.2), so that logits cannot grow with the kernels. A scale is stored as its
    difference from 1.
    rotary: the grid of patches that the last tokens of x are, whose queries and keys are rotated
    by their places; for self-attention only. None: none are.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        cross: bool = False,
        kernel: Kernel = "plain",
        qk_norm: bool = False,
        rotary: Grid | None = None,
    ):
        self.dim, self.num_heads = dim, num_heads
        self.cross = cross
        self.kernel = kernel
        self.rotary = rotary
        if cross:
            self.query = layers.Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.key = layers.Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.value = layers.Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.key.kernel[...] = self.query.kernel[...]
        else:
            self.qkv = layers.Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.out = layers.Linear(dim, dim, dtype=dtype, rngs=rngs)
        width = dim // num_heads
        self.query_scale = nnx.Param(jnp.zeros(width)) if qk_norm else None
        self.key_scale = nnx.Param(jnp.zeros(width)) if qk_norm else None

    def keys_and_values(self, context: Float[Array, "C M D"]) -> KeysAndValues:
        """Those of cross-attention, which do not depend on what attends to the context."""
        key = _normed(self._heads(self.key(context)), self.key_scale)
        return key, self._heads(self.value(context))

    def needs_keys(self, queries: int) -> bool:
        """Whether cross-attention by so many queries makes keys and values of its context.

        Few queries do without (`_over_few`), except where the keys have a norm, for which they
        have to be there.
        """
        few = is_few(queries, self.num_heads, self.dim)
        return not few or self.key_scale is not None

    def project(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B M D"] | None,
        patches: Int[Array, "B P"] | None = None,
    ) -> list[Float[Array, "B heads _ d"]]:
        """Returns queries divided by sqrt(d), keys and values, split into heads of width d."""
        if not self.cross:
            query, key, value = (self._heads(p) for p in jnp.split(self.qkv(x), 3, axis=-1))
            key = _normed(key, self.key_scale)
        else:
            query = self._heads(self.query(x))
            key, value = self.keys_and_values(context)
        query = _normed(query, self.query_scale)
        if self.rotary is not None:
            query, key = (rotate(p, self.rotary, patches) for p in (query, key))
        scaled = query * query.shape[-1] ** -0.5
        return [checkpoint_name(p, KEPT) for p in (scaled, key, value)]

    def _heads(self, x: Float[Array, "B N D"]) -> Float[Array, "B heads N d"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)

    def __call__(
        self,
        x: Float[Array, "#B N D"],
        context: Context | None = None,
        patches: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "B N D"]:
        """Attends from x. Over a context, x may have one row that serves the complete batch.

        patches: those of the grid that are rotated, as for `rotate`.
        """
        if isinstance(context, tuple):
            shares = jnp.split(x, len(context))
            found = [self._over_keys(*each) for each in zip(shares, context, strict=True)]
            return jnp.concatenate(found)
        if self.cross and not self.needs_keys(x.shape[1]):
            mixed = self._over_few(x, context)
        else:
            rows = x.shape[0] if context is None else context.shape[0]
            x = jnp.broadcast_to(x, (rows, *x.shape[1:]))
            mixed = self._attend(*self.project(x, context, patches), x.shape[1])
        return self.out(self._joined(mixed))

    def _attend(self, query: Array, key: Array, value: Array, queries: int) -> Array:
        """Equations (1) to (3) of the kernel; `queries` are those of one row."""
        few = self.cross and is_few(queries, self.num_heads, self.dim)
        return KERNELS["plain" if few else self.kernel](query, key, value)

    def _joined(self, heads: Float[Array, "B heads N d"]) -> Float[Array, "B N D"]:
        return heads.swapaxes(1, 2).reshape(heads.shape[0], heads.shape[2], self.dim)

    def _over_keys(self, x: Float[Array, "B N D"], made: KeysAndValues) -> Float[Array, "B N D"]:
        """Attends over keys and values of C contexts, each by a run of B / C rows of x.

        The queries of a run are as those of one row. A softmax over one key is 1, so a context of
        one token gives its value to all queries.
        """
        key, value = made
        if key.shape[2] == 1:
            each = self.out(self._joined(value))
            return jnp.broadcast_to(jnp.repeat(each, len(x) // len(each), axis=0), x.shape)
        runs = x.reshape(key.shape[0], -1, x.shape[2])
        query = _normed(self._heads(self.query(runs)), self.query_scale)
        query = query * query.shape[-1] ** -0.5
        mixed = self._attend(query, key, value, x.shape[1])
        return self.out(self._joined(mixed)).reshape(x.shape)

    def _over_few(
        self, x: Float[Array, "#B N D"], context: Float[Array, "B M D"]
    ) -> Float[Array, "B heads N d"]:
        """The same attention for few queries, without keys and values of the context.

        The logit of a query x and a context token c is (W_q x) . (W_k c) = (W_k^T W_q x) . c, so
        the queries are projected instead of the context. The weighted mean of W_v c is W_v times
        the weighted mean of c, so the means are projected. The key's bias adds the same to all
        logits of a query, which leaves the softmax as it is; the value's bias is added to the
        mean, since the weights sum to one. The queries are few, and as wide as the
        context, which is wider than cuDNN allows as a rule: this form computes by `attend` always.
        """
        (b, _, dim), heads = context.shape, self.num_heads
        query = self._heads(self.query(x)) * (dim // heads) ** -0.5
        key, value = (
            linear.kernel[...].astype(query.dtype).reshape(dim, heads, -1)
            for linear in (self.key, self.value)
        )
        query = jnp.einsum("bhnd,Dhd->bhnD", query, key).reshape(x.shape[0], 1, -1, dim)
        query = jnp.broadcast_to(query, (b, *query.shape[1:]))
        context = context.astype(query.dtype)[:, None]
        mixed = attend(query, context, context).reshape(b, heads, -1, dim)
        mixed = jnp.einsum("bhnD,Dhd->bhnd", mixed, value)
        return mixed + self.value.bias[...].astype(mixed.dtype).reshape(heads, 1, -1)

    def entropy(
        self,
        x: Float[Array, "B N D"],
        context: Context | None = None,
        patches: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "heads"]:
        """Mean entropy -sum_j P_ij log P_ij of the attention rows of each head, in nats."""
        query, key, _ = self.project(x, context, patches)
        logits = jnp.einsum("bhnd,bhmd->bhnm", query, key, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        return -(jnp.exp(log_p) * log_p).sum(-1).mean((0, 2))
