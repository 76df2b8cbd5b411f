"""The text of --help: what a program does, its flags, and how settings are given."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from absl import flags

from fsdit.config import Config, flatten, settings, to_dict
from fsdit.config.problems import leaves

_SHORT = ("help", "helpshort", "h", "?")
_FULL = "helpfull"

_SETTINGS = """
settings:
  --config.GROUP.NAME=VALUE: Changes a setting, such as --config.train.num_steps=2000 or, of several
    values, --config.evaluation.shots=1,5. May be repeated.
    {folder} says what each setting means.
    The recipes in experiments/*.py are files for --config; they name the settings that they change.
"""
_LIST = """
every setting with the default that it has where neither a recipe, a run nor a flag names it:
"""
_MORE = """
Try --helpfull for a list of all settings. --verbosity=0 shows what libraries log.
"""
_NO_SETTINGS = """
--verbosity=0 shows what libraries log.
"""


def requested(argv: Sequence[str], takes_settings: bool) -> str | None:
    """The text that a command line asks for by --help or --helpfull; None where it does not.

    takes_settings: whether the program takes --config.a.b=v. What follows "--" is not looked at.
    """
    own = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    names = {argument.lstrip("-") for argument in own if argument.startswith("-")}
    if not names & {*_SHORT, _FULL}:
        return None
    doc = (sys.modules["__main__"].__doc__ or "").strip()
    text = f"{doc}\n\nflags:\n{flags.FLAGS.main_module_help()}\n"
    if not takes_settings:
        return text + _NO_SETTINGS
    text += _SETTINGS.format(folder=Path(settings.__file__).parent)
    if _FULL not in names:
        return text + _MORE
    return text + _LIST + "".join(f"  {line}\n" for line in _settings())


def _settings() -> list[str]:
    """One line for each setting: --config.optimizer.method=adamw (adamw, muon)."""
    defaults = flatten(to_dict(Config()))
    return [
        f"--config.{name}={_written(defaults[name])}{_choices(kind)}"
        for name, kind in leaves(Config).items()
    ]


def _written(value: Any) -> str:
    """A value as a flag has it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _choices(kind: Any) -> str:
    return f" ({', '.join(get_args(kind))})" if get_origin(kind) is Literal else ""
