import dataclasses
import json
import math
import typing
from pathlib import Path

import numpy as np
import pytest

from fsdit import config as configs
from fsdit.config import (
    Config,
    DataConfig,
    EncoderConfig,
    SamplingConfig,
    TrainConfig,
)
from fsdit.errors import ConfigError, multiples_near
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


@pytest.mark.parametrize(
    "path", ["flow.logit_std", "model.num_latents", "data.stratified", "evaluation.ways"]
)
def test_a_setting_that_is_younger_than_the_saved_run_has_had_its_default(path):
    saved = configs.to_dict(VALID)
    group, leaf = path.split(".")
    default = saved[group].pop(leaf)
    assert configs.changed_fields(saved, VALID) == []
    assert configs.from_dict(saved) == VALID

    changed = configs.apply_overrides(VALID, {path: str(not default or default + 2)})
    found = configs.changed_fields(saved, changed)
    assert found == [] if group == "evaluation" else f"the checkpoint has {default}" in found[0]


def test_a_whole_group_that_is_younger_than_the_saved_run_has_had_its_defaults():
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


def test_the_names_in_the_table_of_renamed_fields_are_those_of_fields():
    fields = configs.flatten(configs.to_dict(VALID))
    assert set(configs.RENAMED.values()) <= fields.keys()
    assert not configs.RENAMED.keys() & fields.keys()


def test_a_field_of_a_newer_version_is_named():
    saved = configs.to_dict(VALID)
    saved["model"]["invention"] = 3
    with pytest.raises(ConfigError, match=r"config\.model\.invention: no such field"):
        configs.changed_fields(saved, VALID)


def test_the_defaults_with_a_dataset_are_valid():
    validate(VALID)


def numbers(cls, prefix="") -> dict[str, tuple[type, list]]:
    """Dotted name of each number among nested settings -> (its type, its bounds)."""
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            found |= numbers(hint, f"{prefix}{name}.")
        parts = typing.get_args(hint) if typing.get_origin(hint) is tuple else (hint,)
        for i, part in enumerate(parts):
            bare, *extra = typing.get_args(part) if hasattr(part, "__metadata__") else (part,)
            if bare in (int, float):
                bounds = [limit for each in extra for limit in each.metadata]
                found[f"{prefix}{name}[{i}]"] = (bare, bounds)
    return found


NUMBERS = numbers(Config)


def test_the_walk_over_the_settings_finds_numbers_of_every_form():
    wanted = ("seed[0]", "model.encoder.depth[0]", "sampling.guidance_interval[1]")
    assert {*wanted, "evaluation.guidance_scales[0]"} <= NUMBERS.keys()
    assert len(NUMBERS) > 60


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds(name):
    kind, bounds = NUMBERS[name]
    keys = ("ge", "gt", "le", "lt", "allow_inf_nan")
    limits = {key: getattr(b, key) for b in bounds for key in keys if hasattr(b, key)}
    lower, upper = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    assert lower is not None and upper is not None, f"config.{name} has no bounds in its type"
    if kind is int:
        assert -(2**31) <= lower <= upper < 2**32
    else:
        assert np.isfinite(np.float32([lower, upper])).all()
        assert limits["allow_inf_nan"] is False, "NaN passes every comparison"


def leaf_paths(values) -> list[str]:
    return [path for path, v in configs.flatten(values).items() if type(v) in (int, float)]


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "1e39", "-1e39", "9" * 5000])
@pytest.mark.parametrize("path", leaf_paths(configs.to_dict(VALID)))
def test_no_number_is_beyond_what_a_device_holds(path, text):
    with pytest.raises(ConfigError, match=rf"config\.{path}\b") as error:
        configs.apply_overrides(VALID, {path: text})
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("seed", "-1", "must not be negative, got '-1'"),
        ("seed", str(2**32), "must be at most 4294967295"),
        ("data.shots", "-1", "must not be negative"),
        ("data.batch_size", "0", "must be at least 1, got '0'"),
        ("train.condition_dropout", "1", "must be at most 0.99999994, got '1'"),
        ("train.ema_decay", "0.999999999", "must be at most 0.99999994"),
        ("optimizer.b2", "1", "must be at most"),
        ("optimizer.eps", "1e-50", "must be positive"),
        ("optimizer.peak_learning_rate", "0", "must be positive, got '0'"),
        ("optimizer.peak_learning_rate", "1e39", "must be at most 3.4028234e.38"),
        ("sampling.shift", "0", "must be positive"),
        ("sampling.noise_level", "nan", "must be a finite number, got 'nan'"),
        ("sampling.guidance_scale", "inf", "must be a finite number"),
        ("sampling.guidance_interval", "0,1e39", "must be at most"),
        ("watchdog.factor", "nan", "must be a finite number"),
        ("evaluation.ways", "1", "must be at least 2"),
        ("evaluation.seeds", "0,-1", "must not be negative, got -1"),
        ("model.mlp_ratio", "1e9", "must be at most 256"),
        ("model.hidden_size", "1000000000000", "must be at most 65536"),
        ("mesh.data", "-2", "must be at least -1"),
    ],
)
def test_a_number_out_of_bounds_is_answered_with_its_bound(path, text, message):
    with pytest.raises(ConfigError, match=rf"^config\.{path}[.\d]* {message}"):
        configs.apply_overrides(VALID, {path: text})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(num_steps=0), r"config\.train\.num_steps must be at least 1, got 0"),
        (lambda: TrainConfig(num_stepss=3), r"config\.train\.num_stepss: no such field; did you"),
        (lambda: EncoderConfig(depth="x"), r"config\.model\.encoder\.depth: .*integer.*got 'x'"),
        (lambda: SamplingConfig(shift=math.inf), r"config\.sampling\.shift must be a finite"),
        (lambda: Config(seed=-1), r"config\.seed must not be negative, got -1"),
        (lambda: dataclasses.replace(VALID, sede=1), r"config\.sede: no such field; .*seed"),
    ],
)  # fmt: skip
def test_settings_made_in_python_are_checked_at_once_and_named_in_full(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.dataset_dir": ""}, "config.data.dataset_dir is empty"),
        ({"model.num_heads": "5"}, "config.model.num_heads=5 .*hidden_size=768.*: 4 or 6 would"),
        ({"model.num_heads": "768"}, "config.model.num_heads=768 .*: 384 would"),
        ({"model.hidden_size": "6", "model.num_heads": "3"}, "hidden_size=6 .*: 4 or 8 would"),
        ({"model.encoder.num_heads": "5"}, "encoder.num_heads=5: 380 or 400 would"),
        ({"train.accumulate_steps": "3"}, "batch_size=128 .*accumulate_steps=3: 126 or 129 would"),
        ({"model.mlp_ratio": "0.001"}, "config.model.mlp_ratio=0.001 leaves nothing"),
        ({"sampling.guidance_interval": "0.8,0.2"}, "guidance_interval=.* is empty"),
        ({"watchdog.factor": "0.5"}, "config.watchdog.factor=0.5 must be above 1, or 0"),
        ({"evaluation.seeds": ""}, "config.evaluation.seeds is empty"),
        ({"evaluation.shots": "1,1"}, "config.evaluation.shots=.* repeats a value"),
        ({"mesh.fsdp": "0"}, "config.mesh: an axis is a positive size"),
    ],
)  # fmt: skip
def test_validate_names_the_field_and_what_would_do(overrides, message):
    with pytest.raises(ConfigError, match=message):
        validate(configs.apply_overrides(VALID, overrides))


@pytest.mark.parametrize(
    ("value", "divisor", "answer"),
    [(30, 8, "24 or 32 would"), (6, 4, "4 or 8 would"), (3, 8, "8 would")],
)  # fmt: skip
def test_the_nearest_sizes_that_divide(value, divisor, answer):
    assert multiples_near(value, divisor) == answer


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


IMPORTS = "from fsdit.config import *\n\n\ndef get_config():\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("x = 1\n", r"defines no get_config\(\)"),
        ("get_config = 3\n", r"defines no get_config\(\)"),
        ("def get_config():\n    return {}\n", "must return"),
        ("def get_config():\n    return Config()\n", r":2: NameError: name 'Config'"),
        ("def get_config(:\n", r":1: SyntaxError: "),
        ("x = '\x00'\n", "null bytes"),
        (b"x = '\xff'\n", "utf-8"),
        ("\n\nimport no_such_module\n", ":3: ModuleNotFoundError: .*no_such_module"),
        ("from fsdit.config import Confik\n", ":1: ImportError: .*Confik"),
        ("import sys\nsys.exit(3)\n", ":2: SystemExit: 3"),
        ("def get_config(size):\n    pass\n", "TypeError: .*size"),
        (IMPORTS + "    return get_config()\n", ":5: RecursionError"),
        (
            IMPORTS + "    return Config(train=TrainConfig(num_stepss=3))\n",
            r":5: config\.train\.num_stepss: no such field; did you mean .*num_steps\?$",
        ),
        (
            IMPORTS + "    return Config(data=DataConfig(batch_size='many'))\n",
            r":5: config\.data\.batch_size: .*integer.* \(got 'many'\)$",
        ),
        (
            IMPORTS + "    return Config(sampling=SamplingConfig(guidance_scale=float('nan')))\n",
            r":5: config\.sampling\.guidance_scale must be a finite number, got nan$",
        ),
        (IMPORTS + "    return dit('M')\n", ":5: KeyError: 'M'"),
        (
            IMPORTS + "    return load_experiment(__file__.replace('mine', 'other'))\n",
            r":5: --config=.*other\.py: no such file",
        ),
    ],
)
def test_an_experiment_file_that_gives_no_configuration_is_named(tmp_path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=rf"^--config=.*mine\.py.*{message}") as error:
        configs.load_experiment(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "a configuration is a JSON object, not "),
        ("[" * 100_000, "recursion"),
        ('{"seed": ' + "9" * 5000 + "}", "digits"),
        ('{"seed": 1e400}', r"config\.seed must be a finite number"),
        ('{"sampling": {"guidance_scale": NaN}}', r"config\.sampling\.guidance_scale must be"),
        ('{"model": [1]}', r"config\.model: "),
        ('{"model": ' + "[" * 900 + "]" * 900 + "}", r"config\.model: "),
        ('{"colour": "red"}', r"config\.colour: no such field"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_configuration_in_json_that_is_wrong_is_named(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=rf"^--config=.*config\.json: .*{message}") as error:
        configs.load_experiment(str(file))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_the_configuration_that_a_run_saved_is_an_experiment_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(configs.to_dict(VALID)))
    assert configs.load_experiment(file) == VALID


def test_a_folder_is_no_experiment_file(tmp_path):
    with pytest.raises(ConfigError, match=f"--config={tmp_path}: no file"):
        configs.load_experiment(tmp_path)


PATH_SETTINGS = (
    "data.dataset_dir",
    "model.encoder.location",
    "model.codec.location",
    "evaluation.judge",
    "evaluation.lpips",
    "evaluation.inception",
    "train.compilation_cache",
)


@pytest.mark.parametrize("path", PATH_SETTINGS)
def test_a_path_among_the_settings_is_found_from_every_folder(path, tmp_path, monkeypatch):
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
        ("evaluation.judge", "facebook/dinov2-base"),
        ("evaluation.judge", ""),
        ("train.compilation_cache", ""),
        ("train.compilation_cache", "off"),
        ("train.compilation_cache", "gs://bucket/cache"),
    ],
)
def test_what_is_no_path_of_this_machine_stays_as_it_is(path, text):
    config = configs.with_absolute_paths(configs.apply_overrides(VALID, {path: text}))
    assert configs.flatten(configs.to_dict(config))[path] == text


def test_a_home_that_is_not_known_is_named():
    with pytest.raises(ConfigError, match=r"config\.data\.dataset_dir: no home directory is known"):
        DataConfig(dataset_dir="~nobody_of_this_name/x")


def test_an_experiment_file_gives_its_configuration(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fsdit.config import Config\n\n\ndef get_config():\n    return Config(seed=5)\n"
    )
    assert configs.load_experiment(str(file)) == Config(seed=5)
