import dataclasses
import json
import math

import pytest

from fsdit import config as configs
from fsdit.config import (
    Config,
    DataConfig,
    EncoderConfig,
    MeshConfig,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
)
from fsdit.errors import ConfigError
from fsdit.validation import validate

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


def test_a_configuration_survives_json():
    config = configs.apply_overrides(
        VALID, {"sampling.guidance_interval": "0.25,0.75", "model.encoder.depth": "2"}
    )
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"no_such": 1}}, "config.data.no_such"),
        ({"train": {"num_steps": "x"}, "seed": None}, "config.seed"),
        ({"train": {"num_steps": "x"}, "seed": None}, "config.train.num_steps"),
    ],
)
def test_from_dict_names_every_bad_field(values, message):
    with pytest.raises(ConfigError, match=message):
        configs.from_dict(values)


@pytest.mark.parametrize("config", [VALID, VALID.data, VALID.model.encoder])
def test_settings_are_frozen(config):
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, getattr(config, field))


def test_changed_fields_names_a_changed_width_and_both_values():
    wider = configs.apply_overrides(VALID, {"model.hidden_size": "1024"})
    (text,) = configs.changed_fields(configs.to_dict(VALID), wider)
    assert "config.model.hidden_size" in text
    assert "1024" in text and "768" in text


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mesh.fsdp", "2"),
        ("checkpoint.interval", "7"),
        ("train.log_interval", "7"),
        ("train.num_steps", "7"),
        ("data.workers", "3"),
        ("model.remat", "full"),
        ("sampling.guidance_scale", "1"),
    ],
)
def test_what_does_not_change_the_steps_may_differ_on_resume(path, text):
    changed = configs.apply_overrides(VALID, {path: text})
    assert changed != VALID
    assert configs.changed_fields(configs.to_dict(VALID), changed) == []


def test_changed_fields_names_a_setting_that_the_saved_run_did_not_have():
    saved = configs.to_dict(VALID)
    del saved["flow"]["logit_std"]
    (text,) = configs.changed_fields(saved, VALID)
    assert "config.flow.logit_std" in text


def test_the_defaults_with_a_dataset_are_valid():
    validate(VALID)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"seed": -1}, "config.seed must not be negative"),
        ({"data": DataConfig()}, "config.data.dataset_dir is empty"),
        ({"data": DataConfig(dataset_dir="d", shots=-1)}, "config.data.shots must not be negative"),
        ({"model": ModelConfig(num_heads=5)}, "config.model.num_heads=5"),
        ({"model": ModelConfig(hidden_size=6, num_heads=3)}, "config.model.hidden_size=6"),
        ({"model": ModelConfig(encoder=EncoderConfig(num_heads=5))}, "encoder.num_heads=5"),
        ({"train": TrainConfig(accumulate_steps=3)}, "config.train.accumulate_steps=3"),
        ({"train": TrainConfig(condition_dropout=1.0)}, "config.train.condition_dropout=1.0"),
        ({"train": TrainConfig(ema_decay=1.0)}, "config.train.ema_decay=1.0"),
        ({"sampling": SamplingConfig(shift=0.0)}, "config.sampling.shift=0.0"),
        ({"sampling": SamplingConfig(shift=math.inf)}, "config.sampling.shift=inf"),
        ({"sampling": SamplingConfig(noise_level=-1.0)}, "config.sampling.noise_level=-1.0"),
        ({"sampling": SamplingConfig(noise_level=math.nan)}, "config.sampling.noise_level=nan"),
        ({"train": TrainConfig(num_steps=0)}, "config.train.num_steps must be at least 1"),
        ({"mesh": MeshConfig(fsdp=0)}, "config.mesh"),
        ({"mesh": MeshConfig(data=-2)}, "config.mesh"),
    ],
)
def test_validate_names_the_field(section, message):
    with pytest.raises(ConfigError, match=message):
        validate(dataclasses.replace(VALID, **section))


def test_overrides_are_taken_out_of_a_command_line():
    rest, overrides = configs.split_overrides(
        ["main", "--config=x.py", "--config.a.b=1=2", "--workdir", "w", "-config.c="]
    )
    assert rest == ["main", "--config=x.py", "--workdir", "w"]
    assert overrides == {"a.b": "1=2", "c": ""}


def test_an_override_without_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"--config\.seed: write --config\.seed=VALUE"):
        configs.split_overrides(["main", "--config.seed", "3"])


def test_dit_sizes_are_the_published_ones():
    assert configs.DIT_SIZES["B"] == (768, 12, 12)
    big = configs.dit("B", patch_size=4)
    assert (big.hidden_size, big.depth, big.num_heads, big.patch_size) == (768, 12, 12, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("x = 1\n", r"defines no get_config\(\)"),
        ("def get_config():\n    return {}\n", "must return"),
    ],
)
def test_an_experiment_file_that_gives_no_configuration_is_named(tmp_path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=rf"mine\.py: .*{message}"):
        configs.load_experiment(str(file))


def test_an_experiment_file_gives_its_configuration(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fsdit.config import Config\n\n\ndef get_config():\n    return Config(seed=5)\n"
    )
    assert configs.load_experiment(str(file)) == Config(seed=5)
