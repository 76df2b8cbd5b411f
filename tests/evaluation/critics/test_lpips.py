import functools

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fsdit.errors import DataError
from fsdit.evaluation.critics.lpips import load_lpips
from fsdit.models.pretrained import lpips as port
from fsdit.parallel import sharding
from tests.evaluation.synthetic import blurred, pictures
from tests.models.pretrained import lpips_original

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return lpips_original.write(tmp_path_factory.mktemp("lpips"))


@pytest.fixture(scope="module")
def lpips(weights):
    return load_lpips(str(weights))


@pytest.fixture(scope="module")
def pairwise(lpips):
    """Distances on one device: on eight, a few episodes are filled up to eight."""
    return functools.partial(lpips.pairwise, mesh=mesh_of(1))


@pytest.fixture(scope="module")
def original():
    return lpips_original.original()


def mesh_of(devices):
    return sharding.local_mesh(jax.devices()[:devices])


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 16, 16, 3),
        (1, 3, 24, 24, 1),
        pytest.param((1, 3, 33, 50, 3), marks=pytest.mark.large),
        pytest.param((1, 2, 84, 84, 3), marks=pytest.mark.large),
    ],
)
def test_distances_equal_torch_fidelity(pairwise, original, shape):
    images = random_images(*shape)
    found = pairwise(images)
    assert found.shape == (shape[0], shape[1], shape[1])
    for one, expected in zip(found, images, strict=True):
        np.testing.assert_allclose(one, lpips_original.distances(original, expected), rtol=1e-4)


def test_distances_of_close_images_equal_torch_fidelity(pairwise, original):
    """LPIPS adds squared differences; a difference of large products would lose the digits."""
    image = random_images(1, 24, 24, 3)
    images = np.concatenate([image, image ^ 1, np.clip(image, 0, 254)])
    expected = lpips_original.distances(original, images)
    assert (
        expected[0, 1]
        < 1e-2 * lpips_original.distances(original, random_images(2, 24, 24, 3))[0, 1]
    )
    np.testing.assert_allclose(pairwise(images[None])[0], expected, rtol=1e-3)


def test_symmetric_and_zero_for_equal_images_only(pairwise):
    images = random_images(2, 4, 24, 24, 1)
    images[1, 3] = images[1, 0]
    found = pairwise(images)
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))
    equal = np.eye(4, dtype=bool) | np.zeros((2, 4, 4), bool)
    equal[1, 0, 3] = equal[1, 3, 0] = True
    np.testing.assert_array_equal(found[equal], 0)
    assert (found[~equal] > 0.01).all()


def test_a_single_image_has_no_other(pairwise):
    np.testing.assert_array_equal(pairwise(random_images(3, 1, 16, 16, 3)), np.zeros((3, 1, 1)))


def test_greyscale_counts_as_rgb(pairwise):
    grey = random_images(1, 3, 24, 24, 1)
    np.testing.assert_allclose(pairwise(grey), pairwise(grey.repeat(3, -1)), rtol=1e-5)


def test_distance_grows_with_blur(pairwise):
    sharp = pictures(1, 1, seed=0)[0, 0]
    images = np.stack([sharp, *(blurred(sharp, sigma) for sigma in (0.5, 1, 2, 4))])
    found = pairwise(images[None])[0, 0]
    assert (np.diff(found) > 0).all(), found


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_an_episode_does_not_depend_on_devices_or_other_episodes(lpips, devices, monkeypatch):
    images = random_images(5, 3, 24, 24, 1)
    whole = lpips.pairwise(images, mesh_of(devices))
    # With this limit, each device takes one episode at a time.
    monkeypatch.setattr("fsdit.evaluation.critics.lpips._MAX_PIXELS", 1)
    np.testing.assert_allclose(lpips.pairwise(images, mesh_of(devices)), whole, rtol=1e-5)
    np.testing.assert_allclose(lpips.pairwise(images[3:4]), whole[3:4], rtol=1e-5)


def test_images_too_small_for_the_network_are_refused(lpips):
    with pytest.raises(DataError, match="16 x 16 pixels or more, these have 24 x 15"):
        lpips.pairwise(random_images(1, 2, 24, 15, 3))


def changed(weights, directory, file, **changes):
    """Copy the weights with other tensors in one file; None removes a tensor."""
    for name in port.FILES:
        named = load_file(weights / name) | (changes if name == file else {})
        save_file({n: t for n, t in named.items() if t is not None}, directory / name)
    return str(directory)


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    [
        ("vgg16", "features.17.bias", None, r"'features\.17\.bias' is missing"),
        ("vgg16", "features.2.weight", np.ones((64, 3, 3, 3), "f4"), r"'features\.2\.weight' of"),
        ("vgg16", "features.30.weight", np.ones(3, "f4"), r"'features\.30\.weight' is left over"),
        ("vgg16", "features.0.bias", np.ones(64, "i4"), r"'features\.0\.bias' holds I32"),
        ("lpips", "lin4.model.1.weight", None, r"'lin4\.model\.1\.weight' is missing"),
        ("lpips", "lin0.model.1.weight", np.ones((64, 1, 1, 1), "f4"), r"'lin0.*\(64, 1, 1, 1\)"),
        ("lpips", "lin0.model.1.weight", np.ones(64, "f4"), r"'lin0\.model\.1.weight' of shape"),
        ("lpips", "lin5.model.1.weight", np.ones(3, "f4"), r"'lin5\.model\.1\.weight' is left"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(weights, tmp_path, file, name, value, message):
    with pytest.raises(DataError, match=message) as error:
        load_lpips(changed(weights, tmp_path, f"{file}.safetensors", **{name: value}))
    assert "\n" not in str(error.value)
    assert "config.json" not in str(error.value)


@pytest.mark.parametrize("file", port.FILES)
def test_missing_and_damaged_files_are_named(weights, tmp_path, file):
    changed(weights, tmp_path, file)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{file} is damaged or no safetensors file"):
        load_lpips(str(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=f"{file} is missing; put vgg16.safetensors and lpips"):
        load_lpips(str(tmp_path))


def test_classifier_weights_that_timm_stores_are_ignored(weights, tmp_path):
    heads = {name: np.ones(2, "f4") for name in ("pre_logits.fc1.weight", "head.fc.bias")}
    directory = changed(weights, tmp_path, "vgg16.safetensors", **heads)
    images = random_images(1, 2, 16, 16, 3)
    found, expected = (
        load_lpips(str(d)).pairwise(images, mesh_of(1)) for d in (directory, weights)
    )
    np.testing.assert_array_equal(found, expected)


def test_the_documented_lines_convert_the_published_files(weights, tmp_path, monkeypatch):
    vgg16, channels = lpips_original.published()
    torch.save(vgg16, tmp_path / "vgg16-397923af.pth")
    # The published LPIPS weights of 2018 have PyTorch's file format of that time.
    torch.save(channels, tmp_path / "vgg.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "lpips").mkdir()
    text = port.__doc__[port.__doc__.index("import torch") - 4 :]
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})
    images = random_images(1, 2, 16, 16, 3)
    found, expected = (load_lpips(str(d)).pairwise(images, mesh_of(1)) for d in ("lpips", weights))
    np.testing.assert_array_equal(found, expected)
