"""Flags that programs share: --config, --config.a.b=v, --step, paths and finite numbers."""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from absl import flags

from fsdit import config as configs
from fsdit import storage
from fsdit.checks import check_unguided, validate
from fsdit.errors import ConfigError, system_text
from fsdit.program import help_text

# A flag defined by a function of this module belongs to the program that calls it, so that
# --help shows it there.
flags.disclaim_key_flags()

_NO_GUIDE = (
    "samples in training have no guide: leave it empty, and name it for fsdit.sample or "
    "fsdit.evaluate"
)

# Values of --config.a.b=v by name; None: the program takes no such flags.
_overrides: dict[str, str] | None = None


def define_overrides() -> Callable[[], dict[str, str]]:
    """Defines --config.a.b=v; call the result for {"a.b": "v"}."""
    global _overrides
    _overrides = {}
    return lambda: dict(_overrides)


class _PathParser(flags.ArgumentParser):
    """Expands ~, which the shell does in `--flag ~/x` but not in `--flag=~/x`."""

    syntactic_help = "a path"

    def __init__(self, folder: bool):
        super().__init__()
        self._folder = folder

    def parse(self, argument: str) -> str:
        path = configs.expanded(argument)
        _check_place(path)
        if storage.is_remote(path):
            return path
        try:
            wrong = self._folder and Path(path).exists() and not Path(path).is_dir()
        except OSError as error:
            raise ValueError(system_text(error)) from None
        if wrong:
            raise ValueError(f"{path} is no folder: name one, or one that is not there yet")
        return path

    def flag_type(self) -> str:
        return "path"


class _PathsParser(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        paths = [configs.expanded(path) for path in super().parse(argument)]
        for path in paths:
            _check_place(path)
        return paths


def _check_place(path: str) -> None:
    """Raises ValueError, which absl reports with the flag's name."""
    try:
        storage.check_place(path)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def define_path(
    name: str, default: str | None, text: str, *, required: bool = False, folder: bool = False
) -> flags.FlagHolder[str]:
    """Defines a flag that is a path; ~ in it is expanded.

    folder: whether it has to be a folder, or a name that is free for one.
    """
    parser, plain = _PathParser(folder), flags.ArgumentSerializer()
    text = f"{text} Required." if required else text
    return flags.DEFINE(parser, name, default, text, serializer=plain, required=required)


def define_paths(name: str, text: str) -> flags.FlagHolder[list[str] | None]:
    """Defines a flag that lists paths, separated by commas."""
    return flags.DEFINE(_PathsParser(), name, None, text, serializer=flags.CsvListSerializer(","))


class _FiniteParser(flags.FloatParser):
    """Refuses infinity, and NaN, which passes every comparison with a bound."""

    def convert(self, argument: float | str) -> float:
        value = super().convert(argument)
        if not math.isfinite(value):
            raise ValueError("it has to be a finite number")
        return value


def define_float(
    name: str,
    default: float | int | None,
    text: str,
    lower: float | int | None = None,
    upper: float | int | None = None,
) -> flags.FlagHolder[Any]:
    """Defines a flag that is a finite number within bounds, or None where that is the default."""
    parser, plain = _FiniteParser(lower, upper), flags.ArgumentSerializer()
    return flags.DEFINE(parser, name, default, text, serializer=plain)


def define_config(
    workdir: flags.FlagHolder[str] | None = None,
) -> Callable[[], configs.Config]:
    """Defines --config=FILE and --config.a.b=v; call the result for the configuration.

    workdir: flag of a run whose own configuration is used where no --config is given.
    """
    overrides = define_overrides()
    path = define_path(
        "config",
        None,
        "Experiment file, or the config.json of a run; --config.FIELD=VALUE changes a setting.",
        required=workdir is None,
    )

    def resolve() -> configs.Config:
        source = path.value or _held(workdir.value)
        file = storage.local_file(source)
        config = configs.apply_overrides(configs.load_experiment(file), overrides())
        configs.check_locations(config)
        config = configs.with_absolute_paths(config)
        if not config.name:
            config = dataclasses.replace(config, name=Path(config.data.dataset_dir).name)
        validate(config)
        check_unguided(config, _NO_GUIDE)
        return config

    return resolve


def _held(workdir: str) -> str:
    """Returns the path of the configuration that a run was last started with."""
    file = f"{workdir.rstrip('/')}/config.json"
    if not storage.is_there(file):
        raise ConfigError(f"{file}: no such file to go on with; name an experiment: --config=FILE")
    return file


def define_step() -> Callable[[], int | Literal["newest", "best"]]:
    """Defines --step=newest|best|NUMBER; call the result for the choice."""
    text = flags.DEFINE_string(
        "step",
        "newest",
        "Checkpoint: newest, best (by few-shot metrics in training), or NUMBER.",
    )

    def choice() -> int | Literal["newest", "best"]:
        if text.value in ("newest", "best"):
            return text.value
        if text.value.isdecimal():
            return int(text.value)
        raise ConfigError(f"--step={text.value} must be newest, best or the number of a step")

    return choice


def define_ema() -> flags.FlagHolder[float | None]:
    """Defines --ema=DECAY, the average of a run's weights to use."""
    return define_float(
        "ema",
        None,
        "Decay of the EMA weights, where a run keeps several (config.train.ema_decays). By default "
        "the one that scored best for --step=best, otherwise config.train.ema_decay.",
        lower=0,
        upper=1,
    )


def parse(argv: list[str]) -> list[str]:
    """Parses --config.a.b=v and absl's flags; returns what is left. Raises what they raise.

    --help and --helpfull end the program with their text and status 0.
    """
    if text := help_text.requested(argv, takes_settings=_overrides is not None):
        print(text, end="")
        sys.exit(0)
    if _overrides is not None:
        argv, overrides = configs.split_overrides(argv)
        _overrides.update(overrides)
    return flags.FLAGS(argv)
