"""Which images go to which split: a pure function of the entries, the flags and the seed."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_prep.entries import Entry
from fsdit.data.layout import SPLITS
from fsdit.errors import ConfigError, DataError

# split -> class -> its images, splits in their usual order, classes and images sorted.
Splits = dict[str, dict[str, list[Entry]]]


@dataclasses.dataclass(frozen=True)
class Assignment:
    """left_out: (split, class, reason) of the classes that --drop_small_classes left out."""

    splits: Splits
    left_out: tuple[tuple[str, str, str], ...] = ()

    @property
    def shared_classes(self) -> bool:
        """Every split has the same classes, so this is no few-shot split."""
        first, *others = (set(classes) for classes in self.splits.values())
        return bool(others) and all(other == first for other in others)


def by_class(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Classes sorted by name, the images of each in the order of the entries."""
    classes: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.label:
            classes.setdefault(entry.label, []).append(entry)
    return dict(sorted(classes.items()))


def fewshot(entries: Sequence[Entry], num_classes: Sequence[int], seed: int) -> Splits:
    """Classes drawn by seed: the first num_classes[0] for train, then val, then test."""
    classes = by_class(entries)
    if sum(num_classes) > len(classes):
        raise ConfigError(
            f"--num_classes={_text(num_classes)} asks for {sum(num_classes)} classes, "
            f"--input has {len(classes)}"
        )
    names = list(classes)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    ends = np.cumsum([0, *num_classes])
    return {
        split: {name: classes[name] for name in sorted(order[start:end])}
        for split, start, end in zip(SPLITS, ends[:-1], ends[1:], strict=True)
    }


def vanilla(entries: Sequence[Entry], images_per_class: Sequence[int], seed: int) -> Splits:
    """All classes in every split, with different images, drawn by seed.

    images_per_class: of train and test, or of train, val and test.
    """
    names = SPLITS if len(images_per_class) == 3 else ("train", "test")
    splits: Splits = {name: {} for name in names}
    ends = np.cumsum([0, *images_per_class])
    for i, (label, members) in enumerate(by_class(entries).items()):
        if len(members) < ends[-1]:
            raise DataError(
                f"class {label!r} has {len(members)} images, "
                f"--images_per_class={_text(images_per_class)} needs {ends[-1]}"
            )
        order = np.random.default_rng([seed, i]).permutation(len(members))
        for split, start, end in zip(names, ends[:-1], ends[1:], strict=True):
            splits[split][label] = [members[j] for j in sorted(order[start:end])]
    return splits


def given(entries: Sequence[Entry]) -> Splits:
    """The split that each entry came with, from its folder, file name or list."""
    return {name: by_class([e for e in entries if e.split == name]) for name in SPLITS}


def assign(
    entries: Sequence[Entry], split: Callable[[Sequence[Entry]], Splits], shots: int, drop: bool
) -> Assignment:
    """Splits the entries and sees to classes with fewer than shots + 1 images.

    drop: leave them out, before classes are drawn. Raises DataError naming one otherwise.
    """
    classes = by_class(entries)
    if len(classes) < 2:
        found = f"one class ({next(iter(classes))!r})" if classes else "no class"
        raise DataError(
            f"--input has {found} of images: a class is the folder that holds its images "
            "(see --class_depth), or comes from --csv"
        )
    left_out = {
        label: f"{len(members)} images, --shots={shots} needs {shots + 1}"
        for label, members in classes.items()
        if drop and len(members) <= shots
    }
    splits = split([e for e in entries if e.label not in left_out])
    rows = [("", label, reason) for label, reason in left_out.items()]
    kept: Splits = {}
    for name, members in splits.items():
        small = {label: len(images) for label, images in members.items() if len(images) <= shots}
        for label, count in small.items():
            reason = f"{count} images, --shots={shots} needs {shots + 1}"
            if not drop:
                raise DataError(small_class(name, label, reason))
            rows.append((name, label, reason))
        if members.keys() - small.keys():
            kept[name] = {label: i for label, i in members.items() if label not in small}
    if "train" not in kept:
        raise DataError("no class of --input is for training: see --split")
    return Assignment(kept, tuple(rows))


def small_class(split: str, label: str, reason: str) -> str:
    return (
        f"class {label!r} of {split} has {reason} (a target and its supports): lower --shots, "
        "or leave such classes out with --drop_small_classes"
    )


def _text(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
