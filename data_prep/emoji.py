"""Renders a few-shot dataset in colour: emoji, each as several sets draw it.

    npm pack @iconify-json/noto        # and the other sets: docs/emoji.md
    python -m data_prep.emoji --packages=DIR --output_dir=datasets/emoji

A class is an emoji; an image is its picture in one set, on white. --packages holds the .tgz
files as npm writes them, or unpacked. Nothing is downloaded, and the same packages and flags
give the same bytes, however many workers there are.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

from data_prep.rendering import datasets, emoji_names, packages, svg
from fsdit import program, storage
from fsdit.data import layout
from fsdit.data.images.photos import Preparation
from fsdit.errors import DataError

_PACKAGES = program.define_path("packages", None, "Folder of packages from npm.", required=True)
_OUTPUT_DIR = program.define_path("output_dir", None, "Where to write the dataset.", required=True)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 32, "Height and width in pixels.", 8, 512)
_MIN_IMAGES = flags.DEFINE_integer(
    "min_images", 8, "An emoji that fewer sets draw is left out.", lower_bound=1
)
_SHOTS = flags.DEFINE_integer(
    "shots", 5, "Supports of each episode in the files; 0: the target itself.", lower_bound=0
)
_EPISODES = flags.DEFINE_integer(
    "episodes_per_class", 8, "Episodes of each class in the files.", lower_bound=1
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Decides the split of the classes and the episodes.", 0, 2**63 - 1
)
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Processes.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    with storage.new_folder(_OUTPUT_DIR.value, seal="dataset.json") as output:
        _make(output.absolute())
    print(f"dataset: {_OUTPUT_DIR.value}")


def _make(output: Path) -> None:
    partial = datasets.begin(output)
    sets = packages.read_sets(storage.local_copy(_PACKAGES.value))
    members, left_out = emoji_names.classes_of(sets)
    chosen = {name: icons for name, icons in members.items() if len(icons) >= _MIN_IMAGES.value}
    for line in _report(sets, chosen, left_out):
        print(line)
    _check(sets, chosen)
    about = layout.DatasetInfo(
        image_size=_IMAGE_SIZE.value,
        channels=3,
        splits={},
        command=_command(),
        seed=_SEED.value,
        preparation=Preparation(background="white", resize="pad"),
        sources={icons.name: icons.source for icons in sets},
    )
    classes = _render(chosen)
    info = datasets.write(partial, classes, about, _SHOTS.value, _EPISODES.value)
    layout.publish(partial, output)
    for name, split in info.splits.items():
        print(f"{name}: {len(split.classes)} emoji, {split.num_images} images")


def _command() -> str:
    return (
        f"python -m data_prep.emoji --image_size={_IMAGE_SIZE.value} "
        f"--min_images={_MIN_IMAGES.value} --shots={_SHOTS.value} "
        f"--episodes_per_class={_EPISODES.value} --seed={_SEED.value}"
    )


def _check(
    sets: Sequence[packages.IconSet], chosen: Mapping[str, Sequence[emoji_names.Member]]
) -> None:
    """Raises DataError where the packages give no dataset, and says which others are needed."""
    if not any(icons.codes for icons in sets):
        raise DataError(
            f"--packages={_PACKAGES.value}: none of them says which emoji an icon is: add one of "
            "noto, twemoji, openmoji, fluent-emoji-flat"
        )
    if len(chosen) < len(layout.SPLITS):
        raise DataError(
            f"--packages={_PACKAGES.value}: {len(chosen)} emoji are in --min_images="
            f"{_MIN_IMAGES.value} of its {len(sets)} sets: add packages, or lower it"
        )


def _report(
    sets: Sequence[packages.IconSet],
    chosen: Mapping[str, Sequence[emoji_names.Member]],
    left_out: Mapping[str, Counter[str]],
) -> Iterator[str]:
    """Yields a line for each set: its licence, and what becomes of its icons."""
    used = Counter(icons.name for members in chosen.values() for icons, _ in members)
    for icons in sets:
        rare = len(icons.icons) - left_out[icons.name].total() - used[icons.name]
        reasons = {**left_out[icons.name], "in too few sets": rare}
        others = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()) if count)
        yield (
            f"{icons.name} {icons.source['version']} ({icons.source['license']}): "
            f"{used[icons.name]} of {len(icons.icons)} pictures; left out: {others or 'none'}"
        )
    if absent := [name for name in packages.SETS if name not in left_out]:
        yield f"sets that are not there: {', '.join(absent)}"


def _render(chosen: Mapping[str, Sequence[emoji_names.Member]]) -> datasets.Classes:
    drawings = {
        f"{name}/{icons.name}": svg.Drawing(
            name=f"{icons.name}: the picture {icon!r}",
            body=icons.icons[icon].body,
            box=icons.box(icons.icons[icon]),
            size=_IMAGE_SIZE.value,
        )
        for name, members in chosen.items()
        for icons, icon in members
    }
    rendered = svg.render_all(drawings, _WORKERS.value)
    return {
        name: [(key := f"{name}/{icons.name}", rendered[key]) for icons, _ in members]
        for name, members in chosen.items()
    }


if __name__ == "__main__":
    program.run(main)
