"""Results in words: numbers, names of tables, and the sentences that sum a table up."""

import math
from collections.abc import Callable

import numpy as np

from fsdit.evaluation.results import Results, Score, Table


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


def summary(results: Results) -> str:
    """A few sentences about the first table, on the metrics that it has."""
    table = results.tables[0]
    kind = "seen" if table.seen else "unseen"
    classes = len({name for values in table.by_class.values() for name in values})
    of = f"{classes:,} {kind}" if classes else kind
    images = "1 image" if table.shots == 1 else f"{table.shots} images"
    sentences = [
        f"At step {results.step:,} the model made {table.samples:,} samples of {of} classes "
        f"from {images} each ({table.episodes:,} episodes)."
    ]
    top1 = _finite(table, "top1")
    if "samples" in top1:
        sentences.append(
            f"Of these, {_percent(top1['samples'])} are nearest to a real image of the right class"
            + _beside(top1, "real", "of real images", _percent)
            + _beside(top1, "copied_support", "of copied supports", _percent, ", and ")
            + "."
        )
    copies = _finite(table, "near_copies")
    if "samples" in copies:
        sentences.append(
            f"{_percent(copies['samples'])} are near-copies of a support"
            + _beside(copies, "real", "of real images", _percent)
            + "."
        )
    frechet = _finite(table, "frechet_distance")
    if "samples" in frechet:
        sentences.append(
            f"The FD ({results.critic}) is {_three_digits(frechet['samples'])}"
            + _beside(frechet, "real", "between real images", _three_digits)
            + "."
        )
    return " ".join(sentences)


def _finite(table: Table, metric: str) -> dict[str, Score]:
    """The finite scores of a metric by image set."""
    scores = table.scores.get(metric, {})
    return {name: score for name, score in scores.items() if math.isfinite(score.value)}


def _beside(
    scores: dict[str, Score],
    name: str,
    what: str,
    form: Callable[[Score], str],
    joint: str = "; ",
) -> str:
    """The score of a baseline as the next part of a sentence, "" where there is none."""
    return f"{joint}{what}, {form(scores[name])}" if name in scores else ""


def _percent(score: Score) -> str:
    text = f"{100 * score.value:.1f} %"
    if score.low is None or score.high is None:
        return text
    return f"{text} ({100 * score.low:.1f} to {100 * score.high:.1f} %)"


def _three_digits(score: Score) -> str:
    return number(score.value, decimals({"": score}))
