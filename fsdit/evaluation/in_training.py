"""The evaluation protocol in training, made light: drawings of classes that are not trained on."""

import dataclasses

from jax.sharding import Mesh

from fsdit.config import Config
from fsdit.data.layout import DatasetInfo
from fsdit.data.readers import split_images
from fsdit.errors import ConfigError
from fsdit.evaluation import tables
from fsdit.evaluation.comparison import gather, read_real_images
from fsdit.evaluation.critics.critic import Judge, open_judge
from fsdit.evaluation.protocol import Plan, watch_plan
from fsdit.evaluation.samples import Drawer, in_episodes
from fsdit.features.batches import Feed
from fsdit.models.spec import ModelSpec
from fsdit.parallel import processes


@dataclasses.dataclass(frozen=True)
class Opened:
    """What is drawn and who judges it; no device is used yet."""

    info: DatasetInfo
    plan: Plan
    judge: Judge


def open_watch(config: Config, info: DatasetInfo, split: str) -> Opened:
    """Raises ConfigError or DataError."""
    if split not in info.splits:
        raise ConfigError(
            f"config.train.fsd_interval={config.train.fsd_interval} judges drawings of {split} "
            f"classes, {config.data.dataset_dir} has no {split} split: set it to 0"
        )
    return Opened(info, watch_plan(config, info, split), open_judge(config))


class Watch:
    """The real images of the split are read once; then each run draws and judges."""

    def __init__(self, config: Config, spec: ModelSpec, feed: Feed, mesh: Mesh, opened: Opened):
        self._plan, self._judge, info = opened.plan, opened.judge, opened.info
        self._drawer, self._turn = Drawer(config, spec, feed, mesh), 0
        images = split_images(config.data.dataset_dir, info, self._plan.split)
        self._real = read_real_images(images, info.split(self._plan.split), self._judge)
        # Hosts read at their own pace, and CPU collectives wait for no one for long.
        processes.wait_for_all("watch")

    def run(self, ema: dict) -> dict[str, float]:
        """Figures of the EMA weights' drawings, the same on every process: all must call it."""
        (seed,) = self._plan.seeds
        drawn = in_episodes(self._plan, list(self._drawer.batches(ema, self._plan, seed)))
        material = gather(self._plan, drawn, self._real, self._judge)
        # The other floors are the same at every step.
        rows = {name: row for name, row in material.rows.items() if name in ("drawings", "real")}
        material = dataclasses.replace(material, rows=rows)
        scores = {
            **tables.set_fidelity(material, jackknife=False),
            **tables.class_fidelity(material)[0],
            **tables.support_copies(material)[0],
        }
        processes.wait_for_all(f"judged_{self._turn}")
        self._turn += 1
        return {f"fsd/{metric}": rows["drawings"].value for metric, rows in scores.items()}
