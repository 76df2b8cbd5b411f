"""Checkpoints of AutoencoderKL as diffusers saves them and as they are published."""

import json
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fsdit.errors import DataError
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.autoencoder_network import AutoencoderConfig
from tests.models.pretrained.autoencoder_originals import (
    FLUX_TRUE,
    SD,
    SD_TRUE,
    one_line,
    original,
)

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def sd_directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sd")
    original(**SD).save_pretrained(directory)
    return directory


def test_shards_hold_the_same_as_one_file(sd_directory, tmp_path):
    original(**SD).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 2
    one, shards = (autoencoder_kl.load(str(d)).params for d in (sd_directory, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, one, shards)


def rewritten(source: Path, target: Path, change) -> Path:
    """Copy a checkpoint with its tensors changed by `change` (dict -> dict)."""
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
    if not convolutions:  # diffusers reads these names too
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
