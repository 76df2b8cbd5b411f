"""How few evaluations of the network each solver needs.

    python -m experiments.benchmarks.compute.solvers --workdir=runs/glyphs

Draws the same episodes of unseen classes from the same noise with every solver, and takes
the kernel distance of the drawings to real images. Printed: the distance by number of
evaluations, and the smallest number from which on each solver stays within 2 % of Euler's
distance at 250. An evaluation is one of the guided field: two of the network where
guidance acts. The SDE's noise on the way makes its drawings others: its distance differs
by chance as well.
"""

import dataclasses
from collections.abc import Iterable

from absl import flags
from tqdm import tqdm

from fsdit import program
from fsdit.config import SamplingConfig
from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import split_images
from fsdit.evaluation.comparison import gather, read_real_images
from fsdit.evaluation.critics.critic import open_judge
from fsdit.evaluation.protocol import make_plans
from fsdit.evaluation.samples import Drawer, in_episodes
from fsdit.evaluation.tables import set_fidelity
from fsdit.training.run import load_run

_WORKDIR = program.define_path("workdir", "runs/glyphs", "A trained run.")
_DATASET = program.define_path("dataset_dir", None, "Its dataset, where it has moved.")
_DRAWINGS = flags.DEFINE_integer("drawings_per_class", 2, "Drawings of each test class.")
_COUNTS = flags.DEFINE_multi_integer(
    "evaluations", [8, 12, 16, 24, 32, 48], "Evaluations of the field; may be repeated."
)
_REFERENCE = 250
_TOLERANCE = 0.02
_SOLVERS = ("euler", "heun", "ab2", "sde")


def main(argv: list[str]) -> None:
    del argv
    overrides = {
        "evaluation.seen": "false",
        "evaluation.shots": "",
        "evaluation.guidance_scales": "",
        "evaluation.drawings_per_episode": str(_DRAWINGS.value),
    }
    if _DATASET.value:
        overrides["data.dataset_dir"] = _DATASET.value
    distance = distances_of(overrides)
    base = distance("euler", _REFERENCE)
    print(f"euler, {_REFERENCE}: kernel distance {base:.5f}", flush=True)
    for solver in _SOLVERS:
        counts = sorted(_COUNTS.value)
        found = [distance(solver, n) for n in tqdm(counts, desc=solver)]
        cells = ", ".join(f"{n}: {d / base:.3f}" for n, d in zip(counts, found, strict=True))
        near = [abs(d / base - 1) <= _TOLERANCE for d in found]
        print(f"{solver}: {cells}; within 2 % from {first_lasting(counts, near)}", flush=True)


def first_lasting(counts: Iterable[int], near: list[bool]) -> int | None:
    """The smallest count from which on all are near."""
    lasting = None
    for count, good in reversed(list(zip(counts, near, strict=True))):
        if not good:
            break
        lasting = count
    return lasting


def distances_of(overrides: dict[str, str]):
    """(solver, evaluations) -> kernel distance of the run's drawings to real images."""
    run = load_run(_WORKDIR.value, overrides)
    info = read_dataset_info(run.config.data.dataset_dir)
    (plan,) = make_plans(run.config, info, "test")
    judge = open_judge(run.config)
    images = split_images(run.config.data.dataset_dir, info, "test")
    real = read_real_images(images, info.split("test"), judge)
    drawer = Drawer(run.config, run.spec, run.feed, run.mesh)

    def distance(solver: str, evaluations: int) -> float:
        steps = evaluations // 2 if solver == "heun" else evaluations
        sampling: SamplingConfig = dataclasses.replace(
            plan.sampling, solver=solver, num_steps=steps
        )
        changed = dataclasses.replace(plan, sampling=sampling)
        drawn = [b for seed in plan.seeds for b in drawer.batches(run.ema, changed, seed)]
        material = gather(changed, in_episodes(changed, drawn), real, judge)
        scores = set_fidelity(material, jackknife=False)
        return scores["kernel_distance"]["drawings"].value

    return distance


if __name__ == "__main__":
    program.run(main)
