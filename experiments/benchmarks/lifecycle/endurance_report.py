"""The table of an endurance run, and whether it has passed."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.lifecycle.disturbances import KINDS, NOTICES, Record
from fsdit.errors import EXIT_ERROR

Losses = Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of an endurance run. failures: reasons why it has not passed."""

    records: Sequence[Record]
    disturbed: Losses
    undisturbed: Losses
    failures: list[str]
    seconds: float
    seed: int
    notes: Sequence[str] = ()


def failures(
    records: Sequence[Record],
    disturbed: Losses,
    undisturbed: Losses,
    *,
    finished: bool,
    asked: int,
    interval: int,
) -> list[str]:
    """Reasons why a run has not passed, or [].

    asked: number of disturbances that were wanted. interval: steps between checkpoints.
    """
    found = []
    if not finished:
        found.append("the run did not reach its end")
    if len(records) < asked or any(not r.seconds for r in records):
        found.append(f"{sum(bool(r.seconds) for r in records)} of {asked} disturbances were done")
    steps = [step for step, _ in disturbed]
    if steps != [step for step, _ in undisturbed] or steps != list(range(1, len(steps) + 1)):
        found.append("the log does not have every step once")
    elif other := [
        step for (step, a), (_, b) in zip(disturbed, undisturbed, strict=True) if a != b
    ]:
        found.append(f"{len(other)} losses are not those of the undisturbed run, from {other[0]}")
    for number, record in enumerate(records, 1):
        found += [f"disturbance {number}, {record.kind}: {f}" for f in _excess(record, interval)]
    return found


def _excess(record: Record, interval: int) -> list[str]:
    """What a disturbance lost beyond the steps since the newest undamaged checkpoint."""
    if not record.restarted:
        return []
    found = []
    if record.resumed < record.undamaged:
        found.append(
            f"resumed from {record.resumed}, but checkpoint {record.undamaged} was undamaged"
        )
    # A checkpoint is written while the next steps run, and may be lost with them.
    if record.kind in ("kill", "stop") and record.lost >= 2 * interval:
        found.append(f"{record.lost} steps were lost, with a save every {interval}")
    if record.kind in NOTICES and record.lost:
        found.append(f"{record.lost} steps were lost, though it was asked to save")
    return found


def write(folder: Path, outcome: Outcome) -> int:
    """Writes results.json and table.md, and prints the table; returns the exit status."""
    values = {
        "passed": not outcome.failures,
        "failures": outcome.failures,
        "seed": outcome.seed,
        "seconds": outcome.seconds,
        "steps": len(outcome.disturbed),
        "disturbances": [{**dataclasses.asdict(r), "lost": r.lost} for r in outcome.records],
    }
    (folder / "results.json").write_text(json.dumps(values, indent=1) + "\n")
    text = table(outcome)
    (folder / "table.md").write_text(text)
    print(text, flush=True)
    return EXIT_ERROR if outcome.failures else 0


def table(outcome: Outcome) -> str:
    """The results in Markdown, with a line for each kind of disturbance."""
    lines = [
        "| disturbance | times | restarts | steps lost: mean, most | seconds to the next step |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, meaning in KINDS.items():
        mine = [r for r in outcome.records if r.kind == kind]
        if mine:
            lines.append(_row(f"{kind} ({meaning})", mine))
    if outcome.records:
        lines.append(_row("all", outcome.records))
    equal = sum(a == b for a, b in zip(outcome.disturbed, outcome.undisturbed, strict=False))
    lines += [
        "",
        f"{len(outcome.disturbed)} steps, {equal} of them with the loss of the undisturbed run "
        f"to the bit; seed {outcome.seed}; {outcome.seconds / 60:.1f} minutes.",
        *outcome.notes,
        "Passed." if not outcome.failures else "FAILED:",
        *(f"- {failure}" for failure in outcome.failures),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, records: Sequence[Record]) -> str:
    lost = [r.lost for r in records]
    seconds = [r.seconds for r in records]
    restarts = sum(r.restarted for r in records)
    return (
        f"| {name} | {len(records)} | {restarts} | {statistics.mean(lost):.1f}, {max(lost)} "
        f"| median {statistics.median(seconds):.0f}, most {max(seconds):.0f} |"
    )
