"""Plans: what a program holds, moves and computes on each chip, and its least time.

With the published peaks of a chip,

    arithmetic = FLOPs / peak FLOP/s                                              (1)
    memory     = bytes accessed / bandwidth                                       (2)
    links      = bytes sent / bandwidth of all links                              (3)
    bound      = the largest of these three                                       (4)
    in turn    = max(arithmetic, memory) + links                                  (5)
    utilisation <= arithmetic / bound                                             (6)
    MFU        = model FLOPs / (peak FLOP/s x predicted time)                     (7)

(4) assumes that everything else is hidden behind the largest (the roofline model: Williams,
Waterman and Patterson, doi 10.1145/1498765.1498785). (5) assumes that links and chip wait for
each other, as in a step that gathers its parameters before its first layer and sums its
gradients after its last. FLOPs are those that XLA counts, so what is computed again to save
memory counts as well. The model FLOPs of (7) are those of `fsdit.training.flops`, where it does
not; the predicted time is that of `fsdit.planning.schedule`.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from fsdit.config import Config, MeshConfig
from fsdit.data.layout import DatasetInfo
from fsdit.errors import ConfigError
from fsdit.parallel.backend import check_attention
from fsdit.parallel.chips import Chip, find_chip
from fsdit.parallel.sharding import axis_sizes
from fsdit.planning import costs, programs
from fsdit.planning.costs import Costs
from fsdit.planning.predictor import Outcome, Predictor
from fsdit.planning.target import Target


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip. aliased: bytes of outputs that take the place of arguments."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """Bytes that a run needs at once; outputs in the place of arguments count once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Plan:
    """One program on one target and mesh. Costs and memory are those of one run on one chip.

    images: number of images that a run works on, over all chips. memory: None where XLA does
    not report it. chip: None for a kind whose peaks are unknown. predicted: None where no
    prediction was asked for. model_flops: of one chip; None where they are those of `costs`.
    """

    program: str
    topology: str
    device_kind: str
    mesh: tuple[int, int]
    images: int
    compile_seconds: float
    memory: Memory | None
    costs: Costs
    chip: Chip | None
    predicted: Outcome | None = None
    model_flops: float | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the program fits into the chip's memory; None where that is unknown."""
        if self.memory is None or self.chip is None:
            return None
        return self.memory.total <= self.chip.memory

    @property
    def seconds(self) -> dict[str, float]:
        """The least seconds for each resource whose peak is published, equations 1 to 3."""
        if self.chip is None:
            return {}
        times = {
            "arithmetic": self.costs.flops / self.chip.flops,
            "memory": self.costs.bytes / self.chip.bandwidth,
        }
        sent = sum(c.sent for c in self.costs.collectives)
        if self.chip.link:
            times["links"] = sent / self.chip.link
        return times

    @property
    def bound(self) -> str | None:
        """Name of the resource that takes longest, equation 4."""
        return max(self.seconds, key=self.seconds.__getitem__, default=None)

    @property
    def seconds_in_turn(self) -> float | None:
        """The least seconds where links and chip wait for each other, equation 5."""
        times = self.seconds
        if not times:
            return None
        return max(times["arithmetic"], times["memory"]) + times.get("links", 0.0)

    @property
    def utilisation(self) -> float | None:
        """The best possible share of the peak of arithmetic, equation 6."""
        times = self.seconds
        return times["arithmetic"] / max(times.values()) if times else None

    @property
    def mfu(self) -> float | None:
        """Predicted share of the peak of arithmetic, equation 7; None without a prediction."""
        if self.predicted is None or self.predicted.prediction is None:
            return None
        needed = self.costs.flops if self.model_flops is None else self.model_flops
        return needed / self.chip.flops / self.predicted.prediction.seconds

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, with the quantities that follow from it."""
        values = dataclasses.asdict(self)
        if self.memory is not None:
            values["memory"]["total"] = self.memory.total
        if self.predicted is not None:
            for check, made in zip(
                values["predicted"]["checks"], self.predicted.checks, strict=True
            ):
                check["error"] = made.error
        return values | {
            "mesh": {"data": self.mesh[0], "fsdp": self.mesh[1]},
            "fits": self.fits,
            "seconds": self.seconds,
            "seconds_in_turn": self.seconds_in_turn,
            "bound": self.bound,
            "utilisation": self.utilisation,
            "mfu": self.mfu,
            "advice": advice(self),
        }


@dataclasses.dataclass(frozen=True)
class Job:
    """A configuration and a target whose devices its mesh and batch fit."""

    config: Config
    target: Target


def jobs(config: Config, meshes: Sequence[MeshConfig], targets: Sequence[Target]) -> list[Job]:
    """A job for every mesh on every target.

    Raises ConfigError where a mesh does not fit a target, or its devices lack the attention.
    """
    made = []
    for target in targets:
        for mesh in meshes:
            changed = dataclasses.replace(config, mesh=mesh)
            try:
                check_attention(changed, target.devices)
                axis_sizes(changed, len(target.devices))
            except ConfigError as error:
                raise ConfigError(f"--topology={target.name}: {error}") from None
            made.append(Job(changed, target))
    return made


def measure(
    step: str, job: Job, info: DatasetInfo, predictor: Predictor | None = None
) -> Iterator[Plan]:
    """Compiles the programs of a step, and yields the plan of each. Raises ConfigError.

    step: one of `programs.STEPS`. predictor: predicts their times, if given.
    """
    for program in programs.lower(step, job.config, info, job.target):
        mesh = program.mesh
        if predictor is not None:
            predictor.begin()
        start = time.perf_counter()
        compiled = program.lowered.compile()
        seconds = time.perf_counter() - start
        predicted = None
        if predictor is not None:
            predicted = predictor.predict(compiled, list(mesh.devices.flat))
        yield Plan(
            program=program.name,
            topology=job.target.name,
            device_kind=job.target.kind,
            mesh=(mesh.shape["data"], mesh.shape["fsdp"]),
            images=program.images,
            compile_seconds=seconds,
            memory=memory_of(compiled),
            costs=costs.count(compiled),
            chip=find_chip(job.target.kind),
            predicted=predicted,
            model_flops=program.model_flops,
        )


def memory_of(compiled: jax.stages.Compiled) -> Memory | None:
    """Bytes that a compiled program needs on each chip; None where XLA does not report them."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def advice(plan: Plan) -> str | None:
    """Advice for a program that does not fit, or None."""
    if plan.fits is not False:
        return None
    if plan.program != "train":
        setting = {
            "sample": "config.evaluation.batch_size",
            "encode supports": "config.features.encode_batch",
        }.get(plan.program, "config.model.codec.max_batch")
        return f"smaller {setting}"
    changes = []
    if plan.mesh[0] > 1 and plan.memory.arguments > plan.memory.temporaries / 4:
        changes.append("more of the state split (--config.mesh.data=1 --config.mesh.fsdp=-1)")
    changes += [
        "--config.model.remat=dots or full",
        "more --config.train.accumulate_steps",
        "smaller --config.data.batch_size",
        "more chips",
    ]
    return "; ".join(changes)
