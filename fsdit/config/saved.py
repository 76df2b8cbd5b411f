"""Configurations as JSON, and those of older versions."""

from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from fsdit.config.problems import as_config_error, shown
from fsdit.config.renamed import RENAMED, with_new_names
from fsdit.config.settings import Config
from fsdit.errors import ConfigError

T = TypeVar("T")

# Settings that may differ between a checkpoint and the run that continues it. They change how
# fast, how long or how closely observed a run is, and not what its steps compute, except that
# num_steps moves the end of the cosine schedule, and a learning rate may have to be lowered
# after a run has diverged.
_RESUMABLE = (
    "name",
    "data.dataset_dir",
    "data.cache_dir",
    "data.workers",
    "data.read_threads",
    "data.prefetch",
    "features.location",
    "features.device_gb",
    "features.cache_mb",
    "model.encoder.location",  # the checkpoint holds a sha256 of the weights
    "model.codec.location",
    "model.codec.subfolder",
    "model.codec.max_batch",
    "model.scan_layers",
    "model.remat",
    "sampling",
    "evaluation",
    "optimizer.peak_learning_rate",
    "optimizer.final_learning_rate",
    "train.num_steps",
    "train.max_nonfinite",
    "train.log_interval",
    "train.eval_interval",
    "train.eval_batches",
    "train.grid_episodes",
    "train.few_shot_interval",
    "train.few_shot_samples",
    "train.compilation_cache",
    "train.stop_after_minutes",
    "checkpoint",
    "mesh",
    "profile",
    "watchdog",
)

# Settings that may differ too where weights are only used, to sample, evaluate or export. cuDNN's
# attention rounds otherwise than the plain kernel, and its backward pass may add in another order
# each time, so a run keeps its kernel, and so does one with the packed kernel of TPUs. Its weights
# serve on machines that have neither.
_USABLE = ("model.attention",)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns settings as a nested dictionary that can be written as JSON."""
    return pydantic.RootModel[type(config)](config).model_dump(mode="json")


def from_dict(values: Any, cls: type[T] = Config, renamed: Mapping[str, str] = RENAMED) -> T:
    """Makes settings of the class `cls` from `values`, the inverse of `to_dict`.

    Missing fields have their defaults, so that runs of older versions go on. renamed: old name
    of a field -> new name. Raises ConfigError naming each wrong field.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"a configuration is a JSON object, not {shown(values)}")
    try:
        return pydantic.TypeAdapter(cls).validate_python(with_new_names(values, renamed))
    except pydantic.ValidationError as error:
        raise as_config_error(error, cls) from None
    except RecursionError:
        raise ConfigError("the configuration is nested too deeply") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changed_fields(saved: Mapping[str, Any], config: Config, *, training: bool = True) -> list[str]:
    """Returns why `config` cannot continue a run that was saved with `saved`, field by field.

    training: whether steps are to follow, or its weights are only used. A setting that `saved`
    does not know yet had its default there. Raises ConfigError where this version cannot read
    `saved`.
    """
    allowed = _RESUMABLE if training else _RESUMABLE + _USABLE
    old, new = flatten(to_dict(from_dict(saved))), flatten(to_dict(config))
    return [
        f"config.{path} is {new[path]!r}, the checkpoint has {old[path]!r}"
        for path in sorted(new)
        if old[path] != new[path]
        and not any(path == r or path.startswith(r + ".") for r in allowed)
    ]
