"""Launch two processes that stay, print their process ids, and listen to them."""

import sys
from pathlib import Path

from fsdit.launch.pod import Pod

if __name__ == "__main__":
    member = str(Path(__file__).with_name("member.py"))
    pod = Pod([sys.executable, member, sys.argv[1], "stay"], 2)
    print(*(process.pid for process in pod.processes), flush=True)
    pod.listen(600)
    pod.listen(600)
