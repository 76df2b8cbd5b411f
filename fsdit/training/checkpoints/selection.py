"""Selection of the best checkpoint: the one whose samples come closest to real images.

During training, samples of classes that are not trained on are scored by SELECTED_BY; the
lower, the better. Every checkpoint's meta holds the score of its own step ("judged") and the
best score of the run up to that step ("best"). They are saved and restored with the state,
so a run that resumes from a checkpoint also resumes the selection as it was there. A run that
keeps several averages of its weights scores each; the best of them is the score of the step.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from fsdit import storage
from fsdit.config import Config, flatten, to_dict
from fsdit.parallel import processes
from fsdit.training.checkpoints import listing
from fsdit.training.checkpoints.metadata import Score, score_in

# An unbiased estimate, so a few samples suffice.
SELECTED_BY = "few_shot/kernel_distance"


class Selection:
    """Decides which step of a run is the best so far.

    best: the score of that step; None while no step has a finite score.
    """

    def __init__(self, config: Config, best: Score | None = None):
        self._config, self._newest = config, None
        self.best = best

    def consider(self, step: int, *values: float) -> bool:
        """Takes the scores of a step; returns whether that step is now the best.

        values: one for each decay of `TrainConfig.all_decays`. All processes must call it, and
        all get the same answer, even where their values differ in a last bit: the step is the
        best only if every process finds it so.
        """
        with jax.transfer_guard("allow"):
            place = _lowest(values)
            decay = self._config.train.all_decays[place] if len(values) > 1 else None
            self._newest = score(self._config, step, values[place], decay)
            is_best = processes.agree(self._newest is not None and better(self._newest, self.best))
        if is_best:
            self.best = self._newest
        return is_best

    def to_meta(self, step: int) -> dict[str, dict[str, Any] | None]:
        """The entries of the meta of a checkpoint of `step`."""
        scored = self._newest is not None and self._newest.step == step
        return to_meta(self._newest if scored else None, self.best)


def _lowest(values: Sequence[float]) -> int:
    """The place of the lowest finite value, the same in every process.

    Where processes find different places, because values differ in a last bit: 0.
    """
    if len(values) == 1:
        return 0
    order = [value if math.isfinite(value) else math.inf for value in values]
    mine = order.index(min(order))
    return next((i for i in range(len(values)) if processes.agree(i == mine)), 0)


def resumed(workdir: storage.PathLike, config: Config, step: int, best: Score | None) -> Selection:
    """The selection of a run that resumes from `step`, whose checkpoint names `best`.

    Where the best checkpoint is lost, the best of the other checkpoints up to `step` takes
    its place, with a warning.
    """
    if best is None or any(listing.readable_metas(workdir, [best.step])):
        return Selection(config, best)
    earlier = (found for found in listing.steps(workdir) if found <= step)
    other = best_of(meta for _, meta in listing.readable_metas(workdir, earlier))
    if processes.is_main_process():
        folder = listing.directory(workdir) / str(best.step)
        rest = f"step {other.step} is the best of the others" if other else "no other has a score"
        print(f"warning: {folder}, the best step, is damaged or gone; {rest}", flush=True)
    return Selection(config, other)


def score(config: Config, step: int, value: float, ema: float | None = None) -> Score | None:
    """The score of a step, with the settings that a value depends on.

    ema: decay of the average that has it, where there are several. None where the value is not
    finite: such a step is never the best.
    """
    if not math.isfinite(value):
        return None
    values = flatten(to_dict(config))
    settings = {
        path: values[path]
        for path in values
        if path.startswith("sampling.") or path in ("evaluation.critic", "train.few_shot_samples")
    }
    return Score(step, float(value), settings, ema)


def better(new: Score, old: Score | None) -> bool:
    """Whether `new`, of the later step, beats `old`.

    Values found under different settings cannot be compared: then the later step wins. A
    setting that did not exist yet when `old` was found counts as having its default there.
    """
    if old is None:
        return True
    defaults = flatten(to_dict(Config()))
    before = {path: old.settings.get(path, defaults.get(path)) for path in new.settings}
    return new.settings != before or new.value < old.value


def best_of(metas: Iterable[Mapping[str, Any]]) -> Score | None:
    """The best of the steps that these metas belong to, each by the score of its own step."""
    scores = [found for meta in metas if (found := score_in(meta, "judged"))]
    best = None
    for each in sorted(scores, key=lambda found: found.step):
        if better(each, best):
            best = each
    return best


def to_meta(own: Score | None, best: Score | None) -> dict[str, dict[str, Any] | None]:
    """The entries of a checkpoint's meta that `metadata.score_in` reads."""
    return {
        "judged": dataclasses.asdict(own) if own else None,
        "best": dataclasses.asdict(best) if best else None,
    }
