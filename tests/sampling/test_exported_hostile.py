"""Tampered exported models fail soon, in one line and in little memory."""

import shutil

import jax
import numpy as np
import pytest

import fsdit
from fsdit.config import Config, DataConfig, EncoderConfig, ModelConfig, to_dict
from fsdit.sampling import exported
from fsdit.sampling.generator import Generator, online_networks
from tests.models.pretrained.stored import hostile

CONFIG = Config(
    data=DataConfig(dataset_dir="anywhere", batch_size=8, shots=2),
    model=ModelConfig(
        hidden_size=16,
        depth=1,
        num_heads=2,
        patch_size=4,
        num_latents=2,
        encoder=EncoderConfig(patch_size=4, hidden_size=16, depth=1, num_heads=2),
        dtype="float32",
    ),
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    spec, frozen = online_networks(CONFIG, image_size=8, channels=1)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), spec.abstract_params()
    )
    exported.save(folder, Generator(CONFIG, spec, frozen, params, 5))
    return folder


@pytest.fixture
def folder(valid, tmp_path):
    return shutil.copytree(valid, tmp_path / "model")


def attempt(folder, mutation):
    return hostile.attempt(lambda: fsdit.load(folder).params, mutation)


@pytest.mark.medium
@pytest.mark.parametrize(
    "part", [0, *(pytest.param(i, marks=pytest.mark.large) for i in range(1, 9))]
)
def test_no_value_hangs_fills_memory_or_shows_a_traceback(folder, part):
    file = folder / "config.json"
    whole = file.read_bytes()
    for number, place in list(enumerate(hostile.values_in(file)))[part::9]:
        built = place[0] != "config" or place[1:2] == ("model",)  # these values decide the sizes
        for value in hostile.some_values(number)[: None if built else 2]:
            hostile.with_value(file, place, value)
            attempt(folder, f"{place} = {str(value)[:50]!r}")
            file.write_bytes(whole)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_replaced_file_is_named(valid, tmp_path, name):
    for number, (mutation, tamper) in enumerate(hostile.FILES.items()):
        folder = shutil.copytree(valid, tmp_path / str(number))
        tamper(folder / name)
        assert name.partition(".")[0] in attempt(folder, f"{name} is {mutation}")


def test_invalid_json_is_named(folder):
    for mutation, text in hostile.JSON.items():
        (folder / "config.json").write_bytes(text)
        assert "config.json" in attempt(folder, mutation)


def test_invalid_tensors_are_refused(valid, tmp_path):
    for number, (mutation, tamper) in enumerate(hostile.TENSORS.items()):
        folder = shutil.copytree(valid, tmp_path / str(number))
        tamper(folder / "model.safetensors")
        assert attempt(folder, mutation), mutation


@pytest.mark.medium
def test_no_flipped_bit_shows_a_traceback(valid, tmp_path):
    for seed in range(40):
        folder = shutil.copytree(valid, tmp_path / str(seed))
        hostile.flipped(folder / ("config.json", "model.safetensors")[seed % 2], seed)
        attempt(folder, f"flip {seed}")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("config.model.mlp_ratio", 1e9, r"config\.model\.mlp_ratio must be at most 256"),
        ("config.model.mlp_ratio", float("inf"), r"config\.model\.mlp_ratio must be a finite"),
        ("config.model.hidden_size", 10**12, r"config\.model\.hidden_size must be at most"),
        ("config.model.hidden_size", 65536, r"tensor .* does not fit"),
        ("config.model.depth", 4096, r"does not fit"),
        ("config.model.num_heads", 3, r"config\.model\.num_heads=3 .* would"),
        ("config.model.patch_size", 3, r"config\.model\.patch_size=3 does not divide"),
        ("config.sampling.guidance_scale", float("nan"), r"guidance_scale must be a finite"),
        ("config.colour", "red", r"config\.colour: no such field"),
        ("config", None, r"config: .* dictionary"),
        ("image_size", 10**9, "image_size"),
        ("step", -1, "step"),
        ("version", 2, "format version 2"),
        ("version", "\x1b[31m", "format version "),
    ],
)
def test_an_absurd_value_is_named(folder, place, value, message):
    hostile.with_value(folder / "config.json", tuple(place.split(".")), value)
    with pytest.raises(hostile.FsditError, match=message):
        fsdit.load(folder)


def test_an_export_older_than_a_setting_loads(folder):
    values = to_dict(CONFIG)
    for group, leaf in (
        ("model", "remat"),
        ("sampling", "noise_level"),
        ("train", "few_shot_interval"),
    ):
        del values[group][leaf]
    del values["watchdog"]
    hostile.with_value(folder / "config.json", ("config",), values)
    assert fsdit.load(folder).config == CONFIG
