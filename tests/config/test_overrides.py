import pytest

from fsdit import config as configs
from fsdit.config import (
    Config,
    DataConfig,
)
from fsdit.errors import ConfigError

VALID = Config(data=DataConfig(dataset_dir="somewhere"))


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("seed", "7", 7),
        ("name", "mine", "mine"),
        ("data.batch_size", "32", 32),
        ("data.dataset_dir", "a=b", "a=b"),
        ("data.flip", "false", False),
        ("data.stratified", "True", True),
        ("model.mlp_ratio", "2", 2.0),
        ("model.encoder.depth", "3", 3),
        ("model.cross_attention", "cls", "cls"),
        ("optimizer.peak_learning_rate", "3e-4", 3e-4),
        ("sampling.guidance_interval", "(0.1, 0.9)", (0.1, 0.9)),
        ("sampling.guidance_interval", "0.2,0.8", (0.2, 0.8)),
        ("sampling.schedule", "shifted", "shifted"),
        ("sampling.shift", "2", 2.0),
        ("mesh.fsdp", "-1", -1),
    ],
)
def test_an_override_sets_a_field_in_the_type_of_that_field(path, text, value):
    changed = configs.apply_overrides(VALID, {path: text})
    *holders, leaf = path.split(".")
    holder = changed
    for name in holders:
        holder = getattr(holder, name)
    assert getattr(holder, leaf) == value
    assert type(getattr(holder, leaf)) is type(value)
    assert changed != VALID


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("data.batch_size", "many"),
        ("data.batch_size", "1.5"),
        ("data.flip", "perhaps"),
        ("model.cross_attention", "sideways"),
        ("sampling.schedule", "late"),
        ("sampling.guidance_interval", "0.5"),
        ("sampling.guidance_interval", "low,high"),
    ],
)
def test_an_override_of_the_wrong_type_names_its_field(path, text):
    with pytest.raises(ConfigError, match=rf"config\.{path}.*{text[:3]}"):
        configs.apply_overrides(VALID, {path: text})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("data.batchsize", "data.batch_size"), ("train.num_step", "train.num_steps")],
)
def test_an_unknown_field_is_answered_with_the_nearest(wrong, right):
    message = rf"--config\.{wrong}: .*did you mean --config\.{right}\?"
    with pytest.raises(ConfigError, match=message):
        configs.apply_overrides(VALID, {wrong: "1"})


def test_a_group_of_settings_cannot_be_overridden_as_a_whole():
    with pytest.raises(ConfigError, match="no such field"):
        configs.apply_overrides(VALID, {"data": "x"})


def test_overrides_are_taken_out_of_a_command_line():
    rest, overrides = configs.split_overrides(
        ["main", "--config=x.py", "--config.a.b=1=2", "--workdir", "w", "-config.c="]
    )
    assert rest == ["main", "--config=x.py", "--workdir", "w"]
    assert overrides == {"a.b": "1=2", "c": ""}


def test_an_override_without_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"--config\.seed: write --config\.seed=VALUE"):
        configs.split_overrides(["main", "--config.seed", "3"])
