"""Checks, before the first step, that a folder can be a workdir."""

import re
import unicodedata
from pathlib import Path

from fsdit import storage
from fsdit.errors import ConfigError, system_text

# Orbax passes the complete path to glob, which reads these characters as a pattern.
_PATTERN = re.compile(r"[\[*?\\]")
# etils and TensorFlow read "gs://bucket" as a URL; pathlib has made "gs:/bucket" of it.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Unicode categories of control characters, line breaks, and bytes that are not valid text.
_UNPRINTABLE = ("Cc", "Zl", "Zp", "Cs")


def check_workdir(workdir: storage.AnyPath) -> None:
    """Raises ConfigError where the folder cannot be a workdir. Writes nothing."""
    path = storage.absolute(workdir)
    wrong = _wrong_name(path) or (isinstance(path, Path) and _in_the_way(path))
    if wrong:
        raise ConfigError(f"--workdir={str(workdir)!r}: {wrong}; name another folder")


def _wrong_name(path: storage.AnyPath) -> str:
    """Returns what is wrong with the path itself, or ""."""
    text = str(path)
    if found := _PATTERN.search(text):
        return f"the path holds {found[0]!r}, which Orbax reads as a pattern"
    if any(unicodedata.category(character) in _UNPRINTABLE for character in text):
        return "the path holds a line break or another character that cannot be printed"
    for part in () if storage.is_remote(path) else path.parts:
        if _SCHEME.fullmatch(part):
            return f"{part} names no local folder, and gs://BUCKET/FOLDER is the only other place"
    return ""


def _in_the_way(path: Path) -> str:
    """Returns why the folder cannot be made or read, or ""."""
    for each in (path, *path.parents):
        try:
            if each.exists() and not each.is_dir():
                return f"{each} is a file"
        except OSError as error:
            return f"{each}: {system_text(error)}"
    return ""
