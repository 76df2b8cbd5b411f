"""What a conversion prints for its user beside its errors."""

import math
from collections.abc import Iterable, Iterator

from data_prep.conversion.finish import Finished
from data_prep.conversion.splits import Assignment
from fsdit.data.layout import DatasetInfo, SplitInfo


def print_assignment(dealt: Assignment, by_classes: bool) -> None:
    """Prints what of the input is in no split, and which classes are in several.

    by_classes: whether --num_classes decided the splits.
    """
    if dealt.unused_images:
        advice = "; `rest` among --num_classes takes all classes" if by_classes else ""
        print(
            f"unused: {dealt.unused_images} images, all of {dealt.unused_classes} classes among "
            f"them, are in no split, listed in skipped.csv{advice}"
        )
    if overlapping := dealt.overlapping_classes:
        print(
            f"warning: {len(overlapping)} classes are in several splits, such as "
            f"{overlapping[0]!r}: a test would not be of unseen classes"
        )


def print_finished(
    info: DatasetInfo, finished: Finished, shots: int, sets: int, shared_duplicates: str
) -> None:
    """Prints the splits, and how many files are left out or are in several splits."""
    for name, split in info.splits.items():
        print(
            f"{name}: {len(split.classes)} classes, {split.num_images} images, "
            f"{split.episodes} episodes"
        )
    for note in repeated_sets(info.splits.values(), shots, sets):
        print(note)
    if finished.skipped:
        print(f"left out: {len(finished.skipped)}, listed in skipped.csv")
    if finished.duplicates and shared_duplicates == "keep":
        print(
            f"warning: {len(finished.duplicates)} images are the same in several classes or "
            "splits, listed in duplicates.csv: a test may have been seen in training; "
            "--shared_duplicates=first keeps one of each, none drops them all"
        )


def repeated_sets(splits: Iterable[SplitInfo], shots: int, sets: int) -> Iterator[str]:
    """Yields a note where classes have fewer different sets of images than `sets`."""
    counts = [math.comb(n, shots + 1) for split in splits for n in split.images_per_class]
    if few := [count for count in counts if count < sets]:
        yield (
            f"note: {len(few)} classes have fewer different sets of {shots + 1} images than "
            f"--sets_per_class={sets}, down to {min(few)}: their episodes repeat"
        )
