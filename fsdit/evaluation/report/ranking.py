"""The classes of a table: ranked where each has enough samples, counted where it has few."""

import collections
import dataclasses
import math
from collections.abc import Sequence

from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.report.class_pictures import ClassPictures, evenly_spaced
from fsdit.evaluation.report.wording import LEAST_RANKED
from fsdit.evaluation.results import Table

# Classes are ranked by these metrics, then by the other metrics that a table has by class.
_RANKED_BY = ("top1", "support_distance")
_SHOWN_CLASSES = 4  # number of the best and of the worst classes that are not folded away
_MOST_COUNTED = 10  # samples of a class whose outcomes are counted one by one


@dataclasses.dataclass(frozen=True)
class ClassView:
    """The classes of a table, and which of them the page shows first.

    names: best first; by name where `ranked` is false, because a class has too few samples to be
    called better than another. metrics: the ones that rank them. shown: title -> pictures of the
    classes that are shown first. others: those of all other classes. counts: (recognised samples
    of a class, number of such classes), where a class has few samples.
    """

    ranked: bool
    names: list[str]
    metrics: list[str]
    shown: dict[str, list[ClassPictures]]
    others: list[ClassPictures]
    counts: list[tuple[int, int]]


def view_classes(table: Table, pictures: Sequence[ClassPictures]) -> ClassView:
    """Orders the classes of a table, and chooses the pictures that the page shows first.

    pictures: those of other tables are ignored.
    """
    ranked = table.samples_per_class >= LEAST_RANKED
    names = ranked_names(table) if ranked else sorted(_names(table))
    place = {name: i for i, name in enumerate(names)}
    ordered = sorted(
        (each for each in pictures if each.table == table.name),
        key=lambda each: place.get(each.name, len(place)),
    )
    metrics = [name for name in _RANKED_BY if name in table.by_class]
    if ranked:
        count = min(_SHOWN_CLASSES, (len(ordered) + 1) // 2)
        worst = ordered[count:][-count:][::-1]
        by = ", ties by ".join(METRICS[name].label for name in metrics)
        shown = {f"Best classes by {by}": ordered[:count], "Worst classes, the worst first": worst}
    else:
        some = evenly_spaced(ordered, table.name, 2 * _SHOWN_CLASSES)
        shown = {"Some classes, evenly spaced by name": some}
    chosen = {each.name for group in shown.values() for each in group}
    others = [each for each in ordered if each.name not in chosen]
    return ClassView(ranked, names, metrics, shown, others, _counts(table))


def _counts(table: Table) -> list[tuple[int, int]]:
    """(recognised samples, number of classes with so many), all recognised first."""
    each = table.samples_per_class
    values = [v for v in table.by_class.get("top1", {}).values() if math.isfinite(v)]
    if each > _MOST_COUNTED or not values:
        return []
    found = collections.Counter(round(value * each) for value in values)
    return [(hits, found[hits]) for hits in range(each, -1, -1)]


def _names(table: Table) -> set[str]:
    return {name for values in table.by_class.values() for name in values}


def ranked_names(table: Table) -> list[str]:
    """Names in `by_class`, best first. A value that is missing or not finite is the worst."""
    metrics = [name for name in (*_RANKED_BY, *METRICS) if name in table.by_class]
    return sorted(
        _names(table),
        key=lambda name: (*(_badness(table, metric, name) for metric in metrics), name),
    )


def _badness(table: Table, metric: str, name: str) -> float:
    """A number that is higher, the worse the metric of the class `name` is."""
    value = table.by_class[metric].get(name, math.nan)
    if not math.isfinite(value):
        return math.inf
    if METRICS[metric].better == "real":
        real = table.scores.get(metric, {}).get("real")
        return abs(value - real.value) if real and math.isfinite(real.value) else 0.0
    return -value if METRICS[metric].better == "higher" else value
