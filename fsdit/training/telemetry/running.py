"""The running means of a log: what a checkpoint keeps so that a resumed log goes on exactly."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field

TIME_BINS = 10  # equal bins of the time t, in which losses are told apart
_AVERAGE_DECAY = 0.98
_EMPTY = (0.0,) * TIME_BINS
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Weight = Annotated[float, Field(ge=0, le=1)]
_Bins = Annotated[tuple[_NotNegative, ...], Field(min_length=TIME_BINS, max_length=TIME_BINS)]


@dataclasses.dataclass(frozen=True)
class Running:
    """An average of the loss with its weight; losses and counts by time since the last line."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    loss_average: _NotNegative
    average_weight: _Weight
    bin_losses: _Bins
    bin_counts: _Bins

    @classmethod
    def fresh(cls) -> "Running":
        """Of a new run."""
        return cls(0.0, 0.0, _EMPTY, _EMPTY)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Running":
        """Inverse of dataclasses.asdict, after JSON made lists of tuples. {}: `fresh`."""
        if not values:
            return cls.fresh()
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @property
    def average(self) -> float:
        """Of the loss, or NaN before the first step."""
        return self.loss_average / self.average_weight if self.average_weight else math.nan

    def with_step(self, loss: float, losses: np.ndarray, counts: np.ndarray) -> "Running":
        """After one more step, whose losses and numbers of examples fell into time bins."""
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
        """After a line was written."""
        return dataclasses.replace(self, bin_losses=_EMPTY, bin_counts=_EMPTY)


def _added(a: tuple[float, ...], b: np.ndarray) -> tuple[float, ...]:
    return tuple(x + float(y) for x, y in zip(a, b, strict=True))
