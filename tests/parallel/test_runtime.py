import sys
import time

import pytest

from experiments.launch.pod import Pod

pytestmark = pytest.mark.medium

PROGRAM = """
import signal
from absl import flags
from fsdit import program
from fsdit.parallel import runtime

address = flags.DEFINE_string("coordinator_address", None, "")
count = flags.DEFINE_integer("num_processes", None, "")
mine = flags.DEFINE_integer("process_id", None, "")

def main(argv):
    runtime.start(address.value, count.value, mine.value)
    if mine.value == 0:
        raise RuntimeError("a defect")
    signal.pause()

program.run(main)
"""


def test_a_process_with_a_defect_does_not_wait_for_the_others_to_leave(capfd):
    """JAX would, for five minutes, at a barrier where those who train on never come."""
    start = time.monotonic()
    with Pod([sys.executable, "-c", PROGRAM], 2) as pod:
        while not pod.ended() and time.monotonic() < start + 120:
            pod.listen(1.0)
        ended = pod.ended()
        assert 0 in ended and ended[0].status == 1 and not ended[0].error
    output = capfd.readouterr().out
    assert "[0] Traceback" in output and "[0] RuntimeError: a defect" in output
