"""Which images go to which split: a pure function of the entries, the flags and the seed."""

import dataclasses
import types
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from data_prep.conversion.counts import ClassCounts
from data_prep.conversion.inputs.entries import Entry, Row
from fsdit.data.layout import SPLITS
from fsdit.errors import ConfigError, DataError

# split -> class -> its images, splits in their usual order, classes and images sorted.
Splits = dict[str, dict[str, list[Entry]]]


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Images by split and class.

    left_out: rows of skipped.csv for what is in no split. unused_classes: number of classes
    that are in no split though they are large enough. unused_images: number of images with a
    class that are in no split. dropped: classes that an earlier assignment had, and that
    turned out to be too small.
    """

    splits: Splits
    left_out: tuple[Row, ...] = ()
    unused_classes: int = 0
    unused_images: int = 0
    dropped: tuple[str, ...] = ()

    @property
    def shared_classes(self) -> bool:
        """Whether every split has the same classes, so that this is no few-shot split."""
        first, *others = (set(classes) for classes in self.splits.values())
        return bool(others) and all(other == first for other in others)

    @property
    def overlapping_classes(self) -> list[str]:
        """Classes that some splits share and others lack: a test of them is not of unseen ones."""
        if self.shared_classes:
            return []
        found = Counter(label for classes in self.splits.values() for label in classes)
        return sorted(label for label, count in found.items() if count > 1)


def by_class(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Groups entries by class, classes sorted by name; entries without a class are left out."""
    classes: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.label:
            classes.setdefault(entry.label, []).append(entry)
    return dict(sorted(classes.items()))


def fewshot(
    entries: Sequence[Entry],
    counts: ClassCounts,
    seed: int,
    dropped: Collection[str] = (),
    test_classes: Collection[str] = (),
) -> Splits:
    """Deals classes in an order by seed: the first to train, the next to val, then to test.

    dropped: classes that turned out to be too small; the next class that is left over takes
    the place of each. test_classes: classes that are not dealt, but are all of the test split.
    """
    found = by_class(entries)
    classes = {name: images for name, images in found.items() if name not in test_classes}
    wanted = counts.of(len(classes))
    if sum(wanted) > len(classes):
        raise ConfigError(
            f"--num_classes={counts} asks for {sum(wanted)} classes, --input has {len(classes)}"
        )
    names = list(classes)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    drawn = _replaced(order[: sum(wanted)], order[sum(wanted) :], dropped)
    ends = np.cumsum([0, *wanted])
    dealt = {
        split: {name: classes[name] for name in sorted(filter(None, drawn[start:end]))}
        for split, start, end in zip(SPLITS, ends[:-1], ends[1:], strict=True)
    }
    unseen = found.keys() - classes.keys() - set(dropped)
    return dealt | {"test": {name: found[name] for name in sorted(unseen)}} if unseen else dealt


def _replaced(
    drawn: Sequence[str], left: Sequence[str], dropped: Collection[str]
) -> list[str | None]:
    """Puts the next class of `left` in the place of each dropped one; None once there is none."""
    others = (name for name in left if name not in dropped)
    return [next(others, None) if name in dropped else name for name in drawn]


def vanilla(entries: Sequence[Entry], images_per_class: Sequence[int], seed: int) -> Splits:
    """Puts all classes into every split, with different images, dealt by seed.

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
    """Keeps the split that each entry came with, by its folder, file name or list."""
    return {name: by_class([e for e in entries if e.split == name]) for name in SPLITS}


def assign(
    entries: Sequence[Entry],
    split: Callable[[Sequence[Entry]], Splits],
    shots: int,
    drop: bool,
    dropped: Mapping[str, str] = types.MappingProxyType({}),
) -> Assignment:
    """Splits the entries; classes of fewer than shots + 1 images are left out or refused.

    split: one of the functions above with its settings. drop: whether to leave small classes
    out, before classes are dealt; otherwise DataError names one. dropped: class -> reason for
    those that `split` leaves out itself.
    """
    classes = by_class(entries)
    if len(classes) < 2:
        raise DataError(_too_few_classes(entries, list(classes)))
    small = {
        label: f"{len(members)} images, --shots={shots} needs {shots + 1}"
        for label, members in classes.items()
        if drop and len(members) <= shots
    }
    kept, rows = _kept(_split(split, entries, small), shots, drop)
    if "train" not in kept:
        raise DataError("no class of --input is for training: see --split")
    rows = [*(("", label, "", why) for label, why in {**small, **dropped}.items()), *rows]
    return dataclasses.replace(_accounted(entries, kept, rows), dropped=tuple(sorted(dropped)))


def _split(
    split: Callable[[Sequence[Entry]], Splits], entries: Sequence[Entry], small: Collection[str]
) -> Splits:
    try:
        return split([e for e in entries if e.label not in small])
    except ConfigError as error:
        if not small:
            raise
        raise ConfigError(
            f"{error}, without the {len(small)} that --drop_small_classes leaves out"
        ) from None


def _kept(splits: Splits, shots: int, drop: bool) -> tuple[Splits, list[Row]]:
    """Returns the splits without the classes that are too small there, and rows of these."""
    kept: Splits = {}
    rows: list[Row] = []
    for name, members in splits.items():
        small = {label: len(images) for label, images in members.items() if len(images) <= shots}
        for label, count in small.items():
            reason = f"{count} images, --shots={shots} needs {shots + 1}"
            if not drop:
                raise DataError(small_class(name, label, reason))
            rows.append((name, label, "", reason))
        if members.keys() - small.keys():
            kept[name] = {label: i for label, i in members.items() if label not in small}
    return kept, rows


def _accounted(entries: Sequence[Entry], splits: Splits, rows: Sequence[Row]) -> Assignment:
    """Returns the assignment, with a row for whatever is in no split and in no row yet."""
    used = {id(e) for classes in splits.values() for images in classes.values() for e in images}
    listed = {(split, label) for split, label, _, _ in rows}
    unused: Counter[str] = Counter()
    files: list[Row] = []
    for entry in entries:
        if id(entry) in used or {("", entry.label), (entry.split, entry.label)} & listed:
            continue
        if entry.label:
            unused[entry.label] += 1
        else:
            files.append(("", "", entry.name, "no class: no folder, list or label names it"))
    drawn = {label for classes in splits.values() for label in classes}
    classes = [("", label, "", f"{n} images that are in no split") for label, n in unused.items()]
    return Assignment(
        splits,
        (*rows, *files, *sorted(classes)),
        unused_classes=len(unused.keys() - drawn),
        unused_images=sum(unused.values()),
    )


def _too_few_classes(entries: Sequence[Entry], classes: Sequence[str]) -> str:
    found = f"one class ({classes[0]!r})" if classes else "no class"
    text = (
        f"--input has {found} of images: a class is the folder that holds its images "
        "(see --class_depth), or comes from --csv"
    )
    folders = {entry.name.rpartition("/")[0] for entry in entries}
    if len(folders) == 1:
        text += (
            f"; its {len(entries)} images lie in one folder: put those of each class in a folder "
            "of its own, or name the class of each in a list of filename,label"
        )
    return text


def small_class(split: str, label: str, reason: str) -> str:
    return (
        f"class {label!r} of {split} has {reason} (a target and its supports): lower --shots, "
        "or leave such classes out with --drop_small_classes"
    )


def _text(counts: Sequence[int]) -> str:
    return ",".join(map(str, counts))
