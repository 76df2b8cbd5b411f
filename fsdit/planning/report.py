"""Plans as text for people, and as JSON."""

from collections.abc import Sequence
from typing import Any

import jax

from fsdit.config import Config, to_dict
from fsdit.planning.columns import aligned
from fsdit.planning.plan import Plan, advice
from fsdit.planning.prediction_report import predicted

_COLUMNS = (
    "program", "topology", "mesh", "compile", "code", "args", "temps", "total", "fits",
    "TFLOP", "bytes", "sent", "arithmetic", "memory", "links", "binds", "best use",
)  # fmt: skip


def document(plans: Sequence[Plan], config: Config) -> dict[str, Any]:
    """The content of the file that --json names."""
    return {
        "jax": jax.__version__,
        "plans": [plan.to_dict() for plan in plans],
        "config": to_dict(config),
    }


def text(plans: Sequence[Plan]) -> str:
    """The plans as text: a listing of a single plan, a table of several."""
    if len(plans) == 1:
        return listing(plans[0])
    notes = [f"{_name(p)}: {note}" for p in plans for note in _notes(p)]
    legend = (
        "All of one run, a chip: sizes in GB, times in ms at the published peaks; "
        "mesh: data x fsdp; bytes: accessed, in fast memory too; sent: by collectives."
    )
    parts = [table(plans), legend, *notes]
    if any(plan.costs.collectives for plan in plans):
        parts += ["", collectives(plans)]
    for plan in plans:
        if lines := predicted(plan):
            parts += ["", _name(plan), *lines]
    return "\n".join([*parts, *best_meshes(plans)])


def table(plans: Sequence[Plan]) -> str:
    """A table with one line for each plan."""
    return aligned([_COLUMNS, *map(_row, plans)], words=3)


def collectives(plans: Sequence[Plan]) -> str:
    """A table with one line for each kind of collective of each plan."""
    rows = [("program", "topology", "mesh", "collective", "count", "buffers", "sent", "ms")]
    for plan in plans:
        for c in plan.costs.collectives:
            known = plan.chip and plan.chip.link
            took = _rounded(c.sent / plan.chip.link * 1e3) if known else "?"
            name = (plan.program, plan.topology, _mesh(plan))
            rows.append((*name, c.kind, str(c.count), _gb(c.size), _gb(c.sent), took))
    return aligned(rows, words=4)


def best_meshes(plans: Sequence[Plan]) -> list[str]:
    """A line that names the fastest mesh, for each program and topology with several meshes."""
    groups: dict[tuple[str, str], list[Plan]] = {}
    for plan in plans:
        if plan.fits:
            groups.setdefault((plan.program, plan.topology), []).append(plan)
    lines = []
    for (program, topology), able in groups.items():
        if len({p.mesh for p in able}) > 1:
            able.sort(key=lambda p: p.seconds_in_turn)
            times = ", ".join(f"{_mesh(p)} {_least(p)}" for p in able)
            lines.append(
                f"{program} on {topology}: mesh {_mesh(able[0])} is best of those that fit. "
                f"Least ms, links in turn with the chip: {times}"
            )
    return lines


def _least(plan: Plan) -> str:
    """The least milliseconds as a sum: "22.3 = memory 18.5 + links 3.9"."""
    ms = {name: 1e3 * seconds for name, seconds in plan.seconds.items()}
    name = max("arithmetic", "memory", key=ms.__getitem__)
    links = ms.get("links", 0.0)
    return f"{plan.seconds_in_turn * 1e3:.1f} = {name} {ms[name]:.1f} + links {links:.1f}"


def _row(plan: Plan) -> tuple[str, ...]:
    memory, seconds = plan.memory, plan.seconds
    sizes = (memory.code, memory.arguments, memory.temporaries, memory.total) if memory else ()
    return (
        plan.program,
        plan.topology,
        _mesh(plan),
        f"{plan.compile_seconds:.1f} s",
        *([_gb(size) for size in sizes] or ["?"] * 4),
        {True: "yes", False: "NO", None: "?"}[plan.fits],
        _rounded(plan.costs.flops / 1e12),
        _gb(plan.costs.bytes),
        _gb(_sent(plan)),
        *(
            _rounded(seconds[name] * 1e3) if name in seconds else "?"
            for name in ("arithmetic", "memory", "links")
        ),
        plan.bound or "?",
        "?" if plan.utilisation is None else f"{plan.utilisation:.1%}",
    )


def listing(plan: Plan) -> str:
    """All values of one plan, one a line."""
    chips = plan.mesh[0] * plan.mesh[1]
    lines = [
        f"{plan.program} on {plan.topology}: {chips} x {plan.device_kind}, mesh data x fsdp = "
        f"{_mesh(plan)}, {plan.images} images a run",
        f"compile time     {plan.compile_seconds:.1f} s",
        "memory of a chip",
    ]
    if plan.memory:
        memory = plan.memory
        for name, size in (
            ("arguments", memory.arguments),
            ("outputs", memory.outputs),
            ("  in place", memory.aliased),
            ("temporaries", memory.temporaries),
            ("code", memory.code),
            ("total", memory.total),
        ):
            lines.append(f"  {name:14} {_gb(size):>9} GB")
    if plan.chip:
        fits = {True: "fits", False: "DOES NOT FIT", None: "unknown"}[plan.fits]
        lines.append(f"  {'capacity':14} {_gb(plan.chip.memory):>9} GB   {fits}")
    lines += [
        "work of a chip",
        f"  {'FLOPs':14} {_rounded(plan.costs.flops / 1e12):>9} T",
        f"  {'bytes accessed':14} {_gb(plan.costs.bytes):>9} GB, those in fast memory among them",
    ]
    for c in plan.costs.collectives:
        lines.append(
            f"  {c.kind:18} {c.count:5} a run, buffers {_gb(c.size)} GB, sent {_gb(c.sent)} GB"
        )
    if not plan.costs.collectives:
        lines.append("  no collectives")
    return "\n".join([*lines, *_roofline(plan), *_notes(plan), *predicted(plan)])


def _roofline(plan: Plan) -> list[str]:
    if plan.chip is None:
        return []
    peaks = {
        "arithmetic": f"{plan.chip.flops / 1e12:g} TFLOP/s",
        "memory": f"{plan.chip.bandwidth / 1e9:g} GB/s",
        "links": f"{(plan.chip.link or 0) / 1e9:g} GB/s sent",
    }
    lines = ["least time at the published peaks"]
    for name, seconds in plan.seconds.items():
        binds = "   binds" if name == plan.bound else ""
        lines.append(f"  {name:14} {_rounded(seconds * 1e3):>9} ms at {peaks[name]}{binds}")
    best = plan.images / max(plan.seconds.values())
    lines.append(
        f"  best possible utilisation {plan.utilisation:.1%}, {best:,.0f} images/s on all chips"
    )
    return lines


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.chip is None:
        notes.append(
            f"no published peaks are known here for {plan.device_kind!r}: no capacity, no times"
        )
    if plan.memory is None:
        notes.append("XLA says nothing of memory here")
    if plan.costs.unknown_loops:
        notes.append(f"{plan.costs.unknown_loops} loops of unknown length are counted once")
    if change := advice(plan):
        notes.append(f"to make it fit: {change}")
    return notes


def _name(plan: Plan) -> str:
    return f"{plan.program} {plan.topology} {_mesh(plan)}"


def _mesh(plan: Plan) -> str:
    return "x".join(map(str, plan.mesh))


def _sent(plan: Plan) -> int:
    return sum(c.sent for c in plan.costs.collectives)


def _gb(size: int | float) -> str:
    return _rounded(size / 1e9)


def _rounded(value: int | float) -> str:
    """A number with three decimals; below 0.1, with three significant digits."""
    return f"{value:.3f}" if value >= 0.1 or not value else f"{value:.3g}"
