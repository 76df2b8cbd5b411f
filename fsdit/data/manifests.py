"""The JSON files of a dataset, and the manifests among them.

They are written atomically, and everything in them is checked when they are read. A split's
`manifest.json` lists its files with their records, bytes and sha256.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from fsdit import storage
from fsdit.config.objects import parse_object
from fsdit.data.images.filenames import is_plain_name
from fsdit.data.shards import attempt_name, shard_kind
from fsdit.errors import DataError, system_text

_MAX_BYTES = 2**30  # the largest JSON file that is read into memory
_SHA256 = re.compile("[0-9a-f]{64}")
_KIND = re.compile(r"images|episodes|(?:features|latents)-(.+)")


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes JSON atomically: a reader finds the old file or the new one, never a part."""
    path = epath.Path(path)
    partial = path.with_name(f"{path.name}.{attempt_name()}.partial")
    partial.write_bytes(json_text(value).encode())
    partial.replace(path)


def json_text(value: Any) -> str:
    """The text of a JSON file, the same for equal values."""
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def read_json(path: epath.PathLike, advice: str) -> dict[str, Any]:
    """Reads a JSON object. advice: what to do if there is no such file. Raises DataError."""
    path = epath.Path(path)
    try:
        if not path.exists():
            raise DataError(f"{path}: no such file; {advice}")
        if not path.is_file():
            raise DataError(f"{path}: not a regular file")
        if path.stat().length > _MAX_BYTES:
            raise DataError(f"{path}: more than {_MAX_BYTES} bytes")
        return parse_object(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {system_text(error)}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    except TypeError as error:
        raise DataError(f"{path}: {error}") from None


def is_file_name(name: str) -> bool:
    """Whether a manifest may list a file of this name."""
    kind = _KIND.fullmatch(shard_kind(name) or "")
    return kind is not None and (kind[1] is None or is_plain_name(kind[1]))


def read_manifest(directory: epath.PathLike) -> dict[str, dict[str, Any]]:
    """Reads the manifest of a split: file name -> records, bytes, sha256. Raises DataError."""
    path = epath.Path(directory) / "manifest.json"
    manifest = read_json(path, "the conversion did not finish; run it again")
    for name, entry in manifest.items():
        if not is_file_name(name):
            raise DataError(f"{path}: {name!r:.80} is no file name of this format")
        if not _is_file_entry(entry):
            raise DataError(f"{path}: not a manifest: {name!r:.80} needs records, bytes and sha256")
    return manifest


def _is_file_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"records", "bytes", "sha256"}:
        return False
    count, size, digest = entry["records"], entry["bytes"], entry["sha256"]
    if not (type(count) is type(size) is int and isinstance(digest, str)):
        return False
    return 0 <= count <= size < 2**63 and _SHA256.fullmatch(digest) is not None


def digests(manifest: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns kind of file -> a sha256 over the names, sizes and checksums of its files."""
    found: dict[str, Any] = {}
    for name, entry in sorted(manifest.items()):
        digest = found.setdefault(shard_kind(name), hashlib.sha256())
        digest.update(f"{name} {entry['records']} {entry['bytes']} {entry['sha256']}\n".encode())
    return {kind: digest.hexdigest() for kind, digest in found.items()}


def digests_in(directory: epath.PathLike) -> dict[str, str]:
    """Returns `digests` of a split's manifest; {} where there is none. Raises DataError."""
    directory = epath.Path(directory)
    return digests(read_manifest(directory)) if (directory / "manifest.json").exists() else {}


def other_kinds(directory: storage.AnyPath, expected: Mapping[str, str]) -> str | None:
    """Returns what is wrong where a manifest lists other files than `dataset.json` describes.

    expected: `digests` of the kinds to compare. Returns None where they agree, or there is no
    manifest. Raises DataError.
    """
    found = digests_in(directory) if expected else {}
    other = [kind for kind, digest in expected.items() if found and found.get(kind) != digest]
    if not other:
        return None
    return (
        f"{directory / 'manifest.json'}: lists other {' and '.join(sorted(other))} than the files "
        "that dataset.json was written with: those of another split or dataset, or changed since; "
        "copy or convert it again"
    )
