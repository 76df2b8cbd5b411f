"""Worker processes of a program: they ignore signals, and end when the program has ended."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading

_QUIET = "ignore:resource_tracker:UserWarning"


def expect_unfreed() -> None:
    """Silences the warnings of multiprocessing's resource tracker.

    Programs end at once after an error, and leave it to the tracker to free shared memory,
    about which it would warn. To be called by a program before it starts workers.
    """
    if _QUIET not in sys.warnoptions:
        sys.warnoptions.append(_QUIET)  # the tracker's process inherits these options


def ignore_signals() -> None:
    """Ignores the signals that a terminal or a scheduler sends to the whole process group.

    The program that started this worker responds to them.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def follow_parent() -> None:
    """Ends this process when the one that started it has ended, in whatever way.

    After a kill -9 of its parent, a worker would wait for ever, or write to the files of the
    next start. Shared memory is freed by multiprocessing's resource tracker, once no process of
    the program is left.
    """
    parent = multiprocessing.parent_process()

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="parent", daemon=True).start()
