"""The end of an evaluation in a terminal: a short table, and the sentence that matters."""

from collections.abc import Mapping

from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.report import wording
from fsdit.evaluation.results import Results, Score, Table

# (metric, whether of seen classes) -> label. With its title and its head the table has eight lines.
_ROWS = {
    ("top1", False): "recognised",
    ("top1", True): "recognised, seen",
    ("frechet_distance", False): "FD",
    ("recall", False): "recall",
    ("pairwise_distance", False): "pairwise distance",
    ("near_copies", False): "near-copies",
}
# Image set -> head of its column: real images, a copied support, the nearest training image.
_BASELINES = {"real": "real", "copied_support": "support", "nearest_training": "training"}
_BETTER = {"higher": "higher", "lower": "lower", "real": "as real"}


def summary(results: Results) -> str:
    """A table of at most eight lines, 80 columns wide, and the sentence that sums it up.

    The rows are of the first table, and one of the seen classes beside it. All scores are in
    the report and in results.json.
    """
    first = results.tables[0]
    lines = [
        f"{wording.describe(first)}: {first.samples:,} samples, by {results.critic}",
        _line("", "samples", "95 % interval", list(_BASELINES.values()), "better"),
    ]
    for (metric, of_seen), label in _ROWS.items():
        table = _seen_beside(results, first) if of_seen else first
        if table and "samples" in table.scores.get(metric, {}):
            lines.append(_row(label, metric, table.scores[metric]))
    return "\n".join([*lines, "", wording.sentence(results)])


def _seen_beside(results: Results, first: Table) -> Table | None:
    """The table of seen classes that is otherwise like the first one, which is of unseen ones."""
    wanted = (True, first.shots, first.guidance_scale)
    others = (t for t in results.tables[1:] if (t.seen, t.shots, t.guidance_scale) == wanted)
    return next(others, None)


def _row(label: str, metric: str, scores: Mapping[str, Score]) -> str:
    """One metric: the score of the samples and its interval, and those of the baselines."""
    samples, places = scores["samples"], 3 if METRICS[metric].share else wording.decimals(scores)
    form = f".{places}f"
    between = "-" if samples.low is None else f"{samples.low:{form}} to {samples.high:{form}}"
    baselines = [f"{scores[n].value:{form}}" if n in scores else "-" for n in _BASELINES]
    better = _BETTER[METRICS[metric].better]
    return _line(label, f"{samples.value:{form}}", between, baselines, better)


def _line(label: str, samples: str, between: str, baselines: list[str], better: str) -> str:
    cells = "".join(f"{each:>10}" for each in baselines)
    return f"{label:18}{samples:>8}  {between:18}{cells}  {better}".rstrip()
