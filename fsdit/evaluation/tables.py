"""From drawings to figures: every row of a table is judged by the same functions.

Distances are those of the judge's features. Real images of a class are cut into two
halves by seed: "reference" is what sets are compared with, the other half is their ceiling.
"""

import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from fsdit.config import EvaluationConfig
from fsdit.evaluation.comparison import Material, RealImages, Row
from fsdit.evaluation.critics.inception import inception_fid, write_images
from fsdit.evaluation.figures import copying, distributions
from fsdit.evaluation.figures.classifier import classified_right
from fsdit.evaluation.figures.distances import episode_distances, k_nearest
from fsdit.evaluation.figures.retrieval import class_distances, in_nearest_classes
from fsdit.evaluation.figures.uncertainty import bootstrap_interval
from fsdit.evaluation.figures.variety import mean_pairwise
from fsdit.evaluation.protocol import MIN_SET, SEEN, Plan
from fsdit.evaluation.results import METRICS, Score, Table

# Of a jackknife.
_GROUPS = 10

Scores = dict[str, dict[str, Score]]
# By metric, one value an episode: of the drawings.
ByEpisode = dict[str, Float[np.ndarray, "N"]]
# Distances between the images of each episode (E, R, H, W, C) -> (E, R, R).
Perceptual = Callable[[np.ndarray], np.ndarray]


def _score(values: Shaped[np.ndarray, "E *V"], statistic: Callable | None = None) -> Score:
    """A mean over episodes, or another statistic of their rows, with its interval.

    One episode says nothing about others: no interval.
    """
    value = float(np.mean(values) if statistic is None else statistic(values))
    if len(values) < 2:
        return Score(value)
    options = {} if statistic is None else {"statistic": statistic}
    low, high = bootstrap_interval(values, **options)
    return Score(value, float(low), float(high))


def _scored(found: dict[str, dict[str, Float[np.ndarray, "N"]]]) -> tuple[Scores, ByEpisode]:
    """From one value an episode, by metric and row: scores, and the drawings' values."""
    scores = {
        m: {name: _score(values) for name, values in rows.items()} for m, rows in found.items()
    }
    return scores, {m: rows["drawings"] for m, rows in found.items()}


def class_fidelity(material: Material) -> tuple[Scores, ByEpisode]:
    """Top-1 and top-5 retrieval among all images of the split.

    The episode's supports, and whatever equals one, are left out; so is a real image itself.
    """
    real = material.real
    found: dict[str, dict[str, np.ndarray]] = {"top1": {}, "top1_exact": {}, "top5": {}}
    very = np.eye(len(real.split.classes), dtype=bool)
    for name, row in material.rows.items():
        n = row.features.shape[1]
        left_out = np.repeat(real.identical[material.supports], n, axis=0)
        if name == "real":
            itself = real.identical[row.index].reshape(-1, 1)
            left_out = np.concatenate([left_out, itself], axis=1)
        squared = class_distances(
            row.flat, real.features, real.classes, len(very), left_out, real.identical
        )
        class_id = np.repeat(material.class_id, n)
        for metric, right, k in (
            ("top1", real.alike, 1),
            ("top1_exact", very, 1),
            ("top5", real.alike, 5),
        ):
            hits = in_nearest_classes(squared, right[class_id], k)
            found[metric][name] = hits.reshape(-1, n).mean(1)
    return _scored(found)


def support_copies(material: Material) -> tuple[Scores, ByEpisode]:
    """Distance to the nearest support, and the share of near-copies among all rows."""
    supports = material.real.features[material.supports]
    distances = {
        name: copying.nearest_support(
            episode_distances(row.features, supports) / material.real.unit
        )
        for name, row in material.rows.items()
    }
    found = {"support_distance": {name: d.mean(1) for name, d in distances.items()}}
    if "real" in distances:
        threshold = copying.near_copy_threshold(distances["real"])
        found["near_copies"] = {
            name: copying.near_copies(d, threshold).mean(1) for name, d in distances.items()
        }
    return _scored(found)


def training_copies(
    material: Material, training: RealImages
) -> tuple[Scores, ByEpisode, Int[np.ndarray, "N R"]]:
    """Distance to the nearest training image, and which it is for each drawing."""
    distances, nearest = {}, np.zeros(0, np.int32)
    for name in ("drawings", "real"):
        if name in material.rows:
            index, distance = _nearest_training(material.rows[name], material.real, training)
            distances[name] = distance.mean(1)
            nearest = index if name == "drawings" else nearest
    return *_scored({"training_distance": distances}), nearest


def _nearest_training(
    row: Row, real: RealImages, training: RealImages
) -> tuple[Int[np.ndarray, "N n"], Float[np.ndarray, "N n"]]:
    """Index and distance; a training image is no neighbour of itself."""
    shape = row.features.shape[:2]
    itself = None
    if row.index is not None and real is training:
        itself = real.identical[row.index].reshape(-1, 1)
    found = k_nearest(row.flat, training.features, 1, itself, training.identical)
    return found.index.reshape(shape), (np.sqrt(found.squared_distance) / real.unit).reshape(shape)


def variety(material: Material, perceptual: Perceptual | None) -> tuple[Scores, ByEpisode]:
    """Mean distance between two images of an episode, by the judge and by LPIPS."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in ("drawings", "real"):
        row = material.rows.get(name)
        if row is None or row.features.shape[1] < 2:
            continue
        own = episode_distances(row.features, row.features) / material.real.unit
        distances = {"pairwise_distance": own}
        if perceptual is not None:
            distances["lpips"] = perceptual(_pixels(row, material.real))
        for metric, pairs in distances.items():
            found.setdefault(metric, {})[name] = mean_pairwise(pairs)
    return _scored(found)


def _pixels(row: Row, real: RealImages) -> UInt8[np.ndarray, "N n H W C"]:
    if row.images is not None:
        return row.images
    return real.pictures(row.index)


def use(material: Material, ways: int) -> Scores:
    """Accuracy of few-shot classifiers, each row alone and with the supports as training set.

    A task is `ways` classes of one round, told apart on all their images that are no
    supports. Not for real images: those are the test.
    """
    classes = len(np.unique(material.class_id))
    ways = min(ways, classes)
    if ways < 2:
        return {}
    rounds = np.arange(len(material.class_id)).reshape(-1, classes)
    tasks = [
        turn[start : start + ways]
        for turn in rounds
        for start in range(0, classes - ways + 1, ways)
    ]
    supports = _floats(material.real.features[material.supports])
    train = {n: _floats(r.features) for n, r in material.rows.items() if n != "real"}
    train["copied_support"] = supports
    right = {name: [_accuracy(material, task, x) for task in tasks] for name, x in train.items()}
    scores = {"classifier": {name: _score(np.array(v)) for name, v in right.items()}}
    scores["classifier_with_supports"] = {"copied_support": scores["classifier"]["copied_support"]}
    for name in ("drawings", "mean_of_supports", "other_class"):
        if name in train:
            both = np.concatenate([supports, train[name]], axis=1)
            found = np.array([_accuracy(material, task, both) for task in tasks])
            scores["classifier_with_supports"][name] = _score(found)
    return scores


def _floats(features: Shaped[np.ndarray, "N n *D"]) -> Float[np.ndarray, "N n d"]:
    return features.reshape(*features.shape[:2], -1).astype(np.float64)


def _accuracy(
    material: Material, task: Int[np.ndarray, "w"], train: Float[np.ndarray, "N n d"]
) -> float:
    each = train.shape[1]
    test = np.concatenate([material.rest[e] for e in task])
    tested = np.repeat(material.class_id[task], [len(material.rest[e]) for e in task])
    if not len(test):
        return np.nan
    return classified_right(
        train[task].reshape(-1, train.shape[-1]),
        np.repeat(material.class_id[task], each),
        _floats(material.real.features[test][None])[0],
        tested,
    ).mean()


def set_fidelity(material: Material, *, jackknife: bool) -> Scores:
    """Distances of sets of features to the reference half of the real images.

    The Fréchet distance, recall and coverage depend on how many images there are, so every
    row gives the same number, and one that has fewer goes without them. As sets, drawings
    of another class are the drawings.
    """
    real, (reference, ceiling) = material.real, halves(material)
    rows = {
        # The first image of every episode, then the second.
        name: (row.features.swapaxes(0, 1).reshape(-1, *row.features.shape[2:]), row.groups)
        for name, row in material.rows.items()
        if name not in ("real", "other_class")
    }
    rows["real"] = real.features[ceiling], np.arange(len(ceiling))
    count = min(len(rows["drawings"][0]), len(ceiling))
    scores: Scores = {}
    if min(count, len(reference)) < MIN_SET:
        return scores

    scaled = real.features[reference] / np.float32(real.unit)
    of_class = real.classes[reference]
    for name, (features, groups) in rows.items():
        features = features / np.float32(real.unit)
        if len(features) < MIN_SET:
            continue
        found = _against(scaled, of_class, features[:count], groups[:count])
        found["kernel_distance"] = _with_error(distributions.kernel_distance(scaled, features))
        found["gaussian_distance"] = _with_error(distributions.gaussian_distance(scaled, features))
        if len(features) >= count:
            found["frechet_distance"] = _frechet(scaled, features[:count], groups, jackknife)
        else:
            found = {m: s for m, s in found.items() if m not in ("recall", "coverage")}
        for metric, score in found.items():
            scores.setdefault(metric, {})[name] = score
    return {metric: scores[metric] for metric in METRICS if metric in scores}


def _against(
    real: np.ndarray, of_class: np.ndarray, features: np.ndarray, groups: np.ndarray
) -> dict[str, Score]:
    near = distributions.precision_recall(real, features)
    around = distributions.density_coverage(real, features)
    return {
        "precision": _grouped(near.precision, groups),
        "recall": _grouped(near.recall, of_class),
        "density": _grouped(around.density, groups),
        "coverage": _grouped(around.coverage, of_class),
    }


def halves(material: Material) -> tuple[Int[np.ndarray, "A"], Int[np.ndarray, "B"]]:
    """Numbers of the real images of the drawn classes: reference and ceiling.

    No support is in the reference while they are at most half of the class: copies of them
    would else come nearer to it than real images do. Ordered so that any first few of them
    are of as many classes as may be.
    """
    found: tuple[list, list] = ([], [])
    rng = np.random.default_rng(0)
    for class_id in np.unique(material.class_id).tolist():
        members = rng.permutation(material.real.members(class_id))
        shown = np.isin(members, material.supports)
        members = np.concatenate([members[~shown], members[shown]])
        middle = math.ceil(len(members) / 2)
        for half, chosen in zip(found, (members[:middle], members[middle:]), strict=True):
            half += [(turn, number) for turn, number in enumerate(rng.permutation(chosen))]
    return tuple(np.array([n for _, n in sorted(h)], np.int32) for h in found)


def _with_error(estimate: distributions.Estimate) -> Score:
    spread = 2 * estimate.standard_error
    return Score(estimate.value, estimate.value - spread, estimate.value + spread)


def _grouped(values: Shaped[np.ndarray, "n"], groups: Int[np.ndarray, "n"]) -> Score:
    """A mean over images; its interval resamples groups of them, episodes or classes."""
    _, place = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    return _score(np.stack([sums, counts], 1), lambda v: v[:, 0].sum() / v[:, 1].sum())


def _frechet(
    real: np.ndarray, found: np.ndarray, groups: Int[np.ndarray, "n"], jackknife: bool
) -> Score:
    """By jackknife: a resample with repeats has too little spread, and a larger distance."""
    distance = functools.partial(distributions.frechet_distance, real)
    value = distance(found)
    if not jackknife:
        return Score(value)
    _, place = np.unique(groups[: len(found)], return_inverse=True)
    count = min(_GROUPS, place.max() + 1)
    if count < 2:
        return Score(value)
    without = [distance(found[place % count != g]) for g in range(count)]
    error = float(np.sqrt((count - 1) * np.var(without)))
    return Score(value, value - 2 * error, value + 2 * error)


def inception_scores(material: Material, weights: Path) -> Scores:
    """Inception FID of drawings and of real images to the reference half, as many of each."""
    real, (reference, ceiling) = material.real, halves(material)
    drawn = material.rows["drawings"].images.swapaxes(0, 1)
    drawn = drawn.reshape(-1, *drawn.shape[2:])
    count = min(len(drawn), len(ceiling))
    if min(count, len(reference)) < MIN_SET:
        return {}
    sets = {"drawings": drawn[:count], "real": real.pictures(ceiling[:count])}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "reference", real.pictures(reference))
        found = {}
        for name, images in sets.items():
            write_images(folder / name, images)
            found[name] = Score(inception_fid(folder / "reference", folder / name, weights))
    return {"inception_distance": found}


def judge_drawings(
    material: Material,
    plan: Plan,
    training: RealImages | None,
    protocol: EvaluationConfig,
    perceptual: Perceptual | None,
) -> tuple[Table, Int[np.ndarray, "N R"]]:
    """The table of a plan, and the training image nearest to each drawing.

    training: of the training split; None where there is none.
    """
    inception = inception_scores(material, Path(protocol.inception)) if protocol.inception else {}
    retrieved, top = class_fidelity(material)
    varied, pairwise = variety(material, perceptual)
    copied, near = support_copies(material)
    memorised, far, nearest = training_copies(material, training) if training else ({}, {}, None)
    scores = {
        **set_fidelity(material, jackknife=True),
        **inception,
        **retrieved,
        **use(material, protocol.ways),
        **varied,
        **copied,
        **memorised,
    }
    names = material.real.split.classes
    by_class = {
        metric: {names[c]: float(values[material.class_id == c].mean()) for c in plan.classes}
        for metric, values in {**top, **pairwise, **near, **far}.items()
    }
    table = Table(
        split=plan.split,
        seen=plan.split == SEEN,
        shots=plan.shots,
        guidance_scale=plan.sampling.guidance_scale,
        episodes=plan.num_episodes,
        drawings=plan.num_drawings,
        scores=scores,
        by_class=by_class,
    )
    return table, nearest
