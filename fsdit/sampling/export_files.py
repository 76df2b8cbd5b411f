"""The files of an exported model, and reading them.

    DIR/model.safetensors   the EMA weights in float32 or float16, by names such as
                            "blocks/attention/qkv/kernel"
    DIR/config.json         an ExportedInfo

`exported.py` writes them.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import traverse_util

from fsdit import storage
from fsdit.checks import check_unguided, validate
from fsdit.config import Config, from_dict
from fsdit.config.bounds import CountOrNone, Fraction, PatchSize
from fsdit.config.problems import shown
from fsdit.data.images.photos import Preparation
from fsdit.errors import ConfigError, DataError
from fsdit.models.encoder import FeatureShape
from fsdit.models.pretrained.stored.checkpoint import Checkpoint, open_checkpoint, open_tensors
from fsdit.models.pretrained.stored.files import parse_fields, read_json
from fsdit.models.pretrained.stored.weights import Source, load_params
from fsdit.models.spec import ModelSpec

VERSION = 1
NO_GUIDE = "an export holds one model and names no guide: name it where the export is used"


@dataclasses.dataclass(frozen=True)
class ExportedInfo:
    """The content of config.json.

    sha256: digest of model.safetensors. features: shape of the frozen encoder's outputs; None
    where the encoder was learned. frozen: digests of the weights of "encoder" and "codec",
    where these are frozen networks. config: that of the run. preparation: how supports are
    prepared, None where that was not recorded. ema_decay: decay of the average that the weights
    are. Both are None in exports that are older than these fields.
    """

    version: Literal[1]
    step: CountOrNone
    image_size: PatchSize
    channels: Literal[1, 3]
    sha256: str
    features: FeatureShape | None
    frozen: dict[str, str]
    config: dict[str, Any]
    preparation: Preparation | None = None
    ema_decay: Fraction | None = None


def read_info(directory: storage.PathLike) -> ExportedInfo:
    """Raises DataError where there is no exported model, or one of another version."""
    path = _config_file(storage.local_copy(directory))
    if not path.exists():
        raise DataError(f"{path}: no such file; make an exported model with fsdit.export")
    values = read_json(path)
    if values.get("version") != VERSION:
        raise DataError(
            f"{path}: format version {shown(values.get('version'))}, this program reads {VERSION}"
        )
    return parse_fields(ExportedInfo, values, str(path))


def _config_file(directory: storage.PathLike) -> Path:
    return Path(directory).expanduser() / "config.json"


def read_config(directory: storage.PathLike, info: ExportedInfo) -> Config:
    """The run's settings; those that the export is too old to have get their defaults.

    Raises DataError where they are not those of this version.
    """
    try:
        saved = from_dict(info.config)
        validate(saved)
        check_unguided(saved, NO_GUIDE)
    except ConfigError as error:
        raise DataError(f"{_config_file(directory)}: {error}") from None
    return saved


def read_params(directory: storage.PathLike, info: ExportedInfo, spec: ModelSpec) -> dict:
    """The weights as nested NumPy arrays.

    Raises DataError where they do not fit the model, or are not those that config.json was
    written with.
    """
    return _loaded(_weights_in(directory), info, spec.abstract_params())


def read_arrays(directory: storage.PathLike, info: ExportedInfo) -> dict[str, np.ndarray]:
    """The weights by name, whichever model they are of. Raises DataError as `read_params` does."""
    checkpoint = _weights_in(directory)
    shapes = {
        name: tuple(open_tensors(file).get_slice(name).get_shape())
        for name, file in checkpoint.files.items()
    }
    template = {name: jax.ShapeDtypeStruct(s, np.float32) for name, s in shapes.items()}
    return tensors(_loaded(checkpoint, info, traverse_util.unflatten_dict(template, sep="/")))


def _weights_in(directory: storage.PathLike) -> Checkpoint:
    return open_checkpoint(str(storage.local_copy(directory)))


def _loaded(checkpoint: Checkpoint, info: ExportedInfo, template: dict) -> dict:
    sources = {name: Source((name,)) for name in tensors(template)}
    params = load_params(checkpoint, template, sources)
    if checkpoint.sha256() != info.sha256:
        raise DataError(
            f"{checkpoint.directory}: the weights are not those that config.json was written with: "
            "damaged or exchanged; export again"
        )
    return params


def tensors(params: dict) -> dict[str, Any]:
    """Name in model.safetensors -> leaf of nested parameters."""
    flat = traverse_util.flatten_dict(params)
    return {"/".join(map(str, keys)): leaf for keys, leaf in flat.items()}
