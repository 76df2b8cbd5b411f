"""Our autoencoder compared with diffusers' PyTorch module, which has random weights."""

from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.autoencoder_kl import AutoencoderKL
from tests.models.pretrained.autoencoder_originals import (
    SD,
    SD_TRUE,
    key,
    original,
    pictures,
    relative_error,
    to_torch,
)

pytestmark = pytest.mark.medium

VARIANTS = {
    "sd": SD,
    "flux": SD
    | {
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
    "quant conv only": SD | {"use_post_quant_conv": False, "shift_factor": -0.3},
    "post-quant conv only": SD | {"use_quant_conv": False, "scaling_factor": 1.5},
    "no attention": {"block_out_channels": (16, 24), "mid_block_add_attention": False},
    "deep": {"block_out_channels": (16, 24, 8), "layers_per_block": 3, "act_fn": "swish"},
    "one block, grey": {"block_out_channels": (16,), "in_channels": 1, "out_channels": 1},
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(v, marks=pytest.mark.large) if v in ("deep", "flux", "quant conv only") else v
        for v in VARIANTS
    ],
)
def saved(request, tmp_path_factory):
    """(the original, the directory that it was saved to)."""
    directory = tmp_path_factory.mktemp("vae")
    model = original(**VARIANTS[request.param])
    model.save_pretrained(directory)
    return model, directory


def check_parity(model: diffusers.AutoencoderKL, directory: Path, images: np.ndarray) -> None:
    """Compare moments and decoded images with the original, in float32 and bfloat16."""
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    b, h, w, _ = images.shape
    shape = (b, h // factor, w // factor, model.config.latent_channels)
    z = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        posterior = model.encode(to_torch(images) / 127.5 - 1).latent_dist
        decoded = model.decode(to_torch(z)).sample
    assert float((posterior.logvar.abs() < 20).float().mean()) > 0.9  # few are clamped
    for dtype, bound in (("float32", 1e-4), ("bfloat16", 2e-2)):
        codec = autoencoder_kl.load(str(directory), dtype=dtype)
        mean, log_variance = jax.jit(AutoencoderKL.moments)(codec, images)
        ours = jax.jit(lambda codec, z: codec.network.decode(z))(codec, z)
        assert {a.dtype for a in (mean, log_variance, ours)} == {jnp.dtype("float32")}
        assert relative_error(mean, posterior.mean) < bound
        assert relative_error(log_variance, posterior.logvar) < bound
        assert relative_error(ours, decoded) < bound


def test_equals_the_original(saved):
    model, directory = saved
    check_parity(model, directory, pictures(2, 32, 48, model.config.in_channels))


@pytest.mark.large
def test_equals_the_original_at_the_size_of_the_sd_vae(tmp_path):
    model = original(**SD_TRUE)
    model.save_pretrained(tmp_path)
    check_parity(model, tmp_path, pictures(1, 128, 128, 3))


def test_equals_the_original_where_the_norms_epsilon_matters(tmp_path):
    model = original(**SD)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter *= 1e-3  # variances are then about epsilon
    model.save_pretrained(tmp_path)
    check_parity(model, tmp_path, pictures(1, 32, 32, 3))


def test_log_variance_is_clamped_as_in_the_original(tmp_path):
    model = original(**SD)
    with torch.no_grad():
        model.quant_conv.weight *= 100
    model.save_pretrained(tmp_path)
    images = pictures(1, 32, 32, 3)
    _, ours = jax.jit(AutoencoderKL.moments)(autoencoder_kl.load(str(tmp_path)), images)
    with torch.no_grad():
        theirs = model.encode(to_torch(images) / 127.5 - 1).latent_dist.logvar
    assert (float(ours.min()), float(ours.max())) == (-30, 20)
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize(
    "saved", ["sd", pytest.param("flux", marks=pytest.mark.large)], indirect=True
)
def test_pixels_are_read_and_written_as_by_the_original_s_processor(saved):
    model, directory = saved
    codec, processor = autoencoder_kl.load(str(directory)), VaeImageProcessor()
    images = pictures(2, 32, 32, 3)
    shift, scale = model.config.shift_factor or 0.0, model.config.scaling_factor
    with torch.no_grad():
        pixels = torch.cat([processor.preprocess(Image.fromarray(i)) for i in images])
        latents = (model.encode(pixels).latent_dist.mean - shift) * scale  # as pipelines do
        decoded = processor.postprocess(model.decode(latents / scale + shift).sample, "pil")
    mean, log_variance = jax.jit(AutoencoderKL.moments)(codec, images)
    ours = codec.sample((mean, jnp.full_like(log_variance, -jnp.inf)), jax.random.split(key(), 2))
    assert relative_error(ours, latents) < 1e-4
    ours = np.asarray(jax.jit(AutoencoderKL.decode)(codec, ours))
    assert ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - np.stack(decoded).astype(int))
    assert difference.max() <= 1 and difference.mean() < 1e-2  # rounding may differ
