"""Results in words: numbers, names of tables, the sentence and figures that a reader sees first."""

import dataclasses
import math
from functools import partial

import numpy as np

from fsdit.evaluation.figures.uncertainty import exact_interval
from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.results import Results, Score, Table

# Classes with fewer samples are not ranked: the 95 % interval of 10 of 20 is 27 to 73 %.
LEAST_RANKED = 20


def number(value: float, places: int = 3) -> str:
    """The value with so many decimal places, and a typographic minus sign."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞"
    return f"{value:.{places}f}".replace("-", "\N{MINUS SIGN}")


def decimals(*sets: dict[str, Score]) -> int:
    """Decimal places for scores by image set, so that the largest has three digits.

    Where there are scores of samples or real images, only these count.
    """
    found = [score for scores in sets for score in scores.values()]
    matter = [scores[name] for scores in sets for name in ("samples", "real") if name in scores]
    largest = max((abs(s.value) for s in matter or found if math.isfinite(s.value)), default=1.0)
    return int(np.clip(3 - math.ceil(math.log10(largest or 1)), 0, 6))


def title(results: Results) -> str:
    shots = [str(n) for n in dict.fromkeys(table.shots for table in results.tables)]
    return f"{results.name}: {'- and '.join(shots)}-shot samples of {results.split} classes"


def describe(table: Table) -> str:
    """The name of a table for a heading."""
    return f"{describe_classes(table)}, {table.shots}-shot, guidance {table.guidance_scale:g}"


def describe_classes(table: Table) -> str:
    return f"{'Seen' if table.seen else 'Unseen'} classes ({table.split})"


def sentence(results: Results) -> str:
    """The result in one sentence: how often samples of the first table show their class."""
    table = results.tables[0]
    shown = "one image" if table.shots == 1 else f"{table.shots} images"
    kind = "that it was trained on" if table.seen else "that it has never seen"
    text = f"From {shown} of a class {kind}, the model makes "
    top1, copies = finite(table, "top1"), finite(table, "near_copies")
    if "samples" not in top1:
        return f"{text}{table.samples:,} samples, one class after another for {table.classes:,}."
    text += f"samples of which {percent(top1['samples'].value)} are recognised as that class"
    beside = [
        f"{what}: {percent(top1[name].value)}"
        for name, what in (("real", "real images"), ("nearest_training", "nearest training images"))
        if name in top1
    ]
    text += f" ({'; '.join(beside)})" if beside else ""
    if "samples" in copies:
        share = copies["samples"].value
        text += f", and {percent(share) if share else 'none'} copy an image that it was shown"
    return f"{text}."


@dataclasses.dataclass(frozen=True)
class KeyFigure:
    """One of the few figures that a reader sees first. notes: what is good, and the interval."""

    value: str
    label: str
    notes: tuple[str, ...]


# Metric -> what its figure says in plain words.
_KEY_FIGURES = {
    "top1": "of the samples are recognised: the real image nearest to them is of their class",
    "frechet_distance": "is the distance (FD) of the samples, as a set, from real images",
    "near_copies": "of the samples are near-copies of an image that the model was shown",
    "pairwise_distance": "is the distance between two samples of a class",
}
_GOOD = {"higher": "higher is better", "lower": "lower is better", "real": "best as real images"}


def key_figures(table: Table, most: int = 3) -> list[KeyFigure]:
    """The first few of the metrics above that a table has."""
    found = []
    for name, label in _KEY_FIGURES.items():
        scores = finite(table, name)
        if "samples" not in scores:
            continue
        sets = {n: scores[n] for n in ("samples", "real") if n in scores}
        form = percent if METRICS[name].share else partial(number, places=decimals(sets))
        notes = _GOOD[METRICS[name].better]
        if "real" in scores:
            notes += f"; real images: {form(scores['real'].value)}"
        score = scores["samples"]
        between = () if score.low is None else (f"95 %: {form(score.low)} to {form(score.high)}",)
        found.append(KeyFigure(form(score.value), label, (notes, *between)))
    return found[:most]


def class_score(metric: str, value: float, samples: int) -> Score:
    """The score of one class, with an interval where it is a share of enough samples."""
    if METRICS[metric].share and samples >= LEAST_RANKED and math.isfinite(value):
        return Score(value, *exact_interval(value, samples))
    return Score(value)


def of_class(metric: str, value: float, samples: int) -> str:
    """The score of one class, which has so many samples: a share is a count of them."""
    if not METRICS[metric].share or not math.isfinite(value):
        return number(value)
    return f"{round(value * samples)} of {samples}"


def finite(table: Table, metric: str) -> dict[str, Score]:
    """The finite scores of a metric by image set."""
    scores = table.scores.get(metric, {})
    return {name: score for name, score in scores.items() if math.isfinite(score.value)}


def percent(share: float) -> str:
    return f"{number(100 * share, 1)} %"
