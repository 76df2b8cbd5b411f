"""How few evaluations of the network each solver needs.

    python -m experiments.benchmarks.compute.solvers --workdir=runs/glyphs

Samples the same episodes of unseen classes from the same noise with every solver, and takes
the KID of the samples to real images. Prints the KID by number of evaluations, and for each
solver the smallest number from which on it stays within 2 % of Euler's KID at 250.

One evaluation is one of the guided field, which is two of the network where guidance acts.
The SDE adds noise on the way, so its samples are others, and its KID differs by chance as well.
"""

import dataclasses
from collections.abc import Callable, Iterable

from absl import flags
from tqdm import tqdm

from fsdit import program
from fsdit.config import SamplingConfig
from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import split_images
from fsdit.evaluation.comparison import compare, read_real_images
from fsdit.evaluation.critics.critic import open_critic
from fsdit.evaluation.protocol import make_cells
from fsdit.evaluation.samples import EpisodeSampler, by_episode
from fsdit.evaluation.scoring.sets import set_fidelity
from fsdit.training.run import load_run

_WORKDIR = program.define_path("workdir", "runs/glyphs", "A trained run.")
_DATASET = program.define_path("dataset_dir", None, "Its dataset, where it has moved.")
_SAMPLES = flags.DEFINE_integer("samples_per_class", 2, "Samples of each test class.")
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
        "evaluation.samples_per_episode": str(_SAMPLES.value),
    }
    if _DATASET.value:
        overrides["data.dataset_dir"] = _DATASET.value
    kid = make_kid(overrides)
    base = kid("euler", _REFERENCE)
    print(f"euler, {_REFERENCE}: KID {base:.5f}", flush=True)
    for solver in _SOLVERS:
        counts = sorted(_COUNTS.value)
        found = [kid(solver, n) for n in tqdm(counts, desc=solver)]
        cells = ", ".join(f"{n}: {d / base:.3f}" for n, d in zip(counts, found, strict=True))
        near = [abs(d / base - 1) <= _TOLERANCE for d in found]
        print(f"{solver}: {cells}; within 2 % from {first_lasting(counts, near)}", flush=True)


def first_lasting(counts: Iterable[int], near: list[bool]) -> int | None:
    """The smallest count from which on all are near; None where the last one is not."""
    lasting = None
    for count, good in reversed(list(zip(counts, near, strict=True))):
        if not good:
            break
        lasting = count
    return lasting


def make_kid(overrides: dict[str, str]) -> Callable[[str, int], float]:
    """A function (solver, evaluations) -> KID of the run's samples to real images."""
    run = load_run(_WORKDIR.value, overrides)
    info = read_dataset_info(run.config.data.dataset_dir)
    (cell,) = make_cells(run.config, info, "test")
    critic = open_critic(run.config, info)
    images = split_images(run.config.data.dataset_dir, info, "test")
    real = read_real_images(images, info.split("test"), critic)
    sampler = EpisodeSampler(run.config, run.spec, run.feed, run.mesh, run.guide)

    def kid(solver: str, evaluations: int) -> float:
        steps = evaluations // 2 if solver == "heun" else evaluations
        sampling: SamplingConfig = dataclasses.replace(
            cell.sampling, solver=solver, num_steps=steps
        )
        changed = dataclasses.replace(cell, sampling=sampling)
        batches = [b for seed in cell.seeds for b in sampler.batches(run.ema, changed, seed)]
        comparison = compare(changed, by_episode(changed, batches), real, critic)
        scores = set_fidelity(comparison, jackknife=False)
        return scores["kernel_distance"]["samples"].value

    return kid


if __name__ == "__main__":
    program.run(main)
