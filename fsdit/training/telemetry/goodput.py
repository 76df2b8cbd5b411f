"""Goodput: the share of a run's wall time, over all its starts, that became useful steps.

    goodput = seconds of steps that were not lost / wall time                      (1)
    wall time = sum of the seconds of all PARTS                                    (2)
              = end of the last start - begin of the first one, in Unix time

A step is lost when a later start resumes from an earlier step and computes it again; its
time moves from the part "step" to the part "lost". "down" is the time between two starts.

W/goodput.jsonl has one JSON object a line, appended by the main process:

    {"event": "start", "started": Unix time of the process, "step": restored, "seconds": ...}
    {"event": "mark", "step": completed, "seconds": {part: since the process started}}
    {"event": "end", ...}    with the fields of a mark

A mark is written with each line of metrics.jsonl, with each checkpoint, and at least once a
minute while steps are dispatched. What a killed process did after its last mark is unknown
and counts as "down", and so does a start that ended before it dispatched its first step.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fsdit.training.telemetry.clock import Clock
from fsdit.training.telemetry.logs import lines
from fsdit.training.telemetry.logs.lines import LineLog

# Parts of a process, measured by its clock. "step" is the time in the loop outside the others.
MEASURED = (
    "step",
    "startup",
    "restore",
    "compile",
    "data_wait",
    "checkpoint_stall",
    "evaluation",
    "other",
)
# With the parts that follow from the lines of several starts: steps done again, and time between.
PARTS = (*MEASURED, "lost", "down")
_MARK_SECONDS = 60.0
_LONGEST = 1e11  # seconds; a larger number is damage (Unix time reaches it in the year 5138)


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Where the wall time went. seconds: of each of PARTS. steps: completed and not lost."""

    seconds: dict[str, float]
    steps: int = 0
    lost_steps: int = 0
    starts: int = 0

    @property
    def wall(self) -> float:
        """Seconds of wall time, equation 2."""
        return sum(self.seconds.values())

    def share(self, part: str) -> float:
        """The share of the wall time; of "step" it is the goodput, equation 1."""
        return self.seconds[part] / max(self.wall, 1e-9)


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Steps first + 1 to last, and the seconds they took together."""

    first: int
    last: int
    seconds: float


def account(rows: Iterable[dict[str, Any]]) -> Breakdown:
    """The breakdown by the lines of all starts, in the order of the file."""
    seconds, kept = dict.fromkeys(PARTS, 0.0), []
    lost_steps = starts = 0
    step, before, ended = 0, dict.fromkeys(MEASURED, 0.0), None
    started = None
    for line in rows:
        if line["event"] == "start":
            started, step = line["started"], line["step"]
            if ended is not None:
                seconds["down"] += max(started - ended, 0.0)
            kept, lost = _rewind(kept, step)
            seconds["lost"] += sum(stretch.seconds for stretch in lost)
            lost_steps += sum(stretch.last - stretch.first for stretch in lost)
            before, starts = dict.fromkeys(MEASURED, 0.0), starts + 1
        elif started is None:  # the start that this mark belongs to is missing
            continue
        now = {part: max(line["seconds"].get(part, 0.0), before[part]) for part in MEASURED}
        for part in MEASURED[1:]:
            seconds[part] += now[part] - before[part]
        kept.append(_Stretch(step, max(line["step"], step), now["step"] - before["step"]))
        step, before, ended = kept[-1].last, now, started + sum(now.values())
    seconds["step"] = sum((stretch.seconds for stretch in kept), 0.0)
    steps = sum(stretch.last - stretch.first for stretch in kept)
    return Breakdown(seconds, steps, lost_steps, starts)


def _rewind(stretches: list[_Stretch], step: int) -> tuple[list[_Stretch], list[_Stretch]]:
    """(stretches up to `step`, stretches beyond it).

    A stretch with `step` inside is split in two, as if all its steps took equally long.
    """
    kept, lost = [], []
    for stretch in stretches:
        if stretch.first >= step:
            lost.append(stretch)
        elif stretch.last <= step:
            kept.append(stretch)
        else:
            share = (step - stretch.first) / (stretch.last - stretch.first)
            kept.append(_Stretch(stretch.first, step, stretch.seconds * share))
            lost.append(_Stretch(step, stretch.last, stretch.seconds * (1 - share)))
    return kept, lost


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The valid lines of a goodput file, or [] where there is no file. Warns of damaged lines."""
    return [row for _, row in lines.read_lines(path, _checked)]


def _checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its types checked.

    Raises ValueError, KeyError or TypeError where it is no line of a goodput file.
    """
    event, step, seconds = row["event"], row["step"], row["seconds"]
    if event not in ("start", "mark", "end") or type(step) is not int:
        raise ValueError
    if not 0 <= step < 2**63 or not isinstance(seconds, dict):
        raise ValueError
    started = _seconds(row["started"]) if event == "start" else None
    parts = {part: _seconds(seconds[part]) for part in MEASURED if part in seconds}
    return {"event": event, "step": step, "started": started, "seconds": parts}


def _seconds(value: object) -> float:
    if type(value) not in (int, float) or not 0 <= value < _LONGEST:
        raise ValueError
    return float(value)


def summary(found: Breakdown) -> str:
    """One line for the terminal: the goodput, then the other parts, largest first."""
    rest = sorted(PARTS[1:], key=found.seconds.get, reverse=True)
    parts = [f"{_NAMES[p]} {found.share(p):.1%}" for p in rest if found.share(p) >= 0.0005]
    starts = f"{found.starts} start{'s' if found.starts > 1 else ''}"
    return (
        f"goodput: {found.share('step'):.1%} of {_duration(found.wall)} over {starts} "
        f"in {found.steps} useful steps; {', '.join(parts)}; {found.lost_steps} steps lost"
    )


_NAMES = {part: part.replace("_", " ") for part in PARTS} | {"startup": "start-up"}


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


class Goodput:
    """Keeps W/goodput.jsonl while a process runs. For the main process.

    Methods that write raise OutputError.
    """

    def __init__(self, path: Path, clock: Clock, step: int):
        """step: the restored step, or 0."""
        self._clock, self._marked, self._restored = clock, time.monotonic(), step
        self._log = LineLog(path, _checked)
        line = self._append("start", step, started=clock.started)
        # Earlier starts are accounted for once; `now` adds what this process did since.
        self._base, self._first = account([*self._log.rows, line]), line["seconds"]

    def mark(self, step: int, event: str = "mark") -> None:
        """Writes that `step` is complete, and the seconds of all parts so far."""
        self._append(event, step)
        self._marked = time.monotonic()

    def mark_if_due(self, step: int) -> None:
        """Writes a mark if the last one is older than a minute."""
        if time.monotonic() - self._marked > _MARK_SECONDS:
            self.mark(step)

    def now(self, step: int) -> Breakdown:
        """The breakdown over all starts up to now, when `step` is complete."""
        current = self._clock.seconds()
        new = {p: current.get(p, 0.0) - self._first.get(p, 0.0) for p in MEASURED}
        seconds = {p: self._base.seconds[p] + new.get(p, 0.0) for p in PARTS}
        steps = self._base.steps + step - self._restored
        return dataclasses.replace(self._base, seconds=seconds, steps=steps)

    def row(self, step: int) -> dict[str, float]:
        """The goodput/* values of the logs: shares of the wall time, and counts."""
        found = self.now(step)
        return {
            **{f"goodput/{part}": found.share(part) for part in PARTS},
            "goodput/wall_seconds": found.wall,
            "goodput/lost_steps": found.lost_steps,
            "goodput/starts": found.starts,
        }

    def close(self, step: int) -> Breakdown:
        """Writes the last line; returns the breakdown."""
        self.mark(step, "end")
        self._log.close()
        return self.now(step)

    def _append(self, event: str, step: int, **more: float) -> dict[str, Any]:
        seconds = {part: round(value, 4) for part, value in self._clock.seconds().items()}
        line = {"event": event, **more, "step": step, "seconds": seconds}
        self._log.append(line)
        return line
