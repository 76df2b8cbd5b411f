"""Settings from text: flags such as --config.data.batch_size=32."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fsdit.config.problems import did_you_mean
from fsdit.config.renamed import RENAMED
from fsdit.config.saved import flatten, from_dict, to_dict
from fsdit.config.settings import Config
from fsdit.errors import ConfigError


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=v` out of a command line: (the rest, {"a.b": "v"})."""
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
    """Sets fields by dotted path, of today or of an older version, from text.

    Raises ConfigError for an unknown one.
    """
    values = to_dict(config)
    known = flatten(values)
    for given, text in overrides.items():
        path = RENAMED.get(given, given)
        if path not in known:
            hint = did_you_mean(path, known, "--config.")
            raise ConfigError(f"--config.{path}: no such field{hint}")
        *parents, leaf = path.split(".")
        holder = values
        for parent in parents:
            holder = holder[parent]
        holder[leaf] = _parse(text) if isinstance(known[path], list) else text
    return from_dict(values)


def _parse(text: str) -> Any:
    try:
        return json.loads("[" + text.strip("()[] ") + "]")
    except (ValueError, RecursionError):
        return text
