"""Trains on one machine, in one process or several; restarts after preemptions and losses.

    python -m fsdit.launch.local --num_processes=4 -- \\
      --config=experiments/glyphs.py --workdir=runs/glyphs

Each line of output begins with the number of its process. SIGTERM, Ctrl-C and a closed
terminal are passed on, so that the processes save; a second Ctrl-C ends them at once. All
processes start again when they were preempted (exit status 75) or one was lost: at once where
a newer checkpoint was saved, else after a pause that doubles.

Exit status: 0 finished; 1 an error that you can fix, in one line; 75 a signal asked to leave,
or restarts brought no progress: the same command resumes.

With --num_processes=1 the process finds the others of its job by itself: run the same command
on each worker of a TPU slice. With --prefix=srun, one launcher supervises a Slurm job.
"""

import shlex
import sys

from absl import flags

from fsdit import program
from fsdit.config import expanded
from fsdit.errors import ConfigError
from fsdit.launch.decision import Patience
from fsdit.launch.pod import Pod
from fsdit.launch.supervise import listening, newest_checkpoint, supervise

_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Processes to start.", lower_bound=1)
_PREFIX = flags.DEFINE_string("prefix", "", "Command that starts the program, such as srun.")
_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 5, "Restarts in a row without a newer checkpoint.", lower_bound=0
)
_PAUSE = program.define_float(
    "longest_pause_seconds", 300.0, "Bound of the pause before a restart.", lower=0.0
)
_GRACE = program.define_float(
    "grace_seconds", 300.0, "How long processes may take to leave.", lower=0.0
)


def main(argv: list[str]) -> int:
    passed = argv[1:]
    workdir = _workdir(passed)
    command = [*shlex.split(_PREFIX.value), sys.executable, "-m", "fsdit.main", *passed]
    with listening() as notice:
        return supervise(
            start=lambda: Pod(command, _NUM_PROCESSES.value),
            progress=lambda: newest_checkpoint(workdir),
            notice=notice,
            patience=Patience(_RESTARTS.value, longest_pause=_PAUSE.value),
            grace=_GRACE.value,
        )


def _workdir(passed: list[str]) -> str:
    """The value of --workdir among the flags of fsdit.main. Raises ConfigError."""
    for flag, following in zip(passed, [*passed[1:], ""], strict=True):
        name, equals, value = flag.lstrip("-").partition("=")
        if name == "workdir" and (value or following):
            return _expanded(value if equals else following)
    raise ConfigError("no --workdir=DIR among the flags after --, which are those of fsdit.main")


def _expanded(path: str) -> str:
    try:
        return expanded(path)
    except ValueError as error:
        raise ConfigError(f"--workdir={path}: {error}") from None


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
