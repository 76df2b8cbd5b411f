"""The evaluation protocol in training, made light: drawings of classes that are not trained on."""

from jax.sharding import Mesh

from fsdit.config import Config
from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import split_images
from fsdit.evaluation import judging
from fsdit.evaluation.drawings import Drawer, in_episodes
from fsdit.evaluation.judge import open_judge
from fsdit.evaluation.material import gather, read_real_images
from fsdit.evaluation.protocol import watch_plan
from fsdit.models.feed import Feed
from fsdit.models.networks import Networks

# The lower, the better the checkpoint. Unbiased, so that few drawings do.
BEST_BY = "fsd/kernel_distance"


class Watch:
    """The real images of the split are read once; then each run draws and judges."""

    def __init__(self, config: Config, networks: Networks, feed: Feed, mesh: Mesh, split: str):
        info = read_dataset_info(config.data.dataset_dir)
        self._plan = watch_plan(config, info, split)
        self._drawer = Drawer(config, networks, feed, mesh)
        self._judge = open_judge(config)
        images = split_images(config.data.dataset_dir, info, split)
        self._real = read_real_images(images, info.split(split), self._judge)

    def run(self, ema: dict) -> dict[str, float]:
        """Figures of the EMA weights' drawings, the same on every process: all must call it."""
        (seed,) = self._plan.seeds
        drawn = in_episodes(self._plan, list(self._drawer.batches(ema, self._plan, seed)))
        material = gather(self._plan, drawn, self._real, self._judge)
        scores = {
            **judging.set_fidelity(material, jackknife=False),
            **judging.class_fidelity(material)[0],
            **judging.support_copies(material)[0],
        }
        return {f"fsd/{metric}": rows["drawings"].value for metric, rows in scores.items()}
