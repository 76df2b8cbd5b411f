import jax
import pytest

from fsdit.parallel.chips import Chip
from fsdit.training.telemetry import speed
from fsdit.training.telemetry.clock import Clock


class Times(Clock):
    """A clock that shows the seconds that a test gives it."""

    def __init__(self, **seconds):
        self.now = seconds

    def seconds(self):
        return dict(self.now)


def test_utilisation_is_of_the_peak_of_all_devices(monkeypatch):
    monkeypatch.setattr(speed, "find_chip", lambda kind: Chip("toy", 1e9, 1.0, 1.0))
    clock = Times(startup=3.0, step=1.0)
    measured = speed.Speed(clock, batch_size=16)
    measured.flops, measured.steps = 10**6, 4
    # Evaluating and compiling are no part of a step.
    clock.now = {"startup": 3.0, "step": 1.2, "data_wait": 0.06, "checkpoint_stall": 0.14}
    clock.now |= {"evaluation": 7.0, "compile": 9.0}
    row = measured.row()
    assert row["timing/step_seconds"] == pytest.approx((0.2 + 0.06 + 0.14) / 4)
    assert row["timing/data_wait_seconds"] == pytest.approx(0.06 / 4)
    assert row["timing/checkpoint_stall_seconds"] == pytest.approx(0.14)
    assert (row["timing/evaluation_seconds"], row["timing/compile_seconds"]) == (7.0, 9.0)
    assert row["timing/images_per_second"] == pytest.approx(160.0)
    assert row["timing/model_flops_per_second"] == pytest.approx(1e7)
    assert row["timing/mfu"] == pytest.approx(1e7 / (1e9 * jax.device_count()))

    measured.steps = 2
    clock.now |= {"step": 1.4}
    row = measured.row()  # covers the interval since the row before
    assert row["timing/step_seconds"] == pytest.approx(0.1)
    assert row["timing/evaluation_seconds"] == 0


def test_a_kind_without_a_known_peak_has_no_utilisation():
    clock = Times(step=1.0)
    measured = speed.Speed(clock, batch_size=16)
    measured.flops, measured.steps = 10**6, 1
    clock.now = {"step": 1.5}
    row = measured.row()
    assert row["timing/model_flops_per_second"] == pytest.approx(2e6)
    assert "timing/mfu" not in row
