"""An evaluation from its protocol to its results: makes all samples, then scores them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from fsdit.config import Config
from fsdit.data.layout import DatasetInfo, SplitInfo
from fsdit.data.readers import ImageReader, split_images
from fsdit.errors import ConfigError
from fsdit.evaluation.comparison import (
    Comparison,
    RealImages,
    compare,
    nearest_to_supports,
    read_real_images,
)
from fsdit.evaluation.critics.critic import LARGEST_SMALL, PIXELS, Critic, open_critic
from fsdit.evaluation.critics.inception import check_inception
from fsdit.evaluation.critics.lpips import load_lpips
from fsdit.evaluation.protocol import SEEN, Cell
from fsdit.evaluation.report.class_pictures import ClassPictures
from fsdit.evaluation.results import Results, Table
from fsdit.evaluation.samples import EpisodeSampler, SampleFiles
from fsdit.evaluation.scoring.episodes import Perceptual
from fsdit.evaluation.tables import score_cell
from fsdit.models.pretrained.lpips import MIN_SIZE


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """Everything an evaluation reads beside the run, opened and checked on the host.

    critics: the one that config.evaluation names, and for small images the pixels beside it.
    perceptual: LPIPS, or None. images: readers by split.
    """

    cells: list[Cell]
    critics: tuple[Critic, ...]
    perceptual: Perceptual | None
    images: dict[str, ImageReader]


def open_evaluation(config: Config, info: DatasetInfo, cells: list[Cell]) -> EvaluationInputs:
    """Opens and checks the inputs before any device work. Raises ConfigError or DataError."""
    lpips = config.evaluation.lpips
    if lpips and info.image_size < MIN_SIZE:
        raise ConfigError(
            f"config.evaluation.lpips: images of {info.image_size} x {info.image_size} are too "
            f"small for LPIPS, which takes {MIN_SIZE} x {MIN_SIZE} and more: leave it empty"
        )
    if config.evaluation.inception:
        check_inception(Path(config.evaluation.inception))
    splits = {cell.split for cell in cells} | ({SEEN} & info.splits.keys())
    critic = open_critic(config, info)
    by_pixels = critic is not PIXELS and info.image_size <= LARGEST_SMALL
    return EvaluationInputs(
        cells=cells,
        critics=(critic, PIXELS) if by_pixels else (critic,),
        perceptual=load_lpips(lpips).pairwise if lpips else None,
        images={split: split_images(config.data.dataset_dir, info, split) for split in splits},
    )


def evaluate(
    config: Config,
    info: DatasetInfo,
    inputs: EvaluationInputs,
    sampler: EpisodeSampler,
    files: SampleFiles,
    ema: dict,
    step: int,
) -> tuple[Results, list[ClassPictures]]:
    """The results, and pictures of the first episode of each class of each cell.

    ema: the EMA weights of `step`.
    """
    total = sum(cell.num_samples for cell in inputs.cells)
    with ThreadPoolExecutor(1) as thread:
        reading = None
        if all(critic.on_host for critic in inputs.critics):  # while the devices make samples
            reading = thread.submit(_real_images, info, inputs)
        with tqdm(total=total, desc="sampling", unit="sample") as bar:
            for cell in inputs.cells:
                files.load_or_make(sampler, ema, cell, bar.update)
    real = reading.result() if reading else _real_images(info, inputs)
    training = real[SEEN][0] if SEEN in real else None
    tables, pictures = [], []
    for cell in tqdm(inputs.cells, desc="scoring", unit="table"):
        # Read from the files again, so that only one cell's samples are in memory at a time.
        samples = files.load_or_make(sampler, ema, cell)
        comparison, *by_pixels = _comparisons(cell, samples, real, inputs.critics)
        table, nearest = score_cell(
            comparison, by_pixels, cell, training, config.evaluation, inputs.perceptual
        )
        tables.append(table)
        pictures += _class_pictures(cell, table, comparison, nearest, training)
    results = Results(
        name=config.name,
        step=step,
        split=inputs.cells[0].split,
        critic=inputs.critics[0].name,
        protocol=config.evaluation,
        sampling=config.sampling,
        tables=tuple(tables),
    )
    return results, pictures


def _real_images(info: DatasetInfo, inputs: EvaluationInputs) -> dict[str, list[RealImages]]:
    """The images of each split that is needed, as each critic sees them."""
    return {
        split: list(_seen_by(inputs.critics, images, info.split(split)))
        for split, images in inputs.images.items()
    }


def _seen_by(
    critics: Sequence[Critic], images: ImageReader, split: SplitInfo
) -> Iterator[RealImages]:
    """The images of a split as each critic sees them. They are read and compared only once.

    Where there is a second critic, the images are small, and are kept in memory for it.
    """
    if len(critics) == 1:
        yield read_real_images(images, split, critics[0])
        return
    pixels = read_real_images(images, split, PIXELS)
    for critic in critics:
        yield dataclasses.replace(pixels, features=critic.features(pixels.features))


def _comparisons(
    cell: Cell,
    samples: UInt8[np.ndarray, "N R H W C"],
    real: Mapping[str, Sequence[RealImages]],
    critics: Sequence[Critic],
) -> Iterator[Comparison]:
    """The samples of a cell beside their baselines, as each critic sees them.

    real: split -> its images by critic. The nearest training images are those that the first
    critic finds. For seen classes they would be further real images, so they are left out.
    """
    found = None
    if SEEN in real and cell.split != SEEN:
        found = nearest_to_supports(cell, real[cell.split][0], real[SEEN][0])
    for i, critic in enumerate(critics):
        retrieved = None if found is None else real[SEEN][i].features[found]
        yield compare(cell, samples, real[cell.split][i], critic, retrieved)


def _class_pictures(
    cell: Cell,
    table: Table,
    comparison: Comparison,
    nearest: np.ndarray | None,
    training: RealImages | None,
) -> Iterator[ClassPictures]:
    all_samples, real = comparison.sets["samples"].images, comparison.sets.get("real")
    pictures = comparison.real.pictures
    for episode, class_id in enumerate(cell.classes):
        samples = all_samples[episode]
        yield ClassPictures(
            table=table.name,
            name=comparison.real.split.classes[class_id],
            supports=pictures(comparison.supports[episode]),
            samples=samples,
            real=pictures(real.index[episode]) if real else samples[:0],
            nearest_training=training.pictures(nearest[episode]) if training else samples[:0],
        )
