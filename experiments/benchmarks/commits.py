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
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from experiments.benchmarks.turns import Worker, print_rates, rate_ratio, rates_in_turns
from fsdit import program

ROOT = Path(__file__).parents[2]
# What is timed -> how many samples or train steps a turn has.
WORK = {"sampling": 256, "recipe": 256, "training": 4}


def side(folder: Path, work: str, count: int) -> Worker:
    """A process that works by the code in a folder, and says at how many images a second."""
    script = str(Path(__file__).with_name("commit_side.py"))
    command = [sys.executable, "-P", script, work, str(count)]
    return Worker(command, folder, {"PYTHONPATH": str(folder)})


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The files of a commit of this repository, in a folder that is deleted at the end."""
    with tempfile.TemporaryDirectory() as folder:
        archive = ["git", "-C", str(ROOT), "archive", revision]
        packed = subprocess.run(archive, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        yield Path(folder)


def compare(before: Path, after: Path, work: str, turns: int, count: int) -> dict[str, list[float]]:
    """Images a second of each turn of both sides. count: samples or train steps in a turn."""
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, folder in (("before", before), ("after", after)):
            sides[name] = stack.enter_context(contextlib.closing(side(folder, work, count)))
        return rates_in_turns(sides, turns)


def main(argv: list[str]) -> None:
    del argv
    with checkout(_BEFORE.value) as before:
        for work in _WORK.value:
            found = compare(before, ROOT, work, _TURNS.value, WORK[work])
            print(f"{work}: {rate_ratio(found, 'after', 'before'):.2f} times the rate of before")
            print_rates(found)


if __name__ == "__main__":
    _BEFORE = flags.DEFINE_string("before", None, "Commit to compare with.", required=True)
    _WORK = flags.DEFINE_multi_enum(
        "work", list(WORK), list(WORK), "What is timed; may be repeated."
    )
    _TURNS = flags.DEFINE_integer("turns", 5, "Turns of each side.", lower_bound=1)
    program.run(main)
