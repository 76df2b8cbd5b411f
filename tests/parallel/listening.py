"""A program that hears signals: busy in C code, where no Python handler runs, or asking."""

import hashlib
import sys
import time

from fsdit.parallel import preemption

preemption.listen(at_once="at_once" in sys.argv)
if "early" in sys.argv:  # a notice, then the runtime finds that there is nothing to save
    print("ready", flush=True)
    while not preemption.received():
        time.sleep(0.01)
    preemption.leave_at_once(True)
    sys.exit("it should have left")
print("ready", flush=True)
if "asking" in sys.argv:
    while not preemption.received():
        time.sleep(0.01)
    sys.exit(3)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, without Python's lock
