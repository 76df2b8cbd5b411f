"""Receives the signals that ask this process to leave: SIGTERM, Ctrl-C, a closed terminal.

The first signal is a notice: after each step the training loop looks for one, saves and
leaves with EXIT_PREEMPTED. A process that has nothing to save yet leaves at once. So does
every process at a Ctrl-C that follows a notice.

Python runs signal handlers between two instructions of the main thread, and so not while
that thread waits in C code for a compiler or for devices. Here a thread of its own receives
the signals, from the file that Python's C handler writes their numbers to
(`signal.set_wakeup_fd`).

In a job of several processes, JAX passes the notice on to the others, so that all leave at
the same step. JAX listens to SIGTERM only, with a handler of its own, so other signals are
sent to this process again as SIGTERM. `fsdit.parallel.processes` chooses between the two ways.

This module imports neither JAX nor anything else that loads slowly: a signal may come while
the rest is being imported.
"""

import contextlib
import os
import signal
import sys
import threading

from fsdit.errors import EXIT_PREEMPTED
from fsdit.text import ERASED_LINE

_NOTICES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AT_ONCE = "leaving; the same command goes on"  # what is printed when leaving unsaved


class _Listener:
    """State of the one listener of a process.

    lock: held while the response to a signal is decided. received: whether a signal has come.
    at_once: whether the first signal ends the process. to_jax: whether JAX's handler of
    SIGTERM must learn of every signal.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.received = self.at_once = self.to_jax = False

    def take(self, number: int) -> None:
        """Responds to a signal, in the listener's thread."""
        name = signal.Signals(number).name
        with self.lock:
            if self.received and number == signal.SIGINT:
                _leave(f"{name} again: {_AT_ONCE}")
            first, self.received = not self.received, True
            if first and self.at_once:
                _leave(f"{name}: {_AT_ONCE}")
            if first:
                _say(f"{name}: saving and leaving; Ctrl-C leaves at once, unsaved")
            if self.to_jax and number != signal.SIGTERM:
                os.kill(os.getpid(), signal.SIGTERM)


_listener: _Listener | None = None


def listen(*, at_once: bool = False) -> None:
    """Starts the listener. To be called in a program's main thread, before slow imports.

    at_once: leave at the first signal, for programs that lose nothing by that. A signal that
    is ignored already, as nohup has it, stays ignored.
    """
    global _listener
    _listener = _Listener()
    _listener.at_once = at_once
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in _NOTICES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # only signals with a handler are written
    threading.Thread(target=_attend, args=(reading,), name="signals", daemon=True).start()


def announce(reason: str) -> None:
    """Prints the reason and gives this process, and through JAX its whole job, a notice."""
    _say(reason)
    os.kill(os.getpid(), signal.SIGTERM)


def received() -> bool:
    """Whether this process was asked to leave; False where there is no listener."""
    return _listener is not None and _listener.received


def leave_at_once(allowed: bool) -> None:
    """Sets whether a notice ends this process at once, because there is nothing to save.

    If so, a notice that has come already ends it now.
    """
    if _listener is None:
        return
    with _listener.lock:
        _listener.at_once = allowed
        if allowed and _listener.received:
            _leave(_AT_ONCE)


def hand_over_to_jax() -> None:
    """Passes every notice on to JAX's handler of SIGTERM, including one that has come already."""
    if _listener is None:
        return
    with _listener.lock:
        _listener.to_jax = True
        if _listener.received:
            os.kill(os.getpid(), signal.SIGTERM)


def _attend(file: int) -> None:
    """Reads the numbers of signals from a file, for ever."""
    while numbers := os.read(file, 64):
        for number in numbers:
            if number in _NOTICES:
                _listener.take(number)


def _leave(text: str) -> None:
    _say(text)
    os._exit(EXIT_PREEMPTED)


def _say(text: str) -> None:
    """Prints past Python's streams: the main thread may hold their locks.

    On a terminal the text takes the place of a status line, and of the ^C that is shown there.
    """
    with contextlib.suppress(OSError):
        file = sys.__stderr__.fileno() if sys.__stderr__ else 2
        place = ERASED_LINE if os.isatty(file) else ""
        os.write(file, f"{place}{text}\n".encode())
