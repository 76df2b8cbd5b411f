"""Processes that work for a program: they leave signals to it, and leave when it is gone."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading

_QUIET = "ignore:resource_tracker:UserWarning"


def expect_unfreed() -> None:
    """Has the resource tracker free what an ended program has left without a word about it.

    Programs end at once after an error, and count on it. For a program, before its workers.
    """
    if _QUIET not in sys.warnoptions:
        sys.warnoptions.append(_QUIET)  # the tracker gets this interpreter's options


def ignore_signals() -> None:
    """A terminal or a scheduler signals the whole group; the program alone acts on it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def follow_parent() -> None:
    """Ends this process when the one that started it has ended, in whatever way.

    After a kill -9 it would wait for ever, or write beside the next one. Shared memory is
    freed by multiprocessing's resource tracker, once no process of the program is left.
    """
    parent = multiprocessing.parent_process()

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="parent", daemon=True).start()
