import dataclasses
import json

import pytest

from fsdit import config as configs
from fsdit.config import (
    Config,
    DataConfig,
)
from fsdit.errors import ConfigError

VALID = Config(data=DataConfig(dataset_dir="somewhere"))


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
def test_settings_that_do_not_change_the_steps_may_differ_on_resume(path, text):
    changed = configs.apply_overrides(VALID, {path: text})
    assert changed != VALID
    assert configs.changed_fields(configs.to_dict(VALID), changed) == []


@pytest.mark.parametrize(
    "path", ["flow.logit_std", "model.num_latents", "data.stratified", "evaluation.ways"]
)
def test_a_setting_newer_than_the_saved_run_had_its_default(path):
    saved = configs.to_dict(VALID)
    group, leaf = path.split(".")
    default = saved[group].pop(leaf)
    assert configs.changed_fields(saved, VALID) == []
    assert configs.from_dict(saved) == VALID

    changed = configs.apply_overrides(VALID, {path: str(not default or default + 2)})
    found = configs.changed_fields(saved, changed)
    assert found == [] if group == "evaluation" else f"the checkpoint has {default}" in found[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("qk_norm", "true"),
        ("norm", "rms"),
        ("mlp", "swiglu"),
        ("rotary", "true"),
        ("modulation", "single"),
    ],
)
def test_a_model_keeps_its_blocks(field, value):
    """Also one that is older than the setting, whether it is trained on or only used."""
    older = configs.to_dict(VALID)
    del older["model"][field]
    assert configs.from_dict(older) == VALID
    changed = configs.apply_overrides(VALID, {f"model.{field}": value})
    for training in (True, False):
        (text,) = configs.changed_fields(older, changed, training=training)
        assert f"config.model.{field}" in text


def test_a_run_keeps_its_attention_and_its_weights_may_be_used_with_another():
    saved, older = configs.to_dict(VALID), configs.to_dict(VALID)
    del older["model"]["attention"]
    changed = configs.apply_overrides(VALID, {"model.attention": "cudnn"})
    for values in (saved, older):
        (text,) = configs.changed_fields(values, changed)
        assert text == "config.model.attention is 'cudnn', the checkpoint has 'plain'"
        assert configs.changed_fields(values, changed, training=False) == []
    wider = configs.apply_overrides(VALID, {"model.hidden_size": "1024"})
    assert configs.changed_fields(saved, wider, training=False) != []


def test_a_group_newer_than_the_saved_run_had_its_defaults():
    saved = configs.to_dict(VALID)
    del saved["flow"], saved["watchdog"], saved["model"]["codec"]
    assert configs.changed_fields(saved, VALID) == []


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Renamed:
    inner: Inner = Inner()
    steps: int = 1


TABLE = {"old_steps": "steps", "group.speed": "inner.rate"}


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"old_steps": 7}, Renamed(steps=7)),
        ({"steps": 7}, Renamed(steps=7)),
        ({"old_steps": 3, "steps": 7}, Renamed(steps=7)),
        ({"group": {"speed": 2.0}, "steps": 7}, Renamed(Inner(2.0), 7)),
        ({"group": {"speed": 2.0}, "inner": {}}, Renamed(Inner(2.0))),
        ({}, Renamed()),
    ],
)
def test_a_renamed_field_is_read_from_its_old_name(saved, expected):
    before = json.dumps(saved)
    assert configs.from_dict(saved, Renamed, TABLE) == expected
    assert json.dumps(saved) == before


def test_the_table_of_renamed_fields_leads_to_fields_that_exist():
    fields = configs.flatten(configs.to_dict(VALID))
    assert set(configs.RENAMED.values()) <= fields.keys()
    assert not configs.RENAMED.keys() & fields.keys()


def test_a_field_of_a_newer_version_is_named():
    saved = configs.to_dict(VALID)
    saved["model"]["invention"] = 3
    with pytest.raises(ConfigError, match=r"config\.model\.invention: no such field"):
        configs.changed_fields(saved, VALID)
