"""Published tensors as parameters: which tensor a parameter is read from, and reading them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16, which safetensors looks up
import numpy as np
import safetensors
from flax import traverse_util

from fsdit.errors import DataError, first_line
from fsdit.models.pretrained.stored.checkpoint import Checkpoint, open_tensors, some

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Source:
    """The tensors that one parameter is read from.

    names: tensors, each put through `transform`, then joined along the last axis.
    layers: L for a parameter that is stacked by layer: each name then holds a "{}" for the
    layers 0 to L - 1, and the results are stacked along a new first axis. None: no such axis.
    """

    names: tuple[str, ...]
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray
    layers: int | None = None

    def tensors(self) -> list[tuple[int | None, int, str]]:
        """Returns (layer, place along the last axis, name) of each tensor."""
        layers = [None] if self.layers is None else range(self.layers)
        return [(n, i, t.format(n)) for n in layers for i, t in enumerate(self.names)]


# Path of a parameter, "blocks/mlp/up/kernel" -> its source.
Mapped = Mapping[str, Source]


def linear(path: str, *names: str, layers: int | None = None) -> dict[str, Source]:
    """Sources of kernel and bias at `path`: PyTorch's linear layers, whose weights are (out, in).

    Several names make one layer that computes all of them, side by side.
    """
    return {
        f"{path}/kernel": Source(tuple(f"{n}.weight" for n in names), np.transpose, layers),
        f"{path}/bias": Source(tuple(f"{n}.bias" for n in names), layers=layers),
    }


def norm(path: str, name: str, layers: int | None = None) -> dict[str, Source]:
    """Sources of scale and bias at `path`: a norm of PyTorch."""
    return {
        f"{path}/scale": Source((f"{name}.weight",), layers=layers),
        f"{path}/bias": Source((f"{name}.bias",), layers=layers),
    }


def conv(path: str, name: str) -> dict[str, Source]:
    """Sources of kernel and bias at `path`: a convolution of PyTorch."""
    return {
        f"{path}/kernel": Source((f"{name}.weight",), conv_kernel),
        f"{path}/bias": Source((f"{name}.bias",)),
    }


def conv_kernel(tensor: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return tensor.transpose(2, 3, 1, 0)


def load_params(
    checkpoint: Checkpoint, template: dict, mapping: Mapped, ignored: Iterable[str] = ()
) -> dict:
    """Reads parameters for `template`, a nested dict of abstract arrays, as NumPy arrays.

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
    handles = {path: open_tensors(path) for path in set(checkpoint.files.values())}
    for path, source in mapping.items():  # all are checked before memory is taken for one
        _check_fit(checkpoint, handles, source, wanted[path][1].shape, path)
    loaded = {}
    for path, source in mapping.items():
        keys, leaf = wanted[path]
        loaded[keys] = target = np.empty(leaf.shape, leaf.dtype)
        layers = target if source.layers is not None else target[None]
        width = target.shape[-1] // len(source.names)
        for layer, i, name in source.tensors():
            place = layers[layer or 0][..., i * width : (i + 1) * width]
            tensor = _read(handles[checkpoint.files[name]], name, checkpoint.files[name])
            with np.errstate(over="ignore"):
                place[...] = source.transform(tensor)
            if not np.isfinite(place).all():
                raise DataError(
                    f"{checkpoint.files[name]}: tensor {name!r} holds values that are not finite "
                    "numbers: the weights are damaged"
                )
    return traverse_util.unflatten_dict(loaded)


def _check_fit(
    checkpoint: Checkpoint,
    handles: Mapping[Path, Any],
    source: Source,
    shape: tuple[int, ...],
    path: str,
) -> None:
    """Raises DataError where a tensor does not fit its parameter, by the header of its file.

    shape: the parameter's. Sizes that config.json invents are refused here, before memory is
    taken for them.
    """
    part = shape if source.layers is None else shape[1:]
    place = (*part[:-1], part[-1] // len(source.names))
    for _, _, name in source.tensors():
        file = checkpoint.files[name]
        header = handles[file].get_slice(name)
        if header.get_dtype() not in _FLOATS:
            raise DataError(
                f"{file}: tensor {name!r} holds {header.get_dtype()}, not float32, float16 or "
                "bfloat16"
            )
        found = tuple(header.get_shape())
        if _shape_after(source.transform, found) != place:
            raise DataError(
                f"{file}: tensor {name!r} of shape {found} does not fit {path}, which is {place} "
                f"{'by config.json' if checkpoint.config else 'here'}"
            )


def _shape_after(transform: Callable, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns None where a tensor of this shape has too few axes, or too few values."""
    try:
        return transform(np.broadcast_to(np.float32(0), shape)).shape
    except (ValueError, IndexError):
        return None


def _check_names(checkpoint: Checkpoint, mapping: Mapped, ignored: tuple[str, ...]) -> None:
    """Raises DataError for a tensor that is missing, or that is neither read nor ignored."""
    needed = {name for source in mapping.values() for _, _, name in source.tensors()}
    if missing := sorted(needed - checkpoint.files.keys()):
        together = "config.json and the weights do not belong together, or "
        raise DataError(
            f"{checkpoint.directory}: tensor {some(missing)} missing; "
            f"{together if checkpoint.config else ''}the checkpoint is of another architecture"
        )
    extra = sorted(n for n in checkpoint.files.keys() - needed if not n.startswith(ignored))
    if extra:
        raise DataError(
            f"{checkpoint.directory}: tensor {some(extra)} left over; this network has no "
            "place for it, so it would not compute what the checkpoint's own does"
        )


def _read(handle: Any, name: str, path: Path) -> np.ndarray:
    try:
        return handle.get_tensor(name)
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path}: tensor {name!r} is damaged: {first_line(error)}") from None
