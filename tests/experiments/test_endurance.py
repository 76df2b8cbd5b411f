import json

import pytest

from experiments.benchmarks.disturbances import KINDS, Record
from experiments.benchmarks.endurance_report import failures
from tests.conftest import small_disk_at
from tests.programs import run_module


@pytest.mark.large
def test_one_disturbance_of_each_kind_loses_nothing(tmp_path, glyphs):
    output = tmp_path / "endurance"
    with small_disk_at(tmp_path / "disk", "1m"):
        pass  # a full disk is among them: skipped where none can be mounted
    result = run_module(
        "experiments.benchmarks.endurance",
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
    values = {"step": 27, "sound": 20, "resumed": 20, "seconds": 5.0, "restarted": True}
    for name, value in {**values, **changes}.items():
        setattr(record, name, value)
    return record


STEPS = [(step, 1.0 / step) for step in range(1, 41)]
OTHER = [*STEPS[:30], (31, 0.5), *STEPS[31:]]
VERDICTS = {
    "sound": ([ended()], STEPS, True, None),
    "unfinished": ([ended()], STEPS, False, "did not reach its end"),
    "a loss differs": ([ended()], OTHER, True, "1 losses are not those"),
    "a step twice": ([ended()], [*STEPS, STEPS[-1]], True, "every step once"),
    "a step missing": ([ended()], STEPS[1:], True, "every step once"),
    "not all done": ([], STEPS, True, "0 of 1 disturbances"),
    "never came back": ([ended(seconds=0.0)], STEPS, True, "0 of 1 disturbances"),
    "a sound checkpoint passed over": ([ended(resumed=10)], STEPS, True, "20 was sound"),
    "too old a checkpoint": ([ended(sound=0, resumed=0)], STEPS, True, "27 steps were lost"),
    "a preemption that lost": ([ended("preempt")], STEPS, True, "told to save"),
    "one that saved": ([ended("preempt", sound=27, resumed=27)], STEPS, True, None),
    "damage costs a save": ([ended("lost file", sound=0, resumed=0)], STEPS, True, None),
}


@pytest.mark.parametrize(("records", "steps", "finished", "word"), VERDICTS.values(), ids=VERDICTS)
def test_the_verdict_names_what_was_lost(records, steps, finished, word):
    found = failures(records, steps, STEPS, finished=finished, asked=1, interval=10)
    if word is None:
        assert found == []
    else:
        assert any(word in failure for failure in found), found
