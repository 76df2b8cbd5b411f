"""Scores of image sets as wholes: distances to a reference set of real images.

The real images of each class are cut into two halves by a seed. The reference half is what
image sets are compared with; the other half is the baseline of real images.
"""

import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from fsdit.evaluation.comparison import Comparison
from fsdit.evaluation.critics.inception import inception_fid, write_images
from fsdit.evaluation.figures import distributions
from fsdit.evaluation.figures.neighbourhoods import (
    DENSITY_K,
    PRECISION_K,
    ball_radii,
    density_coverage,
    precision_recall,
)
from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.protocol import MIN_SET
from fsdit.evaluation.results import Score
from fsdit.evaluation.scoring.scores import Scores, score

# Number of groups of classes in the jackknife estimate.
_GROUPS = 10
_KERNELS = {
    "kernel_distance": distributions.kernel_distance,
    "gaussian_distance": distributions.gaussian_distance,
}


def set_fidelity(comparison: Comparison, *, jackknife: bool, kernels: bool = True) -> Scores:
    """Distances of image sets to the reference half of the real images, in the critic's features.

    The FD, recall and coverage depend on the number of images. So every set gives the same
    number, and a set that has fewer has no score for them. Samples of another class are left
    out: as a set they are the samples. Empty where there are fewer than MIN_SET images.

    jackknife: whether the FD gets an interval, which costs ten more distances of sets. kernels:
    whether kernel distances are computed.
    """
    real, (reference, baseline) = comparison.real, halves(comparison)
    sets = {
        name: (images.by_turn, comparison.class_id[images.episodes_by_turn])
        for name, images in comparison.sets.items()
        if name not in ("real", "other_class")
    }
    sets["real"] = real.features[baseline], real.classes[baseline]
    count = min(len(sets["samples"][0]), len(baseline))
    scores: Scores = {}
    if min(count, len(reference)) < MIN_SET:
        return scores

    scaled = real.features[reference] / np.float32(real.unit)
    real_classes = real.classes[reference]
    radii = ball_radii(scaled, DENSITY_K)
    fitted = distributions.fit_gaussian(scaled)
    for name, (features, classes) in sets.items():
        features = features / np.float32(real.unit)
        if len(features) < MIN_SET:
            continue
        found = _neighbourhoods(scaled, radii, real_classes, features[:count], classes[:count])
        for metric, distance in _KERNELS.items() if kernels else ():
            found[metric] = _with_error(distance(scaled, features))
        if len(features) >= count:
            found["frechet_distance"] = _frechet(
                fitted, features[:count], classes[:count], jackknife
            )
        else:
            found = {m: s for m, s in found.items() if m not in ("recall", "coverage")}
        for metric, value in found.items():
            scores.setdefault(metric, {})[name] = value
    return {metric: scores[metric] for metric in METRICS if metric in scores}


def _neighbourhoods(
    real: Shaped[np.ndarray, "N *D"],
    radii: Float[np.ndarray, "N k"],
    real_classes: Int[np.ndarray, "N"],
    features: Shaped[np.ndarray, "M *D"],
    classes: Int[np.ndarray, "M"],
) -> dict[str, Score]:
    """The metrics that compare neighbourhoods of images. radii: `ball_radii` of real images."""
    near_radii, far_radii = (radii[:, k - 1] for k in (PRECISION_K, DENSITY_K))
    near = precision_recall(real, features, radii=near_radii)
    around = density_coverage(real, features, radii=far_radii)
    values = {
        "precision": (near.precision, classes),
        "recall": (near.recall, real_classes),
        "density": (around.density, classes),
        "coverage": (around.coverage, real_classes),
    }
    return {metric: _grouped(metric, *each) for metric, each in values.items()}


def halves(comparison: Comparison) -> tuple[Int[np.ndarray, "A"], Int[np.ndarray, "B"]]:
    """Indices of the reference half and of the baseline half of the sampled classes' images.

    Supports go to the baseline half as long as they are at most half of their class: with
    supports in the reference, copies of them would be nearer to it than real images are. The
    order is such that the first few indices of a half are of as many classes as possible.
    """
    found: tuple[list, list] = ([], [])
    rng = np.random.default_rng(0)
    for class_id in np.unique(comparison.class_id).tolist():
        members = rng.permutation(comparison.real.members(class_id))
        shown = np.isin(members, comparison.supports)
        members = np.concatenate([members[~shown], members[shown]])
        middle = (len(members) + 1) // 2
        for half, chosen in zip(found, (members[:middle], members[middle:]), strict=True):
            half += [(turn, index) for turn, index in enumerate(rng.permutation(chosen))]
    return tuple(np.array([index for _, index in sorted(half)], np.int32) for half in found)


def _with_error(estimate: distributions.Estimate) -> Score:
    spread = 2 * estimate.standard_error
    return Score(estimate.value, estimate.value - spread, estimate.value + spread)


def _grouped(metric: str, values: Shaped[np.ndarray, "n"], classes: Int[np.ndarray, "n"]) -> Score:
    """A mean over images, with an interval by resampling their classes."""
    _, place = np.unique(classes, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    return score(
        np.stack([sums, counts], 1),
        share=METRICS[metric].share,
        statistic=lambda v: v[..., 0].sum(1) / v[..., 1].sum(1),
    )


def _frechet(
    real: distributions.Gaussian,
    features: Shaped[np.ndarray, "n *D"],
    classes: Int[np.ndarray, "n"],
    jackknife: bool,
) -> Score:
    """The FD, with a jackknife interval of two standard errors over groups of classes.

    error^2 = (G - 1) / G * sum over g of (FD without group g - their mean)^2 (Efron & Tibshirani
    1993, chapter 11). A bootstrap would repeat images, which narrows their spread and raises
    the distance itself.
    """

    def distance(rows: Shaped[np.ndarray, "n *D"]) -> float:
        return distributions.gaussians_apart(real, distributions.fit_gaussian(rows))

    value = distance(features)
    if not jackknife:
        return Score(value)
    _, place = np.unique(classes, return_inverse=True)
    count = min(_GROUPS, place.max() + 1)
    if count < 2:
        return Score(value)
    without = [distance(features[place % count != g]) for g in range(count)]
    error = float(np.sqrt((count - 1) * np.var(without)))
    return Score(value, value - 2 * error, value + 2 * error)


def inception_scores(comparison: Comparison, weights: Path) -> Scores:
    """Inception FID of samples and of real images to the reference half, as many of each.

    weights: see `inception_fid`.
    """
    real, (reference, baseline) = comparison.real, halves(comparison)
    samples = comparison.sets["samples"].images.swapaxes(0, 1)
    samples = samples.reshape(-1, *samples.shape[2:])
    count = min(len(samples), len(baseline))
    if min(count, len(reference)) < MIN_SET:
        return {}
    sets = {"samples": samples[:count], "real": real.pictures(baseline[:count])}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "reference", real.pictures(reference))
        found = {}
        for name, images in sets.items():
            write_images(folder / name, images)
            found[name] = Score(inception_fid(folder / "reference", folder / name, weights))
    return {"inception_distance": found}
