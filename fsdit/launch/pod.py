"""A pod on this machine: processes that are started, heard and ended together."""

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from fsdit.launch.decision import Exit

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_FOLLOWING_SECONDS = 5.0  # for what a process has started to end after it


def _say(number: int, line: str) -> None:
    print(f"[{number}] {line}", flush=True)


class _Member:
    """One process of a pod, what it has printed last, and how to hear of its end."""

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        hear: Callable[[int, str], None],
    ):
        launcher = os.getpid()

        def die_with_the_launcher() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:  # it died before that line
                os._exit(1)

        self.number, self.error = number, ""
        self._hear, self._partial = hear, b""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,  # a terminal's Ctrl-C comes once, through the launcher
            preexec_fn=die_with_the_launcher,  # this launcher has no threads
        )
        self.pipe = self.process.stdout.fileno()
        os.set_blocking(self.pipe, False)
        self.end = os.pidfd_open(self.process.pid)

    def read(self) -> bool:
        """Passes on the whole lines written so far; False once there will be no more."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.pipe, 1 << 16):
                *lines, self._partial = (self._partial + chunk).split(b"\n")
                self._pass_on(lines)
            self._pass_on([self._partial] if self._partial else [])
            self._partial = b""
            return False
        return True

    def _pass_on(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            text = line.decode(errors="replace")
            if text.startswith("error: "):
                self.error = text
            self._hear(self.number, text)

    def close(self) -> None:
        """Ends the process, with what it has started itself.

        Its input workers end when they see that it is gone, and Python's resource tracker
        after them, which frees their shared memory: neither may be killed with it.
        """
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + _FOLLOWING_SECONDS
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                os.killpg(self.process.pid, 0)  # raises when none is left
                time.sleep(0.02)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.read()
        self.process.stdout.close()
        os.close(self.end)


class Pod:
    """`count` processes of `command`, which gets JAX's flags of a pod where there are several.

    A context manager: no process outlives it, nor this launcher, even if that is killed.
    environment: variables beside this launcher's. hear: takes the number of a process and
    a line of it.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        environment: Mapping[str, str] | None = None,
        hear: Callable[[int, str], None] = _say,
    ):
        self._members: list[_Member] = []
        self._speaking: set[int] = set()
        try:
            for number, flags in enumerate(_pod_flags(count)):
                member = _Member(number, [*command, *flags], environment or {}, hear)
                self._members.append(member)
        except BaseException:
            self.close()
            raise
        self._speaking = set(range(count))

    def __enter__(self) -> "Pod":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def processes(self) -> list[subprocess.Popen]:
        return [member.process for member in self._members]

    def listen(self, seconds: float, *wakeups: int) -> None:
        """Passes output on, until a process ends, a file of `wakeups` speaks, or time is up."""
        deadline = time.monotonic() + seconds
        running = [m for m in self._members if m.process.poll() is None]
        with selectors.DefaultSelector() as selector:
            for file in (*wakeups, *(m.end for m in running)):
                selector.register(file, selectors.EVENT_READ)
            for i in self._speaking:
                selector.register(self._members[i].pipe, selectors.EVENT_READ, self._members[i])
            while (left := deadline - time.monotonic()) > 0:
                ready = [key for key, _ in selector.select(left)]
                for key in ready:
                    if key.data and not key.data.read():
                        selector.unregister(key.fileobj)
                        self._speaking.discard(key.data.number)
                if any(key.data is None for key in ready):
                    return

    def ended(self) -> dict[int, Exit]:
        """Of the processes that have ended, by number; all that they wrote is passed on."""
        exits = {}
        for member in self._members:
            if (status := member.process.poll()) is not None:
                member.read()
                exits[member.number] = Exit(status, member.error)
        return exits

    def send(self, number: int) -> None:
        """Sends a signal to every process that runs."""
        for process in self.processes:
            process.send_signal(number)

    def close(self) -> None:
        for member in self._members:
            member.close()


def _pod_flags(count: int) -> list[list[str]]:
    """Flags of each process. A single one gets none: it asks its machine about others."""
    if count == 1:
        return [[]]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = [f"--coordinator_address={address}", f"--num_processes={count}"]
    return [[*common, f"--process_id={i}"] for i in range(count)]
