"""A program's predicted time: what it is made of, part by part and operation by operation."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from fsdit.parallel.chips import Chip
from fsdit.planning import hlo
from fsdit.planning.schedule.bundles import Schedule
from fsdit.planning.schedule.core import Core
from fsdit.planning.schedule.dump import NoPredictionError
from fsdit.planning.schedule.matching import Basis, Matcher
from fsdit.planning.schedule.parts import Parts
from fsdit.planning.schedule.timeline import Event, Timeline


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the model in one run. Seconds of a chip.

    seconds: predicted. compute, memory: what core and main memory need for it alone.
    """

    name: str
    seconds: float
    compute: float
    memory: float


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction of the compiled program. seconds: of all its `count` runs together.

    source: JAX's name of what it computes. basis: where its cycles come from.
    """

    name: str
    part: str
    source: str
    count: int
    seconds: float
    basis: Basis | None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One run on one chip. parts, operations: the longest first.

    by_basis: seconds of the operations whose cycles have each basis.
    """

    seconds: float
    parts: tuple[Part, ...]
    operations: tuple[Operation, ...]
    by_basis: Mapping[str, float]


def predict(
    text: str, schedules: Mapping[str, Schedule], chip: Chip, core: Core, largest: int = 12
) -> Prediction:
    """The predicted time of a compiled program.

    text: the program as XLA prints it. schedules: operation -> schedule. largest: number of
    operations that are named. Raises NoPredictionError where no schedule belongs to the program.
    """
    program = hlo.parse(text)
    events = Timeline(program, Matcher(program, schedules), chip, core).events()
    if not any(event.basis in ("own", "equal") for event in events):
        raise NoPredictionError("libtpu's schedules name no operation of the program")
    parts = Parts(program, text)
    named = [(event, _part(parts, event)) for event in events]
    if not any(event.basis in ("own", "equal") for event in events):
        raise NoPredictionError("libtpu's schedules name no operation of the program")
    by_basis: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if event.basis is not None:
            by_basis[event.basis] += event.count * event.seconds
    longest = sorted(named, key=lambda pair: -pair[0].count * pair[0].seconds)[:largest]
    return Prediction(
        seconds=sum(event.count * event.seconds for event in events),
        parts=_by_part(named),
        operations=tuple(_operation(parts, event, part) for event, part in longest),
        by_basis=dict(by_basis),
    )


def _part(parts: Parts, event: Event) -> str:
    return event.name if event.instruction is None else parts.of(event.instruction)


def _by_part(named: Sequence[tuple[Event, str]]) -> tuple[Part, ...]:
    totals: dict[str, list[float]] = {}
    for event, part in named:
        total = totals.setdefault(part, [0.0, 0.0, 0.0])
        for i, seconds in enumerate((event.seconds, event.compute, event.memory)):
            total[i] += event.count * seconds
    return tuple(
        Part(name, *total) for name, total in sorted(totals.items(), key=lambda x: -x[1][0])
    )


def _operation(parts: Parts, event: Event, part: str) -> Operation:
    source = "" if event.instruction is None else parts.operation(event.instruction)
    seconds = event.count * event.seconds
    return Operation(event.name, part, source, event.count, seconds, event.basis)
