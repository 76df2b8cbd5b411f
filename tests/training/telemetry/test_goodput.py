"""The account of a run's wall time over several starts, of which some were killed."""

import json
import math
import re
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdit.training.telemetry.clock import Clock
from fsdit.training.telemetry.goodput import MEASURED, PARTS, Goodput, account, read_lines, summary
from tests.conftest import experiment_file
from tests.processes import finish, rows, start, wait_for_step

durations = st.floats(0.001, 100.0)


@st.composite
def runs(draw):
    """Draw the lines of several starts, and the account of them, simulated step by step.

    A process restores a step, and then does and marks steps of random durations. The next process
    starts some time after the last mark.
    """
    lines, now, reached = [], draw(st.floats(1e9, 2e9)), 0
    took: dict[int, float] = {}  # durations of the steps that are done and not lost
    truth = dict.fromkeys(PARTS, 0.0) | {"lost_steps": 0}
    first, marked_until = now, None
    for _ in range(draw(st.integers(1, 4))):
        restored = draw(st.integers(0, reached)) if lines else 0
        if marked_until is not None:
            now = marked_until + draw(durations)
            truth["down"] += now - marked_until
        for step in [s for s in took if s > restored]:
            truth["lost"] += took.pop(step)
            truth["lost_steps"] += 1
        seconds, began = dict.fromkeys(MEASURED, 0.0), now

        def spend(part, amount, seconds=seconds):
            seconds[part] += amount
            truth[part] += amount

        for part in ("startup", "restore", "compile"):
            spend(part, draw(durations))
        lines.append(
            {"event": "start", "started": began, "step": restored, "seconds": dict(seconds)}
        )
        step = restored
        for _ in range(draw(st.integers(0, 5))):
            step += 1
            took[step] = draw(durations)
            seconds["step"] += took[step]
            spend(draw(st.sampled_from(MEASURED[3:])), draw(durations))
            lines.append({"event": "mark", "step": step, "seconds": dict(seconds)})
        reached, marked_until = step, began + sum(seconds.values())
    truth["step"] = sum(took.values())
    return lines, truth, len(took), marked_until - first


@given(runs())
def test_the_parts_are_those_of_a_step_by_step_account_and_add_up_to_the_wall_time(run):
    lines, truth, steps, wall = run
    found = account(lines)
    assert set(found.seconds) == set(PARTS)
    for part in PARTS:
        assert found.seconds[part] == pytest.approx(truth[part], abs=1e-4), part
    assert found.wall == pytest.approx(wall, abs=1e-4)
    assert (found.steps, found.lost_steps) == (steps, truth["lost_steps"])
    assert found.starts == sum(line["event"] == "start" for line in lines)


@given(runs(), st.data())
def test_a_file_cut_off_anywhere_is_read_up_to_there(tmp_path_factory, run, data):
    lines, *_ = run
    text = "".join(json.dumps(line) + "\n" for line in lines)
    size = data.draw(st.integers(0, len(text)))
    path = tmp_path_factory.mktemp("cut") / "goodput.jsonl"
    path.write_text(text[:size])
    whole = text[:size].count("\n") + (size < len(text) and text[size] == "\n")
    read = read_lines(path)
    assert account(read) == account(lines[:whole])
    assert all(value >= 0 for value in account(read).seconds.values())


def test_steps_between_two_marks_are_lost_in_proportion():
    lines = [
        {"event": "start", "started": 100.0, "step": 0, "seconds": {"startup": 5.0}},
        {"event": "mark", "step": 10, "seconds": {"startup": 5.0, "step": 20.0}},
        {"event": "start", "started": 130.0, "step": 4, "seconds": {"startup": 1.0}},
    ]
    found = account(lines)
    assert found.seconds["step"] == pytest.approx(8.0)
    assert found.seconds["lost"] == pytest.approx(12.0)
    assert found.seconds["down"] == pytest.approx(5.0)
    assert (found.steps, found.lost_steps, found.wall) == (4, 6, pytest.approx(31.0))


def test_a_step_lost_twice_counts_twice():
    def beginning(at, step):
        return {"event": "start", "started": at, "step": step, "seconds": {}}

    def mark(step, seconds):
        return {"event": "mark", "step": step, "seconds": {"step": seconds}}

    found = account(
        [
            *(beginning(0.0, 0), mark(10, 10.0), mark(20, 20.0)),
            *(beginning(20.0, 10), mark(15, 5.0)),
            *(beginning(25.0, 5), mark(6, 1.0)),
        ]
    )
    # Lost: steps 11 to 20, then 6 to 10 of the first start and 11 to 15 of the second.
    assert (found.steps, found.lost_steps) == (6, 20)
    assert found.seconds["lost"] == pytest.approx(20.0)
    assert found.seconds["step"] == pytest.approx(6.0)


GOOD = {"event": "start", "started": 1.0, "step": 3, "seconds": {"startup": 2.0}}
NO_LINES = [
    *(b"7", b"null", b"[1]", b'"text"', b"", b"{}", b"\0\0", b"\xff", b"[" * 10**5, b"NaN"),
    *(b'{"event": "mark"}', b'{"event": "end", "step": 3, "seconds": {"step": \xfe}}'),
    *(json.dumps({**GOOD, "seconds": v}).encode() for v in (None, 7, "x", [], ["startup"])),
    *(
        json.dumps({**GOOD, "seconds": {"step": v}}).encode()
        for v in (None, "3", [], {}, True, math.nan, math.inf, -math.inf, -1.0, 1e300, 10**400)
    ),
    *(json.dumps({**GOOD, "step": v}).encode() for v in (None, "3", 1.5, math.inf, -1, True)),
    *(json.dumps({**GOOD, "started": v}).encode() for v in (None, "x", math.nan, math.inf, 1e300)),
    *(json.dumps({**GOOD, "event": v}).encode() for v in (None, 7, "begin", [])),
]  # fmt: skip


def test_invalid_lines_are_left_out_with_one_warning(tmp_path, capsys):
    path = tmp_path / "goodput.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([good, *NO_LINES, good, b'{"event": "ma']))
    found = read_lines(path)
    assert [line["step"] for line in found] == [3, 3]
    assert capsys.readouterr().out.count("warning: ") == 1
    assert math.isfinite(account(found).wall) and "2 starts" in summary(account(found))
    clock = Clock()
    try:
        Goodput(path, clock, 3).close(4)
    finally:
        clock.close()
    assert len(path.read_bytes().splitlines()) == 4 and len(read_lines(path)) == 4


def test_a_process_continues_the_account_of_the_file(tmp_path):
    path = tmp_path / "goodput.jsonl"
    past = [
        {"event": "start", "started": 1e9, "step": 0, "seconds": {"startup": 4.0}},
        {"event": "mark", "step": 8, "seconds": {"startup": 4.0, "step": 16.0}},
    ]
    cut = json.dumps(past[1])[:20]
    path.write_text("".join(json.dumps(line) + "\n" for line in past) + cut)
    clock = Clock()
    try:
        goodput = Goodput(path, clock, 6)
        with clock.part("step"):
            goodput.mark(9)
        found = goodput.close(9)
    finally:
        clock.close()
    assert (found.starts, found.steps, found.lost_steps) == (2, 9, 2)
    assert found.seconds["lost"] == pytest.approx(4.0)
    assert found.wall == pytest.approx(time.time() - 1e9, abs=1.0)
    # The file gives the same account, so the line after the one that was cut off is complete.
    read = account(read_lines(path))
    assert (read.starts, read.steps, read.lost_steps) == (2, 9, 2)
    for part in PARTS:
        assert read.seconds[part] == pytest.approx(found.seconds[part], abs=0.1)
    assert "2 steps lost" in summary(found) and "2 starts" in summary(found)


def test_each_moment_belongs_to_the_innermost_part():
    clock = Clock()
    try:
        with clock.part("step"):
            with clock.part("evaluation"):
                clock._on_begin("/jax/core/compile/backend_compile_duration", 0.0)
                begun = clock.seconds()
                while clock.seconds()["compile"] < begun.get("compile", 0.0) + 0.01:
                    pass
                clock._on_end("/jax/core/compile/backend_compile_duration", 0.01)
            spent = clock.seconds()
        assert spent["compile"] >= 0.01 > spent["evaluation"]
        clock.rest("other")
        assert sum(clock.seconds().values()) == pytest.approx(clock.elapsed(), abs=1e-3)
    finally:
        clock.close()


@pytest.mark.large
def test_a_killed_run_counts_its_lost_steps(tmp_path, small_config):
    experiment = experiment_file(tmp_path / "experiment.py", small_config)
    workdir = tmp_path / "run"
    flags = ("--config.train.num_steps=60", "--config.train.eval_interval=1000")
    flags += ("--config.checkpoint.interval=7",)
    began = time.time()
    lost = 0
    for moment in (12, 25):
        process = start(experiment, workdir, *flags)
        wait_for_step(process, workdir, moment)
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        logged = rows(workdir)[-1]["step"]
        lost += logged
    status, output = finish(start(experiment, workdir, *flags))
    ended = time.time()
    assert status == 0, output
    # The step that each start resumed from.
    starts = [line for line in read_lines(workdir / "goodput.jsonl") if line["event"] == "start"]
    assert len(starts) == 3 and starts[0]["step"] == 0
    assert starts[2]["step"] == int(re.search(r"after step (\d+)", output)[1])
    lost -= starts[1]["step"] + starts[2]["step"]
    last = rows(workdir)[-1]
    counted = last["goodput/lost_steps"]
    assert 0 <= lost - counted <= 2 and counted > 0  # a kill may come before the last step's mark
    assert last["goodput/starts"] == 3
    assert sum(last[f"goodput/{part}"] for part in PARTS) == pytest.approx(1.0)
    assert f"; {counted} steps lost" in output and "over 3 starts in 60 useful steps" in output
    found = account(read_lines(workdir / "goodput.jsonl"))
    assert (found.steps, found.lost_steps) == (60, counted)
    assert all(found.seconds[part] > 0 for part in ("restore", "compile", "lost", "down"))
    # The clock starts with the process and ends before it has left.
    assert ended - began - 10 < found.wall < ended - began
    assert Path(workdir / "goodput.jsonl").read_text().endswith("\n")
