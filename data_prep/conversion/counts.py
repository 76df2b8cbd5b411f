"""The flags --num_classes and --images_per_class: how much each split gets."""

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction

from fsdit.errors import ConfigError

REST = "rest"
_FRACTION = re.compile(r"0?\.\d{1,9}|1\.0{1,9}")


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Classes that train, val and test get: each a number, a fraction of all, or `rest`."""

    wanted: tuple[int | Fraction | str, ...]

    def __str__(self) -> str:
        return ",".join(str(float(w)) if isinstance(w, Fraction) else str(w) for w in self.wanted)

    def of(self, total: int) -> list[int]:
        """Returns the number of classes of each split where there are `total`.

        Together they may be more than `total`. Fractions are rounded together, so that fractions
        that add up to 1 take every class.
        """
        counts, share = [], Fraction(0)
        for wanted in self.wanted:
            if isinstance(wanted, Fraction):
                before, share = round(share * total), share + wanted
                counts.append(round(share * total) - before)
            else:
                counts.append(wanted if isinstance(wanted, int) else 0)
        left = max(0, total - sum(counts))
        return [left if w == REST else n for w, n in zip(self.wanted, counts, strict=True)]


def parse_class_counts(values: Sequence[str]) -> ClassCounts:
    """Parses "60", "0.6" or "rest" for train, val and test. Raises ConfigError."""
    texts = [value.strip().lower() for value in values]
    try:
        counts = ClassCounts(tuple(map(_parse, texts)))
    except ValueError:
        counts = None
    if counts is None or len(texts) != 3 or texts.count(REST) > 1:
        raise ConfigError(
            f"--num_classes={','.join(values)}: give 3 numbers of classes, for train, val, test; "
            "each may be a fraction of all, 0.2, and one of them `rest`"
        )
    if sum(w for w in counts.wanted if isinstance(w, Fraction)) > 1:
        raise ConfigError(f"--num_classes={','.join(values)}: fractions of more than all classes")
    return counts


def parse_image_counts(values: Sequence[str]) -> list[int]:
    """Parses the images of a class for train and test, or for train, val and test.

    Raises ConfigError.
    """
    texts = [value.strip() for value in values]
    if len(texts) not in (2, 3) or not all(t.isdecimal() and len(t) < 10 for t in texts):
        raise ConfigError(f"--images_per_class={','.join(values)}: give 2 or 3 numbers")
    return list(map(int, texts))


def _parse(text: str) -> int | Fraction | str:
    if text == REST:
        return REST
    if text.isdecimal() and len(text) < 10:
        return int(text)
    if not _FRACTION.fullmatch(text):
        raise ValueError(text)
    return Fraction(text)
