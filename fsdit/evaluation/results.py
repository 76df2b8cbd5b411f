"""The results of an evaluation as data: results.json, which the report and TensorBoard show."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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
    "other_class": "samples of another class",
}

# Names in results.json of older versions: old name -> new name.
_RENAMED = {"judge": "critic", "drawings": "samples"}


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is presented.

    better: which values are good; "real": those near the value of real images.
    """

    label: str
    group: Literal["fidelity to the set", "fidelity to the class", "use", "variety", "copying"]
    better: Literal["higher", "lower", "real"]
    meaning: str


METRICS = {
    "frechet_distance": Metric(
        "FD",
        "fidelity to the set",
        "lower",
        "Fréchet distance between Gaussians fitted to the critic's features of the images and of "
        "half of the real images; every column has as many images; interval by jackknife over "
        "groups of episodes",
    ),
    "kernel_distance": Metric(
        "KID",
        "fidelity to the set",
        "lower",
        "kernel distance: squared MMD of the critic's features under the cubic kernel, unbiased; "
        "interval of two standard errors over random subsets of images",
    ),
    "gaussian_distance": Metric(
        "CMMD",
        "fidelity to the set",
        "lower",
        "1000 times the squared MMD of the critic's features, scaled to unit length, under a "
        "Gaussian kernel, unbiased; interval of two standard errors over random subsets of images",
    ),
    "precision": Metric(
        "precision",
        "fidelity to the set",
        "higher",
        "share of samples that are as near to a real image as its neighbours are",
    ),
    "recall": Metric(
        "recall",
        "fidelity to the set",
        "higher",
        "share of real images that are as near to a sample as its neighbours are",
    ),
    "density": Metric(
        "density",
        "fidelity to the set",
        "higher",
        "number of neighbourhoods of real images in which a sample lies, over k; 1 where the "
        "distributions are equal",
    ),
    "coverage": Metric(
        "coverage",
        "fidelity to the set",
        "higher",
        "share of real images that have a sample in their neighbourhood",
    ),
    "top1": Metric(
        "top-1 retrieval",
        "fidelity to the class",
        "higher",
        "share whose nearest real image of the split, without the episode's supports, is of "
        "the right class, or of one that shares an identical image with it",
    ),
    "top1_exact": Metric(
        "top-1 retrieval, exact class",
        "fidelity to the class",
        "higher",
        "the same, but classes that share an image do not count as right",
    ),
    "top5": Metric(
        "top-5 retrieval",
        "fidelity to the class",
        "higher",
        "share for which a right class is among the five nearest",
    ),
    "classifier": Metric(
        "few-shot classifier",
        "use",
        "higher",
        "accuracy on real images of a classifier trained on these images alone; in the column "
        "of copied supports, on all supports",
    ),
    "classifier_with_supports": Metric(
        "few-shot classifier, with supports",
        "use",
        "higher",
        "accuracy on real images of a classifier trained on the real supports and these images",
    ),
    "pairwise_distance": Metric(
        "pairwise distance",
        "variety",
        "real",
        "mean distance between two images of one episode",
    ),
    "lpips": Metric(
        "LPIPS",
        "variety",
        "real",
        "mean perceptual distance between two images of one episode",
    ),
    "support_distance": Metric(
        "distance to the nearest support",
        "copying",
        "real",
        "mean distance of an image to the nearest of its episode's supports",
    ),
    "near_copies": Metric(
        "near-copies",
        "copying",
        "lower",
        "share of images that are as near to a support as the nearest twentieth of real images",
    ),
    "training_distance": Metric(
        "distance to the nearest training image",
        "copying",
        "real",
        "mean distance of an image to the nearest image of the training split",
    ),
    "inception_distance": Metric(
        "Inception FID",
        "fidelity to the set",
        "lower",
        "the FID as torch-fidelity computes it, to compare with papers; it does not depend on "
        "the critic",
    ),
}


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
    by_class: metric -> class name -> mean over the samples of the class.
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


@dataclasses.dataclass(frozen=True)
class Results:
    """The evaluation of one step of a run. The first table is of the split `split`.

    critic: its name.
    """

    name: str
    step: int
    split: str
    critic: str
    protocol: EvaluationConfig
    sampling: SamplingConfig
    tables: tuple[Table, ...]


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


def summary(results: Results) -> str:
    """The tables at the run's own guidance scale, as text for a terminal."""
    lines = [f"{results.name}, step {results.step}; critic: {results.critic}"]
    for table in results.tables:
        if table.guidance_scale != results.sampling.guidance_scale:
            continue
        names = [name for name in IMAGE_SETS if any(name in sets for sets in table.scores.values())]
        lines += ["", f"{table.name}: {table.samples} samples of {table.episodes} episodes"]
        lines.append(" " * 39 + "".join(f"{name:>19}" for name in names))
        for metric, sets in table.scores.items():
            cells = [
                f"{sets[name].value:19.4g}" if name in sets else f"{'-':>19}" for name in names
            ]
            lines.append(f"{METRICS[metric].label:39}" + "".join(cells))
    return "\n".join(lines)
