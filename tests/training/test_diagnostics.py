import jax.numpy as jnp
import numpy as np

from fsdit.data.pictures import episode_grid
from fsdit.training.diagnostics import condition_statistics, layer_scalars


def test_condition_statistics_equal_numpy():
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(6, 3, 8)).astype(np.float32)
    classes = np.array([0, 0, 1, 2, 2, 3], np.int32)
    stats = {
        k: float(v) for k, v in condition_statistics(jnp.array(pooled), jnp.array(classes)).items()
    }

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    within = [cosine(p[i], p[j]) for p in pooled for i in range(3) for j in range(3) if i != j]
    means = pooled.mean(1)
    between = [
        cosine(means[i], means[j]) for i in range(6) for j in range(6) if classes[i] != classes[j]
    ]
    spread = np.sqrt(((pooled - means[:, None]) ** 2).sum(-1).mean())
    np.testing.assert_allclose(stats["condition/cosine_within"], np.mean(within), rtol=1e-4)
    np.testing.assert_allclose(stats["condition/cosine_between"], np.mean(between), rtol=1e-4)
    np.testing.assert_allclose(stats["condition/spread"], spread, rtol=1e-5)
    np.testing.assert_allclose(
        stats["condition/norm"], np.linalg.norm(pooled, axis=-1).mean(), rtol=1e-5
    )


def test_layer_scalars_give_each_layer_and_head_its_tag():
    stats = {"rms": np.arange(2.0), "entropy": np.arange(6.0).reshape(2, 3), "norm": np.array(7.0)}
    row = layer_scalars(stats)
    assert row["layers/rms/layer01"] == 1
    assert row["attention/entropy/layer01_head02"] == 5
    assert row["conditioning/norm"] == 7
    assert len(row) == 9


def test_grid_shows_supports_left_of_samples():
    supports = np.full((2, 3, 4, 4, 1), 10, np.uint8)
    drawn = np.full((2, 4, 4, 1), 250, np.uint8)
    grid = episode_grid(supports, [drawn])
    assert grid.shape[0] == 2 * 6
    rows, columns = np.nonzero(grid[..., 0] == 10)
    assert len(rows) == 2 * 3 * 16
    assert columns.max() < np.nonzero(grid[..., 0] == 250)[1].min()
