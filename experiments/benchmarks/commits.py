"""The speed of this checkout beside that of an earlier commit, in turns.

    python -m experiments.benchmarks.commits --before=3b52c82

Each side is a process of its own with the code of its commit (`commit_side.py`), which waits
while the other one works. "sampling" is the rate of 256 guided samples from five supports by a
model of six blocks, otherwise the glyph experiment's, with random weights and equal settings.
"recipe" is the same with the model and the settings that the glyph experiment had at that commit.
"training" is the train step at SiT-S/2's shape with the tokens of five supports, batch 8, float32.
The earlier commit runs with the packages of today.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from fsdit import program

ROOT = Path(__file__).parents[2]
# What is timed -> how many samples or train steps a turn has.
WORK = {"sampling": 256, "recipe": 256, "training": 4}


class Side:
    """A process that does one piece of work whenever it is asked, by the code of a checkout."""

    def __init__(self, checkout: Path, work: str, count: int):
        script = str(Path(__file__).with_name("commit_side.py"))
        command = [sys.executable, "-P", script, work, str(count)]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=checkout, env=environment, **pipes)

    def rate(self) -> float:
        """Does the work once; returns images a second."""
        print("work", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with status {self._process.wait()}")
        return float(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The files of a commit of this repository, in a folder that is deleted at the end."""
    with tempfile.TemporaryDirectory() as folder:
        archive = ["git", "-C", str(ROOT), "archive", revision]
        packed = subprocess.run(archive, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        yield Path(folder)


def compare(before: Path, after: Path, work: str, turns: int, count: int) -> dict[str, list[float]]:
    """Images a second of each turn of both sides; a first turn, which compiles, is left out.

    count: samples or train steps in a turn.
    """
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, folder in (("before", before), ("after", after)):
            sides[name] = stack.enter_context(contextlib.closing(Side(folder, work, count)))
            sides[name].rate()
        found: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(turns):
            for name, side in sides.items():
                found[name].append(side.rate())
    return found


def main(argv: list[str]) -> None:
    del argv
    with checkout(_BEFORE.value) as before:
        for work in _WORK.value:
            found = compare(before, ROOT, work, _TURNS.value, WORK[work])
            medians = {name: statistics.median(rates) for name, rates in found.items()}
            print(f"{work}: {medians['after'] / medians['before']:.2f} times the rate of before")
            for name, rates in found.items():
                turns = ", ".join(f"{rate:.2f}" for rate in rates)
                print(f"  {name}: {medians[name]:.2f} images/s, median of {turns}")


if __name__ == "__main__":
    _BEFORE = flags.DEFINE_string("before", None, "Commit to compare with.", required=True)
    _WORK = flags.DEFINE_multi_enum(
        "work", list(WORK), list(WORK), "What is timed; may be repeated."
    )
    _TURNS = flags.DEFINE_integer("turns", 5, "Turns of each side.", lower_bound=1)
    program.run(main)
