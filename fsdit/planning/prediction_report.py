"""Predicted times as text for people."""

from collections.abc import Sequence

from fsdit.planning.columns import aligned
from fsdit.planning.plan import Plan
from fsdit.planning.schedule.calibration import Check
from fsdit.planning.schedule.prediction import Prediction

_SHOWN = 12
_BASES = {
    "own": "its schedule",
    "equal": "the schedule of an equal operation",
    "similar": "that of a similar one",
    "estimate": "XLA's estimate",
    "none": "no schedule",
}
LIMITS = (
    "not in it: links that several transfers share or that other jobs load, routes over more "
    "than one axis of the slice, a clock below the nominal one, stalls of the fast memory, and "
    "the host (input, dispatch, checkpoints). Nothing was run on a TPU."
)


def predicted(plan: Plan) -> list[str]:
    """Lines on the predicted time of a plan; none where no prediction was asked for."""
    outcome = plan.predicted
    if outcome is None:
        return []
    if outcome.prediction is None:
        return [f"no predicted time: {outcome.trouble}; the figures above stand without it"]
    made = outcome.prediction
    rate = plan.images / made.seconds
    return [
        f"predicted time   {_ms(made.seconds)} ms, MFU {plan.mfu:.1%}, {rate:,.0f} images/s on "
        "all chips",
        *(_indented(calibration(outcome.checks)) if outcome.checks else []),
        "  " + LIMITS,
        "  time by part of the model; compute and memory alone, ms",
        *_indented(parts(made)),
        "  largest operations, ms of all runs",
        *_indented(operations(made)),
        "  " + _bases(made),
    ]


def calibration(checks: Sequence[Check]) -> str:
    """A line for each calibration program, with the error of its prediction."""
    rows = [
        (f"calibration: {c.name}", f"predicted {_ms(c.predicted)} ms", f"arithmetic {_ms(c.known)}",
         f"error {c.error:+.1%}")
        for c in checks
    ]  # fmt: skip
    return aligned(rows, words=1)


def parts(made: Prediction) -> str:
    """A table with one line for each part of the model."""
    rows = [("part", "ms", "share", "compute", "memory")]
    for part in made.parts:
        share = f"{part.seconds / made.seconds:.1%}"
        rows.append((part.name, _ms(part.seconds), share, _ms(part.compute), _ms(part.memory)))
    return aligned(rows, words=1)


def operations(made: Prediction) -> str:
    """A table of the largest operations."""
    rows = [("operation", "part", "computes", "runs", "ms")]
    for one in made.operations[:_SHOWN]:
        computes = one.source.rpartition("/")[2] or "-"
        rows.append((one.name, one.part, computes, str(one.count), _ms(one.seconds)))
    return aligned(rows, words=3)


def _bases(made: Prediction) -> str:
    shares = [
        f"{_BASES[basis]} {made.by_basis[basis] / made.seconds:.0%}"
        for basis in _BASES
        if basis in made.by_basis
    ]
    return f"share of the time of operations timed by {', '.join(shares)}; the rest are waits"


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
