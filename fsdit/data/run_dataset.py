"""The dataset of a run: its description, and which of its features and latents the run reads."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from fsdit import storage
from fsdit.config import Config
from fsdit.data.images.photos import Preparation
from fsdit.data.layout import (
    REBUILDING,
    Count,
    DatasetInfo,
    Size,
    default_name,
    read_dataset_info,
)
from fsdit.data.readers import FeatureReader, LatentReader
from fsdit.errors import DataError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """What a run records of its dataset, so that its model can be used without the dataset.

    image_size: height and width in pixels. preparation: how the images were made of pictures;
    None where the dataset does not say. classes, images: their numbers in each split. sources:
    name of what the images come from -> its version, licence, author and address.
    """

    image_size: Size
    channels: Literal[1, 3]
    preparation: Preparation | None
    classes: Mapping[str, Count]
    images: Mapping[str, Count]
    sources: Mapping[str, Mapping[str, str]]


def facts_of(info: DatasetInfo) -> DatasetFacts:
    """What a run on this dataset records of it."""
    return DatasetFacts(
        info.image_size,
        info.channels,
        info.preparation,
        {name: len(split.classes) for name, split in info.splits.items()},
        {name: split.num_images for name, split in info.splits.items()},
        info.sources,
    )


def read_run_dataset(config: Config) -> DatasetInfo:
    """Reads the description of `config.data.dataset_dir`.

    Raises DataError where it is damaged, or missing, which names the setting.
    """
    directory = storage.place(config.data.dataset_dir)
    if not any((directory / name).exists() for name in ("dataset.json", REBUILDING)):
        relative = "" if directory.is_absolute() else f", looked for from {Path.cwd()}"
        raise DataError(
            f"{directory / 'dataset.json'}: no such file{relative}; name where the dataset lies "
            "with --config.data.dataset_dir=DIR, or make one with "
            "`python -m data_prep.glyphs --output_dir=DIR`"
        )
    return read_dataset_info(directory)


def features_name(config: Config) -> str:
    """NAME of the feature files that a run reads; "" where it reads none."""
    if config.features.supports == "online":
        return ""
    return config.features.encoder or default_name(config.model.encoder.location)


def latents_name(config: Config) -> str:
    """NAME of the latent files that a run reads; "" where it reads none."""
    if config.features.targets == "online":
        return ""
    return config.features.codec or default_name(config.model.codec.location)


def feature_reader(config: Config, info: DatasetInfo, split: str) -> FeatureReader:
    """Opens the features that `config` names. Raises DataError."""
    name = features_name(config)
    described = _described(info.features, name, config, "supports", "encoder")
    if config.model.use_context and not described.tokens:
        raise DataError(
            f"{config.data.dataset_dir}: the features {name!r} hold no tokens, and the model "
            "attends to them: encode with --tokens, or set config.model.cross_attention=none"
        )
    directory = storage.place(config.data.dataset_dir) / split
    return FeatureReader(directory, name, described, info.split(split).num_images)


def latent_reader(config: Config, info: DatasetInfo, split: str) -> LatentReader:
    """Opens the latents that `config` names. Raises DataError."""
    name = latents_name(config)
    described = _described(info.latents, name, config, "targets", "vae")
    directory = storage.place(config.data.dataset_dir) / split
    return LatentReader(directory, name, described, info.split(split).num_images)


def feature_files(config: Config) -> list[str]:
    """Returns the kinds of files that a run reads beside images and episodes."""
    names = {"features": features_name(config), "latents": latents_name(config)}
    return [f"{kind}-{name}" for kind, name in names.items() if name]


def _described(present: Mapping[str, T], name: str, config: Config, field: str, flag: str) -> T:
    if name not in present:
        has = f"it has {', '.join(present)}" if present else "it has none"
        raise DataError(
            f"{config.data.dataset_dir}: nothing called {name!r} for config.features.{field}="
            f"precomputed ({has}): make it with `python -m data_prep.encode --{flag}=...`"
        )
    return present[name]
