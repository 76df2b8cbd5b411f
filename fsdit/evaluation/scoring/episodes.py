"""Scores of metrics that have one value an episode: retrieval, copying and variety."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

from fsdit.evaluation.comparison import Comparison, ImageSet, RealImages
from fsdit.evaluation.figures import copying
from fsdit.evaluation.figures.distances import episode_distances, k_nearest
from fsdit.evaluation.figures.retrieval import class_distances, in_nearest_classes
from fsdit.evaluation.figures.variety import mean_pairwise
from fsdit.evaluation.scoring.scores import ByEpisode, Scores, score_episodes

# Distances between the images of each episode: (E, R, H, W, C) -> (E, R, R).
Perceptual = Callable[[np.ndarray], np.ndarray]


def class_fidelity(comparison: Comparison) -> tuple[Scores, ByEpisode]:
    """Top-1 and top-5 retrieval among all images of the split.

    A search leaves out the episode's supports and all copies of them; that for a real image
    also leaves out the image itself.
    """
    real = comparison.real
    found: dict[str, dict[str, np.ndarray]] = {"top1": {}, "top1_exact": {}, "top5": {}}
    exact = np.eye(len(real.split.classes), dtype=bool)
    for name, images in comparison.sets.items():
        n = images.features.shape[1]
        # Nothing has the id -1: the queries of all sets have one shape, so they share programs.
        itself = np.full(images.features.shape[:2], -1)
        if name == "real":
            itself = real.identical[images.index]
        left_out = np.repeat(real.identical[comparison.supports], n, axis=0)
        left_out = np.concatenate([left_out, itself.reshape(-1, 1)], axis=1)
        squared = class_distances(
            images.flat, real.features, real.classes, len(exact), left_out, real.identical
        )
        class_id = np.repeat(comparison.class_id, n)
        for metric, right, k in (
            ("top1", real.alike, 1),
            ("top1_exact", exact, 1),
            ("top5", real.alike, 5),
        ):
            hits = in_nearest_classes(squared, right[class_id], k)
            found[metric][name] = hits.reshape(-1, n).mean(1)
    return score_episodes(found, comparison.class_id)


def support_copies(comparison: Comparison) -> tuple[Scores, ByEpisode]:
    """Distance to the nearest support, and the share of near-copies, of every image set."""
    real = comparison.real
    supports = real.features[comparison.supports]
    distances = {
        name: copying.nearest_support(episode_distances(images.features, supports) / real.unit)
        for name, images in comparison.sets.items()
    }
    found = {"support_distance": {name: d.mean(1) for name, d in distances.items()}}
    if "real" in distances:
        threshold = copying.near_copy_threshold(distances["real"])
        found["near_copies"] = {
            name: copying.near_copies(d, threshold).mean(1) for name, d in distances.items()
        }
    return score_episodes(found, comparison.class_id)


def training_copies(
    comparison: Comparison, training: RealImages
) -> tuple[Scores, ByEpisode, Int[np.ndarray, "N R"]]:
    """Distance of samples and real images to the nearest training image.

    The third result is the index of the training image nearest to each sample.
    """
    index, distance = _nearest_training(comparison.sets["samples"], comparison.real, training)
    distances = {"samples": distance.mean(1)}
    if "real" in comparison.sets:
        _, distance = _nearest_training(comparison.sets["real"], comparison.real, training)
        distances["real"] = distance.mean(1)
    found = {"training_distance": distances}
    scores, by_episode = score_episodes(found, comparison.class_id)
    return scores, by_episode, index


def _nearest_training(
    images: ImageSet, real: RealImages, training: RealImages
) -> tuple[Int[np.ndarray, "N n"], Float[np.ndarray, "N n"]]:
    """Index and distance of the nearest training image, which is never the image itself."""
    shape = images.features.shape[:2]
    itself = None
    if images.index is not None and real is training:
        itself = real.identical[images.index].reshape(-1, 1)
    found = k_nearest(images.flat, training.features, 1, itself, training.identical)
    return found.index.reshape(shape), (np.sqrt(found.squared_distance) / real.unit).reshape(shape)


def variety(comparison: Comparison, perceptual: Perceptual | None) -> tuple[Scores, ByEpisode]:
    """Mean distance between two images of an episode, by the critic and by LPIPS.

    perceptual: LPIPS, for samples and real images; None where it is not wanted.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, images in comparison.sets.items():
        if images.features.shape[1] < 2:
            continue
        own = episode_distances(images.features, images.features) / comparison.real.unit
        distances = {"pairwise_distance": own}
        if perceptual is not None and name in ("samples", "real"):
            distances["lpips"] = perceptual(_pixels(images, comparison.real))
        for metric, pairs in distances.items():
            found.setdefault(metric, {})[name] = mean_pairwise(pairs)
    return score_episodes(found, comparison.class_id)


def _pixels(images: ImageSet, real: RealImages) -> UInt8[np.ndarray, "N n H W C"]:
    return real.pictures(images.index) if images.images is None else images.images
