"""Checkpoints with random weights give equal outputs in fsdit, transformers and diffusers."""

from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

from experiments.benchmarks import random_weights
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.autoencoder_kl import AutoencoderKL
from fsdit.models.pretrained.encoder import load_encoder
from tests.data_prep.conversion.photos import files, photo
from tests.models.pretrained import originals
from tests.programs import run_module

pytestmark = pytest.mark.medium

MODULE = "experiments.benchmarks.random_weights"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """What the program writes by default."""
    directory = tmp_path_factory.mktemp("made") / "weights"
    run_module(MODULE, f"--output_dir={directory}").check_returncode()
    return directory


def photos(count: int, size: int) -> np.ndarray:
    return np.stack([np.asarray(photo(i, size, size)) for i in range(count)])


def loaded(model_class, directory: Path) -> torch.nn.Module:
    """Loads a model with from_pretrained, which must find every tensor and use every one."""
    model, info = model_class.from_pretrained(directory, output_loading_info=True)
    assert {kind: found for kind, found in info.items() if found} == {}
    assert info.keys() >= {"missing_keys", "unexpected_keys", "mismatched_keys"}
    return model.eval()


def check_encoder(directory: Path, images: np.ndarray) -> None:
    model = loaded(transformers.SiglipVisionModel, directory)
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    found = originals.errors(model, processor, directory, "float32", images)
    assert max(found) < 1e-4


def check_autoencoder(directory: Path, images: np.ndarray) -> None:
    model = loaded(diffusers.AutoencoderKL, directory)
    codec = autoencoder_kl.load(str(directory))
    mean, log_variance = jax.jit(AutoencoderKL.moments)(codec, images)
    decoded = jax.jit(lambda codec, z: codec.network.decode(z))(codec, mean)
    with torch.inference_mode():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
        posterior = model.encode(pixels).latent_dist
        theirs = (posterior.mean, posterior.logvar, model.decode(posterior.mean).sample)
    for value, expected in zip((mean, log_variance, decoded), theirs, strict=True):
        assert originals.relative_error(value, expected.permute(0, 2, 3, 1).numpy()) < 1e-4


def test_transformers_and_fsdit_read_the_same_encoder(checkpoints):
    check_encoder(checkpoints / "siglip", photos(3, 40))


def test_diffusers_and_fsdit_read_the_same_autoencoder(checkpoints):
    check_autoencoder(checkpoints / "vae", photos(2, 32))


@pytest.mark.large
def test_base_is_of_the_published_sizes(tmp_path):
    random_weights.write(tmp_path, "base")
    encoder, _ = load_encoder(str(tmp_path / "siglip"))
    assert (encoder.dim, encoder.grid) == (768, (14, 14))
    codec = autoencoder_kl.load(str(tmp_path / "vae"))
    assert codec.latent_shape(224, 3) == (28, 28, 4)
    assert codec.config.scaling_factor == 0.18215
    check_encoder(tmp_path / "siglip", photos(2, 224))
    check_autoencoder(tmp_path / "vae", photos(1, 64))


def test_features_and_latents_tell_images_apart(checkpoints):
    """The outputs of different images differ by far more than rounding errors."""
    images = photos(8, 32)
    encoder, params = load_encoder(str(checkpoints / "siglip"))
    outputs = [value[0] for value in jax.jit(encoder)(params, images[None])]
    codec = autoencoder_kl.load(str(checkpoints / "vae"))
    outputs += jax.jit(AutoencoderKL.moments)(codec, images)
    for value in outputs:
        assert 0.1 < np.std(value) < 10
        assert np.std(value, axis=0).mean() > 0.3 * np.std(value)


def test_the_same_seed_writes_the_same_bytes(checkpoints, tmp_path):
    random_weights.write(tmp_path / "same", "tiny", 0)
    random_weights.write(tmp_path / "other", "tiny", 1)
    first, other = files(checkpoints), files(tmp_path / "other")
    assert files(tmp_path / "same") == first
    assert first.keys() == other.keys()
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {"siglip/model.safetensors", "vae/diffusion_pytorch_model.safetensors"}


def test_a_folder_that_holds_something_is_refused(checkpoints):
    before = files(checkpoints)
    done = run_module(MODULE, f"--output_dir={checkpoints}", "--seed=1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"--output_dir={checkpoints} exists and is not empty" in done.stderr
    assert files(checkpoints) == before
    assert list(checkpoints.parent.iterdir()) == [checkpoints]


def test_neither_pytorch_nor_its_libraries_are_needed(tmp_path):
    done = run_module("tests.experiments.without_pytorch", tmp_path, real=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "siglip" / "model.safetensors").exists()
