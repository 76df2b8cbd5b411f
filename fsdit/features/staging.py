"""Local copies of what a run reads from a bucket: its dataset and its frozen networks."""

import dataclasses
import hashlib
from collections.abc import Collection
from pathlib import Path

from fsdit import storage
from fsdit.config import Config, with_changed_locations
from fsdit.data.layout import read_dataset_info
from fsdit.data.manifests import read_manifest
from fsdit.data.run_dataset import feature_files
from fsdit.data.shards import shard_kind
from fsdit.errors import DataError
from fsdit.storage import bucket

# Value of config.data.cache_dir for reading each record from the bucket when it is needed.
OFF = "off"


def with_local_copies(config: Config, splits: Collection[str] | None = None) -> Config:
    """Copies what `config` reads from buckets to a local disk, and returns it with local paths.

    The dataset is copied to `config.data.cache_dir`: its descriptions, and of these splits
    (None: of all) the files that a run of this configuration reads. What an earlier start has
    copied is kept. The result is for reading only: a run records `config` itself. Raises
    DataError, or OutputError where the disk is too small.
    """
    config = with_local_networks(config)
    location, cache = config.data.dataset_dir, config.data.cache_dir
    if not storage.is_remote(location):
        return config
    if cache == OFF:
        storage.is_there(f"{location}/dataset.json")  # raises where the bucket cannot be read
        return config
    target = storage.folder_of(location, "datasets", cache) / Path(location).name
    _copy_dataset(config, location, target, splits)
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, dataset_dir=str(target))
    )


def with_local_networks(config: Config) -> Config:
    """Copies the frozen networks that `config` names in buckets, and names their copies."""
    return with_changed_locations(config, _local)


def _local(path: str) -> str:
    return str(storage.local_copy(path)) if storage.is_remote(path) else path


def _copy_dataset(
    config: Config, location: str, target: Path, splits: Collection[str] | None
) -> None:
    found = bucket.objects(location)
    storage.copy(
        {name: each for name, each in found.items() if name.endswith(".json")}, location, target
    )
    info = read_dataset_info(target)
    kinds = {"images", "episodes", *feature_files(config)}
    entries = {
        f"{split}/{name}": entry
        for split in info.splits
        if splits is None or split in splits
        for name, entry in read_manifest(target / split).items()
        if shard_kind(name) in kinds
    }
    for name in entries.keys() - found.keys():
        raise DataError(f"{location}/{name}: missing, though the manifest lists it")

    def check(name: str, file: Path) -> None:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != entries[name]["sha256"]:
            raise DataError(f"{location}/{name}: damaged: its sha256 is not the manifest's")

    storage.copy({name: found[name] for name in entries}, location, target, check)
