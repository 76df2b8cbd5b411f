"""Every experiment file loads from anywhere, is valid, and says how to run it."""

import re
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import random_weights
from fsdit import config as configs
from fsdit.checks import validate
from fsdit.data.layout import read_dataset_info
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.encoder import load_encoder
from tests.data_prep.conversion.photos import class_folders
from tests.programs import ROOT, run_module

FILES = sorted(p for p in ROOT.glob("experiments/*.py") if "def get_config(" in p.read_text())
SIZE = {"model.hidden_size", "model.depth", "model.num_heads"}
# What each recipe changes of miniimagenet_b2, beside its name: all else stays comparable.
CHANGED = {
    "miniimagenet_l2": SIZE | {"mesh.data", "mesh.fsdp"},
    "miniimagenet_xl2": SIZE | {"mesh.data", "mesh.fsdp"},
    "miniimagenet_pooled": {"model.cross_attention"},
    "miniimagenet_precomputed": {"features.supports", "features.targets"},
    "miniimagenet_1shot": {"data.shots", "data.source"},
    "miniimagenet_reconstruction": {"data.shots", "data.source", "data.flip"},
}


def load(name: str) -> configs.Config:
    return configs.load_experiment(str(ROOT / "experiments" / f"{name}.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_loads_from_anywhere_and_is_valid(path, monkeypatch, tmp_path):
    """`experiments` is no installed package, so a recipe must load where it cannot be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "experiments", None)
    config = configs.load_experiment(str(path))
    validate(config)
    assert config.name == path.stem  # so no two recipes share a name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_its_command_hardware_and_result(path):
    text = path.read_text().split('"""')[1]
    assert f"python -m fsdit.main --config=experiments/{path.name}" in text
    assert "Hardware: " in text and "Expected result: " in text


def test_b2_is_the_published_setting():
    config = load("miniimagenet_b2")
    assert (config.model.hidden_size, config.model.depth, config.model.num_heads) == (768, 12, 12)
    assert (config.model.patch_size, config.data.shots, config.data.source) == (2, 5, "file")
    defaults = configs.Config()
    for part in ("features", "flow", "sampling", "optimizer", "train", "checkpoint", "mesh"):
        assert getattr(config, part) == getattr(defaults, part)


@pytest.mark.parametrize("name", CHANGED)
def test_a_recipe_changes_only_its_own_settings_of_b2(name):
    base, own = (configs.flatten(configs.to_dict(load(n))) for n in ("miniimagenet_b2", name))
    changed = {field for field in own if own[field] != base[field]}
    assert changed == CHANGED[name] | {"name"}


@pytest.mark.medium
def test_the_tiny_recipe_fits_what_its_commands_make(tmp_path):
    config, dataset = load("miniimagenet_tiny"), tmp_path / "tiny"
    photos = class_folders(tmp_path / "photos", classes=8, images=6)
    command = (ROOT / "experiments" / "miniimagenet_tiny.py").read_text()
    given = re.search(r"--num_classes.*", command)[0].split()
    run_module(
        "data_prep.convert", f"--input={photos}", f"--output_dir={dataset}", "--workers=1", *given
    ).check_returncode()
    info = read_dataset_info(dataset)
    assert info.split("train").shots == config.data.shots
    assert {split.episodes > 0 for split in info.splits.values()} == {True}
    random_weights.write(tmp_path)
    encoder, _ = load_encoder(str(tmp_path / Path(config.model.encoder.location).name))
    assert encoder.grid == (4, 4)
    codec = autoencoder_kl.load(str(tmp_path / Path(config.model.codec.location).name))
    side = codec.latent_shape(info.image_size, info.channels)[0]
    assert side % config.model.patch_size == 0
