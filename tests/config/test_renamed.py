"""Settings under the names of older versions are read wherever settings are read."""

import dataclasses
import json
import re

import pytest

from fsdit import config as configs
from fsdit.config import Config, EvaluationConfig, TrainConfig
from fsdit.config.overrides import with_settings
from fsdit.errors import ConfigError

# Old name, new name, a value, and the class of the settings.
TABLE = [
    ("evaluation.drawings_per_episode", "evaluation.samples_per_episode", 7, EvaluationConfig),
    ("evaluation.judge", "evaluation.critic", "facebook/dinov2-base", EvaluationConfig),
    ("train.fsd_drawings", "train.few_shot_samples", 33, TrainConfig),
    ("train.fsd_interval", "train.few_shot_interval", 4, TrainConfig),
]
renamed = pytest.mark.parametrize(("old", "new", "value", "cls"), TABLE)


def changed(path, value):
    return configs.apply_overrides(Config(), {path: str(value)})


def saved_with_old_name(old, new, value):
    """A configuration as an older version saved it."""
    saved = configs.to_dict(changed(new, value))
    group, leaf = old.split(".")
    saved[group][leaf] = saved[group].pop(new.split(".")[1])
    return saved


def test_the_table_holds_every_renamed_setting():
    assert {old: new for old, new, _, _ in TABLE} == configs.RENAMED


@renamed
def test_a_saved_configuration_with_the_old_name_is_read(old, new, value, cls):
    assert changed(new, value) != Config()
    assert configs.from_dict(saved_with_old_name(old, new, value)) == changed(new, value)


@renamed
def test_a_run_saved_with_the_old_name_can_be_resumed(old, new, value, cls):
    saved = saved_with_old_name(old, new, value)
    assert configs.changed_fields(saved, changed(new, value)) == []


@renamed
def test_a_flag_with_the_old_name_sets_the_new_one(old, new, value, cls):
    assert configs.apply_overrides(Config(), {old: str(value)}) == changed(new, value)


@renamed
def test_a_recipe_with_the_old_name_sets_the_new_one(old, new, value, cls):
    assert with_settings(Config(), {old: value}) == changed(new, value)


@renamed
def test_experiment_files_with_the_old_name_are_read(tmp_path, old, new, value, cls):
    (tmp_path / "config.json").write_text(json.dumps(saved_with_old_name(old, new, value)))
    assert configs.load_experiment(tmp_path / "config.json") == changed(new, value)

    group, leaf = old.split(".")
    (tmp_path / "experiment.py").write_text(
        f"from fsdit.config import Config, {cls.__name__}\n\n\ndef get_config():\n"
        f"    return Config({group}={cls.__name__}({leaf}={value!r}))\n"
    )
    assert configs.load_experiment(tmp_path / "experiment.py") == changed(new, value)


@renamed
def test_the_old_name_beside_the_new_one_is_refused_in_code(old, new, value, cls):
    """`dataclasses.replace` passes every field, so the old name would be ignored."""
    message = f"config.{old} is called config.{new} now: write the new name"
    with pytest.raises(ConfigError, match=re.escape(message)):
        dataclasses.replace(cls(), **{old.split(".")[1]: value})


def test_renamed_in_gives_the_names_within_one_group():
    assert configs.renamed_in("evaluation")["judge"] == "critic"
    assert "fsd_interval" in configs.renamed_in("train")
    assert configs.renamed_in("sampling") == {}


OLD, NEW = (
    configs.ModelConfig(use_support_tokens=False),
    configs.ModelConfig(cross_attention="none"),
)


def test_support_tokens_of_older_versions_are_a_value_of_cross_attention():
    """Code, saved configurations and flags read `use_support_tokens`; `True` changes nothing."""
    assert OLD == NEW == dataclasses.replace(configs.ModelConfig(), use_support_tokens=False)
    assert not NEW.use_context and "use_support_tokens" not in configs.to_dict(NEW)
    assert configs.ModelConfig(use_support_tokens=True) == configs.ModelConfig()
    saved = {"model": {"use_support_tokens": False, "cross_attention": "patches"}}
    new = dataclasses.replace(configs.Config(), model=NEW)
    assert configs.from_dict(saved) == new and configs.changed_fields(saved, new) == []
    flag = {"model.use_support_tokens": "false"}
    assert configs.apply_overrides(configs.Config(), flag) == new
    with pytest.raises(ConfigError, match=r"config\.model: use_support_tokens must be true"):
        configs.from_dict({"model": {"use_support_tokens": "perhaps"}})
