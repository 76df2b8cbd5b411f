"""The results of an evaluation as data: results.json, which the report and TensorBoard show."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from fsdit.config import EvaluationConfig, SamplingConfig, renamed_in, to_dict, with_new_names
from fsdit.data.layout import write_json
from fsdit.errors import DataError, first_line

# The image sets that a table compares: the model's samples, then the baselines.
IMAGE_SETS = {
    "samples": "samples",
    "real": "real images of the class",
    "copied_support": "a copied support",
    "mean_of_supports": "the mean of the supports",
    "nearest_training": "the nearest training image",
    "other_class": "samples of another class",
}

# Names in results.json of older versions: old name -> new name.
_RENAMED = {"judge": "critic", "drawings": "samples"}


@dataclasses.dataclass(frozen=True)
class Score:
    """The value of a metric and its 95 % interval. low, high: None where there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None


def table_name(split: str, shots: int, guidance_scale: float) -> str:
    return f"{split}-{shots}shot-guidance{str(guidance_scale).removesuffix('.0')}"


@dataclasses.dataclass(frozen=True)
class Table:
    """All scores of one split at one number of supports and one guidance scale.

    episodes, samples: their numbers. scores: metric -> image set -> score, by the names in
    METRICS and IMAGE_SETS; an image set has no score where a metric has no meaning for it.
    by_class: metric -> class name -> mean over the samples of the class, as many of each class.
    """

    split: str
    seen: bool
    shots: int
    guidance_scale: float
    episodes: int
    samples: int
    scores: dict[str, dict[str, Score]]
    by_class: dict[str, dict[str, float]]

    @property
    def name(self) -> str:
        return table_name(self.split, self.shots, self.guidance_scale)

    @property
    def classes(self) -> int:
        """The number of classes; 0 where no metric is known by class."""
        return len({name for values in self.by_class.values() for name in values})

    @property
    def samples_per_class(self) -> int:
        return self.samples // max(self.classes, 1)


@dataclasses.dataclass(frozen=True)
class Results:
    """The evaluation of one step of a run. The first table is of the split `split`.

    critic: its name. guide: sha256 of the weights of the model that guided; "" where the null did.
    ema_decay: decay of the average of weights; None in files of older versions. about: what it
    was made of, name -> words; empty in files of older versions.
    """

    name: str
    step: int
    split: str
    critic: str
    protocol: EvaluationConfig
    sampling: SamplingConfig
    tables: tuple[Table, ...]
    guide: str = ""
    ema_decay: float | None = None
    about: dict[str, str] = dataclasses.field(default_factory=dict)


def write_results(path: Path, results: Results) -> None:
    """Writes the complete file or none. JSON has no NaN, so values that are not finite are null."""
    values = dataclasses.asdict(results)
    values |= {"protocol": to_dict(results.protocol), "sampling": to_dict(results.sampling)}
    write_json(path, _finite(values))


def read_results(path: Path) -> Results:
    """Inverse of `write_results`, also for files of older versions. Raises DataError."""
    try:
        values = json.loads(path.read_text())
        return pydantic.TypeAdapter(Results).validate_python(_with_nan(_with_new_names(values)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not the results of an evaluation: {first_line(error)}") from None


def _with_new_names(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a results.json of any version, with today's names."""
    tables = []
    for table in values["tables"]:
        scores = {metric: _renamed(sets) for metric, sets in table["scores"].items()}
        tables.append({**_renamed(table), "scores": scores})
    protocol = with_new_names(values["protocol"], renamed_in("evaluation"))
    return {**_renamed(values), "protocol": protocol, "tables": tables}


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    for table in values["tables"]:
        for scores in table["scores"].values():
            for score in scores.values():
                score["value"] = math.nan if score["value"] is None else score["value"]
        for classes in table["by_class"].values():
            classes.update({name: math.nan for name, value in classes.items() if value is None})
    return values


def scalars(results: Results) -> dict[str, float]:
    """TensorBoard's tag, TABLE/METRIC/IMAGE_SET -> value, for the finite scores."""
    return {
        f"{table.name}/{metric}/{name}": score.value
        for table in results.tables
        for metric, scores in table.scores.items()
        for name, score in scores.items()
        if math.isfinite(score.value)
    }
