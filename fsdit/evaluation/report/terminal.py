"""The end of an evaluation in a terminal: a short table, and the sentence that matters."""

from fsdit.evaluation.metrics import METRICS, SHORT
from fsdit.evaluation.report import wording
from fsdit.evaluation.results import Results, Table

_OF_SEEN = "top1"  # the metric that has a second row, of the seen classes
# Image set -> head of its column: real images, a copied support, the nearest training image.
_BASELINES = {"real": "real", "copied_support": "support", "nearest_training": "training"}
_BETTER = {"higher": "higher", "lower": "lower", "real": "as real"}


def summary(results: Results) -> str:
    """A table of at most eight lines, and the sentence that sums it up.

    The rows are of the first table, and one of the seen classes beside it. All scores are in
    the report and in results.json.
    """
    first = results.tables[0]
    guide = f"; guide: {results.sampling.guide}" if results.guide else ""
    lines = [
        f"{wording.describe(first)}: {first.samples:,} samples, by {results.critic}{guide}",
        _line("", "samples", "95 % interval", list(_BASELINES.values()), "better"),
    ]
    seen = _seen_beside(results, first)
    for metric, label in SHORT.items():
        lines += _row(label, metric, first)
        if metric == _OF_SEEN and seen:
            lines += _row(f"{label}, seen", metric, seen)
    return "\n".join([*lines, "", wording.sentence(results)])


def _seen_beside(results: Results, first: Table) -> Table | None:
    """The table of seen classes that is otherwise like the first one, which is of unseen ones."""
    wanted = (True, first.shots, first.guidance_scale)
    others = (t for t in results.tables[1:] if (t.seen, t.shots, t.guidance_scale) == wanted)
    return next(others, None)


def _row(label: str, metric: str, table: Table) -> list[str]:
    """The line of a metric: the score of the samples, its interval, and those of the baselines.

    No line where the table has no such score.
    """
    scores = table.scores.get(metric, {})
    if "samples" not in scores:
        return []
    samples, places = scores["samples"], 3 if METRICS[metric].share else wording.decimals(scores)
    form = f".{places}f"
    between = "-" if samples.low is None else f"{samples.low:{form}} to {samples.high:{form}}"
    baselines = [f"{scores[n].value:{form}}" if n in scores else "-" for n in _BASELINES]
    better = _BETTER[METRICS[metric].better]
    return [_line(label, f"{samples.value:{form}}", between, baselines, better)]


def _line(label: str, samples: str, between: str, baselines: list[str], better: str) -> str:
    cells = "".join(f"{each:>10}" for each in baselines)
    return f"{label:18}{samples:>8}  {between:18}{cells}  {better}".rstrip()
