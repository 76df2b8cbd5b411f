"""Which schedule belongs to which instruction of a compiled program.

libtpu compiles equal operations once, so most instructions have no schedule of their own name.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from fsdit.planning.hlo import Computation, Instruction, Program
from fsdit.planning.schedule.bundles import Schedule

# own: the schedule of this name. equal: that of an instruction that computes the same.
# similar: that of a fusion with the same result and the same estimate by XLA, of which a few
# bundles may differ. estimate: XLA's own estimate. none: not even that.
Basis = Literal["own", "equal", "similar", "estimate", "none"]

_METADATA = re.compile(r", metadata=\{(?:[^{}\"]|\"[^\"]*\")*\}")
_BACKEND = re.compile(r", backend_config=.*")
_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_SPACE = re.compile(r"S\(\d+\)")
_NAME = re.compile(r"%[\w.\-]+")


class Matched(NamedTuple):
    """Cycles of an instruction, and where they come from."""

    cycles: int
    basis: Basis


class Matcher:
    """Finds the cycles of instructions of a program. schedules: operation -> schedule."""

    def __init__(self, program: Program, schedules: Mapping[str, Schedule]):
        self._program = program
        self._schedules = schedules
        self._equal: dict[tuple, str] = {}
        self._similar: dict[tuple, str] = {}
        for holder in program.computations.values():
            for instruction in holder.instructions.values():
                if instruction.name in schedules:
                    self._equal.setdefault(self._key(holder, instruction), instruction.name)
                    self._similar.setdefault(_rough_key(instruction), instruction.name)

    def cycles(self, holder: Computation, instruction: Instruction) -> Matched:
        """Cycles of one run of an instruction. holder: the computation that it stands in."""
        for basis, name in self._candidates(holder, instruction):
            if name in self._schedules:
                return Matched(self._schedules[name].cycles, basis)
        if estimate := _ESTIMATE.search(instruction.attributes):
            return Matched(int(estimate[1]), "estimate")
        return Matched(0, "none")

    def _candidates(
        self, holder: Computation, instruction: Instruction
    ) -> Iterator[tuple[Basis, str | None]]:
        yield "own", instruction.name
        yield "equal", self._equal.get(self._key(holder, instruction))
        if instruction.opcode == "fusion":
            yield "similar", self._similar.get(_rough_key(instruction))

    def _key(self, holder: Computation, instruction: Instruction) -> tuple:
        """What is equal for two instructions that compute the same from arrays of one layout."""
        known = holder.instructions
        operands = tuple(known[name].shape for name in instruction.operands if name in known)
        bodies = tuple(self._body(c.name) for c in self._program.called(instruction))
        return instruction.opcode, instruction.shape, operands, bodies

    @functools.cache  # noqa: B019  # the matcher lives no longer than one prediction
    def _body(self, computation: str) -> tuple:
        """A computation and those that it calls, without names and metadata."""
        body = self._program.computations[computation]
        text = _BACKEND.sub("", _METADATA.sub("", body.text))
        numbers: dict[str, str] = {}
        text = _NAME.sub(lambda m: numbers.setdefault(m[0], f"%{len(numbers)}"), text)
        inner = [c.name for i in body.instructions.values() for c in self._program.called(i)]
        return text, tuple(self._body(name) for name in inner)


def _rough_key(instruction: Instruction) -> tuple:
    estimate = _ESTIMATE.search(instruction.attributes)
    shape = _SPACE.sub("", instruction.shape)
    return instruction.opcode, shape, estimate and estimate[1]
