"""Results and pictures made of random numbers, in the form that an evaluation returns."""

import numpy as np

from fsdit.config import EvaluationConfig, SamplingConfig
from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.report.class_pictures import ClassPictures
from fsdit.evaluation.results import IMAGE_SETS, Results, Score, Table

BY_CLASS = ("top1", "classifier", "pairwise_distance", "support_distance", "near_copies")
# Scores that are left out, as an evaluation leaves out scores without a meaning.
MISSING = {("frechet_distance", "real"), ("pairwise_distance", "copied_support")}
UNIT = ("top1", "top1_exact", "top5", "precision", "recall", "coverage", "near_copies")


def score(rng: np.random.Generator, metric: str) -> Score:
    value = rng.uniform() if metric in UNIT else rng.lognormal(sigma=3)
    low, high = value * rng.uniform(0.8, 1), value * rng.uniform(1, 1.2)
    return Score(value, low, high) if rng.uniform() < 0.8 else Score(value)


def table(
    rng: np.random.Generator, names: list[str], split: str, seen: bool, shots: int, guidance: float
) -> Table:
    return Table(
        split,
        seen,
        shots,
        guidance,
        episodes=2 * len(names),
        samples=8 * len(names),
        scores={
            metric: {
                name: score(rng, metric) for name in IMAGE_SETS if (metric, name) not in MISSING
            }
            for metric in METRICS
            if metric not in ("lpips", "inception_distance")
        },
        by_class={metric: {name: float(rng.uniform()) for name in names} for metric in BY_CLASS},
    )


def results(
    rng: np.random.Generator, names: list[str], shots=(1, 5), guidance=(1.0, 3.0, 5.0)
) -> Results:
    """Results of unseen and seen classes at guidance scale 3, and of unseen ones at the others."""
    first = [table(rng, names, "test", False, k, 3.0) for k in shots]
    seen = [table(rng, names, "train", True, k, 3.0) for k in shots]
    other = [table(rng, names, "test", False, k, g) for k in shots for g in guidance if g != 3.0]
    return Results(
        "glyphs",
        2400,
        "test",
        "pixels",
        EvaluationConfig(shots=shots, guidance_scales=guidance),
        SamplingConfig(num_steps=20, guidance_scale=3.0),
        (*first, *seen, *other),
        about={"model": "1.81 million parameters", "versions": "jax 0.10.2"},
    )


def pictures(
    rng: np.random.Generator, found: Results, size: int = 12, channels: int = 1
) -> list[ClassPictures]:
    """Pictures of each class of each table at the run's guidance scale."""

    def some(count: int) -> np.ndarray:
        coarse = rng.integers(256, size=(count, 4, 4, channels), dtype=np.uint8)
        return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)

    return [
        ClassPictures(each.name, name, some(each.shots), some(4), some(5), some(4))
        for each in found.tables
        if each.guidance_scale == found.sampling.guidance_scale
        for name in each.by_class["support_distance"]
    ]
