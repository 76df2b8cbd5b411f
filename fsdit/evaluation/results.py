"""What an evaluation found, as data: results.json, which the report and TensorBoard show."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import pydantic

from fsdit.config import EvaluationConfig, SamplingConfig, to_dict
from fsdit.data.layout import write_json
from fsdit.errors import DataError, first_line

# What is judged. "drawings" are the model's; the others are floors and ceilings, computed
# the same way.
ROWS = {
    "drawings": "drawings",
    "real": "real images of the class",
    "copied_support": "a copied support",
    "mean_of_supports": "the mean of the supports",
    "other_class": "drawings of another class",
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a figure is read.

    better: what is good; "real": as near as may be to the figure of real images.
    """

    label: str
    group: Literal["fidelity to the set", "fidelity to the class", "use", "variety", "copying"]
    better: Literal["higher", "lower", "real"]
    meaning: str


METRICS = {
    "frechet_distance": Metric(
        "Fréchet distance",
        "fidelity to the set",
        "lower",
        "between Gaussians fitted to the features, from a half of the real images; every row "
        "has as many images; interval by jackknife over groups of episodes",
    ),
    "kernel_distance": Metric(
        "kernel distance (KID)",
        "fidelity to the set",
        "lower",
        "squared MMD under the cubic kernel, unbiased; interval of two standard errors over "
        "random subsets of images",
    ),
    "gaussian_distance": Metric(
        "CMMD",
        "fidelity to the set",
        "lower",
        "1000 times the squared MMD under a Gaussian kernel of unit features, unbiased; "
        "interval of two standard errors over random subsets of images",
    ),
    "precision": Metric(
        "precision",
        "fidelity to the set",
        "higher",
        "share of drawings that lie as near to a real image as its neighbours do",
    ),
    "recall": Metric(
        "recall",
        "fidelity to the set",
        "higher",
        "share of real images that lie as near to a drawing as its neighbours do",
    ),
    "density": Metric(
        "density",
        "fidelity to the set",
        "higher",
        "in how many neighbourhoods of real images a drawing lies, over k; 1 where the "
        "distributions are equal",
    ),
    "coverage": Metric(
        "coverage",
        "fidelity to the set",
        "higher",
        "share of real images that have a drawing in their neighbourhood",
    ),
    "top1": Metric(
        "top-1 retrieval",
        "fidelity to the class",
        "higher",
        "share whose nearest real image of the split, without the episode's supports, is of "
        "the right class, or of one that shares an identical image with it",
    ),
    "top1_exact": Metric(
        "top-1 retrieval, very class",
        "fidelity to the class",
        "higher",
        "the same, where only the very class is right",
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
        "accuracy on real images of a classifier trained on these alone; in the column of "
        "copied supports, on all supports",
    ),
    "classifier_with_supports": Metric(
        "few-shot classifier, with supports",
        "use",
        "higher",
        "accuracy on real images of a classifier trained on the real supports and these",
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
        "share that is as near to a support as the nearest twentieth of real images",
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
        "torch-fidelity's figure, for comparison with papers",
    ),
}


@dataclasses.dataclass(frozen=True)
class Score:
    """A figure and its 95 % interval; low and high are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


def table_name(split: str, shots: int, guidance_scale: float) -> str:
    return f"{split}-{shots}shot-guidance{str(guidance_scale).removesuffix('.0')}"


@dataclasses.dataclass(frozen=True)
class Table:
    """All figures of one split at one number of shots and one guidance scale.

    scores: metric -> row -> score, names as in METRICS and ROWS; a row may lack what has
    no meaning for it. by_class: metric -> class name -> mean over its drawings.
    """

    split: str
    seen: bool
    shots: int
    guidance_scale: float
    episodes: int
    drawings: int
    scores: dict[str, dict[str, Score]]
    by_class: dict[str, dict[str, float]]

    @property
    def name(self) -> str:
        return table_name(self.split, self.shots, self.guidance_scale)


@dataclasses.dataclass(frozen=True)
class Results:
    """An evaluation of a run's step. The first table is that of the unseen split."""

    name: str
    step: int
    split: str
    judge: str
    protocol: EvaluationConfig
    sampling: SamplingConfig
    tables: tuple[Table, ...]


def write_results(path: Path, results: Results) -> None:
    """Writes the file whole or not at all. JSON has no NaN: what is not finite is null."""
    values = dataclasses.asdict(results)
    values |= {"protocol": to_dict(results.protocol), "sampling": to_dict(results.sampling)}
    write_json(path, _finite(values))


def read_results(path: Path) -> Results:
    """Inverse of `write_results`. Raises DataError."""
    try:
        values = json.loads(path.read_text())
        return pydantic.TypeAdapter(Results).validate_python(_with_nan(values))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not the results of an evaluation: {first_line(error)}") from None


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
    """TensorBoard's tags: table/metric/row."""
    return {
        f"{table.name}/{metric}/{row}": score.value
        for table in results.tables
        for metric, scores in table.scores.items()
        for row, score in scores.items()
        if math.isfinite(score.value)
    }


def summary(results: Results) -> str:
    """The first tables as text for a terminal: unseen classes, and seen ones."""
    lines = [f"{results.name}, step {results.step}; the judge sees {results.judge}"]
    for table in results.tables:
        if table.guidance_scale != results.sampling.guidance_scale:
            continue
        rows = [row for row in ROWS if any(row in scores for scores in table.scores.values())]
        lines += ["", f"{table.name}: {table.drawings} drawings of {table.episodes} episodes"]
        lines.append(" " * 36 + "".join(f"{row:>19}" for row in rows))
        for metric, scores in table.scores.items():
            cells = [
                f"{scores[row].value:19.4g}" if row in scores else f"{'-':>19}" for row in rows
            ]
            lines.append(f"{METRICS[metric].label:36}" + "".join(cells))
    return "\n".join(lines)
