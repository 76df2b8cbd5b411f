"""Rebuilds the episode files of a dataset; its images are not touched.

    python -m data_prep.episodes --dataset_dir=datasets/mini --shots=5 --sets_per_class=100

Each class gets `sets_per_class` sets of K + 1 images, and each image of a set is the
target once: 60 classes of 100 sets are 36,000 episodes for K = 5. K = 0: the target is
its own support, one episode a set.

New files are written beside the old ones and then exchanged by renaming, during which
`dataset.json` is away: a kill leaves the old dataset, the new one, or one that every
program refuses until this one is run again. Stop training on the dataset before.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from fsdit import program
from fsdit.data import episodes, layout, records
from fsdit.ownership import owned

_DATASET_DIR = program.define_path("dataset_dir", None, "The dataset to change.", required=True)
_SHOTS = flags.DEFINE_integer(
    "shots",
    None,
    "Supports of each episode, K; 0: the target itself.",
    lower_bound=0,
    required=True,
)
_SETS = flags.DEFINE_integer(
    "sets_per_class", None, "Sets of K + 1 images of each class.", lower_bound=1, required=True
)
_SEED = flags.DEFINE_integer("seed", 0, "Decides the sets.", lower_bound=0)

_COMMAND = "python -m data_prep.episodes"
_NEXT = ".next"  # suffix of a whole file that is not in use yet


def rebuild(directory: Path, shots: int, sets_per_class: int, seed: int) -> layout.DatasetInfo:
    """Draws new episodes for every split. Raises DataError, before anything is changed."""
    info = _current_description(directory)
    for name, split in info.splits.items():
        layout.read_manifest(directory / name)
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


def _current_description(directory: Path) -> layout.DatasetInfo:
    """The dataset's description, wherever an interrupted exchange has left it."""
    away = directory / layout.REBUILDING
    if away.exists() and not (directory / "dataset.json").exists():
        return layout.read_description(away)
    return layout.read_dataset_info(directory)


def _stage(directory: Path, drawn: list[records.Episode]) -> dict[str, Any]:
    """Writes a split's new episodes beside those in use; the manifest that they need."""
    name = records.shard_name("episodes", 0, 1)
    payloads = map(records.encode_episode, drawn)
    entry = records.write_shard(directory / (name + _NEXT), payloads)
    kept = layout.read_manifest(directory)
    return {**{n: e for n, e in kept.items() if not n.startswith("episodes-")}, name: entry}


def _exchange(
    directory: Path, manifests: dict[str, dict[str, Any]], description: layout.DatasetInfo
) -> None:
    """Renames and small files only. Without `dataset.json` no program reads the dataset."""
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
    """Files of an earlier start that did not come to its end."""
    yield from directory.glob("dataset.json*.partial")
    for split in info.splits:
        for pattern in (f"episodes-*{_NEXT}", "episodes-*.partial", "manifest.json*.partial"):
            yield from (directory / split).glob(pattern)


def main(argv: list[str]) -> None:
    del argv
    directory = Path(_DATASET_DIR.value)
    with owned(directory):
        info = rebuild(directory, _SHOTS.value, _SETS.value, _SEED.value)
    for name, split in info.splits.items():
        print(
            f"{name}: {split.episodes} episodes of {len(split.classes)} classes, K = {split.shots}"
        )
    print(f"dataset: {directory}")


if __name__ == "__main__":
    program.run(main)
