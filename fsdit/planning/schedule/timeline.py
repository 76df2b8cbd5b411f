"""The time of a compiled TPU program, instruction after instruction in the compiled order.

A core with clock f, a main memory of bandwidth M and links of bandwidth L work side by side. An
instruction of c cycles that moves b bytes of main memory takes

    t = max(c / f, b / M)                                                         (1)

Copies and collectives that were started earlier use what it leaves of memory and links,

    t M - b    and    t L    bytes,                                               (2)

in the order of their starts. An instruction that needs the result of one waits until it, and
all that were started before it, have been moved. A loop takes its body's time once for every
iteration, and a conditional that of the branch that takes longest.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator

from fsdit.parallel.chips import Chip
from fsdit.planning import costs
from fsdit.planning.hlo import Computation, Instruction, Program
from fsdit.planning.schedule.core import Core
from fsdit.planning.schedule.matching import Basis, Matcher
from fsdit.planning.schedule.traffic import Traffic, copied

# Instructions that take no time.
_FREE = frozenset(
    (
        *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast"),
        *("partition-id", "replica-id", "after-all", "opt-barrier"),
    )
)
_INNER = frozenset(("while", "call", "conditional"))  # what runs computations of its own
_ASYNCHRONOUS = ("copy", "slice", "dynamic-slice", "async")
_COPY_STARTS = frozenset(f"{name}-start" for name in _ASYNCHRONOUS)
_COPY_DONES = frozenset(f"{name}-done" for name in _ASYNCHRONOUS)


@dataclasses.dataclass(frozen=True)
class Event:
    """One instruction, or the waits of one computation.

    count: runs in one run of the program. seconds: of one run. compute, memory: seconds that
    core and main memory need for it alone. sent: bytes over links. holder: name of the
    computation that it stands in. basis: None for waits.
    """

    instruction: Instruction | None
    name: str
    holder: str
    count: int
    seconds: float
    compute: float = 0.0
    memory: float = 0.0
    sent: int = 0
    basis: Basis | None = None


class _Channel:
    """Transfers that move in the order of their starts. bandwidth: bytes a second."""

    def __init__(self, bandwidth: float):
        self.bandwidth = bandwidth
        self._left: collections.OrderedDict[str, int | float] = collections.OrderedDict()

    def start(self, name: str, size: int) -> None:
        self._left[name] = size

    def move(self, size: float) -> None:
        """Moves up to `size` bytes of the started transfers."""
        for name in list(self._left):
            moved = min(self._left[name], size)
            self._left[name] -= moved
            size -= moved

    def finish(self, name: str) -> float:
        """Seconds until a transfer, and those before it, are over; they leave the channel."""
        waited = 0.0
        if name in self._left:
            for before in list(self._left):
                waited += self._left.pop(before)
                if before == name:
                    break
        return waited / self.bandwidth


class _Transfers:
    """Which collectives the instructions of a computation start and wait for.

    started: instruction -> {collective: bytes that a chip sends}. ended: instruction -> the
    collectives that are over when it is. One that is carried on by several fusions is over with
    the last of them, and one that is not asynchronous with itself.
    """

    def __init__(self, program: Program, holder: Computation):
        self.started: dict[str, dict[str, int]] = {}
        self.ended: dict[str, list[str]] = {}
        last: dict[str, str] = {}
        for instruction in holder.instructions.values():
            for name, sent in _carried(program, holder, instruction):
                if name not in last:
                    self.started.setdefault(instruction.name, {})[name] = sent
                last[name] = instruction.name
            if instruction.opcode.endswith("-done"):
                for name in self.started.get(instruction.operands[0], {}):
                    last[name] = instruction.name
        for name, instruction_name in last.items():
            self.ended.setdefault(instruction_name, []).append(name)


def _carried(
    program: Program, holder: Computation, instruction: Instruction
) -> Iterator[tuple[str, int]]:
    """(name, bytes that a chip sends) of each collective that an instruction is or contains."""
    if instruction.opcode in _INNER:
        return
    inside = [(holder, instruction)]
    for inner in program.called(instruction):
        inside += program.reached(inner)
    for owner, found in inside:
        if costs.kind_of(owner, found):
            sent = costs.volume(program, owner, found)[1]
            yield costs.chain_of(found) or f"{instruction.name}/{found.name}", sent


class Timeline:
    """Walks through a program."""

    def __init__(self, program: Program, matcher: Matcher, chip: Chip, core: Core):
        self._program, self._matcher = program, matcher
        self._chip, self._core = chip, core
        self._traffic = Traffic(program)

    def events(self) -> list[Event]:
        """Everything that takes time in one run of the program."""
        return self._walk(self._program.entry, 1)

    def _walk(self, holder: Computation, count: int) -> list[Event]:
        """The events of `count` runs of a computation."""
        memory, links = _Channel(self._chip.bandwidth), _Channel(self._core.ring)
        transfers = _Transfers(self._program, holder)
        events: list[Event] = []
        waits = {"waits for copies": 0.0, "waits for links": 0.0}
        for instruction in holder.instructions.values():
            name, opcode = instruction.name, instruction.opcode
            started = transfers.started.get(name, {})
            for transfer, sent in started.items():
                links.start(transfer, sent)
            if opcode in _INNER:
                memory.move(math.inf)  # it takes longer than what was started before it
                links.move(math.inf)
                events += self._inner(holder, instruction, count)
            elif opcode in _COPY_STARTS:
                memory.start(name, 0 if started else copied(instruction))
            elif opcode in _COPY_DONES:
                seconds = memory.finish(instruction.operands[0])
                links.move(seconds * links.bandwidth)
                waits["waits for copies"] += seconds
            elif opcode not in _FREE and not _is_allocation(instruction):
                event = self._event(holder, instruction, count)
                memory.move((event.seconds - event.memory) * memory.bandwidth)
                links.move(event.seconds * links.bandwidth)
                events.append(event)
            for transfer in transfers.ended.get(name, ()):
                seconds = links.finish(transfer)
                memory.move(seconds * memory.bandwidth)
                if transfer in started and events:  # not asynchronous: the wait is its own time
                    longer = events[-1].seconds + seconds
                    events[-1] = dataclasses.replace(events[-1], seconds=longer)
                else:
                    waits["waits for links"] += seconds
        found = [Event(None, name, holder.name, count, t) for name, t in waits.items() if t]
        return events + found

    def _inner(self, holder: Computation, instruction: Instruction, count: int) -> list[Event]:
        """The events of a loop, of a call, or of the branch of a conditional that takes longest."""
        if instruction.opcode == "while":
            trips = self._program.trips(holder, instruction)
            trips = 1 if trips is None else trips
            return self._walk(self._program.body(instruction), count * trips)
        branches = [self._walk(inner, count) for inner in self._program.called(instruction)]
        return max(branches, key=_seconds, default=[])

    def _event(self, holder: Computation, instruction: Instruction, count: int) -> Event:
        """An instruction by itself, equation 1."""
        cycles, basis = self._matcher.cycles(holder, instruction)
        compute = cycles / self._core.clock
        memory = self._traffic.of(holder, instruction) / self._chip.bandwidth
        return Event(
            instruction=instruction,
            name=instruction.name,
            holder=holder.name,
            count=count,
            seconds=max(compute, memory),
            compute=compute,
            memory=memory,
            basis=basis,
        )


def _seconds(events: list[Event]) -> float:
    return sum(event.count * event.seconds for event in events)


def _is_allocation(instruction: Instruction) -> bool:
    """Whether a custom call only names memory."""
    return instruction.opcode == "custom-call" and any(
        f'custom_call_target="{name}"' in instruction.attributes
        for name in ("AllocateBuffer", "ConcatBitcast")
    )
