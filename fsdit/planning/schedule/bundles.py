"""Cycles of one operation, from the final schedule that libtpu's compiler writes for it.

A TPU core runs one bundle of instructions a cycle. The final schedule of an operation lists its
bundles, one a line, and marks each loop around a bundle with ">":

       0   :  { ... }                                first bundle of the operation
     0x7 LB: > { ... }                               first bundle of a loop
     0x8   : > > { ... }                             a bundle of a loop inside a loop
    0x38   : > { ... scmp.ge.s32.totalorder %s1, 98 /* loop exit test */ ... }
    0x40   :  { ... } /* exit bundle: ... */         last bundle of the operation

Empty bundles have no marks. A matrix unit takes its rows one after another, and the core waits
where a schedule offers them faster than that. With n(loop) the bundles that an iteration of the
loop itself runs, r(loop) the rows that they hand to the busiest matrix unit, and p rows a cycle,

    cycles(loop) = trips x (max(n(loop), r(loop) / p) + sum of cycles(inner loops))   (1)

A pipelined loop over windows of an array makes some iterations more than there are windows, to
fill and empty the pipeline. They do almost nothing, so its trips are the number of windows.

A product that sums over several windows writes its result after the last of them. The bundles
that do so lie behind a branch that skips them unless an index has one certain value:

    0x53   : > { ... %p62_p3 = scmp.ne.s32.totalorder %s60, 0 ... }
  0x169f   : > { ... sbr.rel (%p62_p3) target = $region26 }
  0x1ab9 PF: > { ... } /* ... region 26 ... */     the first bundle behind them

With w windows along the innermost axis, an iteration runs 1 / w of these bundles on average.
All other bundles behind a branch count as run in every iteration.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*:\s*((?:>\s*)*)\{")
_EMPTY = re.compile(r"\{\s*\}\s*(/\*|$)")
_EXIT_TEST = re.compile(r"scmp\.ge\.s32\.totalorder [^,]+, (\d+) /\* loop exit test")
_WINDOWS = re.compile(r"iteration_bounds: \(([\d, ]+)\)")
_UNEQUAL = re.compile(r"(%p\d+)_p\d+ = scmp\.ne\.s32\.totalorder ")
_BRANCH = re.compile(r"sbr\.rel \((%p\d+)_p\d+\) target = \$(region\d+)")
_PRODUCT = re.compile(r"vmatmul\.(?:mubr\.)?([a-z]+)(\d+)[a-z0-9.]*\.(mxu\d+)")
_END = "/* exit bundle"
_LOOP_STARTS = ("LB", "LH")
_REGISTER_BITS = 32 * 8  # of one lane: eight rows of 32 bits
_MAX_STAGES = 12  # iterations that a pipelined loop may make beyond its windows


class ScheduleError(Exception):
    """A schedule that is cut off, or has another form than the one described here."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Cycles of one run of an operation. unknown_loops: loops of unknown length, counted once."""

    cycles: int
    unknown_loops: int = 0


@dataclasses.dataclass
class _Loop:
    """A loop while its bundles are read. rows: handed to each matrix unit in one iteration.

    bundles: run in every iteration. seldom: run in one of `innermost` iterations.
    """

    bundles: int = 0
    seldom: int = 0
    innermost: int = 1
    rows: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    inner: list["_Loop"] = dataclasses.field(default_factory=list)
    exit_at: int | None = None
    windows: int | None = None

    @property
    def trips(self) -> int | None:
        """Number of iterations, or None where the schedule does not show it."""
        if self.exit_at is None:
            return self.windows
        pipelined = self.windows and self.windows < self.exit_at <= self.windows + _MAX_STAGES
        return self.windows if pipelined else self.exit_at

    def cycles(self, rows_per_cycle: float) -> float:
        """Cycles of all iterations, equation 1; a loop of unknown length counts once."""
        busiest = max(self.rows.values(), default=0) / rows_per_cycle
        inner = sum(loop.cycles(rows_per_cycle) for loop in self.inner)
        trips = 1 if self.trips is None else self.trips
        bundles = self.bundles + self.seldom / self.innermost
        return trips * (max(bundles, busiest) + inner)

    def all_inner(self) -> Iterator["_Loop"]:
        """The loops inside this one, at any depth."""
        for loop in self.inner:
            yield loop
            yield from loop.all_inner()


def read(lines: Iterable[str], rows_per_cycle: float) -> Schedule:
    """The schedule of an operation. Raises ScheduleError where it does not end.

    rows_per_cycle: rows of bfloat16 that a matrix unit takes in a cycle.
    """
    reader = _Reader()
    for line in lines:
        reader.take(line)
    if not reader.ended:
        raise ScheduleError("it has no last bundle")
    operation = reader.operation
    unknown = sum(loop.trips is None for loop in operation.all_inner())
    return Schedule(round(operation.cycles(rows_per_cycle)), unknown)


class _Reader:
    """Builds the loops of a schedule. ended: whether the last bundle was the operation's exit."""

    def __init__(self):
        self.operation = _Loop(exit_at=1)
        self.ended = False
        self._opened = [self.operation]
        self._unequal: set[str] = set()  # predicates that hold unless an index has one value
        self._skipped_to: str | None = None  # the region at which skipped bundles end

    def take(self, line: str) -> None:
        """Reads one line."""
        if bundle := _BUNDLE.match(line):
            if not _EMPTY.search(line, bundle.end() - 1):  # empty bundles have no marks
                self._enter(bundle[1], bundle[2].count(">"))
            self._add(line)
            self.ended = _END in line
        elif windows := _WINDOWS.match(line):
            self._add_windows([int(n) for n in windows[1].split(",") if n.strip()])

    def _enter(self, label: str | None, depth: int) -> None:
        """Closes and opens loops, so that the last open one holds the next bundle."""
        starts = label in _LOOP_STARTS and depth > 0
        del self._opened[depth + (0 if starts else 1) :]
        while len(self._opened) <= depth:
            around = self._opened[-1]
            # The bundles behind a loop's last branch run before it jumps; some have no marks.
            if starts or not around.inner:
                around.inner.append(_Loop())
            self._opened.append(around.inner[-1])

    def _add(self, line: str) -> None:
        """Counts a bundle."""
        loop = self._opened[-1]
        if self._skipped_to and f" {self._skipped_to} " in line:
            self._skipped_to = None
        if self._skipped_to:
            loop.seldom += 1
        else:
            loop.bundles += 1
        for _, bits, unit in _PRODUCT.findall(line) if "vmatmul" in line else ():
            loop.rows[unit] += _REGISTER_BITS // int(bits)
        if loop.exit_at is None and (test := _EXIT_TEST.search(line)):
            loop.exit_at = int(test[1])
        if unequal := _UNEQUAL.findall(line):
            self._unequal |= set(unequal)
        branch = _BRANCH.search(line)
        if branch and branch[1] in self._unequal and not self._skipped_to:
            self._skipped_to = branch[2].replace("region", "region ")

    def _add_windows(self, bounds: list[int]) -> None:
        loop = self._opened[-1]
        if bounds and math.prod(bounds) > (loop.windows or 0):
            loop.windows, loop.innermost = math.prod(bounds), bounds[-1]
