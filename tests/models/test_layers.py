import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from fsdit.models import layers

pytestmark = pytest.mark.medium


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


FLOAT32 = jnp.dtype("float32")
SIDES = st.integers(1, 3)


@given(size=SIDES, rows=SIDES, columns=SIDES, channels=SIDES)
def test_unpatchify_undoes_patchify(size, rows, columns, channels):
    images = normal(2, size * rows, size * columns, channels)
    patches = layers.patchify(images, size)
    assert patches.shape == (2, rows * columns, size * size * channels)
    back = layers.unpatchify(patches, size * rows, size * columns, size)
    np.testing.assert_array_equal(back, images)


def test_patches_are_squares_of_the_image_row_by_row():
    images = normal(2, 4, 6, 3)
    patches = layers.patchify(images, 2)
    for n in range(6):
        y, x = 2 * (n // 3), 2 * (n % 3)
        square = images[:, y : y + 2, x : x + 2].reshape(2, -1)
        np.testing.assert_array_equal(patches[:, n], square)


@pytest.mark.parametrize(("height", "width", "dim"), [(3, 3, 8), (2, 5, 16)])
def test_position_table_is_sine_and_cosine_of_row_then_column(height, width, dim):
    quarter = dim // 4
    expected = np.zeros((height * width, dim))
    for y in range(height):
        for x in range(width):
            for place, position in ((0, (y + 0.5) / height), (2 * quarter, (x + 0.5) / width)):
                for i in range(quarter):
                    angle = position * np.pi / 2 * 32 ** (i / (quarter - 1))
                    expected[y * width + x, place + i] = np.sin(angle)
                    expected[y * width + x, place + quarter + i] = np.cos(angle)
    table = layers.position_table(height, width, dim)
    assert type(table) is np.ndarray  # a constant, so that it is not trained
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_patches_of_any_size_at_the_same_place_have_the_same_position():
    coarse, fine = (layers.position_table(n, n, 32) for n in (3, 9))
    middles = np.arange(81).reshape(9, 9)[1::3, 1::3].ravel()
    np.testing.assert_allclose(fine[middles], coarse, atol=1e-6)


def test_time_features_are_sines_and_cosines_of_a_thousandfold_time():
    t = jnp.array([0.0, 0.3, 1.0])
    frequencies = 10_000.0 ** (-np.arange(4) / 4)
    angles = 1000 * np.asarray(t, float)[:, None] * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(layers.time_features(t, 8), expected, atol=1e-4)


def test_layer_norm_has_zero_mean_unit_variance_and_is_float32():
    x = (5 + 3 * normal(4, 7, 64)).astype(jnp.bfloat16)
    y = np.asarray(layers.layer_norm(x))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-4)


def plain_norm(x, shift, scale, norm):
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True) if norm == "layer" else x
    normal = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    return normal * (1 + scale) + shift


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("shape", [(2, 1, 16), (1, 16), (2, 5, 1), (1,)])
def test_modulated_norm_has_values_and_gradients_of_the_plain_form(shape, norm):
    x, probe = 3 + 2 * normal(2, 5, 16), normal(2, 5, 16, seed=3)
    shift, scale = normal(*shape, seed=1), normal(*shape, seed=2)

    def evaluate(norm):
        def loss(*arguments):
            return (norm(*arguments) * probe).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(x, shift, scale)

    fused = evaluate(lambda *a: layers.modulated_norm(*a, FLOAT32, norm))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        fused,
        evaluate(lambda *a: plain_norm(*a, norm)),
    )


@given(
    norm=st.sampled_from(["layer", "rms"]),
    data=st.lists(st.floats(-3, 3, width=32), min_size=8, max_size=8),
)
def test_the_backward_pass_of_a_norm_is_a_finite_difference_in_float64(norm, data):
    x = 1.0 + np.arange(8) + np.asarray(data)
    probe, step = np.sin(np.arange(8.0)), 1e-5

    def value(x):
        x = x - x.mean() if norm == "layer" else x
        return (x / np.sqrt((x * x).mean() + 1e-6)) @ probe

    expected = [(value(x + step * e) - value(x - step * e)) / (2 * step) for e in np.eye(8)]
    zero = jnp.zeros((1,))
    _, pull = jax.vjp(
        lambda x: layers.modulated_norm(x, zero, zero, FLOAT32, norm), jnp.asarray(x, jnp.float32)
    )
    np.testing.assert_allclose(pull(jnp.asarray(probe, jnp.float32))[0], expected, atol=2e-3)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 4, 8)])
def test_linear_is_a_matrix_product_over_the_last_axis(shape):
    linear = layers.Linear(8, 5, rngs=nnx.Rngs(0))
    linear.bias[...] = normal(5, seed=1)
    x = normal(*shape)
    expected = x @ np.asarray(linear.kernel[...]) + normal(5, seed=1)
    np.testing.assert_allclose(linear(x), expected, rtol=1e-5, atol=1e-5)


def test_linear_starts_xavier_uniform_without_bias_and_zero_linear_at_zero():
    kernel = np.asarray(layers.Linear(100, 60, rngs=nnx.Rngs(0)).kernel[...])
    bound = np.sqrt(6 / 160)
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)
    zero = layers.ZeroLinear(4, 4, rngs=nnx.Rngs(0))
    assert not np.any(zero(normal(2, 4)))


def test_stacked_layers_start_different():
    stacked = layers.stack(3, lambda r: layers.Linear(4, 4, rngs=r), nnx.Rngs(0))
    kernels = np.asarray(stacked.kernel[...])
    assert kernels.shape == (3, 4, 4)
    assert len({k.tobytes() for k in kernels}) == 3


def mlp_stack():
    stacked = layers.stack(3, lambda r: layers.Mlp(8, 16, rngs=r, dtype=FLOAT32), nnx.Rngs(0))
    return nnx.split(stacked)


def run(parameters, graph, x, **options):
    def call(layer, h, shift):
        h = h + layer(h) + (0 if shift is None else shift)
        return h, {"size": jnp.abs(h).mean()}

    return layers.run_stack(nnx.merge(graph, parameters), call, x, **options)


def test_run_stack_applies_the_layers_in_turn():
    graph, parameters = mlp_stack()
    x = normal(2, 8)
    expected, sizes = x, []
    for i in range(3):
        layer = nnx.merge(graph, jax.tree.map(lambda p, i=i: p[i], parameters))
        expected = expected + layer(expected)
        sizes.append(np.abs(expected).mean())
    y, stats = run(parameters, graph, x, scan=True)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(stats["size"], sizes, rtol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_run_stack_gives_each_layer_its_own_row(scan):
    graph, parameters = mlp_stack()
    x, own = normal(2, 8), normal(3, 2, 8)
    expected = x
    for i in range(3):
        layer = nnx.merge(graph, jax.tree.map(lambda p, i=i: p[i], parameters))
        expected = expected + layer(expected) + own[i]
    y, _ = run(parameters, graph, x, scan=scan, own=own)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scan_and_remat_change_neither_values_nor_gradients(scan, remat):
    graph, parameters = mlp_stack()
    x = normal(2, 8)

    def evaluate(**options):
        def loss(parameters, x):
            return jnp.square(run(parameters, graph, x, **options)[0]).mean()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(parameters, x)

    plain, other = evaluate(scan=True), evaluate(scan=scan, remat=remat)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain[1])) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, other)
