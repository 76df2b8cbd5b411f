"""An evaluation from its plans to its results: draw everything, then judge it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fsdit.config import Config
from fsdit.data.layout import DatasetInfo
from fsdit.data.readers import ImageReader, split_images
from fsdit.errors import ConfigError
from fsdit.evaluation.comparison import Material, RealImages, gather, read_real_images
from fsdit.evaluation.critics.critic import Judge, open_judge
from fsdit.evaluation.critics.inception import check_inception
from fsdit.evaluation.critics.lpips import load_lpips
from fsdit.evaluation.protocol import SEEN, Plan
from fsdit.evaluation.report.write import ClassPictures
from fsdit.evaluation.results import Results, Table
from fsdit.evaluation.samples import Drawer, Shards
from fsdit.evaluation.tables import Perceptual, judge_drawings
from fsdit.models.pretrained.lpips import MIN_SIZE


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """What judges, opened and checked on the host before any device work."""

    plans: list[Plan]
    judge: Judge
    perceptual: Perceptual | None
    images: dict[str, ImageReader]


def open_evaluation(config: Config, info: DatasetInfo, plans: list[Plan]) -> Opened:
    """Raises ConfigError or DataError."""
    lpips = config.evaluation.lpips
    if lpips and info.image_size < MIN_SIZE:
        raise ConfigError(
            f"config.evaluation.lpips: images of {info.image_size} x {info.image_size} are too "
            f"small for LPIPS, which takes {MIN_SIZE} x {MIN_SIZE} and more: leave it empty"
        )
    if config.evaluation.inception:
        check_inception(Path(config.evaluation.inception))
    splits = {plan.split for plan in plans} | ({SEEN} & info.splits.keys())
    return Opened(
        plans=plans,
        judge=open_judge(config),
        perceptual=load_lpips(lpips).pairwise if lpips else None,
        images={split: split_images(config.data.dataset_dir, info, split) for split in splits},
    )


def evaluate(
    config: Config,
    info: DatasetInfo,
    opened: Opened,
    drawer: Drawer,
    shards: Shards,
    ema: dict,
    step: int,
) -> tuple[Results, list[ClassPictures]]:
    """Results, and the first episode of each class in pictures."""
    total = sum(plan.num_drawings for plan in opened.plans)
    with tqdm(total=total, desc="drawing", unit="drawing") as bar:
        for plan in opened.plans:
            shards.draw(drawer, ema, plan, bar.update)
    real = {
        split: read_real_images(images, info.split(split), opened.judge)
        for split, images in tqdm(opened.images.items(), desc="real images", unit="split")
    }
    tables, pictures = [], []
    for plan in tqdm(opened.plans, desc="judging", unit="table"):
        # Read from the shards again: only one table's drawings are in memory at a time.
        images = shards.draw(drawer, ema, plan)
        material = gather(plan, images, real[plan.split], opened.judge)
        table, nearest = judge_drawings(
            material, plan, real.get(SEEN), config.evaluation, opened.perceptual
        )
        tables.append(table)
        pictures += _class_pictures(plan, table, material, nearest, real.get(SEEN))
    results = Results(
        name=config.name,
        step=step,
        split=opened.plans[0].split,
        judge=opened.judge.name,
        protocol=config.evaluation,
        sampling=config.sampling,
        tables=tuple(tables),
    )
    return results, pictures


def _class_pictures(
    plan: Plan, table: Table, material: Material, nearest: np.ndarray, training: RealImages | None
) -> Iterator[ClassPictures]:
    drawings, real = material.rows["drawings"].images, material.rows.get("real")
    pictures = material.real.pictures
    for episode, class_id in enumerate(plan.classes):
        drawn = drawings[episode]
        yield ClassPictures(
            table=table.name,
            name=material.real.split.classes[class_id],
            supports=pictures(material.supports[episode]),
            drawings=drawn,
            real=pictures(real.index[episode]) if real else drawn[:0],
            nearest_training=training.pictures(nearest[episode]) if training else drawn[:0],
        )
