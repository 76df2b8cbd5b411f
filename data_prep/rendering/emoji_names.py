"""Which icons of several sets are the same emoji: one class for each sequence of code points.

Some packages say which code points an icon stands for. The icons of the others are found by
their names, for which the former and Unicode's own names are the dictionary.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from data_prep.rendering.packages import IconSet

_NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
_CODE = re.compile(r"[0-9a-f]{2,6}(-[0-9a-f]{2,6})*")
_AS_PICTURE = "fe0f"  # the selector that some sets write and others leave out
# Kinds of emoji that are no class; see docs/decisions/data_prep.md.
_LEFT_OUT = {
    "skin tones": re.compile(r"\b1f3f[b-f]\b"),
    "flags of places": re.compile(r"\b1f1[ef][0-9a-f]\b|\be00[2-7][0-9a-f]\b"),
    "not in Unicode": re.compile(r"\b(e|f[0-8])[0-9a-f]{2,3}\b"),
}
# An icon of a set: the set, and its name there.
Member = tuple[IconSet, str]


def classes_of(sets: Sequence[IconSet]) -> tuple[dict[str, list[Member]], dict[str, Counter[str]]]:
    """Returns the icons of each class, and how many icons of each set are left out for what.

    A class has at most one icon of each set, and its name is that of the first set that says
    its code points. Without such a set there are no classes.
    """
    known, titles = _dictionary(sets)
    members: dict[str, list[Member]] = {}
    left_out: dict[str, Counter[str]] = {}
    for icons in sets:
        reasons = left_out[icons.name] = Counter()
        taken: set[str] = set()
        for name in icons.icons:
            code = _code(icons, name, known)
            reason = _reason(icons, name, code)
            if reason or code in taken:
                reasons[reason or "second pictures of an emoji"] += 1
                continue
            taken.add(code)
            members.setdefault(code, []).append((icons, name))
    names = _unique(titles)
    return {names[code]: members[code] for code in sorted(members)}, left_out


def _dictionary(sets: Sequence[IconSet]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns (plain name -> code points, code points -> the name that the first set gives)."""
    known: dict[str, str] = {}
    titles: dict[str, str] = {}
    for icons in sets:
        for name in icons.codes:
            code = _code(icons, name, {})
            if code and not _LEFT_OUT["not in Unicode"].search(code):
                titles.setdefault(code, name)
                for other in _names(icons, name):
                    known.setdefault(_plain(other), code)
    for code in titles:
        if "-" not in code:
            known.setdefault(_plain(unicodedata.name(chr(int(code, 16)), "")), code)
    return known, titles


def _names(icons: IconSet, name: str) -> Iterator[str]:
    yield name
    yield from icons.aliases.get(name, ())


def _plain(name: str) -> str:
    """Returns a name without what sets write differently: "Two hearts", "2hearts", "two-hearts"."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return "".join(_NUMBERS.get(word, word) for word in words)


def _code(icons: IconSet, name: str, known: Mapping[str, str]) -> str:
    """Returns the code points of an icon, "" where nobody knows them."""
    if not icons.codes:
        found = (known.get(_plain(other), "") for other in _names(icons, name))
        return next(filter(None, found), "")
    codes = sorted(icons.codes.get(name, ()))
    parts = codes[0].lower().split("-") if codes else []
    code = "-".join(part for part in parts if part != _AS_PICTURE)
    return code if _CODE.fullmatch(code) and int(max(parts, key=len), 16) < 0x110000 else ""


def _reason(icons: IconSet, name: str, code: str) -> str:
    """Returns why an icon is of no class, "" if it is of one."""
    if icons.icons[name].hidden:
        return "withdrawn"
    if not code:
        return "unknown names"
    return next((why for why, pattern in _LEFT_OUT.items() if pattern.search(code)), "")


def _unique(titles: Mapping[str, str]) -> dict[str, str]:
    """Returns the name of each class: its title, with the code points where others share it."""
    count = Counter(titles.values())
    return {code: t if count[t] == 1 else f"{t} ({code})" for code, t in titles.items()}
