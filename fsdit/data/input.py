"""The Grain pipeline: global index -> episode -> decoded rows -> host batches.

Row r of the batch of step s is the example with global index s * B + r, for every
number of processes and workers. A host is told which rows are its own and reads
just those. The whole state of the iterator is one number: the next global index.

This module needs no JAX, so that worker processes never touch a device (Grain imports
JAX where it finds it, but starts no backend).
"""

import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from grain import experimental as grain_experimental
from jaxtyping import Int

from fsdit.config import DataConfig
from fsdit.data.episodes import EpisodeStream, FileEpisodes, SampledEpisodes
from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import EpisodeReader, ImageReader

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ReadExample:
    """global index -> one example, read and decoded.

    index () uint32, class_id () int32, target (H, W, C) uint8, supports (K, H, W, C) uint8;
    with K = 0 one support, the target as it is stored.
    """

    episodes: EpisodeStream
    images: ImageReader
    seed: int
    flip: bool

    def __call__(self, index: int) -> Batch:
        episode = self.episodes[index]
        target = self.images[episode.target]
        if self.flip and np.random.Philox(key=[self.seed, 1], counter=index).random_raw() & 1:
            target = target[:, ::-1]
        return {
            "index": np.uint32(index),
            "class_id": np.int32(episode.class_id),
            "target": target,
            "supports": np.stack([self.images[i] for i in episode.supports]),
        }


def training_examples(config: DataConfig, seed: int) -> ReadExample:
    """Endless training examples. Raises DataError for a dataset that cannot serve them."""
    info = read_dataset_info(config.dataset_dir)
    split = info.split("train")
    directory = Path(config.dataset_dir) / "train"
    episodes: EpisodeStream
    if config.source == "sampled":
        episodes = SampledEpisodes(split, config.shots, seed, config.stratified)
    else:
        reader = EpisodeReader(directory, split, config.shots)
        episodes = FileEpisodes(reader, seed, len(split.classes), config.stratified)
    images = ImageReader(directory, info.image_size, info.channels, split.num_images)
    return ReadExample(episodes, images, seed, config.flip)


@dataclasses.dataclass(frozen=True)
class FixedEpisodes:
    """The first `size` episodes of a split, for ever the same, as evaluation needs them.

    Indices past the end wrap round: the last batch of an evaluation is filled up.
    """

    episodes: EpisodeStream
    size: int

    def __getitem__(self, index: int):
        return self.episodes[index % self.size]


# Reader and number of the fixed examples of a split.
FixedExamples = tuple[ReadExample, int]


def evaluation_examples(
    config: DataConfig, split: str, seed: int, limit: int | None = None
) -> FixedExamples:
    """Fixed examples of a split and their number: its episode files, unshuffled.

    Where the files hold episodes of another K, as many are drawn by seed instead,
    each class in turn.
    """
    info = read_dataset_info(config.dataset_dir)
    description = info.split(split)
    directory = Path(config.dataset_dir) / split
    episodes: EpisodeStream
    if description.shots == config.shots:
        episodes = EpisodeReader(directory, description, config.shots)
    else:
        episodes = SampledEpisodes(description, config.shots, seed, stratified=True)
    size = description.episodes if limit is None else min(limit, description.episodes)
    images = ImageReader(directory, info.image_size, info.channels, description.num_images)
    return ReadExample(FixedEpisodes(episodes, size), images, seed, flip=False), size


@dataclasses.dataclass(frozen=True)
class _GlobalIndex:
    """Position in this host's stream -> global index."""

    start: int
    batch_size: int
    rows: tuple[int, ...]
    overfit_batches: int = 0

    def __call__(self, position: int) -> int:
        step, row = divmod(position, len(self.rows))
        index = self.start + step * self.batch_size + self.rows[row]
        if self.overfit_batches:
            index %= self.overfit_batches * self.batch_size
        return index


def host_batches(
    read: ReadExample,
    rows: Int[np.ndarray, "b"] | Sequence[int],
    batch_size: int,
    start: int,
    num_batches: int,
    config: DataConfig,
    place: Callable[[Batch], Batch],
    overfit_batches: int = 0,
) -> Iterator[Batch]:
    """This host's part of each global batch, from global index `start`, on the devices.

    rows: which rows of a global batch are this host's. place: host rows -> global
    arrays, run ahead in a thread, `config.prefetch` batches deep.
    overfit_batches: go round the first n batches for ever; 0: off.
    """
    rows = tuple(int(r) for r in rows)
    to_index = _GlobalIndex(start, batch_size, rows, overfit_batches)
    positions = grain.MapDataset.range(num_batches * len(rows))
    # Batched as a MapDataset: after to_iter_dataset() workers would change the batches.
    batches = positions.map(to_index).map(read).batch(len(rows), drop_remainder=True)
    options = grain.ReadOptions(num_threads=config.read_threads, prefetch_buffer_size=16)
    stream = batches.to_iter_dataset(options)
    if config.workers:
        if not flags.FLAGS.is_parsed():  # Grain hands the flags on to its workers
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=config.workers), worker_init_fn=_ignore_sigterm
        )
    return iter(
        grain_experimental.ThreadPrefetchIterDataset(
            stream.map(place), prefetch_buffer_size=config.prefetch
        )
    )


def _ignore_sigterm(worker_index: int, worker_count: int) -> None:
    """A preemption signals the whole process group; the training process alone acts on it."""
    del worker_index, worker_count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
