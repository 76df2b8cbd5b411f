"""What every program shares: the --config flag, one line for a user's error, exit status."""

import contextlib
import dataclasses
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
from fsdit.errors import EXIT_ERROR, ConfigError, FsditError, first_line
from fsdit.terminal import guard_output
from fsdit.validation import validate

# Errors of the system that no program of ours can cause: what a user can mend.
_USERS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENXIO),
    *(errno.ENODEV, errno.EBUSY),
)

# Flags that are defined here belong to the program that asks: --help shows them.
flags.disclaim_key_flags()

_overrides: dict[str, str] | None = None  # None: the program takes no --config.a.b=v


def define_overrides() -> Callable[[], dict[str, str]]:
    """Defines --config.a.b=v; call the result for {"a.b": "v"}."""
    global _overrides
    _overrides = {}
    return lambda: dict(_overrides)


class _PathParser(flags.ArgumentParser):
    """~ is the home directory: the shell replaces it in `--flag ~/x`, not in `--flag=~/x`."""

    syntactic_help = "a path"

    def __init__(self, folder: bool):
        super().__init__()
        self._folder = folder

    def parse(self, argument: str) -> str:
        path = configs.expanded(argument)
        try:
            wrong = self._folder and Path(path).exists() and not Path(path).is_dir()
        except OSError as error:
            raise ValueError(error.strerror) from None
        if wrong:
            raise ValueError(f"{path} is no folder: name one, or one that is not there yet")
        return path

    def flag_type(self) -> str:
        return "path"


class _PathsParser(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [configs.expanded(path) for path in super().parse(argument)]


def define_path(
    name: str, default: str | None, text: str, *, required: bool = False, folder: bool = False
) -> flags.FlagHolder[str]:
    """Defines a flag that is a path; ~ in it is expanded. folder: a file there is refused."""
    parser, plain = _PathParser(folder), flags.ArgumentSerializer()
    return flags.DEFINE(parser, name, default, text, serializer=plain, required=required)


def define_paths(name: str, text: str) -> flags.FlagHolder[list[str] | None]:
    """Defines a flag of paths with commas between them."""
    return flags.DEFINE(_PathsParser(), name, None, text, serializer=flags.CsvListSerializer(","))


def define_config(
    workdir: flags.FlagHolder[str] | None = None,
) -> Callable[[], configs.Config]:
    """Defines --config=FILE and --config.a.b=v; call the result for the configuration.

    workdir: of a run that goes on with its own configuration where no --config is given.
    """
    overrides = define_overrides()
    path = define_path(
        "config",
        None,
        "Experiment file, or the config.json of a run; --config.FIELD=VALUE changes a setting.",
        required=workdir is None,
    )

    def resolve() -> configs.Config:
        source = path.value or _held(workdir.value)
        config = configs.apply_overrides(configs.load_experiment(source), overrides())
        config = configs.with_absolute_paths(config)
        if not config.name:
            config = dataclasses.replace(config, name=Path(config.data.dataset_dir).name)
        validate(config)
        return config

    return resolve


def _held(workdir: str) -> str:
    """The configuration that a run was last started with."""
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise ConfigError(f"{file}: no such file to go on with; name an experiment: --config=FILE")
    return str(file)


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
            if message := users_error(error):
                logging.info("%s", traceback.format_exc())  # --verbosity=0 shows where
                _fail(message)
            traceback.print_exc()
            _leave()

    guard_output()
    logging.get_absl_handler().python_handler.setStream(sys.stderr)
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


def users_error(error: Exception) -> str | None:
    """What to say of an error that the user can mend; None of a defect."""
    if isinstance(error, FsditError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _USERS:
        named = [os.fsdecode(f) for f in (error.filename, error.filename2) if _is_path(f)]
        return f"{' -> '.join(named)}: {error.strerror}" if named else str(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {str(error) or 'the machine has no more'}; ask for less at once"
    if "RESOURCE_EXHAUSTED" in str(error) and type(error).__name__ in _OF_XLA:
        return (
            f"out of memory on a device: {first_line(error)}; lower config.data.batch_size, or see "
            "config.model.remat, config.train.accumulate_steps and config.mesh.fsdp"
        )
    return None


# Named, not imported: these programs start without JAX.
_OF_XLA = ("JaxRuntimeError", "XlaRuntimeError")


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)


def _fail(error: object) -> NoReturn:
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    _leave()


def _leave() -> NoReturn:
    """At once: the other processes of a job may never reach a shutdown barrier."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk behind it
            stream.flush()
    os._exit(EXIT_ERROR)
