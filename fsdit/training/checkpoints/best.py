"""Which step is best: the one whose drawings were judged closest to real images.

Each checkpoint's meta holds what was found of its own step ("judged") and the best so
far ("best"), so both are whole or not there with the state, and a run that goes on from
a checkpoint goes on with the best that it had there.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from fsdit.config import RENAMED, Config, flatten, to_dict


@dataclasses.dataclass(frozen=True)
class Judged:
    """What was found of a step: the lower the value, the better.

    settings: those that a value depends on, by dotted path.
    """

    step: int
    value: float
    settings: dict[str, Any]


def judged(config: Config, step: int, value: float) -> Judged | None:
    """None where the value is not finite: such a step is never the best."""
    values = flatten(to_dict(config))
    settings = {
        path: values[path]
        for path in values
        if path.startswith("sampling.") or path in ("evaluation.critic", "train.few_shot_samples")
    }
    return Judged(step, float(value), settings) if math.isfinite(value) else None


def better(new: Judged, old: Judged | None) -> bool:
    """Whether `new`, of the later step, is the best of the two.

    Values found under other settings do not compare: then the later one counts. A setting
    that is younger than the old value has had its default there.
    """
    if old is None:
        return True
    defaults = flatten(to_dict(Config()))
    before = {path: old.settings.get(path, defaults.get(path)) for path in new.settings}
    return new.settings != before or new.value < old.value


def best_of(metas: Iterable[Mapping[str, Any]]) -> Judged | None:
    """The best of the steps whose metas these are, each at its own step."""
    best = None
    own = (from_meta(meta, "judged") for meta in metas)
    for each in sorted((j for j in own if j), key=lambda j: j.step):
        best = each if better(each, best) else best
    return best


def to_meta(own: Judged | None, best: Judged | None) -> dict[str, dict[str, Any] | None]:
    """What a checkpoint's meta says."""
    entries = {"judged": own, "best": best}
    return {name: entry and dataclasses.asdict(entry) for name, entry in entries.items()}


def from_meta(meta: Mapping[str, Any], name: str) -> Judged | None:
    """name: "judged" or "best"; None also in a checkpoint of before steps were judged."""
    if not meta.get(name):
        return None
    entry = Judged(**meta[name])
    # A checkpoint of an older version has its names of the settings.
    settings = {RENAMED.get(path, path): value for path, value in entry.settings.items()}
    return dataclasses.replace(entry, settings=settings)
