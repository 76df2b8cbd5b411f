"""What is judged: drawings of a plan, floors and ceilings, as a judge sees them."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8

from fsdit.data.layout import SplitInfo
from fsdit.data.readers import ImageReader
from fsdit.evaluation.critics.critic import Judge
from fsdit.evaluation.figures.retrieval import image_digest, lookalikes, same_as_first
from fsdit.evaluation.protocol import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class RealImages:
    """All M images of a split as the judge sees them.

    identical: the index of the first image that equals it. alike: classes that share one.
    """

    images: ImageReader
    split: SplitInfo
    features: Shaped[np.ndarray, "M *D"]
    classes: Int[np.ndarray, "M"]
    identical: Int[np.ndarray, "M"]
    alike: Bool[np.ndarray, "C C"]

    @property
    def unit(self) -> float:
        """What distances are given in: of pixels, between black and white."""
        return 255.0 if self.features.dtype == np.uint8 else 1.0

    def members(self, class_id: int) -> Int[np.ndarray, "m"]:
        return np.array(self.split.class_range(class_id), np.int32)

    def pictures(self, numbers: Int[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n H W C"]:
        read = [self.images[i] for i in numbers.ravel().tolist()]
        return np.stack(read).reshape(*numbers.shape, *read[0].shape)


def read_real_images(images: ImageReader, split: SplitInfo, judge: Judge) -> RealImages:
    """Looks at every image of the split once."""
    digests: list[bytes] = []

    def looked_at() -> Iterator[UInt8[np.ndarray, "H W C"]]:
        for image in images:
            digests.append(image_digest(image))
            yield image

    features = judge.features(looked_at())
    classes = np.repeat(np.arange(len(split.classes), dtype=np.int32), split.images_per_class)
    ids = same_as_first(digests)
    alike = lookalikes(ids, classes, len(split.classes))
    return RealImages(images, split, features, classes, ids, alike)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """What one row of a table judges: n images of each of N episodes."""

    features: Shaped[np.ndarray, "N n *D"]
    images: UInt8[np.ndarray, "N n H W C"] | None = None  # where they are looked at again
    index: Int[np.ndarray, "N n"] | None = None  # where they are images of the split

    @property
    def flat(self) -> Shaped[np.ndarray, "m *D"]:
        """The features of all images, episode by episode."""
        return self.features.reshape(-1, *self.features.shape[2:])

    @property
    def groups(self) -> Int[np.ndarray, "m"]:
        """Of each image its episode, where the first image of all episodes comes first."""
        episodes, each = self.features.shape[:2]
        return np.tile(np.arange(episodes), each)


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """N episodes with everything that is judged of them.

    supports: numbers of images (N, K). rest: by episode, the images of its class that
    are no supports, in a seeded order.
    """

    real: RealImages
    class_id: Int[np.ndarray, "N"]
    supports: Int[np.ndarray, "N K"]
    rest: tuple[Int[np.ndarray, "_"], ...]
    rows: Mapping[str, Row]


def gather(
    plan: Plan, drawn: UInt8[np.ndarray, "N R H W C"], real: RealImages, judge: Judge
) -> Material:
    """The rows of a plan's table: its drawings, floors and ceilings."""
    episodes = [e for seed in plan.seeds for e in plan.episodes(real.split, seed)]
    class_id = plan.class_ids()
    supports = np.array([e.supports for e in episodes], np.int32)
    rng = np.random.default_rng(plan.seeds[0])
    rest = tuple(
        rng.permutation(np.setdiff1d(real.members(c), s))
        for c, s in zip(class_id.tolist(), supports, strict=True)
    )
    count = plan.drawings
    rows = {"drawings": Row(_features(judge, drawn), drawn)}
    if others := min(count, min(map(len, rest))):
        rows["real"] = _real_row(real, np.stack([r[:others] for r in rest]))
    copied = rng.permuted(supports, axis=1)[:, : min(count, supports.shape[1])]
    rows["copied_support"] = _real_row(real, copied)
    means = [np.round(real.pictures(s).mean(0)).astype(np.uint8) for s in supports]
    rows["mean_of_supports"] = Row(judge.features(np.stack(means))[:, None])
    if len(plan.classes) > 1:
        other = _other_class(plan)
        rows["other_class"] = Row(rows["drawings"].features[other])
    return Material(real, class_id, supports, rest, rows)


def _features(judge: Judge, images: UInt8[np.ndarray, "N n H W C"]) -> Shaped[np.ndarray, "N n *D"]:
    found = judge.features(images.reshape(-1, *images.shape[2:]))
    return found.reshape(*images.shape[:2], *found.shape[1:])


def _real_row(real: RealImages, index: Int[np.ndarray, "N n"]) -> Row:
    return Row(real.features[index], index=index)


def _other_class(plan: Plan) -> Int[np.ndarray, "N"]:
    """For each episode the one of the next class in its round."""
    rounds = np.arange(plan.num_episodes).reshape(-1, len(plan.classes))
    return np.roll(rounds, -1, axis=1).ravel()
