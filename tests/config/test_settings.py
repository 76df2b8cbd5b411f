import dataclasses
import math
import typing

import numpy as np
import pytest

from fsdit import config as configs
from fsdit.checks import validate
from fsdit.config import (
    Config,
    DataConfig,
    EncoderConfig,
    SamplingConfig,
    TrainConfig,
)
from fsdit.errors import ConfigError, multiples_near

VALID = Config(data=DataConfig(dataset_dir="somewhere"))


@pytest.mark.parametrize("config", [VALID, VALID.data, VALID.model.encoder])
def test_settings_are_frozen(config):
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, getattr(config, field))


def test_the_defaults_with_a_dataset_are_valid():
    validate(VALID)


def numbers(cls, prefix="") -> dict[str, tuple[type, list]]:
    """Dotted name of each number among nested settings -> (its type, its bounds)."""
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            found |= numbers(hint, f"{prefix}{name}.")
        else:
            found |= {f"{prefix}{name}[{i}]": part for i, part in enumerate(bounded(hint))}
    return found


def bounded(hint, bounds=()) -> list[tuple[type, list]]:
    """(type, bounds) of each number in a type: in a union, a tuple, a list or a dictionary too."""
    if hint in (int, float):
        return [(hint, list(bounds))]
    if hasattr(hint, "__metadata__"):
        inner, *extra = typing.get_args(hint)
        return bounded(inner, [limit for each in extra for limit in getattr(each, "metadata", ())])
    return [found for part in typing.get_args(hint) for found in bounded(part)]


@pytest.mark.parametrize(
    "hint", [int, float, int | None, tuple[int, ...], dict[str, float], list[tuple[int, str]]]
)
def test_bounded_finds_a_number_without_bounds(hint):
    assert [bounds for _, bounds in bounded(hint)] == [[]]


NUMBERS = numbers(Config)


def test_numbers_finds_settings_of_every_form():
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


CUDNN = {"model.attention": "cudnn"}
PACKED = {"model.attention": "packed"}
VAE = {"model.codec.name": "autoencoder_kl", "model.codec.location": "somewhere"}
FROZEN = {"model.encoder.name": "frozen", "model.encoder.location": "somewhere"}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model.num_heads": "3"},
        {"model.encoder.num_heads": "32", "model.encoder.name": "frozen"},
        {"model.hidden_size": "1152", "model.num_heads": "16"},
    ],
)
def test_attention_by_cudnn_is_valid_for_heads_of_a_multiple_of_eight(overrides):
    overrides = {"model.encoder.location": "somewhere", **CUDNN, **overrides}
    validate(configs.apply_overrides(VALID, overrides))


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
        ({"model.rotary": "true", "model.num_heads": "128"}, "rotary=True .*=128 .*: 96 or 192"),
        ({"sampling.guidance_interval": "0.8,0.2"}, "guidance_interval=.* is empty"),
        ({"sampling.contrastive": "0.1"}, "takes out more than config.train.contrastive=0.0"),
        ({"train.alignment": "1", "train.alignment_layer": "13"}, "depth=12 blocks"),
        ({**VAE, "train.alignment": "1"}, "takes gradients of pixels"),
        ({**FROZEN, "train.alignment": "1", "model.cross_attention": "none"}, "needs the tokens"),
        ({**FROZEN, "data.class_augmentation": "0.5"}, "augmentation=0.5 .*name=frozen .*to 0"),
        (
            {**VAE, "data.class_augmentation": "1", "features.targets": "precomputed"},
            "augmentation=1 .*targets=precomputed",
        ),
        ({"train.routing": "0.5", "model.depth": "6"}, "leave no block of config.model.depth=6"),
        ({"train.routing": "0.5", "train.routing_end": "13"}, "an end from 1 to 12"),
        ({"train.routing": "0.5", "train.alignment": "1"}, "set config.train.alignment_layer=2"),
        ({"watchdog.factor": "0.5"}, "config.watchdog.factor=0.5 must be above 1, or 0"),
        ({"evaluation.seeds": ""}, "config.evaluation.seeds is empty"),
        ({"evaluation.shots": "1,1"}, "config.evaluation.shots=.* repeats a value"),
        ({"mesh.fsdp": "0"}, "config.mesh: an axis is a positive size"),
        ({**CUDNN, "model.dtype": "float32"}, "cudnn computes in bfloat16 only: set config.model"),
        ({**CUDNN, "model.num_heads": "64"}, "12 .*model.num_heads=64 .*: 48 or 96 would"),
        ({**CUDNN, "model.num_heads": "2"}, "width 384 .*256: 3 would; or set .*=plain"),
        ({**CUDNN, "model.encoder.num_heads": "32"}, "width 12 .*config.model.encoder.num_heads"),
        ({**PACKED, "model.dtype": "float32"}, "packed computes in bfloat16 only: set config"),
        ({**PACKED, "model.num_heads": "8"}, "width 96 .*num_heads=8 .* 128: 6 or 12 would"),
        ({**PACKED, "model.encoder.hidden_size": "192"}, "encoder.hidden_size=192 .*: 128 or 256"),
    ],
)  # fmt: skip
def test_validate_names_the_field_and_a_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message):
        validate(configs.apply_overrides(VALID, overrides))


@pytest.mark.parametrize(
    ("value", "divisor", "answer"),
    [(30, 8, "24 or 32 would"), (6, 4, "4 or 8 would"), (3, 8, "8 would")],
)  # fmt: skip
def test_the_nearest_multiples_are_named(value, divisor, answer):
    assert multiples_near(value, divisor) == answer


def test_dit_sizes_are_the_published_ones():
    assert configs.DIT_SIZES["B"] == (768, 12, 12)
    big = configs.dit("B", patch_size=4)
    assert (big.hidden_size, big.depth, big.num_heads, big.patch_size) == (768, 12, 12, 4)
