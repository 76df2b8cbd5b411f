"""Costs of one run of a compiled program on a chip, with loops counted in full.

XLA's own cost analysis X counts the body of a loop once. Here each body is cut out as a program
of its own and given to the same analysis. With n the number of a loop's iterations,

    cost(computation) = X(computation) + more(computation)                         (1)
    more(computation) = sum over its loops of (n - 1) X(body) + n more(body)       (2)

so a program without loops costs exactly what `compiled.cost_analysis()` says.

"Bytes" are XLA's "bytes accessed": operands and results of every top-level instruction, in
whatever memory of the chip they lie. A TPU program keeps some of them in the fast memory beside
the core, so the traffic of the main memory is less. The analysis of a part that was cut out
does not know the TPU's padding, and counts the buffers of an asynchronous collective in every
fusion that continues it: the bytes of further iterations are good to some percent.

In a collective over g chips with ring algorithms, each with an operand of b bytes, a chip sends

    all-gather                      (g - 1) b                                      (3)
    reduce-scatter, all-to-all      (g - 1) b / g                                  (4)
    all-reduce                      2 (g - 1) b / g                                (5)
    collective-permute              b                                              (6)
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import jax
from jaxlib import _hlo, _jax

from fsdit.planning import hlo
from fsdit.planning.hlo import Computation, Instruction, Program

_METADATA = re.compile(r", metadata=\{(?:[^{}\"]|\"[^\"]*\")*\}")
_STATED = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')  # what a Pallas kernel says of itself
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a run.

    size: bytes of the complete buffers. sent: bytes that a chip sends.
    """

    kind: str
    count: int
    size: int
    sent: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of a run on one chip. unknown_loops: loops of unknown length, counted once."""

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    unknown_loops: int


def count(compiled: jax.stages.Compiled) -> Costs:
    """The costs of one run of a compiled program."""
    text = compiled.as_text()
    program = hlo.parse(text)
    printed = _analyse(text)
    analysed = compiled.cost_analysis() or printed
    size = analysed.get("bytes accessed", 0.0)
    counter = _Counter(program)
    more = counter.repeated(program.entry)
    return Costs(
        flops=analysed.get("flops", 0.0) + more[0],
        bytes=size + more[1],
        collectives=collectives(program),
        unknown_loops=counter.unknown,
    )


def _analyse(text: str) -> dict[str, float]:
    """XLA's cost analysis of a printed program of any backend."""
    client = jax.local_devices(backend="cpu")[0].client
    # Metadata refers to tables that a part of a program lacks.
    module = _hlo.hlo_module_from_text(_METADATA.sub("", text))
    return _jax.hlo_module_cost_analysis(client, module)


class _Counter:
    """Counts what XLA's analysis leaves out. unknown: number of loops of unknown length."""

    def __init__(self, program: Program):
        self._program = program
        self.unknown = 0

    def repeated(self, computation: Computation) -> tuple[float, float]:
        """(FLOPs, bytes) that a run of `computation` adds to XLA's count of it, equation 2."""
        flops = size = 0.0
        for holder, loop in self._program.reached(computation):
            if loop.opcode != "while":
                continue
            trips = self._program.trips(holder, loop)
            if trips is None:
                self.unknown += 1
                trips = 1
            body = self._program.body(loop)
            once, more = self._once(body), self.repeated(body)
            flops += (trips - 1) * once[0] + trips * more[0]
            size += (trips - 1) * once[1] + trips * more[1]
        return flops, size

    @functools.cache  # noqa: B019  # the counter lives no longer than one count
    def _once(self, body: Computation) -> tuple[float, float]:
        counted = _analyse(self._program.cut(body))
        flops = counted.get("flops", 0.0) + self._in_kernels(body)
        return flops, counted.get("bytes accessed", 0.0)

    def _in_kernels(self, body: Computation) -> int:
        """FLOPs of Pallas kernels in one run of a body, with each loop's body once.

        The analysis of a part that was cut out does not know them; that of a TPU program does.
        """
        total = 0
        for _, instruction in self._program.reached(body):
            if instruction.opcode == "while":
                total += self._in_kernels(self._program.body(instruction))
            elif stated := _STATED.search(instruction.attributes):
                total += int(stated[1])
        return total


def collectives(program: Program) -> tuple[Collective, ...]:
    """The collectives of a run by kind; those in loops count for every iteration."""
    totals: dict[str, list[int]] = {}
    for times, holder, instruction in _collectives(program, program.entry):
        kind = kind_of(holder, instruction)
        size, sent = volume(program, holder, instruction)
        total = totals.setdefault(kind, [0, 0, 0])
        for i, value in enumerate((1, size, sent)):
            total[i] += times * value
    return tuple(Collective(kind, *totals[kind]) for kind in KINDS if kind in totals)


def _collectives(
    program: Program, computation: Computation, times: int = 1
) -> Iterator[tuple[int, Computation, Instruction]]:
    """(times, holder, instruction) of each collective that a run of `computation` performs.

    times: number of its runs. holder: the computation that the instruction is in. The TPU
    compiler may fuse a collective with what is computed meanwhile. The fusions that start,
    continue and end it then all contain it, with one chain_id; only the first one counts.
    """
    chains = set()
    for holder, instruction in program.reached(computation):
        if instruction.opcode == "while":
            trips = program.trips(holder, instruction)
            trips = 1 if trips is None else trips
            yield from _collectives(program, program.body(instruction), times * trips)
        elif kind_of(holder, instruction):
            chain = chain_of(instruction)
            if chain is None or chain not in chains:
                yield times, holder, instruction
            chains.add(chain)


def chain_of(instruction: Instruction) -> str | None:
    """The id that all instructions have that carry one collective on, where it is split up."""
    chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
    return chain[1] if chain else None


def kind_of(holder: Computation, instruction: Instruction) -> str | None:
    """The kind of a collective, or None. An asynchronous one counts where it starts."""
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and holder.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"  # the TPU compiler's form of it
    return kind if kind in KINDS else None


def _group_size(program: Program, instruction: Instruction) -> int:
    """Number of chips that take part in a collective together."""
    groups = instruction.attribute("replica_groups") or ""
    if listed := re.match(r"\{\{([\d,]*)\}", groups):
        return len(listed[1].split(","))
    if counted := re.match(r"\[\d+,(\d+)\]", groups):
        return int(counted[1])
    if named := re.match(r"mesh\[([^\]]*)\].*?\{([^}]*)\}", groups):
        sizes = dict(re.findall(r"('[^']+')=(\d+)", named[1]))
        # Each entry is an axis, or a part of one: 'fsdp', 'fsdp':(1)4.
        parts = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return program.num_partitions


def volume(program: Program, holder: Computation, instruction: Instruction) -> tuple[int, int]:
    """(bytes of the complete buffer, bytes that a chip sends) of a collective, equations 3 to 6.

    holder: the computation that it is in.
    """
    kind, group = kind_of(holder, instruction), _group_size(program, instruction)
    operand = sum(hlo.num_bytes(holder.instructions[o].shape) for o in instruction.operands)
    if kind == "all-gather":
        return operand * group, operand * (group - 1)
    if kind == "collective-permute":
        return operand, operand
    passes = 2 if kind == "all-reduce" else 1
    return operand, math.ceil(passes * operand * (group - 1) / group)
