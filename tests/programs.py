"""Programs under test as child processes: started, signalled, waited for, read back.

`python -m MODULE` of this repository is forked from a process that has imported the
libraries (tests/forkserver.py), so that a start costs milliseconds. `real=True` starts an
interpreter instead, as a user does.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from experiments.benchmarks.lifecycle.small_disk import enter_own_namespace

ROOT = Path(__file__).parents[1]
# Compiling takes most of a test's time, and the programs that tests run are small.
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
    # Parts of a program compile in parallel, which is more work in all; the cores are busy anyway.
    " --xla_cpu_parallel_codegen_split_count=1"
)
# Libraries read variables with these prefixes while they are imported: a fork comes too late.
READ_AT_IMPORT = ("JAX_", "TF_", "OPENBLAS_", "OMP_", "PYTHON", "EPATH_")
_OWN = {  # variables of the server alone, which do not change what a program computes
    "OPENBLAS_NUM_THREADS": "1",  # OpenBLAS's threads would not survive a fork
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def environment(devices: int = 1, *, quick: bool = True) -> dict[str, str]:
    """Environment of a child process that sees `devices` host devices.

    quick: True compiles fast; False compiles to fast code.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {
        **os.environ,
        "XLA_FLAGS": f"{flags} {QUICK_COMPILATION}" if quick else flags,
        "PYTHONPATH": str(ROOT),
    }


class Fork:
    """A forked program. Its methods are those of `subprocess.Popen`."""

    def __init__(self, pid: int, status: int, stdout: BinaryIO, stderr: BinaryIO | None):
        self.pid = pid
        self.returncode: int | None = None
        self._status, self._outputs = status, (stdout, stderr)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            (self.returncode,) = struct.unpack("!i", os.read(self._status, 4))
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """(output, errors) of the ended program; None where errors went to the output."""
        self.wait(timeout)
        return self._texts()

    def traces(self) -> str:
        """Outputs of the running program so far, its signals, and where each of its threads is."""
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        signals = "\n".join(line for line in status if line.startswith(("Sig", "Shd")))
        self.send_signal(signal.SIGUSR2)  # tests/forkserver.py says what this prints
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(2.0)
        return "\n".join(text for text in (signals, *self._texts()) if text)

    def _texts(self) -> tuple[str, str | None]:
        return tuple(stream and _text(stream) for stream in self._outputs)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _text(stream: BinaryIO) -> str:
    stream.seek(0)
    return stream.read().decode()


def start_program(
    module: str,
    *flags: object,
    devices: int = 1,
    joined: bool = True,
    real: bool = False,
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
) -> Fork | subprocess.Popen:
    """Starts `python -m module flags`. joined: errors go to the output, in order.

    env: `environment(devices)` where none is given.
    """
    env = env or environment(devices)
    arguments = [module, *map(str, flags)]
    if not real and _forkable(env):
        return _fork(arguments, env, joined, cwd)
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if joined else subprocess.PIPE,
        text=True,
    )


def run_module(
    module: str, *flags: object, timeout: float = 600, **choices
) -> subprocess.CompletedProcess:
    """Runs `python -m module flags` to its end; output captured as text.

    choices: those of `start_program`.
    """
    process = start_program(module, *flags, joined=False, **choices)
    try:
        output, errors = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess([module, *flags], process.returncode, output, errors)


def _forkable(env: dict[str, str]) -> bool:
    if not hasattr(os, "pidfd_open"):  # no Linux
        return False
    names = {name for name in (*env, *preloading_environment()) if name.startswith(READ_AT_IMPORT)}
    return all(env.get(name) == preloading_environment().get(name) for name in names)


@functools.cache
def preloading_environment() -> dict[str, str]:
    """The environment in which the server imports the libraries.

    conftest.py calls this first, before a test can change the environment.
    """
    return environment()


FORKED = "fsdit.tests.fork"  # event for audit hooks


@functools.cache
def _connection() -> socket.socket:
    """The connection to this test process's server, which the first test to need it starts.

    Forks see what small_disk mounts, because the server is in the mount namespace where it does.
    """
    enter_own_namespace()
    return _start_server()


def _start_server() -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**preloading_environment(), **_OWN},
            cwd=ROOT,
        )
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _fork(arguments: list[str], env: dict[str, str], joined: bool, cwd: Path) -> Fork:
    connection, (status, theirs) = _connection(), os.pipe()
    # These files stay open as long as the program's `Fork` exists.
    stdout = tempfile.TemporaryFile()  # noqa: SIM115
    stderr = None if joined else tempfile.TemporaryFile()  # noqa: SIM115
    request = json.dumps(
        {"module": arguments[0], "flags": arguments[1:], "environment": env, "folder": str(cwd)}
    ).encode()
    descriptors = [stdout.fileno(), (stderr or stdout).fileno(), theirs]
    socket.send_fds(connection, [struct.pack("!I", len(request))], descriptors)
    connection.sendall(request)
    os.close(theirs)
    sys.audit(FORKED, *arguments)
    answer = connection.recv(4)
    if not answer:
        raise RuntimeError("the server that forks programs has ended: see its errors above")
    return Fork(struct.unpack("!i", answer)[0], status, stdout, stderr)


def one_line_error(result, *words):
    assert result.returncode == 1, (result.returncode, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]
