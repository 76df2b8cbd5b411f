"""Against diffusers' own PyTorch module, with random weights saved by `save_pretrained`."""

import json
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.numpy import load_file, save_file

from fsdit.config import Config, EncoderConfig, ModelConfig
from fsdit.errors import ConfigError, DataError
from fsdit.models.codec import LatentCodec, PixelCodec
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.autoencoder_kl import AutoencoderKL
from fsdit.models.pretrained.autoencoder_network import AutoencoderConfig
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.training.step import example_losses
from tests.models.pretrained.autoencoder_originals import SD, original

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
# config.json of stabilityai/sd-vae-ft-mse; later ones differ in the fields named.
SD_TRUE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
FLUX_TRUE = SD_TRUE | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@pytest.fixture(scope="module", params=VARIANTS)
def saved(request, tmp_path_factory):
    """(the original, the directory that it was saved to)."""
    directory = tmp_path_factory.mktemp("vae")
    model = original(**VARIANTS[request.param])
    model.save_pretrained(directory)
    return model, directory


@pytest.fixture(scope="module")
def sd_directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sd")
    original(**SD).save_pretrained(directory)
    return directory


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def to_torch(array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32).transpose(0, 3, 1, 2))


def relative_error(ours, theirs: torch.Tensor) -> float:
    ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs.permute(0, 2, 3, 1)))
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def check_parity(model: diffusers.AutoencoderKL, directory: Path, images: np.ndarray) -> None:
    """Moments and decoder, in both types."""
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
                parameter *= 1e-3  # variances are about epsilon then
    model.save_pretrained(tmp_path)
    check_parity(model, tmp_path, pictures(1, 32, 32, 3))


def test_log_variance_is_clamped_as_in_the_original(tmp_path):
    model = original(**SD)
    with torch.no_grad():
        model.quant_conv.weight *= 100
    model.save_pretrained(tmp_path)
    images = pictures(1, 32, 32, 3)
    _, ours = autoencoder_kl.load(str(tmp_path)).moments(jnp.asarray(images))
    with torch.no_grad():
        theirs = model.encode(to_torch(images) / 127.5 - 1).latent_dist.logvar
    assert (float(ours.min()), float(ours.max())) == (-30, 20)
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("saved", ["sd", "flux"], indirect=True)
def test_pixels_are_read_and_written_as_by_the_original_s_processor(saved):
    model, directory = saved
    codec, processor = autoencoder_kl.load(str(directory)), VaeImageProcessor()
    images = pictures(2, 32, 32, 3)
    shift, scale = model.config.shift_factor or 0.0, model.config.scaling_factor
    with torch.no_grad():
        pixels = torch.cat([processor.preprocess(Image.fromarray(i)) for i in images])
        latents = (model.encode(pixels).latent_dist.mean - shift) * scale  # as pipelines do
        decoded = processor.postprocess(model.decode(latents / scale + shift).sample, "pil")
    mean, log_variance = codec.moments(jnp.asarray(images))
    ours = codec.sample((mean, jnp.full_like(log_variance, -jnp.inf)), jax.random.split(key(), 2))
    assert relative_error(ours, latents) < 1e-4
    ours = np.asarray(codec.decode(ours))
    assert ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - np.stack(decoded).astype(int))
    assert difference.max() <= 1 and difference.mean() < 1e-2  # a rounding may fall otherwise


def key(seed: int = 0) -> jax.Array:
    return jax.random.key(seed)


def small(seed: int = 0, **settings) -> AutoencoderKL:
    options = {name: settings.pop(name) for name in ("dtype", "max_batch") if name in settings}
    config = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, **settings)
    return autoencoder_kl.init(config, seed, **options)


def test_samples_have_the_posterior_s_mean_and_variance():
    codec = small(scaling_factor=2.0, shift_factor=0.5)
    draws = 20_000
    mean = jnp.broadcast_to(jnp.array([-1.0, 0.0, 2.0, 5.0]), (draws, 1, 1, 4))
    log_variance = jnp.broadcast_to(jnp.array([0.0, -4.0, 1.0, -30.0]), mean.shape)
    drawn = np.asarray(codec.sample((mean, log_variance), jax.random.split(key(), draws)))
    drawn = drawn.reshape(draws, 4)
    std = 2 * np.exp(np.array([0.0, -4.0, 1.0, -30.0]) / 2)
    error = (drawn.mean(0) - 2 * (np.array([-1.0, 0.0, 2.0, 5.0]) - 0.5)) / (std / draws**0.5)
    assert np.abs(error[:3]).max() < 4
    np.testing.assert_allclose(drawn.std(0)[:3], std[:3], rtol=0.03)
    np.testing.assert_allclose(drawn[:, 3], 9.0, rtol=1e-5)
    assert np.abs(np.corrcoef(drawn[:, :3].T) - np.eye(3)).max() < 0.03


def test_without_factors_latents_are_z():
    codec = small(scaling_factor=None)
    z = jax.random.normal(key(), (2, 3, 3, 4))
    drawn = codec.sample((z, jnp.full(z.shape, -jnp.inf)), jax.random.split(key(), 2))
    np.testing.assert_array_equal(drawn, z)


def test_an_example_s_latents_follow_its_key_alone():
    codec, images = small(), jnp.asarray(pictures(3, 16, 16, 3))
    keys = jax.random.split(key(), 3)
    encode = jax.jit(lambda codec, images, keys: codec.sample(codec.moments(images), keys))
    latents = encode(codec, images, keys)
    np.testing.assert_array_equal(latents, encode(codec, images, keys))
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(encode(codec, images[order], keys[order]), latents[order], atol=1e-5)
    other = encode(codec, images, jax.random.split(key(1), 3))
    assert np.abs(other - latents).mean((1, 2, 3)).min() > 0.1 * codec.config.scaling_factor


def test_shards_hold_the_same_as_one_file(sd_directory, tmp_path):
    original(**SD).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 2
    one, shards = (autoencoder_kl.load(str(d)).params for d in (sd_directory, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, one, shards)


def rewritten(source: Path, target: Path, change) -> Path:
    """A copy of a checkpoint with its tensors changed: dict -> dict."""
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text((source / "config.json").read_text())
    name = "diffusion_pytorch_model.safetensors"
    tensors = {k: np.ascontiguousarray(v) for k, v in change(load_file(source / name)).items()}
    save_file(tensors, target / name)
    return target


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def with_old_names(tensors: dict, convolutions: bool = False) -> dict:
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in OLD_NAMES.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{old}.")
                if convolutions and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("convolutions", [False, True])
def test_the_old_names_of_the_attention_load(sd_directory, tmp_path, convolutions):
    old = rewritten(sd_directory, tmp_path, lambda t: with_old_names(t, convolutions))
    names = load_file(old / "diffusion_pytorch_model.safetensors")
    assert sum(part in name for name in names for part in (".query.", ".proj_attn.")) == 8
    expected, params = (autoencoder_kl.load(str(d)).params for d in (sd_directory, old))
    jax.tree.map(np.testing.assert_array_equal, expected, params)
    if not convolutions:  # diffusers reads them so too
        theirs = diffusers.AutoencoderKL.from_pretrained(old).state_dict()
        mine = original(**SD).state_dict()
        assert all(torch.equal(theirs[name], mine[name]) for name in mine)


def test_a_part_of_a_pipeline_loads_from_its_subfolder(tmp_path):
    original(**SD).save_pretrained(tmp_path / "vae")
    assert autoencoder_kl.load(str(tmp_path), "vae").config.block_out_channels == (16, 32, 32, 32)


@pytest.mark.parametrize(("config", "count"), [(SD_TRUE, 248), (FLUX_TRUE, 244)])
@pytest.mark.parametrize("old", [False, True])
def test_every_tensor_of_the_published_layouts_has_its_place(config, count, old):
    with torch.device("meta"):
        model = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            **config,
        )
    published = model.state_dict()
    published = with_old_names(published) if old else published
    assert len(published) == count
    mapping = autoencoder_kl.mapping(AutoencoderConfig(**config), old)
    assert sorted(source.names for source in mapping.values()) == sorted((n,) for n in published)


def test_parameters_are_arguments_of_a_compiled_program():
    """One program for any parameters; they may be sharded, and batches done in parts."""
    mesh = jax.make_mesh((2, 4), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    codec, other = small(latent_channels=16), small(latent_channels=16, seed=1)
    images, keys = jnp.asarray(pictures(16, 16, 16, 3)), jax.random.split(key(), 16)

    def both(codec: AutoencoderKL, images, keys):
        latents = codec.sample(codec.moments(images), keys)
        return latents, codec.decode(latents)

    run = jax.jit(both)
    expected = run(codec, images, keys)
    assert np.abs(run(other, images, keys)[0] - expected[0]).mean() > 1e-3
    assert run._cache_size() == 1

    shardings = sharding.state_shardings(mesh, jax.eval_shape(lambda: codec))
    placed = jax.device_put(codec, shardings)
    rows = jax.device_put((images, keys), sharding.batch_sharding(mesh))
    for max_batch in (None, 8):
        latents, decoded = jax.jit(both)(placed.replace(max_batch=max_batch), *rows)
        np.testing.assert_allclose(latents, expected[0], atol=1e-5)
        difference = np.abs(np.asarray(decoded, int) - np.asarray(expected[1], int))
        assert difference.max() <= 1


@pytest.mark.parametrize(("rows", "max_batch", "at_once"), [(6, 4, 3), (7, 3, 1), (5, 8, 5)])
def test_a_batch_is_done_in_parts_that_fit(rows, max_batch, at_once):
    codec = small()
    latents = jax.random.normal(key(), (rows, 4, 4, 4))
    limited = codec.replace(max_batch=max_batch)
    np.testing.assert_allclose(
        np.asarray(limited.decode(latents), int), np.asarray(codec.decode(latents), int), atol=1
    )
    program = str(jax.make_jaxpr(AutoencoderKL.decode)(limited, latents))
    assert f"f32[{at_once},8,8,3]" in program  # pixels of one part
    assert at_once == rows or f"f32[{rows},8,8,3]" not in program


def test_flow_and_codec_meet_in_the_loss():
    codec = small()
    settings = ModelConfig(
        hidden_size=16,
        depth=1,
        num_heads=2,
        patch_size=2,
        num_latents=0,
        encoder=EncoderConfig(patch_size=4, hidden_size=16, depth=1, num_heads=2),
        dtype="float32",
    )
    spec = ModelSpec(settings, 16, 3, codec)
    assert spec.latent_shape == (8, 8, 4)
    assert isinstance(codec, LatentCodec) and isinstance(PixelCodec(), LatentCodec)
    batch = {
        "index": jnp.arange(2, dtype=jnp.uint32),
        "supports": jnp.asarray(pictures(2, 5, 16, 16, 3)),
    }
    images = jnp.asarray(pictures(2, 16, 16, 3))

    @jax.jit
    def losses(params: dict, batch: dict):
        return example_losses(spec, Config(model=settings), params, batch, "train")[0]

    first = losses(spec.init(0), {**batch, "target": codec.moments(images)})
    other = losses(spec.init(0), {**batch, "target": small(seed=1).moments(images)})
    assert np.isfinite(first).all()
    assert not np.allclose(first, other)


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("_class_name", "AutoencoderTiny", "_class_name is 'AutoencoderTiny'"),
        ("_class_name", None, "_class_name is None"),
        ("act_fn", "gelu", "act_fn"),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 4, "down_block_types"),
        ("block_out_channels", [16, 32, 32], "differ in length"),
        ("norm_num_groups", 5, "norm_num_groups=5 does not divide"),
        ("out_channels", 4, "out_channels=4"),
        ("latents_mean", [0.0] * 4, "latents_mean"),
        ("layers_per_block", 3, "missing"),
        ("layers_per_block", 1, "left over"),
        ("block_out_channels", [8, 16, 16, 16], "does not fit"),
    ],
)
def test_another_architecture_is_refused(sd_directory, tmp_path, field, value, words):
    rewritten(sd_directory, tmp_path, dict)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(DataError) as error:
        autoencoder_kl.load(str(tmp_path))
    assert words in one_line(error)


CHANGES = {
    "missing": lambda t: {k: v for k, v in t.items() if k != "encoder.conv_in.bias"},
    "left over": lambda t: t | {"encoder.conv_in.bias_2": t["encoder.conv_in.bias"]},
    "does not fit": lambda t: t | {"encoder.conv_in.bias": t["encoder.conv_in.bias"][1:]},
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_wrong_tensor_is_named(sd_directory, tmp_path, words):
    rewritten(sd_directory, tmp_path, CHANGES[words])
    with pytest.raises(DataError) as error:
        autoencoder_kl.load(str(tmp_path))
    assert words in one_line(error) and "encoder.conv_in.bias" in str(error.value)


@pytest.mark.parametrize(
    ("size", "channels", "words"), [(15, 3, "multiples of 2"), (16, 1, "--channels=3")]
)
def test_images_that_do_not_fit_are_refused(size, channels, words):
    codec = small()
    images = jnp.asarray(pictures(2, size, size, channels))
    for call in (
        lambda: codec.latent_shape(size, channels),
        lambda: codec.moments(images),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert words in one_line(error)
