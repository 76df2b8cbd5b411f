"""What a table compares: the samples of a cell and their baselines, as the critic sees them."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8

from fsdit.data.layout import SplitInfo
from fsdit.data.readers import ImageReader
from fsdit.evaluation.critics.critic import Critic
from fsdit.evaluation.figures.distances import k_nearest
from fsdit.evaluation.figures.retrieval import image_digest, lookalikes, same_as_first
from fsdit.evaluation.protocol import Cell


@dataclasses.dataclass(frozen=True, eq=False)
class RealImages:
    """All M images of a split, of C classes, as the critic sees them.

    identical: for each image the index of the first image that equals it. alike: which pairs
    of classes share an image.
    """

    images: ImageReader
    split: SplitInfo
    features: Shaped[np.ndarray, "M *D"]
    classes: Int[np.ndarray, "M"]
    identical: Int[np.ndarray, "M"]
    alike: Bool[np.ndarray, "C C"]

    @property
    def unit(self) -> float:
        """The unit of distances: 255 for pixels, which then range from 0 to 1; 1 for features."""
        return 255.0 if self.features.dtype == np.uint8 else 1.0

    def members(self, class_id: int) -> Int[np.ndarray, "m"]:
        """Indices of the images of a class."""
        return np.array(self.split.class_range(class_id), np.int32)

    def pictures(self, indices: Int[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n H W C"]:
        """The images with these indices, read from disk."""
        read = [self.images[i] for i in indices.ravel().tolist()]
        return np.stack(read).reshape(*indices.shape, *read[0].shape)


def read_real_images(images: ImageReader, split: SplitInfo, critic: Critic) -> RealImages:
    """Reads every image of the split once and computes its features."""
    digests: list[bytes] = []

    def read_and_digest() -> Iterator[UInt8[np.ndarray, "H W C"]]:
        for image in images:
            digests.append(image_digest(image))
            yield image

    features = critic.features(read_and_digest())
    classes = np.repeat(np.arange(len(split.classes), dtype=np.int32), split.images_per_class)
    ids = same_as_first(digests)
    alike = lookalikes(ids, classes, len(split.classes))
    return RealImages(images, split, features, classes, ids, alike)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """One column of a table, the samples or a baseline: n images of each of N episodes.

    images: the pixels, where the set is not made of images of the split. index: the indices of
    its images, where it is. A set whose pixels no metric needs has neither.
    """

    features: Shaped[np.ndarray, "N n *D"]
    images: UInt8[np.ndarray, "N n H W C"] | None = None
    index: Int[np.ndarray, "N n"] | None = None

    @property
    def flat(self) -> Shaped[np.ndarray, "m *D"]:
        """The features of all images, episode by episode."""
        return self.features.reshape(-1, *self.features.shape[2:])

    @property
    def by_turn(self) -> Shaped[np.ndarray, "m *D"]:
        """The features of all images: the first image of every episode, then the second."""
        return self.features.swapaxes(0, 1).reshape(-1, *self.features.shape[2:])

    @property
    def episodes_by_turn(self) -> Int[np.ndarray, "m"]:
        """The episode of each image in the order of `by_turn`."""
        episodes, each = self.features.shape[:2]
        return np.tile(np.arange(episodes), each)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """N episodes with everything that their samples are compared with.

    supports: indices of the K supports of each episode. rest: for each episode the indices of
    the other images of its class, in a seeded order. sets: by the names in
    `results.IMAGE_SETS`; a baseline that is impossible is left out.
    """

    real: RealImages
    class_id: Int[np.ndarray, "N"]
    supports: Int[np.ndarray, "N K"]
    rest: tuple[Int[np.ndarray, "_"], ...]
    sets: Mapping[str, ImageSet]


def compare(
    cell: Cell,
    samples: UInt8[np.ndarray, "N R H W C"],
    real: RealImages,
    critic: Critic,
    retrieved: Shaped[np.ndarray, "N n *D"] | None = None,
) -> Comparison:
    """Puts the samples of a cell beside their baselines.

    retrieved: features of the images that `nearest_to_supports` found, if that baseline is wanted.
    """
    class_id, supports = cell.class_ids(), cell.supports(real.split)
    rng = np.random.default_rng(cell.seeds[0])
    rest = tuple(
        rng.permutation(np.setdiff1d(real.members(c), s))
        for c, s in zip(class_id.tolist(), supports, strict=True)
    )
    count = cell.samples_per_episode
    sets = {"samples": ImageSet(_features(critic, samples), samples)}
    if others := min(count, min(map(len, rest))):
        sets["real"] = _real_set(real, np.stack([r[:others] for r in rest]))
    copied = rng.permuted(supports, axis=1)[:, : min(count, supports.shape[1])]
    sets["copied_support"] = _real_set(real, copied)
    means = [np.round(real.pictures(s).mean(0)).astype(np.uint8) for s in supports]
    sets["mean_of_supports"] = ImageSet(critic.features(np.stack(means))[:, None])
    if retrieved is not None:
        sets["nearest_training"] = ImageSet(retrieved)
    if len(cell.classes) > 1:
        sets["other_class"] = ImageSet(sets["samples"].features[_next_episode(cell)])
    return Comparison(real, class_id, supports, rest, sets)


def nearest_to_supports(
    cell: Cell, real: RealImages, training: RealImages
) -> Int[np.ndarray, "N n"]:
    """For each episode the training images nearest to the mean of its supports' features.

    As many as an episode has samples, or all training images where these are fewer. They are
    the baseline of a model that does nothing but remember.
    """
    supports = real.features[cell.supports(real.split)].reshape(cell.num_episodes, cell.shots, -1)
    pool = training.features.reshape(len(training.features), -1)
    count = min(cell.samples_per_episode, len(pool))
    return k_nearest(supports.mean(1, dtype=np.float64), pool, count).index


def _features(
    critic: Critic, images: UInt8[np.ndarray, "N n H W C"]
) -> Shaped[np.ndarray, "N n *D"]:
    found = critic.features(images.reshape(-1, *images.shape[2:]))
    return found.reshape(*images.shape[:2], *found.shape[1:])


def _real_set(real: RealImages, index: Int[np.ndarray, "N n"]) -> ImageSet:
    return ImageSet(real.features[index], index=index)


def _next_episode(cell: Cell) -> Int[np.ndarray, "N"]:
    """For each episode the episode of the next class in the same round."""
    rounds = np.arange(cell.num_episodes).reshape(-1, len(cell.classes))
    return np.roll(rounds, -1, axis=1).ravel()
