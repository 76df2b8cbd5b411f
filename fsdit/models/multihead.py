"""Multi-head attention, the module around the kernels of `fsdit.models.attention`."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fsdit.models import layers
from fsdit.models.attention import KEPT, KERNELS, Kernel, attend

KeysAndValues = tuple[Float[Array, "B heads M d"], Float[Array, "B heads M d"]]
# What cross-attention attends to: the context, or the keys and values made of it.
Context = Float[Array, "B M D"] | KeysAndValues


def _is_projected(context: Context | None) -> bool:
    return isinstance(context, tuple)


def is_few(queries: int, num_heads: int, dim: int) -> bool:
    """Whether cross-attention projects its queries instead of its context."""
    return queries * num_heads <= dim


class Attention(nnx.Module):
    """Multi-head attention of `x` over itself or, with `cross`, over a context.

    Cross-attention starts with equal query and key kernels, so that at first a token attends to
    those like it in place and content (the idea of Trockman and Kolter, arXiv 2305.09828).
    kernel: what computes equations (1) to (3) of `fsdit.models.attention`, by name.
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
    ):
        self.num_heads = num_heads
        self.cross = cross
        self.kernel = kernel
        if cross:
            self.query = layers.Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.key = layers.Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.value = layers.Linear(dim, dim, dtype=dtype, rngs=rngs)
            self.key.kernel[...] = self.query.kernel[...]
        else:
            self.qkv = layers.Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.out = layers.Linear(dim, dim, dtype=dtype, rngs=rngs)

    def keys_and_values(self, context: Float[Array, "B M D"]) -> KeysAndValues:
        """Those of cross-attention, which do not depend on what attends to the context."""
        return self._heads(self.key(context)), self._heads(self.value(context))

    def project(
        self, x: Float[Array, "B N D"], context: Context | None
    ) -> list[Float[Array, "B heads _ d"]]:
        """Returns queries divided by sqrt(d), keys and values, split into heads of width d."""
        if not self.cross:
            query, key, value = (self._heads(p) for p in jnp.split(self.qkv(x), 3, axis=-1))
        else:
            query = self._heads(self.query(x))
            key, value = context if _is_projected(context) else self.keys_and_values(context)
        scaled = query * query.shape[-1] ** -0.5
        return [checkpoint_name(p, KEPT) for p in (scaled, key, value)]

    def _heads(self, x: Float[Array, "B N D"]) -> Float[Array, "B heads N d"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)

    def __call__(
        self, x: Float[Array, "#B N D"], context: Context | None = None
    ) -> Float[Array, "B N D"]:
        """Attends from x. Over a context, x may have one row that serves the complete batch."""
        projected = _is_projected(context)
        if self.cross and not projected and is_few(x.shape[1], self.num_heads, x.shape[2]):
            mixed = self._over_few(x, context)
        else:
            rows = x.shape[0] if context is None or projected else context.shape[0]
            projected = self.project(jnp.broadcast_to(x, (rows, *x.shape[1:])), context)
            mixed = KERNELS[self.kernel](*projected)
        return self.out(mixed.swapaxes(1, 2).reshape(-1, *x.shape[1:]))

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
        self, x: Float[Array, "B N D"], context: Context | None = None
    ) -> Float[Array, "heads"]:
        """Mean entropy -sum_j P_ij log P_ij of the attention rows of each head, in nats."""
        query, key, _ = self.project(x, context)
        logits = jnp.einsum("bhnd,bhmd->bhnm", query, key, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        return -(jnp.exp(log_p) * log_p).sum(-1).mean((0, 2))
