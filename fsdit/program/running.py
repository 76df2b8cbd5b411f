"""Runs a program: one line for a user's error, and its exit status."""

import contextlib
import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from fsdit.errors import (
    EXIT_ERROR,
    EXIT_HELD,
    EXIT_PREEMPTED,
    FsditError,
    HeldError,
    UnavailableError,
    first_line,
    system_text,
)
from fsdit.program.flags import parse
from fsdit.program.terminal import guard_output

# Errors of the system that no defect of a program causes, but that a user can fix.
_USERS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENXIO),
    *(errno.ENODEV, errno.EBUSY),
)


def run(main: Callable[[Sequence[str]], int | None], *, takes_arguments: bool = False) -> None:
    """Parses flags, runs `main(argv)` and exits with the status it returns (None: 0).

    takes_arguments: whether argv may hold more than the program's name. A user's error
    is printed as one line. The exit status is then EXIT_ERROR; EXIT_HELD where another process
    owns the folder to write to; EXIT_PREEMPTED where a store does not answer.
    """

    def parse_or_fail(argv: list[str]) -> list[str]:
        try:
            return parse(argv)
        except (FsditError, flags.Error) as error:
            _fail(error)

    def guarded(argv: Sequence[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:  # --verbosity=0 shows everything
            logging.set_verbosity(logging.WARNING)
        try:
            if len(argv) > 1 and not takes_arguments:
                _fail(f"unexpected argument {argv[1]!r}; flags start with --")
            return main(argv)
        except KeyboardInterrupt:
            _fail("interrupted")
        except Exception as error:
            if message := users_error(error):
                logging.info("%s", traceback.format_exc())  # --verbosity=0 shows where
                _fail(message, _status(error))
            traceback.print_exc()
            _leave()

    guard_output()
    logging.get_absl_handler().python_handler.setStream(sys.stderr)
    # Savers and writers raise the errors of their threads again in the main thread, which prints
    # one line; a traceback of the thread would run into that line.
    threading.excepthook = lambda args: logging.info("%s: %r", args.thread, args.exc_value)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorBoard's writer uses TensorFlow
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    _hush_libtpu()
    app.run(guarded, flags_parser=parse_or_fail)


def _hush_libtpu() -> None:
    """Silences libtpu, which may be installed for fsdit.plan, on a machine without a TPU.

    It would warn in many lines at each start where these variables are unset. On a machine with
    a TPU they are set.
    """
    if not any(device for name in ("accel*", "vfio/*") for device in Path("/dev").glob(name)):
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def users_error(error: Exception) -> str | None:
    """Returns the message of an error that the user can fix; None for a defect."""
    if isinstance(error, FsditError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _USERS:
        named = [os.fsdecode(f) for f in (error.filename, error.filename2) if _is_path(f)]
        return f"{' -> '.join(named)}: {system_text(error)}" if named else str(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {str(error) or 'the machine has no more'}; ask for less at once"
    if "RESOURCE_EXHAUSTED" in str(error) and type(error).__name__ in _OF_XLA:
        return (
            f"out of memory on a device: {first_line(error)}; lower config.data.batch_size, or see "
            "config.model.remat, config.train.accumulate_steps and config.mesh.fsdp"
        )
    return None


# Compared by name, because many programs start without importing JAX.
_OF_XLA = ("JaxRuntimeError", "XlaRuntimeError")


def _status(error: Exception) -> int:
    if isinstance(error, HeldError):
        return EXIT_HELD
    return EXIT_PREEMPTED if isinstance(error, UnavailableError) else EXIT_ERROR


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)


def _fail(error: object, status: int = EXIT_ERROR) -> NoReturn:
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    _leave(status)


def _leave(status: int = EXIT_ERROR) -> NoReturn:
    """Exits at once, without JAX's shutdown barrier, which other processes may never reach."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # for example a file on a full disk
            stream.flush()
    os._exit(status)
