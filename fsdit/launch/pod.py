"""A pod on this machine: processes that are started, listened to and ended together."""

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
from fsdit.training.deadline import TIME_LIMIT

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_FOLLOWING_SECONDS = 5.0  # time for the children of a process to end after it


def _say(number: int, line: str) -> None:
    print(f"[{number}] {line}", flush=True)


class _Member:
    """One process of a pod.

    error: the last line "error: ..." that it printed, or "". time_is_up: whether it printed that
    its time limit has come. pipe: file descriptor of its output. end: file descriptor that is
    readable once the process has ended.
    """

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
            if os.getppid() != launcher:  # the launcher had died already
                os._exit(1)

        self.number, self.error, self.time_is_up = number, "", False
        self._hear, self._partial = hear, b""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,  # so that a Ctrl-C comes once, through the launcher
            preexec_fn=die_with_the_launcher,  # safe, since this launcher has no threads
        )
        self.pipe = self.process.stdout.fileno()
        os.set_blocking(self.pipe, False)
        self.end = os.pidfd_open(self.process.pid)

    def read(self) -> bool:
        """Passes on the complete lines so far; returns False once there will be no more."""
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
            self.time_is_up |= text.startswith(TIME_LIMIT)
            self._hear(self.number, text)

    def close(self) -> None:
        """Ends the process and its children.

        Its input workers end when they notice that it has ended. Python's resource tracker ends
        after them, and frees their shared memory. They get some seconds for that before what is
        left of the process group is killed.
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
    """`count` processes of `command`; where there are several, each gets JAX's flags of a pod.

    A context manager. No process outlives it, nor the launcher, even if that is killed.
    environment: variables that are added to the launcher's. hear: called with the number of a
    process and a line that it printed.
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
        """The processes by number, ended ones included."""
        return [member.process for member in self._members]

    def listen(self, seconds: float, *wakeups: int) -> None:
        """Passes output on for `seconds`; returns earlier if a process ends, or if a file
        descriptor of `wakeups` becomes readable."""
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
        """The exits of ended processes by number, after passing on all of their output."""
        exits = {}
        for member in self._members:
            if (status := member.process.poll()) is not None:
                member.read()
                exits[member.number] = Exit(status, member.error, member.time_is_up)
        return exits

    def send(self, number: int) -> None:
        """Sends a signal to every running process."""
        for process in self.processes:
            process.send_signal(number)

    def close(self) -> None:
        """Ends all processes."""
        for member in self._members:
            member.close()


def _pod_flags(count: int) -> list[list[str]]:
    """The flags of each process. A single one gets none, and finds its job by itself."""
    if count == 1:
        return [[]]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = [f"--coordinator_address={address}", f"--num_processes={count}"]
    return [[*common, f"--process_id={i}"] for i in range(count)]
