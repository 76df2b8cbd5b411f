"""Exports a model, and loads an exported one: what sampling needs of a run.

An export has no optimizer, no dataset and no guide. Frozen networks are not copied. Digests of
their weights show at loading that they are the ones that the model was trained with.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import jax
import numpy as np
from safetensors.numpy import save as to_safetensors

from fsdit import storage
from fsdit.checks import check_unguided, validate
from fsdit.config import Config, apply_overrides, changed_fields, to_dict, without_folders
from fsdit.data.layout import is_free, publish, write_json
from fsdit.errors import CheckpointError, ConfigError
from fsdit.features.staging import with_local_networks
from fsdit.sampling.export_files import (
    NO_GUIDE,
    VERSION,
    ExportedInfo,
    read_config,
    read_info,
    read_params,
    tensors,
)
from fsdit.sampling.generator import Generator, online_networks
from fsdit.sampling.guide import open_guide
from fsdit.weights import shipped

StoredType = Literal["float32", "float16"]


def check_free(directory: storage.PathLike) -> None:
    """Raises ConfigError where the folder holds something already."""
    if not is_free(directory):
        raise ConfigError(f"{directory} exists and is not empty: name a new folder to export to")


def save(
    directory: storage.PathLike,
    generator: Generator,
    card: str = "",
    stored_type: StoredType = "float32",
) -> None:
    """Exports a model; the folder is complete or absent.

    card: the text of README.md, which says what the model is; "": there is none.
    stored_type: type of the weights in the file; they are float32 again once they are loaded.
    Raises ConfigError where the folder holds something already, where the model has a guide, or
    where float16 cannot hold a weight.
    """
    check_free(directory)
    check_unguided(generator.config, NO_GUIDE)
    target = Path(directory).absolute()
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    weights = to_safetensors(_stored(generator.params, stored_type))
    spec = generator.spec
    info = ExportedInfo(
        VERSION,
        generator.step,
        spec.image_size,
        spec.channels,
        hashlib.sha256(weights).hexdigest(),
        generator.frozen.features,
        generator.frozen.weights,
        to_dict(without_folders(generator.config)),
        generator.preparation,
        generator.ema_decay,
    )
    try:
        partial.mkdir(parents=True)
        (partial / "model.safetensors").write_bytes(weights)
        if card:
            (partial / "README.md").write_text(card, "utf-8")
        write_json(partial / "config.json", dataclasses.asdict(info))
        publish(partial, target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _stored(params: dict, stored_type: StoredType) -> dict[str, np.ndarray]:
    """The weights by their names in the file. Raises ConfigError."""
    found = {}
    for name, leaf in tensors(jax.device_get(params)).items():
        with np.errstate(over="ignore"):
            found[name] = np.asarray(leaf, stored_type)
        if not np.isfinite(found[name]).all():
            raise ConfigError(f"{name} does not fit into {stored_type}: export with float32")
    return found


def read_settings(
    directory: storage.PathLike, overrides: Mapping[str, str]
) -> tuple[ExportedInfo, Config]:
    """What config.json says, and the settings with `overrides`; reads no weights.

    directory: as `load` takes it. Raises DataError or ConfigError.
    """
    directory = shipped.located(directory)
    info = read_info(directory)
    saved = read_config(directory, info)
    config = apply_overrides(saved, dict(overrides))
    if changes := changed_fields(to_dict(saved), config, training=False):
        raise ConfigError(f"{directory} was trained otherwise: {'; '.join(changes)}")
    validate(config)
    return info, config


def load(
    directory: storage.PathLike, overrides: Mapping[str, str] = MappingProxyType({})
) -> Generator:
    """Reads an exported model on the host; no device is used before it samples.

    directory: folder of the export, or the name of a model in the package (`fsdit.weights`).
    overrides: settings as text by dotted path: those of sampling ("sampling.num_steps": "20"),
    where frozen weights lie ("model.encoder.location": "DIR"), and the kernel of attention.
    Raises DataError, ConfigError, or CheckpointError where the frozen networks are not those
    that the model was trained with.
    """
    directory = storage.local_copy(shipped.located(directory))
    info, config = read_settings(directory, overrides)
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
    params = read_params(directory, info, spec)
    guide = open_guide(config, spec, frozen)
    about = (info.step, info.preparation, guide, info.ema_decay)
    return Generator(config, spec, frozen, params, *about)
