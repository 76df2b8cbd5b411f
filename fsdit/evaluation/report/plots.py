"""Small charts as SVG files, legible on a light page and on a dark one."""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsdit.evaluation.results import Score

INK, SAMPLES, REAL = "#7a7a7a", "#2f7fd6", "#d9822b"
# Text stays text, in a font of the viewer. With a fixed salt, equal charts are equal bytes.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fsdit",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
_MOST_TICKS = 7
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclasses.dataclass(frozen=True)
class Line:
    """Scores along the x axis, with a band where they have intervals."""

    x: Sequence[float]
    scores: Sequence[Score]
    color: str
    dashed: bool = False


def sorted_bars(values: Sequence[float], marks: Mapping[str, float]) -> str | None:
    """A chart of one bar a value, highest first, and a level line for each mark (color -> value).

    Values that are not finite have no bar. None where no bar is left.
    """
    heights = np.sort([value for value in values if np.isfinite(value)])[::-1]
    if not len(heights):
        return None

    def draw(axes: Axes) -> None:
        axes.stairs(heights, fill=True, color=SAMPLES, alpha=0.55)
        for color, value in marks.items():
            if np.isfinite(value):
                axes.axhline(value, color=color, linewidth=1.2, linestyle="--")
        axes.set_xlim(0, len(heights))
        axes.set_xticks([0, len(heights)], ["highest", "lowest"])
        left, right = axes.get_xticklabels()
        left.set_horizontalalignment("left")
        right.set_horizontalalignment("right")

    return _svg(draw)


def lines(drawn: Sequence[Line], x_label: str) -> str:
    """A chart of lines over their bands, with an axis tick at each measured x if these are few."""

    def draw(axes: Axes) -> None:
        for line in drawn:
            values = [score.value for score in line.scores]
            low = [v if s.low is None else s.low for s, v in zip(line.scores, values, strict=True)]
            high = [
                v if s.high is None else s.high for s, v in zip(line.scores, values, strict=True)
            ]
            axes.fill_between(line.x, low, high, color=line.color, alpha=0.2, linewidth=0)
            style = {"linestyle": "--"} if line.dashed else {"marker": "o", "markersize": 3}
            axes.plot(line.x, values, color=line.color, linewidth=1.4, **style)
        ticks = sorted({x for line in drawn for x in line.x})
        if len(ticks) <= _MOST_TICKS:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel(x_label)

    return _svg(draw)


@dataclasses.dataclass(frozen=True)
class Point:
    """A named point of a plane, with bars where its scores have intervals."""

    name: str
    x: Score
    y: Score
    color: str


def plane(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """A chart of points, each with its name beside it."""

    def draw(axes: Axes) -> None:
        for point in points:
            bars = {"xerr": _bar(point.x), "yerr": _bar(point.y)}
            place = point.x.value, point.y.value
            axes.errorbar(*place, **bars, color=point.color, marker="o", elinewidth=1)
            axes.annotate(point.name, place, (5, 5), textcoords="offset points", color=point.color)
        axes.margins(0.18)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _svg(draw, (4.6, 3.4))


def _bar(score: Score) -> list[list[float]] | None:
    """How far an interval reaches below and above its value; None where there is none."""
    if score.low is None or score.high is None:
        return None
    return [[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]]


def _svg(draw, size: tuple[float, float] = (3.4, 1.9)) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.locator_params(axis="y", nbins=4)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    svg = file.getvalue()
    return svg[svg.index("<svg") :]
