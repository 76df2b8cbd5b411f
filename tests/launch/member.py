"""A process of a pod that behaves as a test wants.

    python tests/launch/member.py FOLDER BEHAVIOUR [JAX's flags of a process]

It leaves files in FOLDER for the test: started-N, a line in `starts`, and more by behaviour. It
imports nothing large, because launchers start many of these processes.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(sys.argv[1])
FLAGS = dict(flag[2:].split("=") for flag in sys.argv[3:])
NUMBER = int(FLAGS.get("process_id", 0))
FIRST = not (FOLDER / f"started-{NUMBER}").exists()  # whether this is the first pod


def stay() -> None:
    print("ready", flush=True)
    while True:
        signal.pause()


def say_hello() -> None:
    print("hello", flush=True)


def say_without_an_end() -> None:
    print("error: cut", end="")


def be_preempted() -> None:
    sys.exit(75)


def be_preempted_once() -> None:
    sys.exit(75 if FIRST else 0)


def stay_once() -> None:
    if FIRST:
        stay()


def abort_once() -> None:
    if FIRST:
        os.abort()


def find_a_users_error() -> None:
    if NUMBER == 0:
        stay()
    print("error: config.seed is wrong", file=sys.stderr)
    sys.exit(1)


def make_four_steps() -> None:
    steps = len(list(FOLDER.glob("step-*")))
    if steps < 4:
        (FOLDER / f"step-{steps}").touch()
    sys.exit(75)


def save_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (FOLDER / f"listening-{NUMBER}").touch()
    stay()


def be_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (FOLDER / "deaf").touch()
    stay()


def save_slowly(seconds: float) -> None:
    """Ignore SIGTERM, and exit `seconds` after the test has sent its second signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (FOLDER / "deaf").touch()
    while not (FOLDER / "signalled").exists():
        time.sleep(0.01)
    time.sleep(seconds)
    sys.exit(75)


BEHAVIOURS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        *(stay, say_hello, say_without_an_end, be_preempted, be_preempted_once, stay_once),
        *(abort_once, find_a_users_error, make_four_steps, save_on_sigterm, be_deaf),
    )
} | {
    "save_in_a_second": lambda: save_slowly(1),
    "save_in_ten_minutes": lambda: save_slowly(600),
}

if __name__ == "__main__":
    (FOLDER / f"started-{NUMBER}").touch()
    with (FOLDER / "starts").open("a") as starts:
        starts.write(f"{NUMBER} of {FLAGS.get('num_processes', 1)}\n")
    BEHAVIOURS[sys.argv[2]]()
