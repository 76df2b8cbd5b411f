"""New episode files for a dataset: written beside those in use, and then exchanged.

`dataset.json` has another name while files are renamed, and without it no program reads the
dataset.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fsdit.data import episodes, layout, records
from fsdit.data.shards import shard_name, write_shard
from fsdit.errors import DataError

_COMMAND = "python -m data_prep.episodes"
_NEXT = ".next"  # suffix of a complete file that is not in use yet


def rebuild(directory: Path, shots: int, sets_per_class: int, seed: int) -> layout.DatasetInfo:
    """Draws new episodes for every split. Raises DataError, before anything is changed."""
    info = _current_description(directory)
    for name, split in info.splits.items():
        _check_images(directory / name, split)
        episodes.check_class_sizes(split, shots)
    _remove_leftovers(directory, info)
    splits, manifests = {}, {}
    try:
        for name, split in tqdm(info.splits.items(), desc="episodes", unit="split"):
            drawn = episodes.rotating_episodes(split, shots, sets_per_class, seed)
            manifests[name] = _stage(directory / name, drawn)
            splits[name] = dataclasses.replace(split, episodes=len(drawn), shots=shots)
    except BaseException:
        _remove_leftovers(directory, info)
        raise
    made = info.command.partition(f"; {_COMMAND}")[0]
    flags_given = f"--shots={shots} --sets_per_class={sets_per_class} --seed={seed}"
    description = dataclasses.replace(
        info, splits=splits, command=f"{made}; {_COMMAND} {flags_given}"
    )
    _exchange(directory, manifests, description)
    return description


def _check_images(directory: Path, split: layout.SplitInfo) -> None:
    """Raises DataError where episodes would name images that are missing."""
    manifest = layout.read_manifest(directory)
    files = layout.files_of(manifest, "images")
    if (found := sum(manifest[name]["records"] for name in files)) != split.num_images:
        raise DataError(
            f"{directory / 'manifest.json'}: lists {found} images, dataset.json makes it "
            f"{split.num_images}: copy or convert it again"
        )


def _current_description(directory: Path) -> layout.DatasetInfo:
    """Reads the dataset's description, under either name that an exchange gives it."""
    away = directory / layout.REBUILDING
    if away.exists() and not (directory / "dataset.json").exists():
        return layout.read_description(away)
    return layout.read_dataset_info(directory)


def _stage(directory: Path, drawn: list[records.Episode]) -> dict[str, Any]:
    """Writes a split's new episodes beside those in use. Returns the manifest to go with them."""
    name = shard_name("episodes", 0, 1)
    payloads = map(records.encode_episode, drawn)
    entry = write_shard(directory / (name + _NEXT), payloads)
    kept = layout.read_manifest(directory)
    return {**{n: e for n, e in kept.items() if not n.startswith("episodes-")}, name: entry}


def _exchange(
    directory: Path, manifests: dict[str, dict[str, Any]], description: layout.DatasetInfo
) -> None:
    """Puts the new episodes in place; this takes renames and small files only."""
    away = directory / layout.REBUILDING
    if (directory / "dataset.json").exists():
        (directory / "dataset.json").replace(away)
    for split, manifest in manifests.items():
        for staged in (directory / split).glob(f"episodes-*{_NEXT}"):
            staged.replace(staged.with_suffix(""))
        layout.write_json(directory / split / "manifest.json", manifest)
        for old in (directory / split).glob("episodes-*.array_record"):
            if old.name not in manifest:
                old.unlink()
    layout.write_dataset_json(directory, description)
    away.unlink()


def _remove_leftovers(directory: Path, info: layout.DatasetInfo) -> None:
    for path in _leftovers(directory, info):
        path.unlink()


def _leftovers(directory: Path, info: layout.DatasetInfo) -> Iterator[Path]:
    """Yields files that an interrupted start has left."""
    yield from directory.glob("dataset.json*.partial")
    for split in info.splits:
        for pattern in (f"episodes-*{_NEXT}", "episodes-*.partial", "manifest.json*.partial"):
            yield from (directory / split).glob(pattern)
