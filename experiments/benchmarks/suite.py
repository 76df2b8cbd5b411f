"""Runs a tier of the tests and prints where its time goes, file by file.

    python -m experiments.benchmarks.suite --tier=test --cold

It prints a Markdown table: tests, seconds (with set-up and tear-down) and started processes of
each file, the longest first. Two workers share the files, so a run takes about half of the total.
"""

import collections
import dataclasses
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from absl import app, flags

_TIER = flags.DEFINE_enum("tier", "test", ["check", "test", "test-all"], "Target of the Makefile.")
_COLD = flags.DEFINE_bool("cold", False, "Delete what earlier runs compiled (.cache/jax) first.")
_ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class FileTotals:
    """Totals over the tests of one file."""

    tests: int = 0
    seconds: float = 0.0
    processes: int = 0


def by_file(report: Path) -> dict[str, FileTotals]:
    """Returns totals by test file, of a JUnit report whose tests have a property "processes"."""
    files: dict[str, FileTotals] = collections.defaultdict(FileTotals)
    for case in ElementTree.parse(report).iter("testcase"):
        file = files[case.get("classname").replace(".", "/") + ".py"]
        file.tests += 1
        file.seconds += float(case.get("time"))
        for entry in case.iter("property"):
            if entry.get("name") == "processes":
                file.processes += int(entry.get("value"))
    return dict(sorted(files.items(), key=lambda item: -item[1].seconds))


def table(files: dict[str, FileTotals]) -> str:
    """Returns a Markdown table with one row for each file."""
    lines = ["| file | tests | seconds | processes |", "| --- | --- | --- | --- |"]
    for name, file in files.items():
        lines.append(f"| {name} | {file.tests} | {file.seconds:.1f} | {file.processes} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    del argv
    if _COLD.value:
        shutil.rmtree(_ROOT / ".cache" / "jax", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        env = {**os.environ, "PYTEST_ADDOPTS": f"--junitxml={report}"}
        start = time.monotonic()
        status = subprocess.run(["make", _TIER.value], cwd=_ROOT, env=env, check=False).returncode
        wall = time.monotonic() - start
        files = by_file(report)
    tests, seconds, processes = (
        sum(getattr(file, name) for file in files.values())
        for name in ("tests", "seconds", "processes")
    )
    cache = "nothing compiled before" if _COLD.value else "compiled programs kept"
    print(f"\n`make {_TIER.value}`, {cache}: {wall:.0f} s, status {status}; {tests} tests, "
          f"{seconds:.0f} s in all workers together, {processes} processes; "
          f"{os.cpu_count()} cores, Python {platform.python_version()}\n")  # fmt: skip
    print(table(files))
    sys.exit(status)


if __name__ == "__main__":
    app.run(main)
