import pickle
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from fsdit.errors import DataError
from fsdit.evaluation.critics.inception import check_inception, inception_fid, write_images
from fsdit.evaluation.figures.distributions import frechet_distance
from tests.programs import run_module


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.large  # slow: roots of 2048 x 2048 matrices by eigenvalues
def test_the_figure_is_the_frechet_distance_of_the_extractors_features(
    inception_network, inception_weights, tmp_path
):
    real = random_images(7, 40, 40, 3)
    samples = random_images(5, 40, 40, 1, seed=1) // 2
    features = []
    for name, images in (("real", real), ("samples", samples)):
        write_images(tmp_path / name, images)
        rgb = np.broadcast_to(images, (*images.shape[:3], 3)).transpose(0, 3, 1, 2).copy()
        features.append(inception_network(torch.from_numpy(rgb))[0].numpy())
    expected = frechet_distance(*features)
    assert expected > 0.1
    found = inception_fid(tmp_path / "real", tmp_path / "samples", inception_weights)
    # torch-fidelity loses digits in the root of a singular matrix and in its float32 means.
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_written_in_order_as_rgb(tmp_path, channels):
    images = random_images(12, 9, 7, channels)
    write_images(tmp_path / "images", images)
    files = sorted((tmp_path / "images").iterdir())
    assert [file.suffix for file in files] == [".png"] * 12
    for file, expected in zip(files, images, strict=True):
        with Image.open(file) as image:
            assert image.mode == "RGB"
            np.testing.assert_array_equal(image, np.broadcast_to(expected, (9, 7, 3)))


def test_weights_are_checked_beforehand(inception_weights):
    check_inception(inception_weights)


def refused(weights):
    with pytest.raises(DataError) as error:
        check_inception(weights)
    assert "\n" not in str(error.value)
    assert str(weights) in str(error.value)
    return str(error.value)


def test_missing_weights_are_named_and_never_fetched(inception_network, tmp_path):
    del inception_network
    with mock.patch("torch.hub.load_state_dict_from_url", side_effect=AssertionError):
        assert "is missing; fetch weights-inception" in refused(tmp_path / "none.pth")


class Opens:
    """An object whose unpickling runs code, which creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_would_run_code_are_refused_and_do_not_run_it(
    inception_network, tmp_path, legacy
):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    if legacy:
        path.write_bytes(pickle.dumps(Opens(str(trace)), protocol=2))
    else:
        torch.save({**inception_network.state_dict(), "more": Opens(str(trace))}, path)
    assert "cannot be read as weights and nothing else" in refused(path)
    assert not trace.exists()
    # An unrestricted load of the same file does run the code.
    pickle.loads(path.read_bytes()) if legacy else torch.load(path, weights_only=False)
    assert trace.exists()


def test_damaged_weights_are_refused(inception_weights, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(inception_weights.read_bytes()[:5000])
    assert "cannot be read as weights" in refused(path)


def lacking(state):
    return {name: value for name, value in state.items() if name != "fc.bias"}


def misshapen(state):
    return {**state, "fc.bias": torch.ones(3)}


@pytest.mark.parametrize(
    ("change", "words"),
    [(lacking, "fc.bias"), (misshapen, "fc.bias"), (list, "not the weights of Inception")],
)
def test_weights_of_another_network_are_refused(inception_network, tmp_path, change, words):
    path = tmp_path / "weights.pth"
    torch.save(change(inception_network.state_dict()), path)
    assert words in refused(path)


def test_folders_that_cannot_be_compared_are_named(inception_weights, tmp_path):
    write_images(tmp_path / "real", random_images(2, 8, 8, 3))
    (tmp_path / "samples").mkdir()
    for folder in ("samples", "none"):
        with pytest.raises(DataError, match=f"{folder}: 0 PNG files, the FID needs two"):
            inception_fid(tmp_path / "real", tmp_path / folder, inception_weights)
    write_images(tmp_path / "one", random_images(1, 8, 8, 3))
    with pytest.raises(DataError, match="one: 1 PNG files"):
        inception_fid(tmp_path / "one", tmp_path / "real", inception_weights)


def of_another_size(path: Path):
    Image.new("RGB", (9, 8)).save(path)


def damaged(path: Path):
    path.write_bytes(path.read_bytes()[:60])


def text(path: Path):
    path.write_text("no picture")


@pytest.mark.parametrize("change", [of_another_size, damaged, text])
@pytest.mark.parametrize("number", [0, 1])
def test_an_image_that_cannot_be_used_is_named(inception_weights, tmp_path, change, number):
    write_images(tmp_path / "real", random_images(2, 8, 8, 3))
    file = tmp_path / "real" / f"{number:06d}.png"
    change(file)
    with pytest.raises(DataError, match=r"real/00000\d.png: ") as error:
        inception_fid(tmp_path / "real", tmp_path / "real", inception_weights)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "missing",
    [
        "torch",
        *(pytest.param(m, marks=pytest.mark.large) for m in ("torch_fidelity", "torchvision")),
    ],
)
@pytest.mark.medium
def test_one_line_names_the_extra_that_is_missing(inception_weights, missing):
    """Importing our module imports none of the extra's packages."""
    module = "tests.evaluation.without_module"
    done = run_module(module, missing, inception_weights, real=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "pip install 'fsdit[fid]'" in done.stdout
