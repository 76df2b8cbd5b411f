"""A published checkpoint: finding its files, and what they say without reading a tensor.

A checkpoint is a folder in the hub's layout: config.json beside model.safetensors
(transformers) or diffusion_pytorch_model.safetensors (diffusers), or the same in shards
with an index. Only JSON and safetensors are read: nothing in them can run.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import safetensors

from fsdit.config.bounds import expanded
from fsdit.config.problems import shown
from fsdit.errors import DataError, first_line
from fsdit.models.pretrained.stored.files import check_plain, parse_fields, read_json
from fsdit.models.pretrained.stored.hub import STEMS, fetch, what_to_fetch

T = TypeVar("T")


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be hashed
class Checkpoint:
    """An opened checkpoint. directory: where config.json lies; files: tensor name -> its file."""

    directory: Path
    config: dict[str, Any]
    files: Mapping[str, Path]

    @property
    def config_file(self) -> Path:
        return self.directory / "config.json"

    def sha256(self) -> str:
        """Returns the sha256 of all weight files, joined in order of name.

        For a single file it is the sha256 that the hub shows.
        """
        digest = hashlib.sha256()
        for path in sorted(set(self.files.values())):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def require(self, key: str, *known: str) -> str:
        """Returns config.json's `key`. Raises DataError where it is none of the `known` values."""
        value = self.config.get(key)
        if value not in known:
            raise DataError(
                f"{self.config_file}: {key} is {shown(value)}; this network reads "
                f"{' or '.join(map(repr, known))} only"
            )
        return value

    def parse(
        self, cls: type[T], section: str = "", defaults: Mapping[str, Any] = MappingProxyType({})
    ) -> T:
        """Makes the dataclass `cls` from the fields of config.json that it names.

        section: the part of config.json to read; "": its top. A field that config.json leaves
        out has its value in `defaults`, else its default in `cls`; both have to be the
        publisher's. Raises DataError.
        """
        values = self.config.get(section) or {} if section else self.config
        where = f"{self.config_file}: {section}" if section else str(self.config_file)
        if not isinstance(values, dict):
            raise DataError(f"{where} is no JSON object; fetch it again")
        return parse_fields(cls, {**defaults, **values}, where)

    def check_layers(self, count: int) -> None:
        """Raises DataError for more layers than there are tensors, before so many are built."""
        if count > len(self.files):
            raise DataError(
                f"{self.config_file}: asks for {count} layers, and the weights have "
                f"{len(self.files)} tensors: they do not belong together"
            )


def open_checkpoint(location: str, subfolder: str = "") -> Checkpoint:
    """Opens the checkpoint at a local directory or a hub id ("google/siglip2-base-patch16-224").

    A hub id is fetched into the hub's cache, or found there when there is no network.

    Errors:
        DataError: no such directory or id, files missing or damaged.
    """
    folder = (_local(location) or fetch(location, subfolder)) / subfolder
    config = read_json(folder / "config.json")
    return Checkpoint(folder, config, _tensor_files(folder))


def _local(location: str) -> Path | None:
    try:
        folder = Path(expanded(location))
        return folder if folder.is_dir() else None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(location)}: {first_line(error)[:200]}") from None


def open_files(directory: Path, *names: str) -> Checkpoint:
    """Opens a checkpoint without config.json: these safetensors files of a directory.

    Errors:
        DataError: a file is missing or damaged.
    """
    files: dict[str, Path] = {}
    for path in (directory / name for name in names):
        if not path.is_file():
            raise DataError(f"{path} is missing; put {' and '.join(names)} into {directory}")
        files |= dict.fromkeys(open_tensors(path).keys(), path)
    return Checkpoint(directory, {}, files)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Returns tensor name -> file, by the index or the single file."""
    for stem in STEMS:
        single, index = _weight_files(folder, stem)
        if single.exists():
            return dict.fromkeys(open_tensors(single).keys(), single)
        if index.exists():
            return _indexed_files(index)
    raise DataError(f"no weights there: {what_to_fetch(folder)}")


def _indexed_files(index: Path) -> dict[str, Path]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or any(Path(str(f)).name != f for f in where.values()):
        raise DataError(f"{index}: weight_map is no map from tensors to files beside it")
    held = {}
    for name in sorted(set(where.values())):
        path = index.parent / name
        if not path.exists():
            raise DataError(f"{path} is missing, which {index.name} names; fetch it too")
        held |= dict.fromkeys(open_tensors(path).keys(), path)
    if lost := sorted(where.keys() - held.keys()):
        raise DataError(f"{index}: tensor {some(lost)} in none of its files; fetch them again")
    return held


def _weight_files(folder: Path, stem: str) -> tuple[Path, Path]:
    return folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"


def open_tensors(path: Path) -> Any:
    """Opens a safetensors file; tensors are read one by one. Raises DataError."""
    check_plain(path)
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from None


def some(names: list[str]) -> str:
    """Returns the first name and how many others there are, with a verb."""
    return f"{names[0]!r}" + (f" and {len(names) - 1} more are" if len(names) > 1 else " is")
