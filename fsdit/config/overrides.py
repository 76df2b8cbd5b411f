"""Configurations with other settings, as flags such as --config.data.batch_size=32 give them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fsdit.config.problems import did_you_mean
from fsdit.config.renamed import RENAMED, REPLACED
from fsdit.config.saved import flatten, from_dict, to_dict
from fsdit.config.settings import Config
from fsdit.errors import ConfigError


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Splits a command line into what is no `--config.a.b=v`, and {"a.b": "v"}.

    Raises ConfigError for an argument without a value.
    """
    rest, overrides = [], {}
    for argument in argv:
        name = argument.lstrip("-")
        if not argument.startswith("-") or not name.startswith("config."):
            rest.append(argument)
            continue
        path, equals, value = name.removeprefix("config.").partition("=")
        if not equals:
            raise ConfigError(f"{argument}: write --config.{path}=VALUE")
        overrides[path] = value
    return rest, overrides


def apply_overrides(config: Config, overrides: Mapping[str, str]) -> Config:
    """Sets fields by dotted name from text. Raises ConfigError for an unknown one."""
    known = flatten(to_dict(config))
    values = {
        name: _parse(text) if isinstance(known.get(RENAMED.get(name, name)), list) else text
        for name, text in overrides.items()
    }
    return with_settings(config, values, flag="--")


def with_settings(config: Config, changes: Mapping[str, Any], flag: str = "") -> Config:
    """Sets fields by dotted name, {"data.shots": 1}. Raises ConfigError for an unknown one.

    A name of an older version sets the field that has its place today.
    flag: what stands before "config." in error messages.
    """
    values = to_dict(config)
    known = flatten(values)
    for given, value in changes.items():
        name = RENAMED.get(given, given)
        if name not in known and name not in REPLACED:
            hint = did_you_mean(name, known, f"{flag}config.")
            raise ConfigError(f"{flag}config.{name}: no such field{hint}")
        *parents, leaf = name.split(".")
        holder = values
        for parent in parents:
            holder = holder[parent]
        holder[leaf] = value
    return from_dict(values)


def _parse(text: str) -> Any:
    """The elements of a tuple, "0.1,0.9" or "(0.1, 0.9)"; the text itself where it is no such."""
    try:
        return json.loads("[" + text.strip("()[] ") + "]")
    except (ValueError, RecursionError):
        return text
