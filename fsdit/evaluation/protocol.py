"""The evaluation protocol as data, and its run: draw for episodes, then judge."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from fsdit.config import Config, SamplingConfig
from fsdit.data import input as episode_input
from fsdit.data.episodes import EpisodeStream
from fsdit.data.layout import read_dataset_info
from fsdit.data.pictures import episode_grid
from fsdit.data.readers import ImageReader
from fsdit.data.records import Episode
from fsdit.errors import ConfigError
from fsdit.evaluation.retrieval import class_distances, identical, in_nearest_classes, lookalikes
from fsdit.models.drawing import make_draw
from fsdit.parallel import mesh as meshes
from fsdit.training.run import Run


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which drawings are judged. Two results compare when their protocols are equal."""

    split: str
    shots: int
    episodes: int
    seed: int
    sampling: SamplingConfig


@dataclasses.dataclass(frozen=True)
class Drawings:
    """The drawings of N episodes with what they were drawn from."""

    class_id: Int[np.ndarray, "N"]
    supports: UInt8[np.ndarray, "N K H W C"]
    target: UInt8[np.ndarray, "N H W C"]
    drawn: UInt8[np.ndarray, "N H W C"]


def make_protocol(config: Config, split: str, episodes: int, seed: int) -> Protocol:
    """The first `episodes` episodes of the split, sampled as the run's configuration says."""
    if episodes < 1:
        raise ConfigError(f"--episodes={episodes} must be at least 1")
    available = read_dataset_info(config.data.dataset_dir).split(split).episodes
    return Protocol(split, config.data.shots, min(episodes, available), seed, config.sampling)


def draw_episodes(run: Run, protocol: Protocol) -> Drawings:
    """Draws one image an episode."""
    config, mesh = run.config, run.mesh
    draw = make_draw(run.networks, protocol.sampling, protocol.seed, mesh)
    read, _ = episode_input.evaluation_examples(config, protocol.split, protocol.episodes)
    size = -(-min(config.data.batch_size, protocol.episodes) // mesh.size) * mesh.size
    count = -(-protocol.episodes // size)
    batches = run.feed.batches(read, size, count)
    drawn = [
        meshes.to_host(draw(run.ema, run.feed.codec, batch["supports"], batch["index"]))
        for batch in tqdm(batches, total=count, desc="drawing", unit="batch")
    ]
    class_id = [read.episodes[i].class_id for i in range(protocol.episodes)]
    supports, targets = zip(*map(read.pictures, range(protocol.episodes)), strict=True)
    return Drawings(
        np.array(class_id, np.int32),
        np.stack(supports),
        np.stack(targets),
        np.concatenate(drawn)[: protocol.episodes],
    )


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """Each of the first `size` episodes `times` times over, then again from the first."""

    episodes: EpisodeStream
    size: int
    times: int

    def __getitem__(self, index: int) -> Episode:
        return self.episodes[index // self.times % self.size]


def draw_variations(
    run: Run, protocol: Protocol, rows: int, columns: int
) -> UInt8[np.ndarray, "Y X C"]:
    """A picture: `rows` episodes, supports on the left, `columns` drawings on the right."""
    read, rows = episode_input.evaluation_examples(run.config, protocol.split, rows)
    repeated = dataclasses.replace(read, episodes=_Repeated(read.episodes, rows, columns))
    total = -(-rows * columns // run.mesh.size) * run.mesh.size
    batch = next(run.feed.batches(repeated, total, 1))
    draw = make_draw(run.networks, protocol.sampling, protocol.seed, run.mesh)
    drawn = meshes.to_host(draw(run.ema, run.feed.codec, batch["supports"], batch["index"]))
    drawn = drawn[: rows * columns].reshape(rows, columns, *drawn.shape[1:])
    supports = np.stack([read.pictures(i)[0] for i in range(rows)])
    return episode_grid(supports, [drawn[:, i] for i in range(columns)])


def retrieval(config: Config, protocol: Protocol, drawings: Drawings) -> dict[str, dict]:
    """Top-1 retrieval in pixel space among all real images of the split.

    The episode's own supports are left out of the pool. Beside the drawings, what a
    copyist scores (a support at random), what the pixelwise mean of the supports
    scores, and a real image (the target, itself left out too); and chance. Each twice:
    "top1" counts a look-alike class as right, "top1_exact" the very class only.
    """
    info = read_dataset_info(config.data.dataset_dir)
    split = info.split(protocol.split)
    directory = Path(config.data.dataset_dir) / protocol.split
    images = ImageReader(directory, info.image_size, info.channels, split.num_images)
    pool = np.stack([images[i] for i in range(len(images))])
    pool_classes = np.repeat(np.arange(len(split.classes)), split.images_per_class)
    supports = drawings.supports

    count, shots = supports.shape[:2]
    ids = identical([*pool, *supports.reshape(-1, *pool.shape[1:]), *drawings.target])
    pool_ids, support_ids, target_ids = np.split(ids, [len(pool), len(ids) - count])
    support_ids = support_ids.reshape(count, shots)
    with_target = np.concatenate([support_ids, target_ids[:, None]], axis=1)
    chosen = np.random.default_rng(protocol.seed).integers(shots, size=count)
    judged = {
        "drawings": (drawings.drawn, support_ids),
        "copied_support": (supports[np.arange(count), chosen], support_ids),
        "mean_of_supports": (np.round(supports.mean(1)).astype(np.uint8), support_ids),
        "real_target": (drawings.target, with_target),
    }
    num_classes = len(split.classes)
    distances = {
        name: class_distances(queries, pool, pool_classes, num_classes, left_out, pool_ids)
        for name, (queries, left_out) in judged.items()
    }

    def scores(alike: np.ndarray) -> dict[str, float]:
        right = alike[drawings.class_id]
        row = {
            name: float(in_nearest_classes(squared, right, k=1).mean())
            for name, squared in distances.items()
        }
        candidates = right[:, pool_classes].sum(1)
        return {**row, "chance": float(((candidates - shots) / (len(pool) - shots)).mean())}

    return {
        "top1": scores(lookalikes(pool_ids, pool_classes, num_classes)),
        "top1_exact": scores(np.eye(num_classes, dtype=bool)),
    }
