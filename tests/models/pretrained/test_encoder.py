"""Every way to load an encoder, and what is refused."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from fsdit.errors import DataError
from fsdit.models.pretrained.encoder import load_encoder
from tests.models.pretrained import originals

pytestmark = pytest.mark.medium

FAMILIES = {
    "siglip": (originals.siglip_vision, originals.siglip_processor()),
    "siglip with text": (originals.siglip_full, originals.siglip_processor()),
    "dinov2": (originals.dinov2, originals.bit_processor()),
    "dinov2 with registers": (originals.dinov2_with_registers, originals.bit_processor()),
}


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    make, processor = FAMILIES[request.param]
    return originals.save(make(), processor, tmp_path / "one")


def outputs(directory, **options):
    encoder, params = load_encoder(str(directory), **options)
    return jax.jit(encoder)(params, originals.random_images(1, 2, 40, 40, 3))


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_shards_hold_the_same_encoder(saved, tmp_path):
    named = load_file(saved / "model.safetensors")
    other = tmp_path / "shards"
    other.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (other / name).write_text((saved / name).read_text())
    where = {}
    for i in range(3):
        part = dict(list(named.items())[i::3])
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        save_file(part, other / file)
        where |= dict.fromkeys(part, file)
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_equal(outputs(saved), outputs(other))


def test_shards_that_transformers_writes(tmp_path):
    model, processor = originals.siglip_full(), originals.siglip_processor()
    directory = originals.save(model, processor, tmp_path, max_shard_size="40KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    images = originals.random_images(2, 40, 40, 3)
    assert max(originals.errors(model, processor, directory, "float32", images)) < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_checkpoints_of_half_precision(tmp_path, dtype):
    """Our encoder computes in float32 with the half-precision weights."""
    model = originals.siglip_vision()
    originals.randomise(model)
    rounded = model.to(getattr(torch, dtype))
    rounded.save_pretrained(tmp_path)
    processor = originals.siglip_processor()
    processor.save_pretrained(tmp_path)
    images = originals.random_images(2, 40, 40, 3)
    found = originals.errors(rounded.float().eval(), processor, tmp_path, "float32", images)
    assert max(found) < 1e-4


def test_vision_only_checkpoints_of_transformers_4_and_5(tmp_path):
    """Version 4 named the tensors "vision_model.…", version 5 does not."""
    new = originals.save(originals.siglip_vision(), originals.siglip_processor(), tmp_path / "5")
    old = tmp_path / "4"
    old.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (old / name).write_text((new / name).read_text())
    named = load_file(new / "model.safetensors")
    assert not any(name.startswith("vision_model.") for name in named)
    named = {f"vision_model.{name}": value for name, value in named.items()}
    save_file(named, old / "model.safetensors")
    assert_equal(outputs(new), outputs(old))


@pytest.mark.several_devices
def test_parameters_are_on_the_host_and_run_on_a_mesh(saved):
    """Images are sharded and parameters replicated, as beside a training step."""
    encoder, params = load_encoder(str(saved))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    images = originals.random_images(8, 2, 40, 40, 3)
    rows = jax.NamedSharding(mesh, PartitionSpec("data"))
    placed = jax.device_put(images, rows)
    found = jax.jit(encoder, out_shardings=rows)(params, placed)
    for value, expected in zip(found, jax.jit(encoder)(params, images), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-4)


def test_supports_do_not_see_each_other(saved):
    encoder, params = load_encoder(str(saved))
    images = originals.random_images(3, 2, 40, 40, 3)
    encode = jax.jit(encoder)
    whole, one = encode(params, images), encode(params, images[1:2, 1:])
    for value, expected in zip(one, whole, strict=True):
        np.testing.assert_allclose(value, expected[1:2, 1:], atol=1e-4)


def change(directory, name, section="", **fields):
    path = directory / name
    values = json.loads(path.read_text())
    (values[section] if section else values).update(fields)
    path.write_text(json.dumps(values))


def refused(directory, message):
    with pytest.raises(DataError, match=message) as error:
        load_encoder(str(directory))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["clip", "siglip2", None])
def test_another_architecture_is_named(saved, kind):
    change(saved, "config.json", model_type=kind)
    refused(saved, rf"config\.json: model_type is {kind!r}; this network reads 'siglip' or")


def test_another_architectures_weights_are_named(tmp_path):
    directory = originals.save(originals.dinov2(), originals.bit_processor(28, 28), tmp_path)
    change(directory, "config.json", model_type="siglip_vision_model", image_size=28)
    refused(directory, "tensor '.*missing; config.json and the weights do not belong together")


CHANGES = [
    ("siglip", {"image_size": 42}, "image_size is 42, but preprocessor_config"),
    ("siglip", {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
    ("siglip", {"vision_use_head": False}, "vision_use_head is false"),
    ("siglip", {"num_channels": 1}, "num_channels is 1"),
    ("siglip", {"num_attention_heads": 7}, "num_attention_heads=7 does not divide"),
    ("siglip", {"hidden_size": "wide"}, "hidden_size: .*given 'wide'"),
    ("siglip", {"hidden_size": 96}, r"tensor '.*' of shape \(.*\) does not fit"),
    ("siglip", {"num_hidden_layers": 3}, r"encoder\.layers\.2.* missing"),
    ("siglip", {"num_hidden_layers": 1}, r"encoder\.layers\.1.* left over"),
    (
        "siglip",
        {"patch_size": 0},
        "patch_size: Input should be greater than or equal to 1, given 0",
    ),
    ("siglip", {"patch_size": 32}, "patch_size=32 is larger than image_size=28"),
    ("dinov2", {"patch_size": 16}, "patch_size 16 does not divide"),
    ("dinov2", {"qkv_bias": False}, "qkv_bias is false"),
    ("dinov2", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ("dinov2", {"use_swiglu_ffn": True}, r"mlp\.weights_in.* missing"),
    ("dinov2", {"image_size": 98}, r"position_embeddings' of shape \(1, 26, 48\) does not fit"),
    ("dinov2", {"model_type": "dinov2_with_registers"}, "register_tokens' is missing"),
    ("dinov2 with registers", {"num_register_tokens": 2}, "register_tokens' of shape"),
    ("dinov2 with registers", {"model_type": "dinov2"}, "register_tokens"),
]


@pytest.mark.parametrize(("family", "fields", "message"), CHANGES)
def test_settings_that_a_tower_does_not_support_are_named(tmp_path, family, fields, message):
    make, processor = FAMILIES[family]
    directory = originals.save(make(), processor, tmp_path)
    change(directory, "config.json", **fields)
    refused(directory, message)


def test_a_field_of_a_full_checkpoint_is_named_with_its_section(tmp_path):
    make, processor = FAMILIES["siglip with text"]
    directory = originals.save(make(), processor, tmp_path)
    change(directory, "config.json", section="vision_config", image_size=14)
    refused(directory, r"config\.json: vision_config: image_size is 14")


def test_prepared_images_of_another_size_are_refused(saved):
    size = {"size": {"height": 30, "width": 30}, "do_center_crop": False}
    change(saved, "preprocessor_config.json", **size)
    refused(saved, "image_size is 28|does not divide the images of 30 x 30")


def test_a_missing_preprocessor_is_named(saved):
    (saved / "preprocessor_config.json").unlink()
    refused(saved, r"preprocessor_config\.json is missing")


def test_processors_as_published_by_version_4(tmp_path):
    """Old files name a feature extractor, and leave out what has a default."""
    directory = originals.save(originals.siglip_vision(), originals.siglip_processor(), tmp_path)
    expected = outputs(directory)
    processor = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    assert processor.resample == 3
    old = {
        "feature_extractor_type": "SiglipFeatureExtractor",
        "image_processor_type": "SiglipImageProcessor",
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "size": {"height": 28, "width": 28},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(old))
    assert_equal(outputs(directory), expected)
