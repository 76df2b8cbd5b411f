"""Which images form episode i: a pure function of (seed, global index).

There are two sources: the episode files of a split, shuffled globally and differently in each
epoch, or episodes sampled from the seed. Both are endless sequences `stream[i] -> Episode`.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fsdit.data.layout import SplitInfo
from fsdit.data.readers import EpisodeReader
from fsdit.data.records import Episode
from fsdit.errors import DataError


@runtime_checkable
class EpisodeStream(Protocol):
    """An endless sequence of episodes."""

    def __getitem__(self, index: int) -> Episode: ...


def class_order(num_classes: int, seed: int) -> np.ndarray:
    """Returns the order (num_classes,) in which stratified streams visit the classes.

    A run has one order, so that any num_classes consecutive episodes, not only aligned ones,
    hold each class once.
    """
    return _generator(seed, "class_order", 0).permutation(num_classes)


@dataclasses.dataclass(frozen=True)
class SampledEpisodes:
    """Episodes whose class, target and K distinct supports are sampled by (seed, index).

    shots: K; 0: the target is its own single support. stratified: whether the classes follow
    `class_order` instead of being sampled. Raises DataError for a class that is too small.
    """

    split: SplitInfo
    shots: int
    seed: int
    stratified: bool = False

    def __post_init__(self):
        check_class_sizes(self.split, self.shots)
        order = class_order(len(self.split.classes), self.seed)
        starts = np.cumsum([0, *self.split.images_per_class[:-1]])
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_starts", starts)

    def __getitem__(self, index: int) -> Episode:
        rng = _generator(self.seed, "sampled", index)
        num_classes = len(self.split.classes)
        drawn = rng.integers(num_classes)
        class_id = int(self._order[index % num_classes] if self.stratified else drawn)
        members = rng.choice(
            self.split.images_per_class[class_id], self.shots + 1, replace=False
        ) + int(self._starts[class_id])
        target, *supports = members.tolist()
        return _episode(class_id, target, supports)


def _episode(class_id: int, target: int, supports: Sequence[int]) -> Episode:
    """Makes an episode; without supports (K = 0) the target is its own."""
    return Episode(class_id, target, tuple(supports) or (target,))


class FileEpisodes:
    """The episodes of a split's files, shuffled globally and differently in each epoch.

    stratified: whether the classes follow `class_order`. Each class then goes through its own
    episodes, which are shuffled again each time they are used up.
    """

    def __init__(self, reader: EpisodeReader, seed: int, num_classes: int, stratified: bool):
        self._reader = reader
        self._stratified = stratified
        if stratified:
            self._order = class_order(num_classes, seed)
            self._by_class = self._group_by_class(num_classes, seed)
        else:
            self._shuffled = _shuffled(range(len(reader)), seed)

    def _group_by_class(self, num_classes: int, seed: int) -> list[Any]:
        members: list[list[int]] = [[] for _ in range(num_classes)]
        for i in range(len(self._reader)):
            members[self._reader[i].class_id].append(i)
        empty = [c for c, m in enumerate(members) if not m]
        if empty:
            raise DataError(
                f"config.data.stratified needs episodes of every class; class {empty[0]} has none"
            )
        return [_shuffled(m, seed + c) for c, m in enumerate(members)]

    def __getitem__(self, index: int) -> Episode:
        if not self._stratified:
            return self._reader[self._shuffled[index]]
        turn, place = divmod(index, len(self._order))
        return self._reader[self._by_class[self._order[place]][turn]]


def _shuffled(items: Sequence[int], seed: int) -> Any:
    """Returns an endless stream over `items`, shuffled by seed and differently in each epoch."""
    import grain  # it imports JAX, which programs that only sample episodes do without

    return grain.MapDataset.source(items).seed(seed).shuffle().repeat()


def check_class_sizes(split: SplitInfo, shots: int) -> None:
    """Raises DataError when a class cannot serve a target and K distinct supports."""
    for name, count in zip(split.classes, split.images_per_class, strict=True):
        if count < shots + 1:
            raise DataError(
                f"class {name!r} has {count} images, shots={shots} needs {shots + 1} (a target "
                "and its supports): lower config.data.shots, or --shots of the conversion"
            )


def draw_episodes(split: SplitInfo, shots: int, per_class: int, seed: int) -> list[Episode]:
    """Samples `per_class` episodes of every class, interleaved by class, for episode files."""
    check_class_sizes(split, shots)
    stream = SampledEpisodes(split, shots, seed, stratified=True)
    return [stream[i] for i in range(per_class * len(split.classes))]


def rotating_episodes(
    split: SplitInfo, shots: int, sets_per_class: int, seed: int
) -> list[Episode]:
    """Samples sets of K + 1 images in which each image is the target once, for episode files.

    Every class has sets_per_class * (K + 1) episodes. They are interleaved, so that any
    num_classes consecutive episodes hold each class once. A set of a class is repeated only
    when all others have been used. Raises DataError for a class of fewer than K + 1 images.
    """
    check_class_sizes(split, shots)

    def rotations(class_id: int) -> Iterator[Episode]:
        members = split.class_range(class_id)
        rng = _generator(seed, "rotating", class_id)
        for chosen in _distinct_sets(len(members), shots + 1, sets_per_class, rng):
            images = [members[i] for i in chosen]
            for turn, target in enumerate(images):
                yield _episode(class_id, target, images[turn + 1 :] + images[:turn])

    order = class_order(len(split.classes), seed).tolist()
    by_class = [rotations(class_id) for class_id in order]
    return [episode for turn in zip(*by_class, strict=True) for episode in turn]


def _distinct_sets(
    population: int, size: int, count: int, rng: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """Yields `count` sets of `size` integers below `population`, none twice before all came."""
    total = math.comb(population, size)
    if total <= 2 * count:  # few enough to list; random sets would often be repeated ones
        every = list(itertools.combinations(range(population), size))
        for start in range(0, count, total):
            for i in rng.permutation(total)[: count - start]:
                yield tuple(rng.permutation(every[i]).tolist())
        return
    seen: set[tuple[int, ...]] = set()
    while len(seen) < count:
        drawn = tuple(rng.choice(population, size, replace=False).tolist())
        if (members := tuple(sorted(drawn))) not in seen:
            seen.add(members)
            yield drawn


def _generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """Returns the random generator of a stream at an index.

    It is counter-based: it costs the same at any index, and is equal in every process.
    """
    key = np.array([seed, int.from_bytes(stream.encode()[:8], "little")], np.uint64)
    counter = np.array([0, 0, 0, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
