import collections
import json
import random
import signal
import types

import pytest

from experiments.benchmarks.lifecycle.disturbances import (
    KINDS,
    PHASES,
    Disturbance,
    Disturber,
    Record,
    schedule,
)
from experiments.benchmarks.lifecycle.endurance_report import failures
from tests.conftest import small_disk_at
from tests.programs import run_module


@pytest.mark.large
@pytest.mark.usefixtures("all_cores")
def test_one_disturbance_of_each_kind_loses_nothing(tmp_path, glyphs):
    output = tmp_path / "endurance"
    with small_disk_at(tmp_path / "disk", "1m"):
        pass  # one disturbance is a full disk: the test is skipped where none can be mounted
    result = run_module(
        "experiments.benchmarks.lifecycle.endurance",
        *(f"--dataset_dir={glyphs}", f"--output_dir={output}"),
        *(f"--disturbances={len(KINDS)}", "--seed=0"),
        timeout=3600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((output / "results.json").read_text())
    assert results["passed"]
    assert sorted(r["kind"] for r in results["disturbances"]) == sorted(KINDS)
    assert "Passed." in (output / "table.md").read_text()


def ended(kind="kill", **changes):
    record = Record(kind, 2, early=False, began=0.0)
    values = {"step": 27, "undamaged": 20, "resumed": 20, "seconds": 5.0, "restarted": True}
    for name, value in {**values, **changes}.items():
        setattr(record, name, value)
    return record


STEPS = [(step, 1.0 / step) for step in range(1, 41)]
OTHER = [*STEPS[:30], (31, 0.5), *STEPS[31:]]
OUTCOMES = {
    "passed": ([ended()], STEPS, True, None),
    "unfinished": ([ended()], STEPS, False, "did not reach its end"),
    "a loss differs": ([ended()], OTHER, True, "1 losses are not those"),
    "a step twice": ([ended()], [*STEPS, STEPS[-1]], True, "every step once"),
    "a step missing": ([ended()], STEPS[1:], True, "every step once"),
    "not all done": ([], STEPS, True, "0 of 1 disturbances"),
    "never came back": ([ended(seconds=0.0)], STEPS, True, "0 of 1 disturbances"),
    "an undamaged checkpoint passed over": ([ended(resumed=10)], STEPS, True, "20 was undamaged"),
    "too old a checkpoint": ([ended(undamaged=0, resumed=0)], STEPS, True, "27 steps were lost"),
    "a hangup that lost": ([ended("hangup")], STEPS, True, "asked to save"),
    "a preemption that lost": ([ended("preempt")], STEPS, True, "asked to save"),
    "one that saved": ([ended("preempt", undamaged=27, resumed=27)], STEPS, True, None),
    "damage costs a save": ([ended("lost file", undamaged=0, resumed=0)], STEPS, True, None),
}


@pytest.mark.parametrize(("records", "steps", "finished", "word"), OUTCOMES.values(), ids=OUTCOMES)
def test_the_failures_name_what_was_lost(records, steps, finished, word):
    found = failures(records, steps, STEPS, finished=finished, asked=1, interval=10)
    if word is None:
        assert found == []
    else:
        assert any(word in failure for failure in found), found


def test_a_schedule_has_every_kind_and_signals_in_every_phase():
    planned = schedule(list(KINDS), 50, 10, random.Random(0))
    counts = collections.Counter(d.kind for d in planned)
    assert set(counts) == set(KINDS) and set(counts.values()) == {5}
    for kind in ("kill", "preempt", "interrupt", "hangup", "stop"):
        assert {d.phase for d in planned if d.kind == kind} == set(PHASES)
    # The first two come before anything is saved, so that the next start is a first one too.
    assert {d.phase for d in planned[:2]} == {"start", "compile"}


class Process:
    def __init__(self):
        self.sent = []

    def send_signal(self, number):
        self.sent.append(number)


# Phase -> output of a pod; a disturbance in that phase comes right after the last line.
RESUMING = ["resuming W after step 20", "TensorBoard: W"]
LINES = {
    "start": [],
    "compile": RESUMING,
    "step": [*RESUMING, *(f"step {i}/100" for i in range(21, 25))],
    "save": [*RESUMING, *(f"step {i}/100" for i in range(21, 31))],
    "evaluation": [*RESUMING, *(f"step {i}/100" for i in range(21, 30))],
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_comes_in_its_phase(tmp_path, phase):
    wanted = Disturbance("hangup", victim=0.6, seconds=0.0, phase=phase, steps=3)
    disturber = Disturber(tmp_path, [wanted], random.Random(0), tmp_path / "filler", 10, 15)
    pod = types.SimpleNamespace(processes=[Process(), Process()])
    disturber.before_start(2)
    for line in LINES[phase]:
        disturber.tick(pod)
        assert not pod.processes[1].sent, line
        disturber.hear(0, line)
    disturber.tick(pod)
    assert [process.sent for process in pod.processes] == [[], [signal.SIGHUP]]
    (record,) = disturber.records
    assert record.early == (phase in ("start", "compile"))
