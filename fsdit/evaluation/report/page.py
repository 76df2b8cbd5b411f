"""The page of an evaluation: what `report.html.jinja` shows, in the order it is shown."""

import base64
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fsdit.config import flatten, to_dict
from fsdit.evaluation.report import plots
from fsdit.evaluation.results import METRICS, ROWS, Metric, Results, Score, Table

ARROWS = {"higher": "↑", "lower": "↓", "real": "≈"}
# Classes are put in order by these, then by whatever else there is of each class.
_RANKED_BY = ("top1", "support_distance")
_SHOWN_CLASSES = 4  # of the best and of the worst; the others are folded away
_STRIP_COLUMNS = 5
_LOSSLESS_SIZE, _LARGEST_SIZE = 64, 128  # pixels a side of an embedded image


@dataclasses.dataclass(frozen=True, eq=False)
class ClassPictures:
    """One episode of a class, of the table with the name `table`.

    real: other images of the class; nearest_training: of each drawing, the training image
    nearest to it.
    """

    table: str
    name: str
    supports: UInt8[np.ndarray, "K H W C"]
    drawings: UInt8[np.ndarray, "R H W C"]
    real: UInt8[np.ndarray, "S H W C"]
    nearest_training: UInt8[np.ndarray, "R H W C"]


def render(results: Results, pictures: Sequence[ClassPictures]) -> str:
    """One HTML file that refers to nothing outside itself. All text of data is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "strip": _strip, "data_uri": _svg_uri}
    template = Path(__file__).with_name("report.html.jinja").read_text("utf-8")
    run_scale = results.sampling.guidance_scale
    main = [t for t in results.tables if t.guidance_scale == run_scale] or [results.tables[0]]
    settings = {"evaluation": to_dict(results.protocol), "sampling": to_dict(results.sampling)}
    return environment.from_string(template).render(
        results=results,
        title=f"{results.name}: {_shots(results)} drawings of {results.split} classes",
        summary=summary(results),
        main=main,
        others=[table for table in results.tables if table not in main],
        pairs=_pairs(results.tables),
        classes={table.name: _classes(table, pictures) for table in results.tables},
        image_width=_image_width(pictures),
        pixelated=_pixelated(pictures),
        by_class={table.name: list(_class_plots(table)) for table in results.tables},
        by_guidance=list(_guidance_plots(results.tables)),
        settings=flatten(settings),
        metrics=METRICS,
        groups=groups,
        decimals=decimals,
        rows=ROWS,
        arrows=ARROWS,
        describe=describe,
        colors={"drawn": plots.DRAWN, "real": plots.REAL},
    )


def describe(table: Table) -> str:
    return f"{_kind(table)}, {table.shots}-shot, guidance {table.guidance_scale:g}"


def _kind(table: Table) -> str:
    return f"{'Seen' if table.seen else 'Unseen'} classes ({table.split})"


def groups(names: Iterable[str]) -> dict[str, dict[str, Metric]]:
    """Group -> metric name -> metric, for those of METRICS that are among `names`."""
    names, found = set(names), {}
    for name, metric in METRICS.items():
        if name in names:
            found.setdefault(metric.group, {})[name] = metric
    return found


def decimals(*rows: dict[str, Score]) -> int:
    """How many figures by row are shown with: three digits of the largest of what matters."""
    found = [score for scores in rows for score in scores.values()]
    matter = [scores[row] for scores in rows for row in ("drawings", "real") if row in scores]
    largest = max((abs(s.value) for s in matter or found if math.isfinite(s.value)), default=1.0)
    return int(np.clip(3 - math.ceil(math.log10(largest or 1)), 0, 6))


def number(value: float, places: int = 3) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞"
    return f"{value:.{places}f}".replace("-", "\N{MINUS SIGN}")


def summary(results: Results) -> str:
    """A few sentences on the first table, of what was measured in it."""
    table = results.tables[0]
    kind = "seen" if table.seen else "unseen"
    classes = len({name for values in table.by_class.values() for name in values})
    of = f"{classes:,} {kind}" if classes else kind
    images = "1 image" if table.shots == 1 else f"{table.shots} images"
    told = [
        f"At step {results.step:,} the model drew {table.drawings:,} images of {of} classes "
        f"from {images} each ({table.episodes:,} episodes)."
    ]
    top1 = _known(table, "top1")
    if "drawings" in top1:
        told.append(
            f"Of these, {_percent(top1['drawings'])} are nearest to a real image of the right class"
            + _beside(top1, "real", "of real images", _percent)
            + _beside(top1, "copied_support", "of copied supports", _percent, ", and ")
            + "."
        )
    copies = _known(table, "near_copies")
    if "drawings" in copies:
        told.append(
            f"{_percent(copies['drawings'])} are near-copies of a support"
            + _beside(copies, "real", "of real images", _percent)
            + "."
        )
    frechet = _known(table, "frechet_distance")
    if "drawings" in frechet:
        told.append(
            f"The Fréchet distance is {_three_digits(frechet['drawings'])}"
            + _beside(frechet, "real", "between real images", _three_digits)
            + "."
        )
    return " ".join(told)


def _known(table: Table, metric: str) -> dict[str, Score]:
    scores = table.scores.get(metric, {})
    return {row: score for row, score in scores.items() if math.isfinite(score.value)}


def _beside(scores: dict[str, Score], row: str, what: str, form: Any, joint: str = "; ") -> str:
    return f"{joint}{what}, {form(scores[row])}" if row in scores else ""


def _percent(score: Score) -> str:
    text = f"{100 * score.value:.1f} %"
    if score.low is None or score.high is None:
        return text
    return f"{text} ({100 * score.low:.1f} to {100 * score.high:.1f} %)"


def _three_digits(score: Score) -> str:
    return number(score.value, decimals({"": score}))


def _shots(results: Results) -> str:
    shots = [str(n) for n in dict.fromkeys(table.shots for table in results.tables)]
    return "- and ".join(shots) + "-shot"


def _pairs(tables: Sequence[Table]) -> list[tuple[Table, Table]]:
    """Tables of unseen classes with those of seen ones made the same way."""
    return [
        (unseen, seen)
        for unseen in tables
        for seen in tables
        if seen.seen
        and not unseen.seen
        and (unseen.shots, unseen.guidance_scale) == (seen.shots, seen.guidance_scale)
    ]


def ranked_classes(table: Table) -> list[str]:
    """Names in `by_class`, best first. A figure that is missing or not finite is worst."""
    order = [name for name in (*_RANKED_BY, *METRICS) if name in table.by_class]

    def badness(name: str, metric: str) -> float:
        value = table.by_class[metric].get(name, math.nan)
        if not math.isfinite(value):
            return math.inf
        if METRICS[metric].better == "real":
            real = table.scores.get(metric, {}).get("real")
            return abs(value - real.value) if real and math.isfinite(real.value) else 0.0
        return -value if METRICS[metric].better == "higher" else value

    names = {name for values in table.by_class.values() for name in values}
    return sorted(names, key=lambda name: (*(badness(name, metric) for metric in order), name))


@dataclasses.dataclass(frozen=True)
class _Classes:
    """A table's classes: all names best first, by these metrics, and the pictures to show."""

    ranked: list[str]
    ranked_by: list[str]
    best: list[ClassPictures]
    worst: list[ClassPictures]
    others: list[ClassPictures]


def _classes(table: Table, pictures: Sequence[ClassPictures]) -> _Classes:
    ranked = ranked_classes(table)
    place = {name: i for i, name in enumerate(ranked)}
    shown = sorted(
        (each for each in pictures if each.table == table.name),
        key=lambda each: place.get(each.name, len(place)),
    )
    count = min(_SHOWN_CLASSES, (len(shown) + 1) // 2)
    rest = shown[count:]
    worst = rest[-count:][::-1]
    others = rest[: len(rest) - len(worst)]
    by = [name for name in _RANKED_BY if name in table.by_class]
    return _Classes(ranked, by, shown[:count], worst, others)


def _class_plots(table: Table) -> Iterable[tuple[str, str]]:
    """(metric name, SVG) for each metric by class."""
    for name in METRICS:
        values = table.by_class.get(name, {})
        scores = table.scores.get(name, {})
        marks = {
            color: scores[row].value
            for row, color in (("drawings", plots.DRAWN), ("real", plots.REAL))
            if row in scores
        }
        svg = plots.sorted_bars(list(values.values()), marks)
        if svg:
            yield name, svg


def _guidance_plots(
    tables: Sequence[Table],
) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    """(caption, [(metric name, SVG)]) for each split and shots drawn at several scales."""
    for split, shots in dict.fromkeys((table.split, table.shots) for table in tables):
        drawn = [table for table in tables if (table.split, table.shots) == (split, shots)]
        drawn.sort(key=lambda table: table.guidance_scale)
        if len({table.guidance_scale for table in drawn}) > 1:
            yield (
                f"{_kind(drawn[0])}, {shots}-shot",
                [(name, svg) for name in METRICS if (svg := _guidance_plot(drawn, name))],
            )


def _guidance_plot(tables: Sequence[Table], metric: str) -> str | None:
    found = []
    for row, color in (("real", plots.REAL), ("drawings", plots.DRAWN)):
        having = [table for table in tables if row in table.scores.get(metric, {})]
        if having:
            scores = [table.scores[metric][row] for table in having]
            x = [table.guidance_scale for table in having]
            found.append(plots.Line(x, scores, color, dashed=row == "real"))
    return plots.lines(found, "guidance scale") if found else None


@dataclasses.dataclass(frozen=True)
class _Strip:
    """Images side by side as a data URI; `columns` of them in the width."""

    src: str
    columns: int


def _strip(images: UInt8[np.ndarray, "N H W C"]) -> _Strip | None:
    """The images in lines of five with see-through gaps; None for none at all.

    Small ones are kept as they are, larger ones are stored as a viewer would hardly notice.
    """
    count, height, width, _ = images.shape
    if not count:
        return None
    gap, columns = max(1, height // 24), min(count, _STRIP_COLUMNS)
    rows = math.ceil(count / columns)
    sheet = Image.new(
        "RGBA", (columns * (width + gap) - gap, rows * (height + gap) - gap), (0, 0, 0, 0)
    )
    for i, image in enumerate(images):
        place = ((i % columns) * (width + gap), (i // columns) * (height + gap))
        sheet.paste(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), place)
    file, kind = io.BytesIO(), "png"
    if max(height, width) <= _LOSSLESS_SIZE:
        (sheet.convert("LA") if images.shape[-1] == 1 else sheet).save(file, "PNG", optimize=True)
    else:
        kind, scale = "webp", min(1.0, _LARGEST_SIZE / max(height, width))
        size = (round(sheet.width * scale), round(sheet.height * scale))
        sheet.resize(size, Image.Resampling.LANCZOS).save(file, "WEBP", quality=80)
    return _Strip(f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", columns)


def _pixelated(pictures: Sequence[ClassPictures]) -> bool:
    return all(max(each.drawings.shape[1:3]) <= _LOSSLESS_SIZE for each in pictures)


def _image_width(pictures: Sequence[ClassPictures]) -> int:
    """Pixels of the page: small images enlarged a whole number of times, large ones reduced."""
    if not pictures or not _pixelated(pictures):
        return 68
    width = pictures[0].drawings.shape[2]
    return width * max(1, 48 // width)


def _svg_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
