import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fsdit.models import layers
from fsdit.models.attention import KERNELS
from fsdit.models.multihead import Attention

pytestmark = pytest.mark.medium

FLOAT32 = jnp.dtype("float32")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms_norm(x, scale):
    root = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return x / root * (1 + np.asarray(scale, float))


def reference_attention(attention, x, context, heads):
    """(output, attention probabilities (B, heads, N, M)) in float64 NumPy."""
    d = x.shape[-1] // heads

    def apply(linear, value):
        return np.asarray(value) @ np.asarray(linear.kernel[...], float) + np.asarray(
            linear.bias[...], float
        )

    if context is None:
        query, key, value = np.split(apply(attention.qkv, x), 3, axis=-1)
    else:
        query = apply(attention.query, x)
        key, value = apply(attention.key, context), apply(attention.value, context)
    outputs, probabilities = [], []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        q, k = query[..., part], key[..., part]
        if attention.query_scale is not None:
            q, k = rms_norm(q, attention.query_scale[...]), rms_norm(k, attention.key_scale[...])
        p = softmax(q @ k.swapaxes(1, 2) / np.sqrt(d))
        outputs.append(p @ value[..., part])
        probabilities.append(p)
    mixed = np.concatenate(outputs, axis=-1)
    return apply(attention.out, mixed), np.stack(probabilities, axis=1)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_attention_and_its_entropy_equal_a_plain_softmax(cross, qk_norm):
    attention = Attention(12, 3, rngs=nnx.Rngs(0), dtype=FLOAT32, cross=cross, qk_norm=qk_norm)
    if qk_norm:
        attention.query_scale[...], attention.key_scale[...] = normal(4), normal(4, seed=1)
    for i, parameter in enumerate(jax.tree.leaves(nnx.state(attention))):
        assert parameter.dtype == jnp.float32, i
    x, context = normal(2, 5, 12), normal(2, 7, 12, seed=1) if cross else None
    expected, p = reference_attention(attention, x, context, heads=3)
    np.testing.assert_allclose(attention(x, context), expected, atol=1e-5)
    entropy = -(p * np.log(p)).sum(-1).mean((0, 2))
    np.testing.assert_allclose(attention.entropy(x, context), entropy, atol=1e-5)


@pytest.mark.parametrize(
    "queries",
    [1, pytest.param(2, marks=pytest.mark.large), 4, pytest.param(5, marks=pytest.mark.large)],
)
@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.large), 2])
def test_cross_attention_by_few_queries_equals_the_plain_form(queries, rows):
    """With three heads and width 12, up to four queries need no keys of the whole context."""
    attention = Attention(12, 3, rngs=nnx.Rngs(0), dtype=FLOAT32, cross=True)
    for i, linear in enumerate((attention.query, attention.key, attention.value)):
        linear.bias[...] = normal(12, seed=10 + i)
    graph, parameters = nnx.split(attention)
    x, context, probe = normal(rows, queries, 12), normal(2, 7, 12, seed=1), normal(2, queries, 12)

    def plain(parameters, x, context):
        attention = nnx.merge(graph, parameters)
        x = jnp.broadcast_to(x, (2, *x.shape[1:]))
        query, key, value = attention.project(x, context)
        p = jax.nn.softmax(jnp.einsum("bhnd,bhmd->bhnm", query, key))
        mixed = jnp.einsum("bhnm,bhmd->bnhd", p, value)
        return (attention.out(mixed.reshape(x.shape)) * probe).sum()

    def called(parameters, x, context):
        return (nnx.merge(graph, parameters)(x, context) * probe).sum()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        *(
            jax.value_and_grad(f, argnums=(0, 1, 2))(parameters, x, context)
            for f in (called, plain)
        ),
    )


@pytest.mark.parametrize("queries", [5, 2], ids=["many queries", "few queries"])
@pytest.mark.parametrize("cross", [False, True])
def test_with_normed_queries_and_keys_their_projections_have_no_scale(cross, queries):
    attention = Attention(12, 3, rngs=nnx.Rngs(0), dtype=FLOAT32, cross=cross, qk_norm=True)
    x, context = normal(2, queries, 12), normal(2, 7, 12, seed=1) if cross else None
    before = attention(x, context)
    if cross:
        attention.query.kernel[...] *= 9
        attention.key.kernel[...] *= 0.3
    else:
        factors = jnp.repeat(jnp.array([9, 0.3, 1]), 12)
        attention.qkv.kernel[...] *= factors
    np.testing.assert_allclose(attention(x, context), before, atol=1e-4)
    layer = attention.value if cross else attention.qkv
    layer.kernel[...] *= 2
    assert np.abs(attention(x, context) - before).max() > 0.1


def test_untrained_cross_attention_prefers_the_same_position():
    """With positions as queries and keys, most queries attend most to their own position."""
    dim, heads, n = 64, 2, 36
    attention = Attention(dim, heads, rngs=nnx.Rngs(0), dtype=FLOAT32, cross=True)
    x = layers.layer_norm(jnp.asarray(layers.position_table(6, 6, dim)))[None]
    query, key, _ = attention.project(x, x)
    logits = np.einsum("bhnd,bhmd->bhnm", query, key)
    assert (logits.argmax(-1) == np.arange(n)).mean() > 0.9


@pytest.mark.parametrize(
    ("cross", "queries", "qk_norm", "called"),
    [(False, 5, 0, True), (True, 5, 0, True), (True, 4, 0, False), (True, 4, 1, False)],
    ids=["self", "cross", "cross by few queries", "cross by few normed queries"],
)
def test_the_chosen_kernel_computes_all_but_the_few_queries(
    monkeypatch, cross, queries, qk_norm, called
):
    """Another kernel than the plain one is seen by its result, here zeros."""
    monkeypatch.setitem(KERNELS, "cudnn", lambda query, key, value: jnp.zeros_like(query))
    plain, other = (
        Attention(
            *(12, 3),
            rngs=nnx.Rngs(0),
            dtype=FLOAT32,
            cross=cross,
            kernel=kernel,
            qk_norm=bool(qk_norm),
        )
        for kernel in ("plain", "cudnn")
    )
    x, context = normal(2, queries, 12), normal(2, 7, 12, seed=1) if cross else None
    assert np.abs(plain(x, context)).max() > 0.1
    expected = jnp.zeros_like(x) if called else plain(x, context)
    np.testing.assert_array_equal(other(x, context), expected)
