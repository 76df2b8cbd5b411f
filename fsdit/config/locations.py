"""Paths among the settings: checked, and made absolute so that they hold from every folder."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsdit import storage
from fsdit.config.settings import Config
from fsdit.errors import ConfigError
from fsdit.weights import shipped

# Files and folders that frozen networks are read from.
_WEIGHTS = ("evaluation.lpips", "evaluation.inception")
# Other files and folders.
_PATHS = ("data.dataset_dir", "data.cache_dir", "train.compilation_cache", *_WEIGHTS)
# A setting that names a run, an export, or a model that comes with the package.
_MODEL = "train.init_from"
# Settings that name a folder, if there is one of this name, or else a hub id.
_LOCATIONS = ("model.encoder.location", "model.codec.location", "evaluation.critic")
# Values that name no file, of any of these settings and of one.
_WORDS = ("", "off")
_OWN_WORDS = {"critic": ("auto", "trained", "pixels")}


def check_locations(config: Config) -> None:
    """Raises ConfigError for a path in a store that cannot be used."""

    def check(name: str) -> Callable[[str], str]:
        def checked(path: str) -> str:
            try:
                storage.check_place(path)
            except ConfigError as error:
                raise ConfigError(f"config.{name}={error}") from None
            return path

        return checked

    for name in (*_PATHS, *_LOCATIONS, _MODEL):
        _replaced(config, name, check(name))
    if storage.is_remote(config.data.cache_dir):
        raise ConfigError("config.data.cache_dir is for a local copy: name a folder on a disk")


def with_changed_locations(config: Config, change: Callable[[str], str]) -> Config:
    """Returns `config` with each location of a frozen network replaced by `change` of it."""
    for name in (*_WEIGHTS, *_LOCATIONS):
        config = _replaced(config, name, change)
    return config


def with_absolute_paths(config: Config) -> Config:
    """Returns `config` with absolute paths, so that a recorded one works from another folder."""
    for name in _PATHS:
        config = _replaced(config, name, lambda path: str(storage.absolute(path)))
    for name in _LOCATIONS:
        config = _replaced(config, name, lambda p: str(storage.absolute(p)) if _is_dir(p) else p)
    return _replaced(
        config, _MODEL, lambda p: p if shipped.is_shipped(p) else str(storage.absolute(p))
    )


def without_folders(config: Config) -> Config:
    """Returns `config` as an export may show it: its dataset, caches and start by name only.

    Locations of frozen networks stay, because an export is used with them.
    """
    for name in ("data.dataset_dir", _MODEL):
        config = _replaced(config, name, lambda path: Path(path).name)
    for name in ("data.cache_dir", "train.compilation_cache"):
        config = _replaced(config, name, lambda path: "")
    return config


def _is_dir(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # for example a name that is too long
        return False


def _replaced(holder: Any, name: str, change: Callable[[str], str]) -> Any:
    """Returns settings with the path at a dotted name replaced by `change` of it."""
    first, _, rest = name.partition(".")
    value = getattr(holder, first)
    if rest:
        changed = _replaced(value, rest, change)
    else:
        named = value not in (*_WORDS, *_OWN_WORDS.get(name, ()))
        changed = change(value) if named else value
    return dataclasses.replace(holder, **{first: changed})
