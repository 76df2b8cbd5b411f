from pathlib import Path

import pytest

from fsdit import config as configs
from fsdit.config import Config, DataConfig, apply_overrides, without_folders
from fsdit.errors import ConfigError

VALID = Config(data=DataConfig(dataset_dir="somewhere"))


PATH_SETTINGS = (
    "data.dataset_dir",
    "model.encoder.location",
    "model.codec.location",
    "evaluation.critic",
    "evaluation.lpips",
    "evaluation.inception",
    "train.compilation_cache",
    "train.init_from",
)


@pytest.mark.parametrize("path", PATH_SETTINGS)
def test_a_path_setting_is_made_absolute(path, tmp_path, monkeypatch):
    (tmp_path / "here" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    for text in ("x", "~/x", "../here/x", str(tmp_path / "here" / "x")):
        config = configs.with_absolute_paths(configs.apply_overrides(VALID, {path: text}))
        found = Path(configs.flatten(configs.to_dict(config))[path])
        assert found.is_absolute() and found.samefile(tmp_path / "here" / "x")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("model.encoder.location", "google/siglip2-base-patch16-224"),
        ("evaluation.critic", "facebook/dinov2-base"),
        ("evaluation.critic", ""),
        ("evaluation.critic", "trained"),
        ("train.compilation_cache", ""),
        ("train.init_from", ""),
        ("train.init_from", "glyphs"),  # comes with the package
        ("train.init_from", "gs://bucket/run"),
        ("train.compilation_cache", "off"),
        ("train.compilation_cache", "gs://bucket/cache"),
    ],
)
def test_a_value_that_is_no_local_path_stays_as_it_is(path, text, tmp_path, monkeypatch):
    (tmp_path / "trained").mkdir()  # a folder of a critic's name changes nothing
    monkeypatch.chdir(tmp_path)
    config = configs.with_absolute_paths(configs.apply_overrides(VALID, {path: text}))
    assert configs.flatten(configs.to_dict(config))[path] == text


def test_a_home_that_is_not_known_is_named():
    with pytest.raises(ConfigError, match=r"config\.data\.dataset_dir: no home directory is known"):
        DataConfig(dataset_dir="~nobody_of_this_name/x")


def test_an_export_shows_names_of_folders_and_not_where_they_are():
    config = apply_overrides(
        VALID,
        {
            "data.dataset_dir": "/home/me/data",
            "data.cache_dir": "/home/me/cache",
            "train.compilation_cache": "/home/me/compiled",
            "train.init_from": "gs://bucket/runs/first",
            "model.encoder.location": "/home/me/siglip",
        },
    )
    shown = without_folders(config)
    assert (shown.data.dataset_dir, shown.train.init_from) == ("data", "first")
    assert shown.data.cache_dir == shown.train.compilation_cache == ""
    assert shown.model.encoder.location == "/home/me/siglip"
    assert without_folders(shown) == shown
