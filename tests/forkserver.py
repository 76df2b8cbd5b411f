"""Forks the programs under test from one process that has imported their libraries.

    python -m tests.forkserver FD

A Python that imports JAX, Orbax, Grain and TensorFlow takes seconds to start; a fork of a
process that has imported them takes milliseconds. FD is a connected socket. A request is
the length and the JSON of {"module", "flags", "environment", "folder"}, with three
descriptors: for the program's output, for its errors, and for its exit status. The answer
is the process id. When the other end of FD is closed, the server kills the programs that
still run, and ends.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
import warnings
from typing import Any, NoReturn

# Libraries and packages that programs import. No program is among them, since each
# defines its flags when it starts.
PRELOADED = (
    "clu.metric_writers",
    "clu.parameter_overview",
    "data_prep.encoding.tasks",
    "data_prep.conversion.inputs.parquet",
    "fsdit.evaluation.evaluate",
    "fsdit.evaluation.report.write",
    "fsdit.sampling.exported",
    "fsdit.planning.plan",
    "fsdit.training.loop",
    "fsdit.training.run",
    "sklearn.linear_model",
)


def preload() -> None:
    """Imports the libraries. Raises RuntimeError if this process then cannot fork safely."""
    for module in PRELOADED:
        importlib.import_module(module)
    from jax._src import xla_bridge

    if threading.active_count() > 1 or xla_bridge.backends_are_initialized():
        raise RuntimeError(f"importing started {threading.enumerate()} or a JAX backend")
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every imported object


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receives a request and its descriptors; None if the other end is closed."""
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("!I", head)
    return json.loads(connection.recv(size, socket.MSG_WAITALL)), list(descriptors)


def become(request: dict[str, Any], output: int, errors: int) -> NoReturn:
    """Turns a fork into the program, and ends as its interpreter would."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # an ignored one would be inherited
    os.setsid()  # a process group of its own, so that a test can see when the whole group ends
    os.dup2(output, 1)
    os.dup2(errors, 2)
    faulthandler.register(signal.SIGUSR2)  # prints where each thread is
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["flags"]]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # waits for threads, as an interpreter does before its exit handlers
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(status)


class Server:
    """Starts programs on request, and reports the exit status of each.

    A pidfd becomes readable when its process has ended.
    """

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.selector = selectors.DefaultSelector()
        self.selector.register(connection, selectors.EVENT_READ)
        self.running: dict[int, tuple[int, int]] = {}  # pidfd -> process, status descriptor

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                if key.fd in self.running:
                    self.report_end(key.fd)
                elif not self.start():
                    for process, _ in self.running.values():
                        os.kill(process, signal.SIGKILL)
                    return

    def start(self) -> bool:
        """Starts the next program. Returns False if the other end is closed."""
        received = receive(self.connection)
        if received is None:
            return False
        request, (output, errors, status) = received
        with warnings.catch_warnings(action="ignore"):  # JAX warns of forks beside threads
            process = os.fork()
        if process == 0:
            self.close_inherited(status)
            become(request, output, errors)
        os.close(output)
        os.close(errors)
        pidfd = os.pidfd_open(process)
        self.selector.register(pidfd, selectors.EVENT_READ)
        self.running[pidfd] = (process, status)
        self.connection.sendall(struct.pack("!i", process))
        return True

    def report_end(self, pidfd: int) -> None:
        self.selector.unregister(pidfd)
        process, status = self.running.pop(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # nobody waits for the program any more
            os.write(status, struct.pack("!i", code))
        os.close(status)
        os.close(pidfd)

    def close_inherited(self, status: int) -> None:
        self.selector.close()
        self.connection.close()
        for pidfd, (_, other) in self.running.items():
            os.close(pidfd)
            os.close(other)
        os.close(status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, which end this server
    preload()
    Server(socket.socket(fileno=int(sys.argv[1]))).serve()
