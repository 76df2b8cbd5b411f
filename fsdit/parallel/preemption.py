"""Hears the signals that ask this process to leave: SIGTERM, Ctrl-C, a closed terminal.

The first one is a notice: the training loop asks for it after each step, saves and leaves
with EXIT_PREEMPTED. Where this process has done nothing yet that a save would keep, it
leaves at once. So does a Ctrl-C that follows a notice, whatever the process is doing.

Python runs signal handlers between two instructions of the main thread, so not while that
waits in C code for a compiler or for devices. Here a thread hears them instead, through
the file that Python's C handler writes each signal's number to.

In a job of several processes JAX carries the notice to the others, so that all leave at
the same step. It listens to SIGTERM alone, with a handler of its own: other signals are
sent on to it as that. `fsdit.parallel.processes` decides which way is taken.

This module imports neither JAX nor anything else that takes long: a signal may come while
the rest is imported.
"""

import contextlib
import os
import signal
import sys
import threading

from fsdit.errors import EXIT_PREEMPTED

_NOTICES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AT_ONCE = "leaving; the same command goes on"


class _Listener:
    """State of the one listener of a process. lock: held while a signal is decided about."""

    def __init__(self):
        self.lock = threading.Lock()
        self.received = self.at_once = self.to_jax = False

    def take(self, number: int) -> None:
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
    """Notes signals from now on. For the main thread of a program, before it imports much.

    at_once: leave at the first signal, as a program does that loses nothing by it. A signal
    that the caller has this process ignore, as nohup does, stays ignored.
    """
    global _listener
    _listener = _Listener()
    _listener.at_once = at_once
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in _NOTICES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # without a handler, nothing is written
    threading.Thread(target=_attend, args=(reading,), name="signals", daemon=True).start()


def received() -> bool:
    """Whether this process was asked to leave. Never, where it does not listen."""
    return _listener is not None and _listener.received


def leave_at_once(allowed: bool) -> None:
    """Says whether there is nothing to save, so that a notice ends this process at once.

    One that has come already does.
    """
    if _listener is None:
        return
    with _listener.lock:
        _listener.at_once = allowed
        if allowed and _listener.received:
            _leave(_AT_ONCE)


def hand_over_to_jax() -> None:
    """From now on JAX's handler of SIGTERM hears of every notice, also of an earlier one."""
    if _listener is None:
        return
    with _listener.lock:
        _listener.to_jax = True
        if _listener.received:
            os.kill(os.getpid(), signal.SIGTERM)


def _attend(file: int) -> None:
    while numbers := os.read(file, 64):
        for number in numbers:
            if number in _NOTICES:
                _listener.take(number)


def _leave(text: str) -> None:
    _say(text)
    os._exit(EXIT_PREEMPTED)


def _say(text: str) -> None:
    """Past Python's streams, whose locks the main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())
