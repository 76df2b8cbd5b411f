"""What every program shares: the --config flag, one line for a user's error, exit status."""

import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from absl import app, flags, logging

from fsdit import config as configs
from fsdit import streams
from fsdit.errors import EXIT_ERROR, ConfigError, FsditError
from fsdit.validation import validate

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}

_overrides: dict[str, str] | None = None  # None: the program takes no --config.a.b=v


def define_overrides() -> Callable[[], dict[str, str]]:
    """Defines --config.a.b=v; call the result for {"a.b": "v"}."""
    global _overrides
    _overrides = {}
    return lambda: dict(_overrides)


def define_config() -> Callable[[], configs.Config]:
    """Defines --config=FILE and --config.a.b=v; call the result for the configuration."""
    overrides = define_overrides()
    path = flags.DEFINE_string(
        "config", None, "Experiment file; --config.FIELD=VALUE changes a setting.", required=True
    )

    def resolve() -> configs.Config:
        config = configs.apply_overrides(configs.load_experiment(path.value), overrides())
        validate(config)
        return config

    return resolve


def define_step() -> Callable[[], int | Literal["newest", "best"]]:
    """Defines --step=newest|best|NUMBER; call the result for the choice."""
    text = flags.DEFINE_string(
        "step", "newest", "Checkpoint to use: newest, best (by the judging in training) or NUMBER."
    )

    def choice() -> int | Literal["newest", "best"]:
        if text.value in ("newest", "best"):
            return text.value
        if text.value.isdecimal():
            return int(text.value)
        raise ConfigError(f"--step={text.value} must be newest, best or the number of a step")

    return choice


def run(main: Callable[[Sequence[str]], int | None], *, takes_arguments: bool = False) -> None:
    """Parses flags, runs `main(argv)` and exits with the status it returns (None: 0).

    takes_arguments: whether argv may hold more than the program's name. A user's error
    is printed as one line, with exit status EXIT_ERROR.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            if _overrides is not None:
                argv, overrides = configs.split_overrides(argv)
                _overrides.update(overrides)
            return flags.FLAGS(argv)
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
            no_room = isinstance(error, OSError) and error.errno in _NO_ROOM
            if no_room or isinstance(error, FsditError):
                _fail(error)
            traceback.print_exc()
            _leave()

    streams.outlive_readers()
    # Savers and writers raise a failure of their threads again in the main one, which
    # says it in one line; the thread's own traceback would run into it.
    threading.excepthook = lambda args: logging.info("%s: %r", args.thread, args.exc_value)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of TensorBoard's writer
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    _hush_libtpu()
    app.run(guarded, flags_parser=parse)


def _hush_libtpu() -> None:
    """libtpu may be installed to plan with; without a TPU it warns in many lines at each start.

    It does so for want of these names, which a machine with a TPU has otherwise.
    """
    if not any(device for name in ("accel*", "vfio/*") for device in Path("/dev").glob(name)):
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def _fail(error: object) -> NoReturn:
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    _leave()


def _leave() -> NoReturn:
    """At once: the other processes of a job may never reach a shutdown barrier."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_ERROR)
