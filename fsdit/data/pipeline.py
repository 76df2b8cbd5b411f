"""The Grain pipeline: global index -> episode -> decoded rows -> host batches.

Row r of the batch of step s is the example with global index s * B + r, for every number of
processes and workers. The caller says which rows are this host's, and only those are read. The
state of the iterator is one number, the next global index.

This module needs no JAX, so that worker processes never touch a device. (Grain imports JAX
where it is installed, but starts no backend.)
"""

import dataclasses
import errno
import re
import shutil
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal

import grain
import numpy as np
from absl import flags
from grain import experimental as grain_experimental
from jaxtyping import Int, UInt8

from fsdit import storage
from fsdit.config import Config, DataConfig
from fsdit.data import run_dataset
from fsdit.data.episodes import EpisodeStream, FileEpisodes, SampledEpisodes
from fsdit.data.images import symmetries
from fsdit.data.layout import DatasetInfo, read_dataset_info
from fsdit.data.readers import EpisodeReader, FeatureReader, ImageReader, LatentReader, split_images
from fsdit.errors import DataError
from fsdit.parallel import workers

Example = dict[str, Any]
Batch = dict[str, Any]
Kind = Literal["images", "indices"]

_SHARED_MEMORY = "/dev/shm"


@dataclasses.dataclass(frozen=True)
class ReadExample:
    """Maps a global index to one example, read and decoded.

    An example holds index () uint32, class_id () int32 and, in the form that the run needs,

        supports   images (K, H, W, C) uint8; or their features {"pooled": (K, D), "tokens":
                   (K, T, D)}; or their indices (K,) int32 in the split
        target     image (H, W, C) uint8; or mean and log-variance of its latents, each
                   (h, w, c); or () int32: twice its index, plus one if it is mirrored
        aligned    if `aligned`: whether the target is mirrored, () bool, and the tokens (T, D)
                   of the unmirrored target; or image () int32, its index in the split

    With K = 0 there is one support, the target as it is stored.

    class_augmentation: share of episodes whose images all go through the same symmetry; their
    supports and targets are images.
    """

    split: str
    episodes: EpisodeStream
    images: ImageReader
    seed: int
    flip: bool
    supports: FeatureReader | Kind = "images"
    targets: LatentReader | Kind = "images"
    tokens: bool = True  # whether tokens are wanted beside pooled features
    aligned: bool = False  # whether the encoder's tokens of the target are wanted too
    class_augmentation: float = 0.0

    def __call__(self, index: int) -> Example:
        episode = self.episodes[index]
        random = np.random.Philox(key=[self.seed, 1], counter=index)
        mirrored = self.flip and bool(random.random_raw() & 1)
        example = {
            "index": np.uint32(index),
            "class_id": np.int32(episode.class_id),
            "target": self._target(episode.target, mirrored),
            "supports": self._supports(episode.supports),
        }
        if self.aligned:
            example["aligned"] = {"mirrored": np.bool_(mirrored), **self._aligned(episode.target)}
        if self.class_augmentation:
            share, channels = self.class_augmentation, example["target"].shape[-1]
            symmetry = symmetries.sampled(np.random.Generator(random), share, channels)
            for name in ("supports", "target"):
                example[name] = symmetries.transformed(example[name], symmetry)
        return example

    def pictures(
        self, index: int
    ) -> tuple[UInt8[np.ndarray, "K H W C"], UInt8[np.ndarray, "H W C"]]:
        """Returns supports and target as images, whatever form the networks take."""
        episode = self.episodes[index]
        return np.stack([self.images[i] for i in episode.supports]), self.images[episode.target]

    def _target(self, image: int, mirrored: bool) -> Any:
        if self.targets == "indices":
            return np.int32(2 * image + mirrored)
        if self.targets == "images":
            pixels = self.images[image]
            return pixels[:, ::-1] if mirrored else pixels
        return tuple(moment[int(mirrored)] for moment in self.targets[image])

    def _aligned(self, image: int) -> Example:
        if self.supports == "indices":
            return {"image": np.int32(image)}
        return {"tokens": self.supports[image]["tokens"]}

    def _supports(self, images: Sequence[int]) -> Any:
        if self.supports == "indices":
            return np.array(images, np.int32)
        if self.supports == "images":
            return np.stack([self.images[i] for i in images])
        features = [self.supports[i] for i in images]
        names = features[0] if self.tokens else ("pooled",)
        return {name: np.stack([f[name] for f in features]) for name in names}


def training_examples(config: Config) -> ReadExample:
    """Makes the endless training examples. Raises DataError where the dataset cannot serve them."""
    data, info = config.data, read_dataset_info(config.data.dataset_dir)
    split = info.split("train")
    episodes: EpisodeStream
    if data.source == "sampled":
        episodes = SampledEpisodes(split, data.shots, config.seed, data.stratified)
    else:
        reader = EpisodeReader(storage.place(data.dataset_dir) / "train", split, data.shots)
        episodes = FileEpisodes(reader, config.seed, len(split.classes), data.stratified)
    location = config.features.location
    read = _examples(config, info, "train", episodes, flip=data.flip, location=location)
    aligned = config.train.alignment > 0 and config.model.encoder.name == "frozen"
    return dataclasses.replace(read, aligned=aligned, class_augmentation=data.class_augmentation)


def _examples(
    config: Config,
    info: DatasetInfo,
    split: str,
    episodes: EpisodeStream,
    flip: bool,
    location: str,
) -> ReadExample:
    """Makes examples of a split. location: "device" if precomputed records lie on the devices."""
    images = split_images(config.data.dataset_dir, info, split)
    supports: FeatureReader | Kind = "images"
    targets: LatentReader | Kind = "images"
    if config.model.encoder.name == "frozen":
        supports = "indices"  # of images that are encoded when they are first needed
    if run_dataset.features_name(config):
        reader = run_dataset.feature_reader(config, info, split)
        supports = "indices" if location == "device" else reader
    if run_dataset.latents_name(config):
        reader = run_dataset.latent_reader(config, info, split)
        targets = "indices" if location == "device" else reader
    tokens = config.model.use_context
    return ReadExample(split, episodes, images, config.seed, flip, supports, targets, tokens)


@dataclasses.dataclass(frozen=True)
class FixedEpisodes:
    """The first `size` episodes of a split, always the same ones, as evaluation needs them.

    Indices past the end start again at 0, which fills the last batch of an evaluation.
    """

    episodes: EpisodeStream
    size: int

    def __getitem__(self, index: int):
        return self.episodes[index % self.size]


# The fixed examples of a split, and how many there are.
FixedExamples = tuple[ReadExample, int]


def evaluation_examples(config: Config, split: str) -> FixedExamples:
    """Makes the fixed examples of a split: the episodes of its files, in their order.

    Where the files hold episodes of another K, as many episodes are sampled by seed instead,
    each class in turn.
    """
    data, info = config.data, read_dataset_info(config.data.dataset_dir)
    description = info.split(split)
    episodes: EpisodeStream
    if description.shots == data.shots:
        episodes = EpisodeReader(storage.place(data.dataset_dir) / split, description, data.shots)
    else:
        episodes = SampledEpisodes(description, data.shots, config.seed, stratified=True)
    size = description.episodes
    return examples_of(config, split, FixedEpisodes(episodes, size)), size


def examples_of(config: Config, split: str, episodes: EpisodeStream) -> ReadExample:
    """Makes examples of given episodes, as evaluation needs them: no target is mirrored."""
    info = read_dataset_info(config.data.dataset_dir)
    # Read on the host, even where the features of the training split are on the devices.
    return _examples(config, info, split, episodes, flip=False, location="host")


@dataclasses.dataclass(frozen=True)
class _GlobalIndex:
    """Maps a position in this host's stream to a global index."""

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
    """Yields this host's part of each global batch, from global index `start`, on the devices.

    rows: which rows of a global batch are this host's. place: makes global arrays of host
    rows; it runs in a thread, `config.prefetch` batches ahead.
    overfit_batches: repeat the first n batches; 0: off.
    """
    rows = tuple(int(r) for r in rows)
    to_index = _GlobalIndex(start, batch_size, rows, overfit_batches)
    positions = grain.MapDataset.range(num_batches * len(rows))
    # Batches are made here because after to_iter_dataset() workers would change them.
    batches = positions.map(to_index).map(read).batch(len(rows), drop_remainder=True)
    options = grain.ReadOptions(num_threads=config.read_threads, prefetch_buffer_size=16)
    stream = batches.to_iter_dataset(options)
    if config.workers:
        if not flags.FLAGS.is_parsed():  # Grain passes the flags on to its workers
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=config.workers), worker_init_fn=_start_worker
        )
    stream = grain_experimental.ThreadPrefetchIterDataset(
        stream.map(place), prefetch_buffer_size=config.prefetch
    )
    return _explained(stream, config.workers) if config.workers else iter(stream)


def _start_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    workers.ignore_signals()
    workers.follow_parent()


def _explained(stream: grain.IterDataset, count: int) -> Generator[Batch, None, None]:
    """Yields the batches of worker processes. Raises DataError where shared memory is full."""
    batches = None
    workers.expect_unfreed()
    try:
        batches = iter(stream)
        yield from batches
    except (RuntimeError, OSError) as error:
        if not _is_out_of_room(error):
            raise
        room = shutil.disk_usage(_SHARED_MEMORY)
        raise DataError(
            f"{_SHARED_MEMORY} ({room.total / 2**20:.4g} MB) is full: through it the input workers "
            f"hand batches over; make it larger (docker run --shm-size=2g), or config.data.workers="
            f"{count} or config.data.batch_size smaller (0 workers need none)"
        ) from error
    finally:
        if batches is not None:
            batches.close()


def _is_out_of_room(error: Exception) -> bool:
    """Whether shared memory was full: a block was refused, or writing to one killed a worker."""
    ended = re.search(r"exit code (-?\d+)", str(error))  # in Grain's words
    refused = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return refused or (ended is not None and int(ended[1]) == -signal.SIGBUS)
