"""Running means of the training loss. Checkpoints hold them, so a resumed log continues exactly.

The average of the loss is exponential with decay d = 0.98 and corrected for its start at zero
(as Adam's moments are: Kingma and Ba, arXiv 1412.6980, section 3). Over finite losses l_1 to l_n,

    a_n = d a_(n-1) + (1 - d) l_n,    w_n = d w_(n-1) + (1 - d),    average = a_n / w_n.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field

TIME_BINS = 10  # equal bins of the time t, each with a mean loss of its own
_AVERAGE_DECAY = 0.98
_EMPTY = (0.0,) * TIME_BINS
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Weight = Annotated[float, Field(ge=0, le=1)]
_Bins = Annotated[tuple[_NotNegative, ...], Field(min_length=TIME_BINS, max_length=TIME_BINS)]


@dataclasses.dataclass(frozen=True)
class Running:
    """The running means after some step.

    loss_average, average_weight: a_n and w_n above. bin_losses, bin_counts: sum of the losses
    and number of the examples in each time bin, since the last line of the log.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    loss_average: _NotNegative
    average_weight: _Weight
    bin_losses: _Bins
    bin_counts: _Bins

    @classmethod
    def fresh(cls) -> "Running":
        """The running means before the first step."""
        return cls(0.0, 0.0, _EMPTY, _EMPTY)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Running":
        """Inverse of dataclasses.asdict, for which JSON made lists of tuples; {} gives `fresh`."""
        if not values:
            return cls.fresh()
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @property
    def average(self) -> float:
        """The average loss, or NaN before the first step."""
        return self.loss_average / self.average_weight if self.average_weight else math.nan

    def with_step(self, loss: float, losses: np.ndarray, counts: np.ndarray) -> "Running":
        """The running means after one more step; they ignore a step whose loss is not finite.

        losses, counts: sum of losses and number of examples of the step in each time bin.
        """
        if not math.isfinite(loss):
            return self
        keep = _AVERAGE_DECAY
        return Running(
            keep * self.loss_average + (1 - keep) * loss,
            keep * self.average_weight + (1 - keep),
            _added(self.bin_losses, losses),
            _added(self.bin_counts, counts),
        )

    def with_empty_bins(self) -> "Running":
        """The running means after a line of the log was written."""
        return dataclasses.replace(self, bin_losses=_EMPTY, bin_counts=_EMPTY)


def _added(a: tuple[float, ...], b: np.ndarray) -> tuple[float, ...]:
    return tuple(x + float(y) for x, y in zip(a, b, strict=True))


def bin_means(prefix: str, losses: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Mean loss of each time bin that holds any example, by its name in the logs.

    losses, counts: sum of the losses and number of examples of each bin (TIME_BINS,).
    """
    return {
        f"{prefix}/loss_t{i}": float(losses[i] / counts[i]) for i in range(TIME_BINS) if counts[i]
    }
