"""Objects of a bucket: listed, read, downloaded and uploaded, with retries.

Requests that fail with a status such as 429 or 503, or whose connection is cut, are repeated for
up to RETRY_SECONDS, and then end in UnavailableError. The client compares the checksum of each
object that it transfers.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsdit.errors import DataError, FsditError, OutputError, UnavailableError, first_line
from fsdit.storage.places import split

RETRY_SECONDS = 600.0
_FIRST_PAUSE = 1.0  # seconds before a request is repeated; the pause doubles, up to a minute
_TIMEOUT = 60.0  # seconds in which the store has to answer a request


@dataclasses.dataclass(frozen=True)
class Object:
    """What a store says of an object. generation: another number after each change."""

    size: int
    generation: int


@functools.cache
def _client() -> Any:
    from google.cloud import storage  # slow to import, and an extra

    return storage.Client()


def _blob(path: str) -> Any:
    bucket, name = split(path)
    return _client().bucket(bucket).blob(name)


def _patience() -> dict[str, Any]:
    """The arguments of a request that say how long to wait and when to repeat it."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    retry = DEFAULT_RETRY.with_timeout(RETRY_SECONDS).with_delay(initial=_FIRST_PAUSE)
    return {"retry": retry, "timeout": _TIMEOUT}


def objects(folder: str) -> dict[str, Object]:
    """Lists the objects of a folder and of the folders in it, by name relative to it.

    Raises DataError, also for a name that would lead out of a local folder.
    """
    bucket, prefix = split(folder)
    with explained(folder, DataError):
        found = {
            blob.name.removeprefix(f"{prefix}/"): Object(blob.size, blob.generation)
            for blob in _client().list_blobs(bucket, prefix=f"{prefix}/", **_patience())
            if not blob.name.endswith("/")  # what browsers of buckets leave for an empty folder
        }
    for name in found:
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise DataError(f"{folder}: {name!r:.80} is no name of a file")
    return found


def find(path: str) -> Object | None:
    """Looks one object up; None where there is none. Raises DataError."""
    with explained(path, DataError):
        bucket, name = split(path)
        blob = _client().bucket(bucket).get_blob(name, **_patience())
    return blob and Object(blob.size, blob.generation)


def download(path: str, target: Path, found: Object) -> None:
    """Downloads one generation of an object. Raises DataError, also where it has changed."""
    with explained(path, DataError):
        _blob(path).download_to_filename(
            str(target), if_generation_match=found.generation, **_patience()
        )


def upload(source: Path, path: str) -> Object:
    """Uploads a file: readers find the object before it or the new one, whole. Raises OutputError.

    Two uploads of one name write the same content here, so that repeating one is safe.
    """
    with explained(path, OutputError):
        blob = _blob(path)
        blob.upload_from_filename(str(source), **_patience())
    return Object(blob.size, blob.generation)


def delete(path: str) -> None:
    """Deletes an object if it is there. Raises OutputError."""
    from google.api_core import exceptions

    with explained(path, OutputError), contextlib.suppress(exceptions.NotFound):
        _blob(path).delete(**_patience())


def read(path: str) -> tuple[bytes, int] | None:
    """Reads a small object: (content, generation), or None where there is none."""
    from google.api_core import exceptions

    with explained(path, DataError):
        blob = _blob(path)
        try:
            content = blob.download_as_bytes(**_patience())
        except exceptions.NotFound:
            return None
    return content, blob.generation


def write(path: str, content: bytes, generation: int) -> int | None:
    """Writes a small object in place of the one of this generation; 0: of none.

    Returns the new generation, or None where the object has another one. Raises OutputError.
    """
    from google.api_core import exceptions

    with explained(path, OutputError):
        blob = _blob(path)
        try:
            blob.upload_from_string(content, if_generation_match=generation, **_patience())
        except exceptions.PreconditionFailed:
            # An attempt that was repeated, because its answer was lost, meets its own object.
            found = read(path)
            return found[1] if found and found[0] == content else None
    return blob.generation


@contextlib.contextmanager
def explained(path: str, kind: type[FsditError]) -> Iterator[None]:
    """Turns an error of the store within the block into one line.

    It is of the given kind, and an UnavailableError where the store does not answer.
    """
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from requests import exceptions as http

    try:
        yield
    except (auth.DefaultCredentialsError, auth.RefreshError, api.Unauthorized):
        raise kind(
            f"{path}: no credentials: run `gcloud auth application-default login`, or name a key "
            "file with GOOGLE_APPLICATION_CREDENTIALS"
        ) from None
    except api.NotFound:
        raise kind(f"{path}: no such bucket or object") from None
    except api.Forbidden as error:
        raise kind(
            f"{path}: this account may not do that: give it the role Storage Object User on the "
            f"bucket ({_reason(error)})"
        ) from None
    except api.PreconditionFailed:
        raise kind(f"{path}: it was changed meanwhile; start the same command again") from None
    except (api.GoogleAPIError, auth.GoogleAuthError, http.RequestException, OSError) as error:
        raise UnavailableError(
            f"{path}: the store does not answer ({_reason(error)}); start the same command again"
        ) from None


def _reason(error: Exception) -> str:
    return first_line(error)[:300]
