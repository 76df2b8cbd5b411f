"""Bytes of the chip's main memory that one instruction of a compiled TPU program moves.

The TPU compiler keeps some arrays in the fast memory beside the core, and prints the memory of
an array as a number in its layout: `S(1)` is fast memory, no number is the main memory (HBM).
It also prints the tiles, such as `T(8,128)`, to whose size the two minor axes are padded.

An instruction moves its operands and results, except for those that it touches in part:

    slice, dynamic-slice, gather       read as many bytes as they return          (1)
    dynamic-update-slice               reads and writes the update only           (2)
    collectives                        move bytes over links, counted elsewhere   (3)

A fusion reads of a parameter what the users of the parameter inside read together.
"""

import functools
import math
import re
from typing import NamedTuple

from fsdit.planning import hlo
from fsdit.planning.costs import KINDS
from fsdit.planning.hlo import Computation, Instruction, Program

_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_SLICES = ("slice", "dynamic-slice", "gather")
_FLAG_BYTES = 8  # the result of a start holds flags beside the arrays
# Instructions that name an array without moving it.
_PASSING = ("tuple", "get-tuple-element", "opt-barrier")


class Stored(NamedTuple):
    """An array's bytes with the padding of its tiles, and whether it lies in main memory."""

    size: int
    in_main_memory: bool


def stored(shape: str) -> list[Stored]:
    """How each array of a printed shape is stored."""
    return [_stored(*found) for found in _ARRAY.findall(shape)]


def main_memory(shape: str) -> list[int]:
    """Bytes in main memory of each array of a printed shape; 0 for those that lie elsewhere."""
    return [array.size if array.in_main_memory else 0 for array in stored(shape)]


def copied(start: Instruction) -> int:
    """Bytes of main memory that the start of an asynchronous copy or slice will move.

    Its result holds the source, the destination and a flag. As many bytes are moved as the
    smaller one has, once for each of the two that lies in main memory.
    """
    arrays = [array for array in stored(start.shape) if array.size > _FLAG_BYTES]
    return min((a.size for a in arrays), default=0) * sum(a.in_main_memory for a in arrays[:2])


def is_collective(instruction: Instruction) -> bool:
    """Whether an instruction is a collective, or the start or end of one."""
    opcode = instruction.opcode.removesuffix("-start").removesuffix("-done")
    return opcode in KINDS or "async-collective" in instruction.name


class Traffic:
    """Counts the main memory's bytes of the instructions of a program, equations 1 to 3."""

    def __init__(self, program: Program):
        self._program = program

    def of(self, holder: Computation, instruction: Instruction) -> int:
        """Bytes that one run of an instruction reads and writes. holder: where it stands."""
        if is_collective(instruction):
            return 0
        return self._reads(holder, instruction) + self._writes(holder, instruction)

    def _reads(self, holder: Computation, user: Instruction) -> int:
        total = 0
        for position, name in enumerate(user.operands):
            if name in holder.instructions:
                complete = sum(main_memory(holder.instructions[name].shape))
                part = self._read(user, position) if complete else 0
                total += complete if part is None else min(part, complete)
        return total

    def _read(self, user: Instruction, position: int) -> int | None:
        """Bytes that `user` reads of an operand; None where it reads all of it."""
        if user.opcode in _SLICES and position == 0:
            return hlo.num_bytes(user.shape)
        if user.opcode == "dynamic-update-slice" and position == 0:
            return 0
        if user.opcode in _PASSING or is_collective(user) or _continues(user):
            return 0
        if user.opcode == "fusion":
            return self._read_of_parameter(self._program.called(user)[0].name, position)
        return None

    @functools.cache  # noqa: B019  # the counter lives no longer than one prediction
    def _read_of_parameter(self, computation: str, index: int) -> int | None:
        body = self._program.computations[computation]
        for instruction in body.instructions.values():
            if instruction.opcode == "parameter" and int(instruction.argument) == index:
                return self._read_by_users(body, instruction.name)
        return None

    def _read_by_users(self, holder: Computation, name: str) -> int | None:
        """Bytes that all users of `name` read of it together; None for all of it."""
        total = 0
        for user in holder.instructions.values():
            for position, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.opcode == "bitcast":
                    part = self._read_by_users(holder, user.name)
                else:
                    part = self._read(user, position)
                if part is None:
                    return None
                total += part
        return total

    def _writes(self, holder: Computation, instruction: Instruction) -> int:
        results = main_memory(instruction.shape)
        parts = [self._written(holder, instruction)]
        if instruction.opcode == "fusion":
            body = self._program.called(instruction)[0]
            roots = [body.root]
            if body.root.opcode == "tuple":
                roots = [body.instructions[name] for name in body.root.operands]
            parts = [self._written(body, root) for root in roots]
        if len(parts) != len(results):
            return sum(results)
        pairs = zip(results, parts, strict=True)
        return sum(full if part is None else min(full, part) for full, part in pairs)

    def _written(self, holder: Computation, root: Instruction) -> int | None:
        """Bytes that the producer of a result writes; None where it writes all of it."""
        while root.opcode == "bitcast":
            root = holder.instructions[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            return hlo.num_bytes(holder.instructions[root.operands[1]].shape)
        if root.opcode == "parameter" or is_collective(root):
            return 0
        if root.opcode == "fusion":
            body = self._program.called(root)[0]
            return None if body.root.opcode == "tuple" else self._written(body, body.root)
        return None


def _continues(instruction: Instruction) -> bool:
    """Whether an instruction inside a fusion carries on something asynchronous."""
    return instruction.opcode.startswith("async") or (
        instruction.opcode == "custom-call" and "continuation" in instruction.attributes
    )


def _stored(kind: str, bits: str, dimensions: str, layout: str) -> Stored:
    sizes = [int(size) for size in dimensions.split(",") if size]
    tile = re.search(r"T\((\d+),(\d+)\)", layout)
    order = re.match(r"([\d,]+)", layout)
    if tile and order and len(sizes) >= 2:
        minor, second = (int(axis) for axis in order[1].split(",")[:2])
        for axis, length in ((minor, int(tile[2])), (second, int(tile[1]))):
            sizes[axis] = math.ceil(sizes[axis] / length) * length
    width = 8 if kind == "pred" else int(bits)
    elsewhere = re.search(r"S\([1-9]\d*\)", layout)
    return Stored(math.ceil(math.prod(sizes) * width / 8), not elsewhere)
