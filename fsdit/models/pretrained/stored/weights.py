"""Published weights: finding a checkpoint, and reading its tensors into parameters.

A checkpoint is a folder in the hub's layout: config.json beside model.safetensors
(transformers) or diffusion_pytorch_model.safetensors (diffusers), or the same in shards
with an index. Only JSON and safetensors are read: nothing in them can run.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import ml_dtypes  # noqa: F401  # names bfloat16 for NumPy, which safetensors asks
import numpy as np
import safetensors
from flax import traverse_util

from fsdit.config.bounds import expanded
from fsdit.config.problems import shown
from fsdit.errors import DataError, first_line
from fsdit.models.pretrained.stored.files import check_plain, parse_fields, read_json
from fsdit.models.pretrained.stored.hub import STEMS, fetch, what_to_fetch

T = TypeVar("T")

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, eq=False)  # one is equal to itself only, so that it can be hashed
class Checkpoint:
    """directory: where config.json lies; files: tensor name -> file that holds it."""

    directory: Path
    config: dict[str, Any]
    files: Mapping[str, Path]

    @property
    def config_file(self) -> Path:
        return self.directory / "config.json"

    def sha256(self) -> str:
        """Of the weight files, one after another by name: of a single file, the hub's own."""
        digest = hashlib.sha256()
        for path in sorted(set(self.files.values())):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def require(self, key: str, *known: str) -> str:
        """config.json's `key`, which has to be one of the `known` values."""
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
        """The dataclass `cls` from the fields of config.json that it names.

        section: a part of config.json, "" for its top. Fields that config.json leaves out
        are those of `defaults`, then of `cls`, which have to be the publisher's.
        """
        values = self.config.get(section) or {} if section else self.config
        where = f"{self.config_file}: {section}" if section else str(self.config_file)
        if not isinstance(values, dict):
            raise DataError(f"{where} is no JSON object; fetch it again")
        return parse_fields(cls, {**defaults, **values}, where)

    def check_layers(self, count: int) -> None:
        """Raises DataError for more layers than tensors, before so many are built."""
        if count > len(self.files):
            raise DataError(
                f"{self.config_file}: asks for {count} layers, and the weights have "
                f"{len(self.files)} tensors: they do not belong together"
            )


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    names: tensors, each put through `transform`, then joined along the last axis.
    layers: with a number L, each name holds a "{}" for the layers 0 to L - 1, and the
    results are stacked along a new first axis.
    """

    names: tuple[str, ...]
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray
    layers: int | None = None

    def tensors(self) -> list[tuple[int | None, int, str]]:
        """(layer, place along the last axis, name of the tensor), of all tensors."""
        numbers = [None] if self.layers is None else range(self.layers)
        return [(n, i, t.format(n)) for n in numbers for i, t in enumerate(self.names)]


# Path of a parameter, "blocks/mlp/up/kernel" -> its source.
Mapped = Mapping[str, Source]


def linear(path: str, *names: str, layers: int | None = None) -> dict[str, Source]:
    """Kernel and bias at `path` from PyTorch's linear layers, whose weights are (out, in).

    Several names make one layer that computes all of them, side by side.
    """
    return {
        f"{path}/kernel": Source(tuple(f"{n}.weight" for n in names), np.transpose, layers),
        f"{path}/bias": Source(tuple(f"{n}.bias" for n in names), layers=layers),
    }


def norm(path: str, name: str, layers: int | None = None) -> dict[str, Source]:
    """Scale and bias at `path` from a norm of PyTorch."""
    return {
        f"{path}/scale": Source((f"{name}.weight",), layers=layers),
        f"{path}/bias": Source((f"{name}.bias",), layers=layers),
    }


def conv(path: str, name: str) -> dict[str, Source]:
    """Kernel and bias at `path` from a convolution of PyTorch."""
    return {
        f"{path}/kernel": Source((f"{name}.weight",), conv_kernel),
        f"{path}/bias": Source((f"{name}.bias",)),
    }


def conv_kernel(tensor: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return tensor.transpose(2, 3, 1, 0)


def open_checkpoint(location: str, subfolder: str = "") -> Checkpoint:
    """The checkpoint in a local directory, or of a hub id ("google/siglip2-base-patch16-224").

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
    """A checkpoint in these safetensors files of a directory, without a config.json.

    Errors:
        DataError: a file is missing or damaged.
    """
    files: dict[str, Path] = {}
    for path in (directory / name for name in names):
        if not path.is_file():
            raise DataError(f"{path} is missing; put {' and '.join(names)} into {directory}")
        files |= dict.fromkeys(_open(path).keys(), path)
    return Checkpoint(directory, {}, files)


def load_params(
    checkpoint: Checkpoint, template: dict, mapping: Mapped, ignored: Iterable[str] = ()
) -> dict:
    """Parameters for `template`, a nested dict of abstract arrays, in NumPy on the host.

    mapping: the source of every parameter. ignored: prefixes of tensors that are not read,
    such as a text tower's. Values are cast to the template's types.

    Errors:
        DataError: a tensor is missing, left over, not of floats or not finite, or does not fit.
    """
    flat = traverse_util.flatten_dict(template)
    wanted = {"/".join(map(str, keys)): (keys, leaf) for keys, leaf in flat.items()}
    if wanted.keys() != mapping.keys():
        raise ValueError(f"mapping and module differ in {sorted(wanted.keys() ^ mapping.keys())}")
    _check_names(checkpoint, mapping, tuple(ignored))
    handles = {path: _open(path) for path in set(checkpoint.files.values())}
    for path, origin in mapping.items():  # of all of them, before room is made for one
        _check_fit(checkpoint, handles, origin, wanted[path][1].shape, path)
    loaded = {}
    for path, origin in mapping.items():
        keys, leaf = wanted[path]
        loaded[keys] = target = np.empty(leaf.shape, leaf.dtype)
        layers = target if origin.layers is not None else target[None]
        width = target.shape[-1] // len(origin.names)
        for layer, i, name in origin.tensors():
            place = layers[layer or 0][..., i * width : (i + 1) * width]
            tensor = _read(handles[checkpoint.files[name]], name, checkpoint.files[name])
            with np.errstate(over="ignore"):
                place[...] = origin.transform(tensor)
            if not np.isfinite(place).all():
                raise DataError(
                    f"{checkpoint.files[name]}: tensor {name!r} holds values that are not finite "
                    "numbers: the weights are damaged"
                )
    return traverse_util.unflatten_dict(loaded)


def _check_fit(
    checkpoint: Checkpoint,
    handles: Mapping[Path, Any],
    origin: Source,
    shape: tuple[int, ...],
    path: str,
) -> None:
    """Raises DataError where the tensors of a parameter do not fit, by their files' headers.

    shape: of the parameter. What config.json asks for is thereby no larger than the files.
    """
    part = shape if origin.layers is None else shape[1:]
    place = (*part[:-1], part[-1] // len(origin.names))
    for _, _, name in origin.tensors():
        file = checkpoint.files[name]
        header = handles[file].get_slice(name)
        if header.get_dtype() not in _FLOATS:
            raise DataError(
                f"{file}: tensor {name!r} holds {header.get_dtype()}, not float32, float16 or "
                "bfloat16"
            )
        found = tuple(header.get_shape())
        if _shape_after(origin.transform, found) != place:
            raise DataError(
                f"{file}: tensor {name!r} of shape {found} does not fit {path}, which is {place} "
                f"{'by config.json' if checkpoint.config else 'here'}"
            )


def _shape_after(transform: Callable, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """None where a tensor of this shape has too few axes, or too few values."""
    try:
        return transform(np.broadcast_to(np.float32(0), shape)).shape
    except (ValueError, IndexError):
        return None


def _check_names(checkpoint: Checkpoint, mapping: Mapped, ignored: tuple[str, ...]) -> None:
    needed = {name for origin in mapping.values() for _, _, name in origin.tensors()}
    if missing := sorted(needed - checkpoint.files.keys()):
        together = "config.json and the weights do not belong together, or "
        raise DataError(
            f"{checkpoint.directory}: tensor {_some(missing)} missing; "
            f"{together if checkpoint.config else ''}the checkpoint is of another architecture"
        )
    extra = sorted(n for n in checkpoint.files.keys() - needed if not n.startswith(ignored))
    if extra:
        raise DataError(
            f"{checkpoint.directory}: tensor {_some(extra)} left over; this network has no "
            "place for it, so it would not compute what the checkpoint's own does"
        )


def _some(names: list[str]) -> str:
    return f"{names[0]!r}" + (f" and {len(names) - 1} more are" if len(names) > 1 else " is")


def _open(path: Path) -> Any:
    check_plain(path)
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from None


def _read(handle: Any, name: str, path: Path) -> np.ndarray:
    try:
        return handle.get_tensor(name)
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path}: tensor {name!r} is damaged: {first_line(error)}") from None


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index or from the single file."""
    for stem in STEMS:
        single, index = _weight_files(folder, stem)
        if single.exists():
            return dict.fromkeys(_open(single).keys(), single)
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
        held |= dict.fromkeys(_open(path).keys(), path)
    if lost := sorted(where.keys() - held.keys()):
        raise DataError(f"{index}: tensor {_some(lost)} in none of its files; fetch them again")
    return held


def _weight_files(folder: Path, stem: str) -> tuple[Path, Path]:
    return folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
