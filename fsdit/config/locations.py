"""Paths among the settings, made absolute so that they hold from every folder."""

import dataclasses
from pathlib import Path
from typing import Any

from fsdit.config.settings import Config

# Files and folders.
_PATHS = ("data.dataset_dir", "evaluation.lpips", "evaluation.inception", "train.compilation_cache")
# Settings that name a folder, if there is one of this name, or else a hub id.
_LOCATIONS = ("model.encoder.location", "model.codec.location", "evaluation.critic")
# Values that name no file.
_WORDS = ("", "off")


def with_absolute_paths(config: Config) -> Config:
    """Returns `config` with absolute paths, so that a recorded one works from another folder."""
    for name in _PATHS:
        config = _replaced(config, name, lambda path: str(Path(path).absolute()))
    for name in _LOCATIONS:
        config = _replaced(config, name, lambda p: str(Path(p).absolute()) if _is_dir(p) else p)
    return config


def _is_dir(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # for example a name that is too long
        return False


def _replaced(holder: Any, name: str, change: Any) -> Any:
    first, _, rest = name.partition(".")
    value = getattr(holder, first)
    if rest:
        changed = _replaced(value, rest, change)
    else:
        changed = value if value in _WORDS or "://" in value else change(value)
    return dataclasses.replace(holder, **{first: changed})
