"""The time limit of a start: a run saves and leaves before its session or its queue ends."""

import math
from collections.abc import Callable

# Begins the line that a run prints when its time is up; launchers do not start it again then.
TIME_LIMIT = "time limit: config.train.stop_after_minutes"
_SPARE = 15.0  # seconds for the notice to reach all processes, and for these to end
_FIRST_SAVE = 30.0  # seconds that a save is expected to take before one was seen


class Deadline:
    """Tells when a run has to stop so that its last checkpoint is complete in time."""

    def __init__(self, minutes: float, elapsed: Callable[[], float]):
        """minutes: of the process, from its start; 0: no limit. elapsed: returns its seconds."""
        self._limit = 60.0 * minutes or math.inf
        self._elapsed = elapsed
        self._last, self._longest = math.nan, 0.0

    def reached(self, longest_save: float | None) -> bool:
        """Whether to stop after this step; to be called after each one.

        longest_save: its seconds; None: there was none yet. A step with an evaluation or another
        delay may come next, and take as long as the longest one so far.
        """
        now = self._elapsed()
        if now - self._last > self._longest:  # never true for the first step, which compiles
            self._longest = now - self._last
        self._last = now
        save = _FIRST_SAVE if longest_save is None else longest_save
        return now + self._longest + save + _SPARE >= self._limit
