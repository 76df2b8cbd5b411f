"""Settings of what watches a run: profiler and watchdog."""

from fsdit.config.bounds import (
    Count,
    CountOrNone,
    NotNegative,
    Positive,
    Seconds,
)
from fsdit.config.problems import settings


@settings
class ProfileConfig:
    """Steps that JAX's profiler records, for TensorBoard."""

    start_step: CountOrNone = 0  # first step that is recorded; 0: none is
    num_steps: Count = 5  # steps that are recorded


@settings
class WatchdogConfig:
    """Settings of the watchdog, which reports a step that takes far longer than its neighbours.

    It reports compilations, saves and evaluations too, after factor * min_seconds.
    """

    factor: NotNegative = 10.0  # a step is reported after this many times its neighbours; 0: never
    min_seconds: Positive = 60.0  # a shorter step is not reported
    # Exit with status 75 when no new step has begun for this long, whatever goes on: choose more
    # than the longest compilation, evaluation or save. 0: never.
    stop_seconds: Seconds = 0.0
