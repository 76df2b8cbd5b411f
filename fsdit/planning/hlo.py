"""Reads compiled programs in XLA's printed form: computations, loops and their lengths.

The printed form is the only one that every backend offers, including the TPU compiler without
a TPU.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b([a-z_]+)=(?:%([\w.\-]+)|\{(%[^{}]*)\})")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|token|[a-z]+(\d+)[a-z0-9]*)\[([0-9,]*)\]")
_NO_CALL = {"control_predecessors", "control-predecessors"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line `NAME = SHAPE OPCODE(OPERANDS), ATTRIBUTES`.

    argument: the text between the brackets, of which `operands` are the names.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    argument: str

    def attribute(self, name: str) -> str | None:
        """The rest of the line after `name=`."""
        found = re.search(rf"\b{name}=(.*)", self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """A named list of instructions. text: as printed, from its header to the closing brace."""

    name: str
    text: str

    @functools.cached_property
    def instructions(self) -> dict[str, Instruction]:
        """The instructions by name, in order."""
        parsed = [_parse(line) for line in self.text.splitlines()]
        return {instruction.name: instruction for instruction in parsed if instruction}

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction that is marked as the result; without a mark, the last one."""
        marked = re.search(r"^\s+ROOT %?([\w.\-]+) =", self.text, re.MULTILINE)
        return self.instructions[marked[1]] if marked else list(self.instructions.values())[-1]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled program. computations: by name, each after those that it calls."""

    computations: dict[str, Computation]
    entry: Computation
    num_partitions: int

    def called(self, instruction: Instruction) -> list[Computation]:
        """The computations that an instruction names, in order."""
        names = []
        for attribute, one, several in _CALLED.findall(instruction.attributes):
            if attribute not in _NO_CALL:
                names += [one] if one else _OPERAND.findall(several)
        return [self.computations[name] for name in names if name in self.computations]

    def cut(self, computation: Computation) -> str:
        """The text of a program with `computation` as its entry."""
        needed = {computation.name}
        for name in reversed(self.computations):  # callers before the computations they call
            if name in needed:
                for instruction in self.computations[name].instructions.values():
                    needed |= {c.name for c in self.called(instruction)}
        parts = [c.text for name, c in self.computations.items() if name in needed]
        parts[-1] = "ENTRY " + parts[-1].removeprefix("ENTRY ")
        return "\n\n".join([f"HloModule cut, num_partitions={self.num_partitions}", *parts])

    def reached(self, computation: Computation) -> Iterator[tuple[Computation, Instruction]]:
        """(holder, instruction) of every instruction that one run of `computation` runs.

        The instructions of loops are included, their bodies are not.
        """
        for instruction in computation.instructions.values():
            yield computation, instruction
            if instruction.opcode != "while":
                for inner in self.called(instruction):
                    yield from self.reached(inner)

    def body(self, loop: Instruction) -> Computation:
        """The body of a `while` instruction."""
        return self.computations[_OPERAND.match(loop.attribute("body"))[1]]

    def trips(self, holder: Computation, loop: Instruction) -> int | None:
        """Number of times that a loop runs its body; None where the program does not show it.

        holder: the computation that the loop is in. Where XLA printed no number, the loop has
        to count: its state has an element i with start value s, step d > 0 and the condition
        i + a < n. Then the number is ceil((n - a - s) / d), or 0 where that is negative.
        """
        if known := _KNOWN_TRIPS.search(loop.attributes):
            return int(known[1])
        condition = self.computations[_OPERAND.match(loop.attribute("condition"))[1]]
        test = self._comparison(condition)
        if test is None:
            return None
        (counter, offset), limit = test
        started = holder.instructions.get(loop.operands[0])
        stepped = self.body(loop).root
        if started is None or started.opcode != "tuple" or stepped.opcode != "tuple":
            return None
        start = self._affine(holder, started.operands[counter])
        step = self._affine(self.body(loop), stepped.operands[counter])
        if start is None or step is None or start[0] is not None or step[0] != counter:
            return None
        if step[1] <= 0:
            return None
        return max(math.ceil((limit - offset - start[1]) / step[1]), 0)

    def _comparison(self, condition: Computation) -> tuple[tuple[int, int], int] | None:
        """((i, a), n) of a condition `element i + a < n`; None where it has another form."""
        root = condition.root
        holder, arguments = condition, None
        if root.opcode in ("fusion", "call"):
            arguments = [self._affine(condition, name) for name in root.operands]
            holder = self.called(root)[0]
            root = holder.root
        if root.opcode != "compare":
            return None
        values = [self._affine(holder, name, arguments) for name in root.operands]
        direction = (root.attribute("direction") or "").partition(",")[0]
        if None in values or direction not in ("LT", "LE", "GT", "GE"):
            return None
        small, large = values if direction in ("LT", "LE") else reversed(values)
        if small[0] is None or large[0] is not None:
            return None
        inclusive = direction in ("LE", "GE")  # x <= n is x < n + 1
        return small, large[1] + int(inclusive)

    def _affine(
        self, holder: Computation, name: str, arguments: list | None = None
    ) -> tuple[int | None, int] | None:
        """An integer as (i, a): element i of the loop's state plus a, or a alone where i is None.

        Returns None for any other value. arguments: where `holder` is called by another
        computation, the values of its parameters in this form.
        """
        instruction = holder.instructions.get(name)
        if instruction is None:
            return None
        opcode, operands = instruction.opcode, instruction.operands
        if opcode == "constant":
            return (None, int(instruction.argument)) if _is_int(instruction.argument) else None
        if opcode == "parameter" and arguments is not None:
            return arguments[int(instruction.argument)]
        if opcode == "get-tuple-element" and arguments is None:
            source = holder.instructions.get(operands[0])
            index = int(instruction.attribute("index").partition(",")[0])
            return (index, 0) if source and source.opcode == "parameter" else None
        if opcode in ("copy", "bitcast", "convert", "reshape"):
            return self._affine(holder, operands[0], arguments)
        if opcode in ("fusion", "call"):
            inner = self.called(instruction)[0]
            given = [self._affine(holder, operand, arguments) for operand in operands]
            return self._affine(inner, inner.root.name, given)
        if opcode == "add":
            parts = [self._affine(holder, operand, arguments) for operand in operands]
            if None in parts or all(i is not None for i, _ in parts):
                return None
            (i, a), (j, b) = parts
            return (j if i is None else i, a + b)
        return None


def parse(text: str) -> Program:
    """Parses a program in XLA's printed form."""
    computations: dict[str, Computation] = {}
    entry, name, lines = None, "", []
    for line in text.splitlines():
        if name:
            lines.append(line)
            if line.startswith("}"):
                computations[name] = Computation(name, "\n".join(lines))
                name = ""
        elif header := _HEADER.match(line):
            name, lines = header[2], [line]
            entry = name if header[1] else entry
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Program(computations, computations[entry], int(partitions[1]) if partitions else 1)


def num_bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, without the padding of tiles."""
    total = 0
    for kind, bits, dimensions in _ARRAY.findall(shape):
        width = {"pred": 8, "token": 0}.get(kind) or int(bits or 0)
        total += math.ceil(math.prod(int(d) for d in dimensions.split(",") if d) * width / 8)
    return total


def _parse(line: str) -> Instruction | None:
    """The instruction in a line, or None where there is none."""
    found = _INSTRUCTION.match(line)
    opcode = _OPCODE.search(" " + found[3]) if found else None
    if opcode is None:
        return None
    rest = found[3]
    start = opcode.end() - 1  # the match was in a text with one more space in front
    depth, end = 1, start
    while depth:
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    argument = rest[start : end - 1]
    return Instruction(
        name=found[2],
        shape=rest[: opcode.start()].strip(),
        opcode=opcode[1],
        operands=tuple(_OPERAND.findall(argument)),
        attributes=rest[end:],
        argument=argument,
    )


def _is_int(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None
