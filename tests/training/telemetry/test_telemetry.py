import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from fsdit.training.step import TIME_BINS
from fsdit.training.telemetry.clock import Clock
from fsdit.training.telemetry.telemetry import Telemetry


@pytest.fixture
def slow():
    """A computation of about a second on the devices, during which the host goes on."""
    size = 1024

    @jax.jit
    def compute(x):
        return jax.lax.fori_loop(0, 60, lambda _, x: x @ x / size, x)[0, 0]

    x = jnp.ones((size, size))
    jax.block_until_ready(compute(x))
    return lambda: compute(x)


@pytest.mark.medium
def test_the_time_of_a_step_is_no_part_of_the_evaluation_after_it(tmp_path, small_config, slow):
    config = dataclasses.replace(
        small_config, train=dataclasses.replace(small_config.train, log_interval=1)
    )
    clock = Clock()
    telemetry = Telemetry(tmp_path, config, 0, {}, clock, lambda batch: 0, dict)
    with clock.part("step"):
        loss = slow()
        scalars = dict.fromkeys(
            ("loss", "grad_norm", "param_norm", "learning_rate", "nonfinite", "nonfinite_in_row"),
            0 * loss,
        )
        bins = dict.fromkeys(("bin_losses", "bin_counts"), jnp.zeros(TIME_BINS))
        telemetry.step(1, {}, scalars | bins)
        with telemetry.evaluating():
            found = {"validation/loss": float(loss)}
        telemetry.read(found)
        before = clock.seconds()
        jax.block_until_ready(slow())
        took = clock.seconds()["step"] - before["step"]
    telemetry.close()
    telemetry.conclude()
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert row["validation/loss"] == float(loss)
    assert row["timing/step_seconds"] > took / 3
    assert row["timing/evaluation_seconds"] < took / 3


def line(step, **more):
    return json.dumps({"step": step, "train/loss": 0.5, **more}).encode()


NO_LINES = [
    b"\xff\xfe",
    b"\0" * 9,
    b"7",
    b"[]",
    b"null",
    b"{}",
    b"[" * 10**5,
    b'{"step": 2, "x": "\xe9"}',
]
NO_LINES += [line(step) for step in (None, "2", 2.0, True, float("nan"), -1)]


@pytest.mark.medium
@pytest.mark.parametrize("end", [b"\n", b"", b'\n{"step": 4, "tra', b"\n\xc3"], ids=repr)
def test_a_damaged_line_of_a_log_leaves_the_others_as_they_are(tmp_path, small_config, capsys, end):
    path = tmp_path / "metrics.jsonl"
    kept = [line(1), line(2, text="\u2028 \x85"), line(3)]
    path.write_bytes(b"\n".join([kept[0], *NO_LINES, *kept[1:], line(4), line(5)]) + end)
    telemetry = Telemetry(tmp_path, small_config, 3, {}, Clock(), lambda batch: 0, dict)
    telemetry.close()
    telemetry.conclude()
    assert path.read_bytes().split(b"\n") == [*kept, b""]
    assert capsys.readouterr().out.count("damaged lines are left out") == 1
