"""Owns the folder of its argument until it is killed."""

import sys
import time

from fsdit.program.ownership import owned

if __name__ == "__main__":
    with owned(sys.argv[1]):
        print("owned", flush=True)
        time.sleep(600)
