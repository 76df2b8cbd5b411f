"""Few-shot evaluation in training: a small protocol on classes that are not trained on."""

import dataclasses
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from fsdit.config import Config
from fsdit.data.layout import DatasetInfo
from fsdit.data.readers import split_images
from fsdit.errors import ConfigError
from fsdit.evaluation.comparison import compare, read_real_images
from fsdit.evaluation.critics.critic import Critic, open_critic
from fsdit.evaluation.protocol import Cell, training_cell
from fsdit.evaluation.samples import EpisodeSampler, by_episode
from fsdit.evaluation.scoring.episodes import class_fidelity, support_copies
from fsdit.evaluation.scoring.sets import set_fidelity
from fsdit.features.batches import Feed
from fsdit.models.spec import ModelSpec
from fsdit.parallel import processes


@dataclasses.dataclass(frozen=True)
class FewShotInputs:
    """What the few-shot evaluation samples and compares, checked on the host."""

    info: DatasetInfo
    cell: Cell
    critic: Critic


def open_few_shot(config: Config, info: DatasetInfo, split: str) -> FewShotInputs:
    """Opens and checks the inputs before any device work. Raises ConfigError or DataError."""
    if split not in info.splits:
        raise ConfigError(
            f"config.train.few_shot_interval={config.train.few_shot_interval} evaluates samples "
            f"of {split} classes, {config.data.dataset_dir} has no {split} split: set it to 0"
        )
    return FewShotInputs(info, training_cell(config, info, split), open_critic(config, info))


class FewShotEvaluator:
    """Scores samples of the EMA weights. The real images are read once, at the beginning."""

    def __init__(
        self, config: Config, spec: ModelSpec, feed: Feed, mesh: Mesh, inputs: FewShotInputs
    ):
        self._cell, self._critic, info = inputs.cell, inputs.critic, inputs.info
        self._sampler, self._turn = EpisodeSampler(config, spec, feed, mesh), 0
        images = split_images(config.data.dataset_dir, info, self._cell.split)
        self._real = read_real_images(images, info.split(self._cell.split), self._critic)
        # Hosts read at their own pace, and a collective on the CPU waits only for a short time.
        processes.wait_for_all("few_shot_opened")

    def run(self, ema: dict) -> dict[str, float]:
        """Makes samples with the EMA weights and returns few_shot/METRIC -> their score.

        All processes must call it, and all get the same values.
        """
        (seed,) = self._cell.seeds
        batches = list(self._sampler.batches(ema, self._cell, seed))
        samples = by_episode(self._cell, batches)
        comparison = compare(self._cell, samples, self._real, self._critic)
        # The other baselines have the same scores at every step.
        sets = {name: s for name, s in comparison.sets.items() if name in ("samples", "real")}
        comparison = dataclasses.replace(comparison, sets=sets)
        scores = {
            **set_fidelity(comparison, jackknife=False),
            **class_fidelity(comparison)[0],
            **support_copies(comparison)[0],
        }
        processes.wait_for_all(f"few_shot_scored_{self._turn}")
        self._turn += 1
        return {f"few_shot/{metric}": sets["samples"].value for metric, sets in scores.items()}


def few_shot_row(config: Config, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The scores of all averages of a run in one row of the log.

    scores: of each decay of `TrainConfig.all_decays`. Those of the further averages are called
    few_shot_ema_DECAY/METRIC.
    """
    first, *others = scores
    row = dict(first)
    for decay, each in zip(config.train.ema_decays, others, strict=True):
        row |= {
            f"few_shot_ema_{decay}/{name.removeprefix('few_shot/')}": value
            for name, value in each.items()
        }
    return row
