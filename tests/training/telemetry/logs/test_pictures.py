"""Pictures with captions, and maps of attention."""

import itertools

import matplotlib
import numpy as np
import pytest

from fsdit.data.pictures import episode_grid
from fsdit.training.telemetry.logs.pictures import entropy_map, sample_picture


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "count"), [(24, 5), (32, 1), (160, 2)])
def test_captions_stand_above_their_columns_and_change_no_pixel_below(size, count, channels):
    rng = np.random.default_rng(0)
    supports = rng.integers(0, 256, (3, count, size, size, channels)).astype(np.uint8)
    columns = dict.fromkeys(("target", "no guidance", "guidance 2"), supports[:, 0])
    found = sample_picture("classes never seen", supports, columns)
    grid = episode_grid(supports, list(columns.values()))
    zoom = found.shape[1] // grid.shape[1]
    assert zoom * size >= 96 and zoom * (size - 1) < 96 + size
    below = found[-zoom * grid.shape[0] :]
    np.testing.assert_array_equal(below[::zoom, ::zoom], grid)
    strip = found[: -len(below)]
    cell = (size + 2) * zoom
    captions = strip[len(strip) // 2 :]
    edges = [0, count * cell, *(count * cell + 3 * zoom + (i + 1) * cell for i in range(3))]
    for left, right in itertools.pairwise(edges):
        dark = np.nonzero(captions[:, left:right].min((0, 2)) < 128)[0]
        assert len(dark) > 5 and dark.min() > 0 and dark.max() < right - left - 1


def test_a_colour_of_a_map_means_the_same_at_every_step():
    tokens, value = 16, 0.5
    colour = np.array(matplotlib.colormaps["viridis"](value / np.log(tokens), bytes=True))[:3]
    for others in (0.1, 2.0):
        entropies = np.full((2, 3), others)
        entropies[1, 2] = value
        found = entropy_map({"self_attention_entropy": (entropies, tokens)})
        assert (found == colour).all(-1).sum() > 500


@pytest.mark.parametrize("shape", [(1, 1), (6, 4), (28, 16)])
def test_maps_of_any_size_stand_one_below_the_other(shape):
    rng = np.random.default_rng(0)
    one = {"self_attention_entropy": (rng.uniform(0, 3, shape), 36)}
    both = one | {"cross_attention_entropy": (rng.uniform(0, 3, shape), 1)}
    single, double = entropy_map(one), entropy_map(both)
    assert single.dtype == np.uint8 and single.shape[2] == 3
    assert double.shape == (2 * single.shape[0], *single.shape[1:])
