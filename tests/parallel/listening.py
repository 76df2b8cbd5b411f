"""A program that listens for signals, either busy in C code or polling in Python."""

import hashlib
import sys
import time

from fsdit.parallel import preemption

preemption.listen(at_once="at_once" in sys.argv)
if "early" in sys.argv:  # the notice comes before the program knows that it has nothing to save
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
