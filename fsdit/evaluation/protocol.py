"""The protocol: which episodes of which classes are sampled, how often, at which guidance.

It is a list of cells. Each cell is one combination of a split, a number of supports and a
guidance scale, and becomes one table of the results.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from fsdit.config import Config, SamplingConfig
from fsdit.data.episodes import SampledEpisodes, check_class_sizes, class_order
from fsdit.data.layout import DatasetInfo, SplitInfo
from fsdit.data.records import Episode
from fsdit.errors import ConfigError, DataError
from fsdit.evaluation.critics.critic import kind_of
from fsdit.evaluation.results import table_name

SEEN = "train"  # the split of the classes that the model was trained on

# Sets with fewer images than this are not compared as sets.
MIN_SET = 20


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the protocol: the episodes of one table, and how they are sampled.

    Episode e is of class `classes[e % C]`: the episodes of a seed are rounds over the C
    classes, and the seeds follow one another. Each episode has `samples_per_episode` samples.
    """

    split: str
    shots: int
    sampling: SamplingConfig
    classes: tuple[int, ...]
    episodes_per_class: int
    samples_per_episode: int
    seeds: tuple[int, ...]

    @property
    def episodes_per_seed(self) -> int:
        return len(self.classes) * self.episodes_per_class

    @property
    def samples_per_seed(self) -> int:
        return self.episodes_per_seed * self.samples_per_episode

    @property
    def num_episodes(self) -> int:
        return self.episodes_per_seed * len(self.seeds)

    @property
    def num_samples(self) -> int:
        return self.num_episodes * self.samples_per_episode

    @property
    def name(self) -> str:
        return table_name(self.split, self.shots, self.sampling.guidance_scale)

    def class_ids(self) -> Int[np.ndarray, "N"]:
        """The class of each of the N episodes."""
        return np.resize(np.array(self.classes, np.int32), self.num_episodes)

    def episodes(self, split: SplitInfo, seed: int) -> list[Episode]:
        """The episodes of one seed. Each is a function of (seed, class, round) alone."""
        stream = SampledEpisodes(split, self.shots, seed, stratified=True)
        order = class_order(len(split.classes), seed)
        place = np.argsort(order)[list(self.classes)]
        rounds = range(self.episodes_per_class)
        return [stream[turn * len(order) + int(p)] for turn in rounds for p in place]

    def supports(self, split: SplitInfo) -> Int[np.ndarray, "N K"]:
        """Indices of the K supports of each of the N episodes, seed after seed."""
        episodes = [e for seed in self.seeds for e in self.episodes(split, seed)]
        return np.array([e.supports for e in episodes], np.int32)


def make_cells(config: Config, info: DatasetInfo, split: str) -> list[Cell]:
    """The cells of an evaluation of `split`, one for each table.

    For each number of supports there is a cell of `split` and, beside it, one of the seen
    classes; then follow the cells of `split` at the other guidance scales. So the first cell
    is of `split`. Raises ConfigError or DataError where a cell is impossible.
    """
    evaluation = config.evaluation
    shots = evaluation.shots or (config.data.shots,)
    count = evaluation.classes or len(info.split(split).classes)
    counts = {split: count}
    if evaluation.seen and split != SEEN and SEEN in info.splits:
        counts[SEEN] = min(count, len(info.split(SEEN).classes))
    cells = [
        _cell(config, info, name, k, config.sampling.guidance_scale, count)
        for k in shots
        for name, count in counts.items()
    ]
    scales = [s for s in evaluation.guidance_scales if s != config.sampling.guidance_scale]
    return cells + [_cell(config, info, split, k, s, count) for k in shots for s in scales]


def training_cell(config: Config, info: DatasetInfo, split: str) -> Cell:
    """The one cell that training evaluates: about `train.few_shot_samples` samples.

    Each class has one episode, and all have the same number of samples. Raises ConfigError or
    DataError where the cell is impossible or too small to compare sets.
    """
    wanted = config.train.few_shot_samples
    count = min(len(info.split(split).classes), wanted)
    cell = _cell(config, info, split, config.data.shots, config.sampling.guidance_scale, count)
    samples = max(1, round(wanted / max(count, 1)))
    cell = dataclasses.replace(cell, episodes_per_class=1, samples_per_episode=samples, seeds=(0,))
    images = sum(info.split(split).images_per_class[c] // 2 for c in cell.classes)
    if min(cell.num_samples, images) < MIN_SET:
        raise ConfigError(
            f"config.train.few_shot_interval needs {MIN_SET} samples, "
            f"config.train.few_shot_samples makes {cell.num_samples}, and as many real images in "
            f"half of the split {split!r}, which has {images}: raise "
            "config.train.few_shot_samples, or set few_shot_interval=0"
        )
    return cell


def _cell(
    config: Config, info: DatasetInfo, split: str, shots: int, scale: float, count: int
) -> Cell:
    description, evaluation = info.split(split), config.evaluation
    if not description.classes:
        raise DataError(
            f"the split {split!r} of {config.data.dataset_dir} has no classes to sample"
        )
    if count > len(description.classes):
        raise ConfigError(
            f"config.evaluation.classes={count}: the split {split!r} has {len(description.classes)}"
        )
    check_class_sizes(description, shots)
    kind_of(evaluation.critic, info.image_size)  # refuses a critic that these images cannot have
    # The seed is fixed, so that the chosen classes do not depend on config.evaluation.seeds.
    order = class_order(len(description.classes), seed=0)[: count or None]
    return Cell(
        split=split,
        shots=shots,
        sampling=dataclasses.replace(config.sampling, guidance_scale=scale),
        classes=tuple(sorted(order.tolist())),
        episodes_per_class=evaluation.episodes_per_class,
        samples_per_episode=evaluation.samples_per_episode,
        seeds=evaluation.seeds,
    )
