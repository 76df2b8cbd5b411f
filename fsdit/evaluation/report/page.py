"""The page of an evaluation: everything that `report.html.jinja` shows."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

from fsdit.config import flatten, to_dict
from fsdit.evaluation.metrics import BY_PIXELS, METRICS, Metric
from fsdit.evaluation.report import plots, wording
from fsdit.evaluation.report.class_pictures import (
    ClassPictures,
    data_uri,
    evenly_spaced,
    image_width,
    pixelated,
    strip,
)
from fsdit.evaluation.report.ranking import view_classes
from fsdit.evaluation.results import IMAGE_SETS, Results, Table

ARROWS = {"higher": "↑", "lower": "↓", "real": "≈"}
# The picture at the top: its rows, and the most supports and samples in a row.
_ROWS, _MOST_SUPPORTS, _MOST_SAMPLES = 6, 5, 4


def render(results: Results, pictures: Sequence[ClassPictures]) -> str:
    """One HTML file that refers to nothing outside itself. All text of data is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": wording.number,
        "strip": strip,
        "svg_uri": lambda svg: data_uri("image/svg+xml", svg.encode()),
    }
    template = Path(__file__).with_name("report.html.jinja").read_text("utf-8")
    settings = {"evaluation": to_dict(results.protocol), "sampling": to_dict(results.sampling)}
    if results.ema_decay is not None:
        settings["ema_decay"] = results.ema_decay
    if results.guide:
        settings["guide"] = {"sha256": results.guide}
    return environment.from_string(template).render(
        results=results,
        title=wording.title(results),
        sentence=wording.sentence(results),
        key_figures=wording.key_figures(results.tables[0]),
        grid=[_cropped(each) for each in evenly_spaced(pictures, results.tables[0].name, _ROWS)],
        pairs=_pairs(results.tables),
        classes={table.name: view_classes(table, pictures) for table in results.tables},
        image_width=image_width(pictures),
        pixelated=pixelated(pictures),
        by_class={table.name: list(_class_plots(table)) for table in results.tables},
        planes={table.name: list(_plane_plots(table)) for table in results.tables},
        by_guidance=list(_guidance_plots(results.tables)),
        settings=flatten(settings),
        metrics=METRICS,
        groups=groups,
        decimals=wording.decimals,
        image_sets=IMAGE_SETS,
        sets_of=_sets_of,
        arrows=ARROWS,
        describe=wording.describe,
        class_score=wording.class_score,
        of_class=wording.of_class,
        colors={"samples": plots.SAMPLES, "real": plots.REAL},
    )


def _cropped(each: ClassPictures) -> ClassPictures:
    """As many pictures of a class as fit into a row."""
    return dataclasses.replace(
        each,
        supports=each.supports[:_MOST_SUPPORTS],
        samples=each.samples[:_MOST_SAMPLES],
        nearest_training=each.nearest_training[:_MOST_SAMPLES],
    )


def groups(names: Iterable[str]) -> dict[str, dict[str, Metric]]:
    """Group -> metric name -> metric, for those of METRICS that are among `names`."""
    names, found = set(names), {}
    for name, metric in METRICS.items():
        if name in names:
            found.setdefault(metric.group, {})[name] = metric
    return found


def _sets_of(table: Table) -> list[str]:
    """The image sets that have a score in a table."""
    return [name for name in IMAGE_SETS if any(name in sets for sets in table.scores.values())]


def _pairs(tables: Sequence[Table]) -> list[tuple[Table, Table]]:
    """Pairs of a table of unseen classes and one of seen classes that are otherwise alike."""
    return [
        (unseen, seen)
        for unseen in tables
        for seen in tables
        if seen.seen
        and not unseen.seen
        and (unseen.shots, unseen.guidance_scale) == (seen.shots, seen.guidance_scale)
    ]


def _class_plots(table: Table) -> Iterable[tuple[str, str]]:
    """(metric name, SVG) for each metric by class. Shares of few samples are counted instead."""
    few = table.samples_per_class < wording.LEAST_RANKED
    for name in METRICS:
        if few and METRICS[name].share:
            continue
        values = table.by_class.get(name, {})
        scores = table.scores.get(name, {})
        marks = {
            color: scores[image_set].value
            for image_set, color in (("samples", plots.SAMPLES), ("real", plots.REAL))
            if image_set in scores
        }
        svg = plots.sorted_bars(list(values.values()), marks)
        if svg:
            yield name, svg


# The plane of Boutin et al. (arXiv 2205.10370, 2301.11722): whether the class is recognised,
# against how far images of an episode are from each other, and from its supports. The features
# of a trained critic were trained to ignore differences within a class, so where there are
# distances of pixels, these are shown.
_PLANES = {"diversity": "pairwise_distance", "originality": "support_distance"}


def _plane_plots(table: Table) -> Iterable[tuple[str, str]]:
    """(caption, SVG) for each plane, with a point for each image set that has both scores."""
    recognised = table.scores.get("top1", {})
    for caption, metric in _PLANES.items():
        name = BY_PIXELS + metric if BY_PIXELS + metric in table.scores else metric
        spread = table.scores.get(name, {})
        points = [
            plots.Point(IMAGE_SETS[each], spread[each], recognised[each], _color(each))
            for each in IMAGE_SETS
            if each in spread.keys() & recognised.keys()
            and math.isfinite(spread[each].value + recognised[each].value)
        ]
        if points:
            yield caption, plots.plane(points, METRICS[name].label, "recognizability")


def _color(image_set: str) -> str:
    return {"samples": plots.SAMPLES, "real": plots.REAL}.get(image_set, plots.INK)


def _guidance_plots(
    tables: Sequence[Table],
) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    """(caption, [(metric name, SVG)]) for each split and shots with several guidance scales."""
    for split, shots in dict.fromkeys((table.split, table.shots) for table in tables):
        alike = [table for table in tables if (table.split, table.shots) == (split, shots)]
        alike.sort(key=lambda table: table.guidance_scale)
        if len({table.guidance_scale for table in alike}) > 1:
            yield (
                f"{wording.describe_classes(alike[0])}, {shots}-shot",
                [(name, svg) for name in METRICS if (svg := _guidance_plot(alike, name))],
            )


def _guidance_plot(tables: Sequence[Table], metric: str) -> str | None:
    found = []
    for name, color in (("real", plots.REAL), ("samples", plots.SAMPLES)):
        having = [table for table in tables if name in table.scores.get(metric, {})]
        if having:
            scores = [table.scores[metric][name] for table in having]
            x = [table.guidance_scale for table in having]
            found.append(plots.Line(x, scores, color, dashed=name == "real"))
    return plots.lines(found, "guidance scale") if found else None
