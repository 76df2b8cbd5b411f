"""A process of a pod in which the first process has a defect, while the others stay."""

import signal

from absl import flags

from fsdit import program
from fsdit.parallel import processes

_ADDRESS = flags.DEFINE_string("coordinator_address", None, "")
_COUNT = flags.DEFINE_integer("num_processes", None, "")
_MINE = flags.DEFINE_integer("process_id", None, "")


def main(argv):
    del argv
    processes.start(_ADDRESS.value, _COUNT.value, _MINE.value)
    if _MINE.value == 0:
        raise RuntimeError("a defect")
    signal.pause()


if __name__ == "__main__":
    program.run(main)
