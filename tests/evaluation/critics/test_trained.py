import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fsdit.config import Config
from fsdit.data.layout import DatasetInfo, SplitInfo, read_dataset_info
from fsdit.data.readers import split_images
from fsdit.errors import ConfigError
from fsdit.evaluation.critics import trained
from fsdit.evaluation.critics.critic import open_critic
from fsdit.evaluation.critics.gradients import DIRECTIONS, GRID, gradient_features
from tests.models.pretrained import originals

SIZE = 24  # pixels a side


def gradients(images):
    """The directions (N, cell row, cell column, direction) among the features."""
    found = gradient_features(images)[:, : GRID * GRID * DIRECTIONS]
    return found.reshape(-1, GRID, GRID, DIRECTIONS)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_turned_image_has_turned_features(channels):
    images = originals.random_images(4, SIZE, SIZE, channels)
    for turns in (1, 2, 3):
        turned = gradients(np.rot90(images, turns, axes=(1, 2)))
        # A quarter turn against the clock takes a quarter of all directions off the angle, which
        # is measured from right to down.
        expected = np.rot90(gradients(images), turns, axes=(1, 2))
        expected = np.roll(expected, -turns * DIRECTIONS // 4, axis=-1)
        np.testing.assert_allclose(turned, expected, atol=2e-3)


def test_contrast_does_not_count_and_colours_do():
    images = originals.random_images(3, SIZE, SIZE, 1)
    np.testing.assert_allclose(
        gradients(images // 2), gradients(images // 2 * 2), rtol=0.04, atol=1e-6
    )
    flat = np.empty((2, SIZE, SIZE, 3), np.uint8)
    flat[:] = np.array([[[[255, 0, 51]]], [[[0, 255, 0]]]])
    found = gradient_features(flat)
    assert not found[:, : GRID * GRID * DIRECTIONS].any()
    colours = found[:, GRID * GRID * DIRECTIONS :].reshape(2, GRID, GRID, 3)
    np.testing.assert_allclose(
        colours[0], np.broadcast_to([2.0, 0.0, 0.4], (GRID, GRID, 3)), rtol=1e-5
    )
    assert gradient_features(flat[..., :1]).shape == (2, GRID * GRID * DIRECTIONS)


@pytest.mark.parametrize("size", [3, 8, 24, 65])
def test_images_of_any_size_have_as_many_features(size):
    images = originals.random_images(2, size, size, 1)
    assert gradient_features(images).shape == (2, GRID * GRID * DIRECTIONS)
    assert np.isfinite(gradient_features(images)).all()


def test_the_axes_solve_the_eigenvalue_problem():
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(9), rng.integers(3, 8, 9))
    features = rng.standard_normal((9, 7))[classes] + rng.standard_normal((len(classes), 7))
    critic = trained.fit(features.astype(np.float32), classes)
    groups = [features[classes == c] for c in range(9)]
    within = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups) / len(features)
    within = 0.9 * within + 0.1 * np.trace(within) / 7 * np.eye(7)
    means = np.stack([g.mean(0) for g in groups])
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / 9
    assert critic.axes.shape == (7, 7)  # eight axes separate nine classes, and seven exist
    np.testing.assert_allclose(critic.axes.T @ within @ critic.axes, np.eye(7), atol=1e-4)
    ratios = np.diag(critic.axes.T @ between @ critic.axes)
    np.testing.assert_allclose(
        between @ critic.axes, within @ critic.axes * ratios, atol=1e-4 * ratios.max()
    )
    np.testing.assert_allclose(critic.mean, features.mean(0), atol=1e-5)


@pytest.fixture
def dataset(photos, tmp_path):
    return shutil.copytree(photos, tmp_path / "data", ignore=shutil.ignore_patterns(trained.FILE))


def opened(dataset):
    return trained.open_trained(dataset, read_dataset_info(dataset))


def same(critic, other):
    return all((getattr(critic, name) == getattr(other, name)).all() for name in ("mean", "axes"))


def test_unseen_classes_are_told_apart_better_than_by_pixels(glyphs):
    """Leave-one-out 1-nearest-neighbour accuracy on the images of classes it never saw."""
    info = read_dataset_info(glyphs)
    images = np.stack(list(split_images(glyphs, info, "test")))
    split = info.split("test")
    classes = np.repeat(np.arange(len(split.classes)), split.images_per_class)

    def accuracy(features):
        products = features @ features.T
        squared = np.diag(products)[:, None] + np.diag(products) - 2 * products
        np.fill_diagonal(squared, np.inf)
        return (classes[squared.argmin(1)] == classes).mean()

    found = opened(glyphs)[1](images)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    pixels = images.reshape(len(images), -1).astype(np.float64)
    assert accuracy(found.astype(np.float64)) > accuracy(pixels) + 0.03


def test_only_the_training_split_is_read(dataset):
    name, critic = opened(dataset)
    (dataset / trained.FILE).unlink()
    info = read_dataset_info(dataset)
    for split in info.splits.keys() - {"train"}:
        shutil.rmtree(dataset / split)
    again, other = trained.open_trained(dataset, info)
    assert again == name and same(critic, other)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def of_other_images(path):
    arrays = load_file(path)
    save_file({**arrays, "mean": arrays["mean"] + 1}, path, {"sha256": "0" * 64})


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        of_other_images,
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: save_file({"mean": np.zeros(3, np.float32)}, path),
    ],
    ids=["flipped bit", "other images", "cut off", "empty", "other arrays"],
)
def test_it_is_kept_and_a_file_that_is_not_it_is_replaced(dataset, damage):
    name, critic = opened(dataset)
    path = dataset / trained.FILE
    kept, before = path.read_bytes(), path.stat()
    again, read = opened(dataset)
    assert again == name and same(read, critic)
    assert path.stat().st_mtime_ns == before.st_mtime_ns  # it was read, not fitted
    damage(path)
    assert same(opened(dataset)[1], critic)
    assert path.read_bytes() == kept
    assert not list(dataset.glob("*.partial"))


def test_a_folder_that_cannot_be_written_is_said(dataset, capsys):
    (dataset / trained.FILE).mkdir()
    _, critic = opened(dataset)
    assert "the trained critic is not kept" in capsys.readouterr().out
    (dataset / trained.FILE).rmdir()
    assert same(opened(dataset)[1], critic)
    assert not list(dataset.glob("*.partial"))


@pytest.mark.parametrize(
    "splits",
    [
        {"test": SplitInfo(("a", "b"), (4, 4), 0, 1)},
        {"train": SplitInfo(("a",), (9,), 0, 1)},
        {"train": SplitInfo(("a", "b"), (4, 1), 0, 1)},
    ],
    ids=["no split", "one class", "single images"],
)
def test_a_dataset_that_cannot_train_one_is_named(splits, tmp_path, capsys):
    info = DatasetInfo(SIZE, 1, splits, command="", seed=0)
    assert open_critic(Config(), info).name == "pixels"
    assert "too few images for a trained critic" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="needs a training split with two classes of two images"):
        trained.open_trained(tmp_path, info)
