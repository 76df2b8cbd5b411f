"""Places of files: on a disk, or in a bucket of Google Cloud Storage.

/data/glyphs          a local path
gs://bucket/glyphs    objects of a bucket whose names begin with "glyphs/"
"""

import functools
import importlib.util
import logging
import os
import re
from pathlib import Path

from etils import epath

from fsdit.errors import ConfigError

# TensorFlow's own client, which etils would prefer, knows no emulator. etils reads this once.
os.environ["EPATH_USE_TF"] = "0"
# gcsfs would ask another service, by gRPC, of which kind each bucket is. A store without that
# service is waited for, and threads of gRPC do not survive the forks that start other programs.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

PathLike = str | os.PathLike[str]
# Either kind of path; both have the methods of pathlib that read and write files.
AnyPath = Path | epath.Path

_GS = "gs://"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
# https://cloud.google.com/storage/docs/buckets#naming
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_PACKAGES = ("gcsfs", "google.cloud.storage")


def is_remote(path: PathLike) -> bool:
    """Whether a path leads into a bucket."""
    return os.fspath(path).startswith(_GS)


def place(path: PathLike) -> AnyPath:
    """Makes a path object of a flag or a setting, which `check_place` has accepted."""
    text = os.fspath(path)
    if not is_remote(text):
        return Path(text)
    _set_up_client()
    return epath.Path(text.rstrip("/"))


def absolute(path: PathLike) -> AnyPath:
    """`place` of a path, made absolute if it is local."""
    found = place(path)
    return found if is_remote(path) else found.absolute()


def check_place(path: str) -> None:
    """Raises ConfigError where a path names a store that cannot be used."""
    scheme = _SCHEME.match(path)
    if scheme is None:
        return
    if not is_remote(path):
        raise ConfigError(
            f"{path}: {scheme[1]}: is no store that can be used: name gs://BUCKET/..."
        )
    bucket, folder = split(path)
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{path}: {bucket!r} is no name of a bucket: name gs://BUCKET/FOLDER")
    if not folder:
        raise ConfigError(f"{path}: name a folder of the bucket: {_GS}{bucket}/FOLDER")
    if any(part in ("", ".", "..") for part in folder.split("/")):
        raise ConfigError(f"{path}: a path in a bucket holds no empty part, no . and no ..")
    if not all(map(_installed, _PACKAGES)):
        raise ConfigError(f"{path}: reading a bucket needs an extra: pip install 'fsdit[gcs]'")


def split(path: PathLike) -> tuple[str, str]:
    """Splits gs://BUCKET/NAME into (BUCKET, NAME)."""
    bucket, _, name = os.fspath(path).removeprefix(_GS).partition("/")
    return bucket, name.rstrip("/")


@functools.cache
def _set_up_client() -> None:
    """Sets the defaults of gcsfs, through which etils' paths, and so Orbax and JAX, read a bucket.

    Listings are not kept, because another process may write to the folder. An emulator knows no
    credentials, so none are looked for.
    """
    import fsspec.config

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # its errors are raised as well

    settings = fsspec.config.conf.setdefault("gcs", {})
    settings.setdefault("use_listings_cache", False)
    if "STORAGE_EMULATOR_HOST" in os.environ:
        settings.setdefault("token", "anon")


def size_of(file: AnyPath) -> int:
    """The size of a file in bytes. Raises OSError."""
    found = file.stat()
    return found.st_size if isinstance(file, Path) else found.length


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that would hold it
        return False
