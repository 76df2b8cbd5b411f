"""Experiment files: Python with a get_config(), or a configuration that a run has saved."""

import importlib.util
import json
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from fsdit.config.overrides import with_settings
from fsdit.config.saved import flatten, from_dict
from fsdit.config.settings import Config
from fsdit.errors import ConfigError, FsditError, first_line, system_text

_LARGEST_JSON = 2**24  # bytes


def load_experiment(path: str | Path) -> Config:
    """Loads the configuration of an experiment file, or of the config.json of a run.

    Raises ConfigError that names the file, and the line where its code is wrong.
    """
    file = Path(path)
    if not file.is_file():
        kind = "no file" if file.exists() else "no such file"
        raise ConfigError(f"--config={path}: {kind}; see experiments/")
    try:
        return _from_json(file) if file.suffix == ".json" else _from_python(file)
    except OSError as error:
        raise ConfigError(f"--config={path}: cannot be read: {system_text(error)}") from None


def derive(recipe: str, base: str, **changes: Any) -> Config:
    """Returns the configuration of another recipe with some settings changed.

        derive(__file__, "miniimagenet_b2.py", name="mine", data={"shots": 1})

    recipe: the file that calls this. base: name of a recipe in the same folder, which is found
    by path, because recipes are no installed package. changes: settings to set; those that a
    group such as `data` does not name stay. Raises ConfigError.
    """
    config = load_experiment(Path(recipe).with_name(base))
    return with_settings(config, flatten(changes))


def _from_json(file: Path) -> Config:
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise ConfigError("too large for a configuration")
        return from_dict(json.loads(file.read_bytes()))
    except (ValueError, RecursionError, ConfigError) as error:
        raise ConfigError(f"--config={file}: {first_line(error)}") from None


def _from_python(file: Path) -> Config:
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = _called(module)
    except (Exception, SystemExit) as error:
        where = f"{file}{_line(error, file)}"
        kind = "" if isinstance(error, FsditError) else f"{type(error).__name__}: "
        raise ConfigError(f"--config={where}: {kind}{first_line(error)}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"--config={file}: get_config() must return a fsdit.config.Config")
    return config


def _called(module: ModuleType) -> object:
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError("defines no get_config()")
    return get_config()


def _line(error: BaseException, file: Path) -> str:
    """Returns ":12" for an error that line 12 of the file raised; "" where no line is known."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}" if error.lineno and error.filename == str(file) else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f":{lines[-1]}" if lines else ""
