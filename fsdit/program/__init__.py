"""What all programs share: flags, a user's error as one line, exit statuses, safe output."""

from fsdit.program.flags import (
    define_config,
    define_ema,
    define_float,
    define_overrides,
    define_path,
    define_paths,
    define_step,
)
from fsdit.program.running import run, users_error

__all__ = [
    "define_config",
    "define_ema",
    "define_float",
    "define_overrides",
    "define_path",
    "define_paths",
    "define_step",
    "run",
    "users_error",
]
