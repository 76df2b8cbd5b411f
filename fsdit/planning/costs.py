"""What one run of a compiled program costs a chip, loops counted in full.

XLA's own cost analysis counts the body of a loop once. Here each body is cut out as a program
of its own, counted by the same analysis, and added for every further iteration. A program
without loops costs exactly what `compiled.cost_analysis()` says.

"Bytes" are XLA's "bytes accessed": operands and results of every top-level instruction, in
whatever memory of the chip they lie. A TPU program keeps some in the fast memory beside the
core, so that the traffic of the main memory is less. The analysis of what was cut out knows
nothing of the TPU's padding and of fusions that carry a collective on, whose buffers it counts
in each: the bytes of further iterations are good to some percent.
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
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind, all of a run. size: bytes of the whole buffers; sent: bytes that a chip sends."""

    kind: str
    count: int
    size: int
    sent: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one chip. unknown_loops: loops of unknown length, counted once."""

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    unknown_loops: int


def count(compiled: jax.stages.Compiled) -> Costs:
    """Costs of one run."""
    text = compiled.as_text()
    program = hlo.parse(text)
    printed = _analyse(text)
    whole = compiled.cost_analysis() or printed
    size = whole.get("bytes accessed", 0.0)
    counter = _Counter(program)
    more = counter.repeated(program.entry)
    return Costs(
        flops=whole.get("flops", 0.0) + more[0],
        bytes=size + more[1],
        collectives=collectives(program),
        unknown_loops=counter.unknown,
    )


def _analyse(text: str) -> dict[str, float]:
    """XLA's count of a printed program, of any backend."""
    client = jax.local_devices(backend="cpu")[0].client
    # Metadata points to tables that a part of a program does not have.
    module = _hlo.hlo_module_from_text(_METADATA.sub("", text))
    return _jax.hlo_module_cost_analysis(client, module)


class _Counter:
    def __init__(self, program: Program):
        self._program = program
        self.unknown = 0

    def repeated(self, computation: Computation) -> tuple[float, float]:
        """(FLOPs, bytes) that a run of `computation` adds to XLA's count of it."""
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

    @functools.cache  # noqa: B019  # lives as long as one count
    def _once(self, body: Computation) -> tuple[float, float]:
        counted = _analyse(self._program.cut(body))
        return counted.get("flops", 0.0), counted.get("bytes accessed", 0.0)


def collectives(program: Program) -> tuple[Collective, ...]:
    """By kind, with loops repeated."""
    totals: dict[str, list[int]] = {}
    for times, holder, instruction in _collectives(program, program.entry):
        kind = _kind(holder, instruction)
        operand = sum(hlo.num_bytes(holder.instructions[o].shape) for o in instruction.operands)
        size, sent = _volume(kind, operand, _group_size(program, instruction))
        total = totals.setdefault(kind, [0, 0, 0])
        for i, value in enumerate((1, size, sent)):
            total[i] += times * value
    return tuple(Collective(kind, *totals[kind]) for kind in KINDS if kind in totals)


def _collectives(
    program: Program, computation: Computation, times: int = 1
) -> Iterator[tuple[int, Computation, Instruction]]:
    """(how often, holder, instruction) of each one that a run of `computation` makes.

    Where the TPU compiler fuses one with what is computed meanwhile, the fusions that start it,
    carry it on and end it all name it, under the one number of its chain.
    """
    chains = set()
    for holder, instruction in program.reached(computation):
        if instruction.opcode == "while":
            trips = program.trips(holder, instruction)
            trips = 1 if trips is None else trips
            yield from _collectives(program, program.body(instruction), times * trips)
        elif _kind(holder, instruction):
            chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
            if chain is None or chain[1] not in chains:
                yield times, holder, instruction
            chains |= {chain[1]} if chain else set()


def _kind(holder: Computation, instruction: Instruction) -> str | None:
    """An asynchronous one counts where it starts."""
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and holder.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"  # the TPU compiler's form of it
    return kind if kind in KINDS else None


def _group_size(program: Program, instruction: Instruction) -> int:
    """Chips that take part together."""
    groups = instruction.attribute("replica_groups") or ""
    if listed := re.match(r"\{\{([\d,]*)\}", groups):
        return len(listed[1].split(","))
    if counted := re.match(r"\[\d+,(\d+)\]", groups):
        return int(counted[1])
    if named := re.match(r"mesh\[([^\]]*)\].*?\{([^}]*)\}", groups):
        sizes = dict(re.findall(r"('[^']+')=(\d+)", named[1]))
        parts = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", named[2])  # an axis, or a part of it
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return program.num_partitions


def _volume(kind: str, operand: int, group: int) -> tuple[int, int]:
    """(bytes of the whole buffer, bytes that a chip sends) by the ring algorithms."""
    if kind == "all-gather":
        return operand * group, operand * (group - 1)
    if kind == "collective-permute":
        return operand, operand
    passes = 2 if kind == "all-reduce" else 1
    return operand, math.ceil(passes * operand * (group - 1) / group)
