"""Reports steps whose update was skipped because it was not finite, and stops after too many."""

from collections.abc import Mapping

import numpy as np

from fsdit.errors import NonFiniteError
from fsdit.parallel import processes


class SkippedSteps:
    """Follows the run's count of skipped steps; warns at the first one of this start."""

    def __init__(self, most_in_row: int):
        """most_in_row: number of skipped steps in a row at which the run stops."""
        self._most, self._total, self._warned = most_in_row, 0, False

    def see(self, step: int, metrics: Mapping[str, np.ndarray | int]) -> None:
        """Takes the metrics of a completed step. Raises NonFiniteError after too many in a row."""
        in_row, self._total = int(metrics["nonfinite_in_row"]), int(metrics["nonfinite"])
        if in_row and not self._warned and processes.is_main_process():
            self._warned = True
            print(
                f"warning: step {step} was skipped: its loss, its gradient or what they would have "
                "made of the parameters was not finite",
                flush=True,
            )
        if in_row >= self._most:
            raise NonFiniteError(
                f"step {step}: {in_row} steps in a row were skipped, because loss, gradient or "
                "updated parameters were not finite; parameters are those of step "
                f"{step - in_row}; start again with a lower config.optimizer.peak_learning_rate, "
                "or look at the data of these steps"
            )

    @property
    def note(self) -> str:
        """The end of a line of progress: the number of skipped steps, if there are any."""
        return f"  {self._total} skipped" if self._total else ""

    def summary(self, steps: int) -> str:
        """A warning with the number of skipped steps of the run, or "" where there are none."""
        if not self._total:
            return ""
        return (
            f"warning: {self._total} of {steps} steps were skipped: loss, gradient or updated "
            "parameters were not finite; look at the data, or lower "
            "config.optimizer.peak_learning_rate"
        )
