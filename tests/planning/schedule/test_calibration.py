"""The arithmetic of the calibration programs, and how predictions are printed."""

import dataclasses
import importlib.util
import re
import subprocess
import sys

import jax
import pytest

from fsdit.config import Config
from fsdit.parallel.chips import find_chip
from fsdit.planning import costs, plan, report
from fsdit.planning.predictor import Outcome
from fsdit.planning.schedule import calibration
from fsdit.planning.schedule.calibration import Check
from fsdit.planning.schedule.core import CORES
from fsdit.planning.schedule.prediction import Operation, Part, Prediction
from tests.programs import environment

V5E, V6E = find_chip("TPU v5 lite"), find_chip("TPU v6 lite")


def test_the_programs_take_what_the_published_peaks_say():
    assert calibration.product_seconds(8192, V5E) == pytest.approx(2 * 8192**3 / 197e12)
    assert calibration.copy_seconds(819 * 10**6, V5E) == pytest.approx(2e-3)
    # Seven shares of 90 MB over the ring, and 720 MB read and written.
    gathered = calibration.gather_seconds(90 * 10**6, 8, V5E, CORES["v5e"])
    assert gathered == pytest.approx(7e-3 + 2 * 720e6 / 819e9)


@pytest.mark.parametrize(("chip", "units", "side"), [(V5E, 4, 128), (V6E, 2, 256)])
def test_clock_and_units_make_the_published_peak(chip, units, side):
    core = CORES[chip.name]
    assert units * side**2 * 2 * core.rows_per_cycle * core.clock == pytest.approx(
        chip.flops, rel=0.003
    )


def test_the_programs_are_those_of_the_arithmetic():
    """Lowered for eight devices of this machine; they are compiled for TPUs only."""
    found = {
        known.name: known.lowered
        for known in calibration.programs(jax.devices(), V5E, CORES["v5e"])
    }
    assert "tensor<8192x8192xbf16>" in found["bfloat16 product"].as_text()
    assert "stablehlo.all_gather" in found["all-gather"].as_text()
    assert set(found) == {"bfloat16 product", "copy", "all-gather"}


def plan_with(outcome: Outcome) -> plan.Plan:
    held = plan.Memory(0, 0, 0, 0, 0)
    work = costs.Costs(1.97e12, 8.19e9, (), 0)
    return plan.Plan("train", "v5e:2x4", "TPU v5 lite", (1, 8), 128, 1.0, held, work, V5E, outcome)


MADE = Prediction(
    seconds=0.025,
    parts=(Part("MLP", 0.02, 0.02, 0.01), Part("waits for links", 0.005, 0.0, 0.0)),
    operations=(Operation("fusion.1", "MLP", "jit(f)/dot_general", 12, 0.02, "own"),),
    by_basis={"own": 0.02},
)


def test_the_report_has_time_error_parts_and_what_is_not_in_them():
    made = plan_with(Outcome(MADE, (Check("copy", 0.002, 0.0021),)))
    assert made.mfu == pytest.approx(0.4)
    # Half of the FLOPs that XLA counts are computed again to save memory.
    assert dataclasses.replace(made, model_flops=0.985e12).mfu == pytest.approx(0.2)
    shown = report.text([made])
    assert "predicted time   25.00 ms, MFU 40.0%, 5,120 images/s" in shown
    assert "calibration: copy  predicted 2.10 ms  arithmetic 2.00  error +5.0%" in shown
    for words in ("links that several transfers share", "clock", "the host", "Nothing was run"):
        assert words in shown
    assert re.search(r"MLP +20\.00 +80\.0% +20\.00 +10\.00\n", shown)
    assert re.search(r"fusion\.1 +MLP +dot_general +12 +20\.00\n", shown)
    several = report.text([made, dataclasses.replace(made, mesh=(8, 1))])
    assert several.count("predicted time   25.00 ms") == 2
    (values, _) = report.document([made, made], Config())["plans"]
    assert values["mfu"] == pytest.approx(0.4)
    assert values["predicted"]["checks"][0]["error"] == pytest.approx(0.05)
    assert values["predicted"]["prediction"]["parts"][0]["name"] == "MLP"


def test_without_a_prediction_one_line_says_so_and_the_other_figures_stand():
    reason = "the installed libtpu wrote no schedules"
    plain = report.text([plan_with(None)]).splitlines()
    shown = report.text([plan_with(Outcome(trouble=reason))]).splitlines()
    assert shown == [*plain, f"no predicted time: {reason}; the figures above stand without it"]


PREDICTED_IN_TURN = """
import jax, jax.numpy as jnp
from fsdit.planning import predictor, target

with predictor.requested(True) as predicting:
    (made,) = target.open_targets(["v5e:2x4"])
    for count in (4, 8):
        devices = made.devices[:count]
        mesh = jax.sharding.Mesh(devices, ("x",))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        x = jax.ShapeDtypeStruct((count * 256, 512), jnp.bfloat16, sharding=rows)
        predicting.begin()
        compiled = jax.jit(lambda x: jnp.tanh(x) @ x.T).lower(x).compile()
        found = predicting.predict(compiled, devices)
        print(found.trouble, len(found.checks))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install 'fsdit[tpu]'",
)
@pytest.mark.large
def test_programs_of_different_numbers_of_chips_are_predicted_in_one_process():
    """JAX compiles the calibration programs of one chip once; a second time has no schedules."""
    command = [sys.executable, "-c", PREDICTED_IN_TURN]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines() == ["None 3", "None 3"], done.stderr
