"""Launch a pod that prints much, and write the exit status to the file that is given."""

import sys
from pathlib import Path

from fsdit.launch.decision import Patience
from fsdit.launch.pod import Pod
from fsdit.launch.supervise import listening, supervise
from fsdit.program.terminal import guard_output

if __name__ == "__main__":
    guard_output()
    command = [sys.executable, "-c", "for i in range(20000): print('line', i)"]
    with listening() as notice:
        status = supervise(lambda: Pod(command, 2), lambda: 0, notice, Patience(restarts=0))
    Path(sys.argv[1]).write_text(str(status))
