"""Predicts compiled programs, or says in one line why it cannot."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax

from fsdit.parallel.chips import find_chip
from fsdit.planning.schedule import calibration, dump
from fsdit.planning.schedule.calibration import Check, Known
from fsdit.planning.schedule.core import CORES
from fsdit.planning.schedule.dump import Dump, NoPredictionError
from fsdit.planning.schedule.prediction import Prediction, predict


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A prediction with the calibration of its chip, or why there is none."""

    prediction: Prediction | None = None
    checks: tuple[Check, ...] = ()
    trouble: str | None = None


class Predictor:
    """Predicts programs whose schedules libtpu writes to a dump."""

    def __init__(self, dump: Dump):
        self._dump = dump
        self._checks: dict[tuple[str, str, int], Check] = {}

    def begin(self) -> None:
        """To be called before a program is compiled that will be predicted."""
        self._dump.clear()

    def predict(self, compiled: jax.stages.Compiled, devices: Sequence[jax.Device]) -> Outcome:
        """Predicts the time, on these devices, of the program compiled since `begin`."""
        try:
            prediction = self._predict(compiled, devices)
            return Outcome(prediction, self._calibrated(devices))
        except NoPredictionError as reason:
            return Outcome(trouble=str(reason))

    def _predict(self, compiled: jax.stages.Compiled, devices: Sequence[jax.Device]) -> Prediction:
        """The prediction of what was compiled since the dump was cleared."""
        kind = devices[0].device_kind
        chip = find_chip(kind)
        core = CORES.get(chip.name) if chip else None
        if core is None:
            known = ", ".join(CORES)
            raise NoPredictionError(f"times are predicted for {known} only, and this is {kind}")
        return predict(compiled.as_text(), self._dump.schedules(core), chip, core)

    def _calibrated(self, devices: Sequence[jax.Device]) -> tuple[Check, ...]:
        """The calibration programs on these devices."""
        chip = find_chip(devices[0].device_kind)
        programs = calibration.programs(devices, chip, CORES[chip.name])
        return tuple(self._check(known, devices) for known in programs)

    def _check(self, known: Known, devices: Sequence[jax.Device]) -> Check:
        """A calibration program beside its prediction.

        Each is kept, because JAX compiles equal programs once in a process, and libtpu writes
        schedules only when it compiles.
        """
        key = (devices[0].device_kind, known.name, known.chips)
        if key not in self._checks:
            self.begin()
            predicted = self._predict(known.lowered.compile(), devices).seconds
            self._checks[key] = Check(known.name, known.seconds, predicted)
        return self._checks[key]


@contextlib.contextmanager
def requested(wanted: bool) -> Iterator[Predictor | None]:
    """A predictor, or None where none is wanted; to be entered before libtpu is loaded."""
    if not wanted:
        yield None
        return
    with dump.requested() as written:
        yield Predictor(written)
