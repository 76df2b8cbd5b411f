"""An exported model: what sampling needs of a run, without its optimizer and dataset.

    DIR/model.safetensors   the EMA weights in float32, by names such as
                            "blocks/attention/qkv/kernel"
    DIR/config.json         an ExportedInfo

Frozen networks are not copied. Digests of their weights show at loading that they are the
ones that the model was trained with.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
from flax import traverse_util
from safetensors.numpy import save as to_safetensors

from fsdit import storage
from fsdit.checks import validate
from fsdit.config import Config, apply_overrides, changed_fields, from_dict, to_dict
from fsdit.config.bounds import CountOrNone, PatchSize
from fsdit.config.problems import shown
from fsdit.data.images.photos import DEFAULT_PREPARATION, Preparation
from fsdit.data.layout import is_free, publish, write_json
from fsdit.errors import CheckpointError, ConfigError, DataError
from fsdit.features.staging import with_local_networks
from fsdit.models.encoder import FeatureShape
from fsdit.models.pretrained.stored.checkpoint import open_checkpoint
from fsdit.models.pretrained.stored.files import parse_fields, read_json
from fsdit.models.pretrained.stored.weights import Source, load_params
from fsdit.sampling.generator import Generator, online_networks

VERSION = 1


@dataclasses.dataclass(frozen=True)
class ExportedInfo:
    """The content of config.json.

    sha256: digest of model.safetensors. features: shape of the frozen encoder's outputs; None
    where the encoder was learned. frozen: digests of the weights of "encoder" and "codec",
    where these are frozen networks. config: that of the run. preparation: how supports are
    prepared; exports that are older than this field have its defaults.
    """

    version: Literal[1]
    step: CountOrNone
    image_size: PatchSize
    channels: Literal[1, 3]
    sha256: str
    features: FeatureShape | None
    frozen: dict[str, str]
    config: dict[str, Any]
    preparation: Preparation = DEFAULT_PREPARATION


def check_free(directory: storage.PathLike) -> None:
    """Raises ConfigError where the folder holds something already."""
    if not is_free(directory):
        raise ConfigError(f"{directory} exists and is not empty: name a new folder to export to")


def save(directory: storage.PathLike, generator: Generator) -> None:
    """Exports a model; the folder is complete or absent.

    Raises ConfigError where the folder holds something already.
    """
    check_free(directory)
    target = Path(directory).absolute()
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    weights = to_safetensors(_tensors(jax.device_get(generator.params)))
    spec = generator.spec
    info = ExportedInfo(
        VERSION,
        generator.step,
        spec.image_size,
        spec.channels,
        hashlib.sha256(weights).hexdigest(),
        generator.frozen.features,
        generator.frozen.weights,
        to_dict(generator.config),
        generator.preparation,
    )
    try:
        partial.mkdir(parents=True)
        (partial / "model.safetensors").write_bytes(weights)
        write_json(partial / "config.json", dataclasses.asdict(info))
        publish(partial, target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


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


def _saved_config(directory: storage.PathLike, info: ExportedInfo) -> Config:
    """The run's settings; those that the export is too old to have get their defaults."""
    try:
        saved = from_dict(info.config)
        validate(saved)
    except ConfigError as error:
        raise DataError(f"{_config_file(directory)}: {error}") from None
    return saved


def load(
    directory: storage.PathLike, overrides: Mapping[str, str] = MappingProxyType({})
) -> Generator:
    """Reads an exported model on the host; no device is used before it samples.

    overrides: settings as text by dotted path: those of sampling ("sampling.num_steps": "20"),
    where frozen weights lie ("model.encoder.location": "DIR"), and the kernel of attention.
    Raises DataError, ConfigError, or CheckpointError where the frozen networks are not those
    that the model was trained with.
    """
    directory = storage.local_copy(directory)
    info = read_info(directory)
    checkpoint = open_checkpoint(str(directory))
    saved = _saved_config(directory, info)
    config = apply_overrides(saved, dict(overrides))
    if changes := changed_fields(to_dict(saved), config, training=False):
        raise ConfigError(f"{directory} was trained otherwise: {'; '.join(changes)}")
    validate(config)
    spec, frozen = online_networks(with_local_networks(config), info.image_size, info.channels)
    for name, digest in frozen.weights.items():
        if info.frozen.get(name) != digest:
            raise CheckpointError(
                f"{directory} was trained with another {name} than config.model.{name}.location="
                f"{getattr(config.model, name).location}: name the weights that it was trained with"
            )
    if info.features != frozen.features:
        raise CheckpointError(
            f"{directory} was trained on encoder outputs of {info.features}, those of "
            f"config.model.encoder.location={config.model.encoder.location} are {frozen.features}: "
            "its preprocessing has changed"
        )
    template = spec.abstract_params()
    params = load_params(
        checkpoint, template, {name: Source((name,)) for name in _tensors(template)}
    )
    if checkpoint.sha256() != info.sha256:
        raise DataError(
            f"{checkpoint.directory}: the weights are not those that config.json was written with: "
            "damaged or exchanged; export again"
        )
    return Generator(config, spec, frozen, params, info.step, info.preparation)


def _tensors(params: dict) -> dict[str, Any]:
    """Name -> leaf of nested parameters."""
    flat = traverse_util.flatten_dict(params)
    return {"/".join(map(str, keys)): leaf for keys, leaf in flat.items()}
