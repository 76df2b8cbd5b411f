"""The classes of a table from best to worst, and which of them the page shows first."""

import dataclasses
import math
from collections.abc import Sequence

from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.report.class_pictures import ClassPictures
from fsdit.evaluation.results import Table

# Classes are ranked by these metrics, then by the other metrics that a table has by class.
_RANKED_BY = ("top1", "support_distance")
_SHOWN_CLASSES = 4  # number of the best and of the worst classes that are not folded away


@dataclasses.dataclass(frozen=True)
class RankedClasses:
    """The classes of a table.

    names: best first. metrics: the ones that rank them. best, worst, others: the pictures of
    the classes, those of `worst` with the worst class first.
    """

    names: list[str]
    metrics: list[str]
    best: list[ClassPictures]
    worst: list[ClassPictures]
    others: list[ClassPictures]


def rank_classes(table: Table, pictures: Sequence[ClassPictures]) -> RankedClasses:
    """Ranks the classes of a table, and divides their pictures into best, worst and others.

    pictures: those of other tables are ignored.
    """
    names = ranked_names(table)
    place = {name: i for i, name in enumerate(names)}
    shown = sorted(
        (each for each in pictures if each.table == table.name),
        key=lambda each: place.get(each.name, len(place)),
    )
    count = min(_SHOWN_CLASSES, (len(shown) + 1) // 2)
    rest = shown[count:]
    worst = rest[-count:][::-1]
    others = rest[: len(rest) - len(worst)]
    metrics = [name for name in _RANKED_BY if name in table.by_class]
    return RankedClasses(names, metrics, shown[:count], worst, others)


def ranked_names(table: Table) -> list[str]:
    """Names in `by_class`, best first. A value that is missing or not finite is the worst."""
    metrics = [name for name in (*_RANKED_BY, *METRICS) if name in table.by_class]
    names = {name for values in table.by_class.values() for name in values}
    return sorted(
        names, key=lambda name: (*(_badness(table, metric, name) for metric in metrics), name)
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
