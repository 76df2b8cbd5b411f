"""What an evaluation draws: which episodes of which classes, how often, at which guidance."""

import dataclasses

import numpy as np

from fsdit.config import Config, SamplingConfig
from fsdit.data.episodes import SampledEpisodes, check_class_sizes, class_order
from fsdit.data.layout import DatasetInfo, SplitInfo
from fsdit.data.records import Episode
from fsdit.errors import ConfigError, DataError
from fsdit.evaluation.results import table_name

SEEN = "train"

# A side of images that are judged by their pixels: of larger ones these say little, and take
# much memory.
_LARGEST_PIXELS = 64

# Of images, below which two sets are not compared.
MIN_SET = 20


@dataclasses.dataclass(frozen=True)
class Plan:
    """The drawings of one table.

    Episode e is of class `classes[e % C]`: rounds over the classes, one after another, and
    seed after seed. Each is drawn `drawings` times.
    """

    split: str
    shots: int
    sampling: SamplingConfig
    classes: tuple[int, ...]
    episodes_per_class: int
    drawings: int
    seeds: tuple[int, ...]

    @property
    def episodes_per_seed(self) -> int:
        return len(self.classes) * self.episodes_per_class

    @property
    def num_episodes(self) -> int:
        return self.episodes_per_seed * len(self.seeds)

    @property
    def num_drawings(self) -> int:
        return self.num_episodes * self.drawings

    @property
    def name(self) -> str:
        return table_name(self.split, self.shots, self.sampling.guidance_scale)

    def class_ids(self) -> np.ndarray:
        """Of each episode (N,)."""
        return np.resize(np.array(self.classes, np.int32), self.num_episodes)

    def episodes(self, split: SplitInfo, seed: int) -> list[Episode]:
        """The episodes of one seed, a function of (seed, class, round) alone."""
        stream = SampledEpisodes(split, self.shots, seed, stratified=True)
        order = class_order(len(split.classes), seed)
        place = np.argsort(order)[list(self.classes)]
        rounds = range(self.episodes_per_class)
        return [stream[turn * len(order) + int(p)] for turn in rounds for p in place]


def make_plans(config: Config, info: DatasetInfo, split: str) -> list[Plan]:
    """A plan for each table: shots by shots, unseen before seen, then other guidance scales.

    `split` comes first. Raises ConfigError or DataError where it cannot be drawn.
    """
    evaluation = config.evaluation
    shots = evaluation.shots or (config.data.shots,)
    count = evaluation.classes or len(info.split(split).classes)
    counts = {split: count}
    if evaluation.seen and split != SEEN and SEEN in info.splits:
        counts[SEEN] = min(count, len(info.split(SEEN).classes))
    plans = [
        _plan(config, info, name, k, config.sampling.guidance_scale, count)
        for k in shots
        for name, count in counts.items()
    ]
    scales = [s for s in evaluation.guidance_scales if s != config.sampling.guidance_scale]
    return plans + [_plan(config, info, split, k, s, count) for k in shots for s in scales]


def watch_plan(config: Config, info: DatasetInfo, split: str) -> Plan:
    """The light version for training: about `train.fsd_drawings` drawings of one round."""
    wanted = config.train.fsd_drawings
    count = min(len(info.split(split).classes), wanted)
    plan = _plan(config, info, split, config.data.shots, config.sampling.guidance_scale, count)
    drawings = max(1, round(wanted / max(count, 1)))
    plan = dataclasses.replace(plan, episodes_per_class=1, drawings=drawings, seeds=(0,))
    images = sum(info.split(split).images_per_class[c] // 2 for c in plan.classes)
    if min(plan.num_drawings, images) < MIN_SET:
        raise ConfigError(
            f"config.train.fsd_interval needs {MIN_SET} drawings, config.train.fsd_drawings makes "
            f"{plan.num_drawings}, and as many real images in half of the split {split!r}, which "
            f"has {images}: raise config.train.fsd_drawings, or set fsd_interval=0"
        )
    return plan


def _plan(
    config: Config, info: DatasetInfo, split: str, shots: int, scale: float, count: int
) -> Plan:
    description, evaluation = info.split(split), config.evaluation
    if not description.classes:
        raise DataError(f"the split {split!r} of {config.data.dataset_dir} has no classes to draw")
    if count > len(description.classes):
        raise ConfigError(
            f"config.evaluation.classes={count}: the split {split!r} has {len(description.classes)}"
        )
    check_class_sizes(description, shots)
    if not evaluation.judge and info.image_size > _LARGEST_PIXELS:
        raise ConfigError(
            f"config.evaluation.judge is empty: images of {info.image_size} x {info.image_size} "
            "are too large to be judged by their pixels; name a frozen encoder, such as "
            "facebook/dinov2-base"
        )
    # The same classes whatever the seeds are.
    order = class_order(len(description.classes), seed=0)[: count or None]
    return Plan(
        split=split,
        shots=shots,
        sampling=dataclasses.replace(config.sampling, guidance_scale=scale),
        classes=tuple(sorted(order.tolist())),
        episodes_per_class=evaluation.episodes_per_class,
        drawings=evaluation.drawings_per_episode,
        seeds=evaluation.seeds,
    )
