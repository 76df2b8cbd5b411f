"""Wrong settings as ConfigErrors of one line: dotted name, bound, given value."""

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import pydantic
from pydantic.dataclasses import dataclass

from fsdit.config.bounds import SMALLEST
from fsdit.config.renamed import renamed_in
from fsdit.errors import ConfigError

T = TypeVar("T")

_STRICT = pydantic.ConfigDict(extra="forbid")
_SHOWN = 80  # the most characters of a value in a message
_places: dict[type, str] = {}  # the name of each class of settings in messages


def settings(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass whose constructor checks types and bounds.

    The constructor raises ConfigError.
    """
    made = dataclass(frozen=True, config=_STRICT)(cls)
    construct = made.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **values: Any) -> None:  # noqa: N807
        try:
            construct(self, *args, **_renamed(made, values))
        except pydantic.ValidationError as error:
            raise as_config_error(error, made) from None

    made.__init__ = __init__
    return made


def _renamed(cls: type, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of the constructor of `cls`, those with an old name under their new one.

    Raises ConfigError where both names are given, as by `dataclasses.replace(old, OLD=...)`.
    """
    if values.keys() <= {field.name for field in fields(cls)}:
        return values
    place = _places.get(cls, "")
    renamed = renamed_in(place.removeprefix("config."))
    for old, new in renamed.items():
        if old in values and new in values:
            raise ConfigError(f"{place}.{old} is called {place}.{new} now: write the new name")
    return {renamed.get(name, name): value for name, value in values.items()}


def as_config_error(error: pydantic.ValidationError, cls: type) -> ConfigError:
    """Returns what is wrong with values for `cls`, one part of the message for each field."""
    prefix = _places.get(cls, cls.__name__)
    known = [f"{prefix}.{name}" for name in leaves(cls)]
    return ConfigError("; ".join(_problem(e, prefix, known) for e in error.errors()))


def _problem(error: Mapping[str, Any], prefix: str, known: Iterable[str]) -> str:
    path = ".".join((prefix, *map(str, error["loc"])))
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path}: no such field{did_you_mean(path, known)}"
    if error["type"] == "missing":
        given = f" (got {shown(error['input'])})" if isinstance(error["loc"][-1], int) else ""
        return f"{path} is missing{given}"
    if error["type"] == "value_error":  # raised by a validator of fsdit.config.bounds
        return f"{path}: {error['ctx']['error']}"
    given = shown(error["input"])
    describe = _BOUNDS.get(error["type"])
    if describe is None:
        return f"{path}: {error['msg']} (got {given})"
    return f"{path} must {describe(error.get('ctx', {}))}, got {given}"


def _at_least(context: Mapping[str, Any]) -> str:
    bound = context["ge"]
    return {0: "not be negative", SMALLEST: "be positive"}.get(bound, f"be at least {bound:.10g}")


# pydantic's type of error -> what a number must be.
_BOUNDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": _at_least,
    "greater_than": lambda context: f"be above {context['gt']:.10g}",
    "less_than_equal": lambda context: f"be at most {context['le']:.10g}",
    "less_than": lambda context: f"be below {context['lt']:.10g}",
    "finite_number": lambda context: "be a finite number",
}


def shown(value: Any) -> str:
    """Returns a value as text for a message, shortened if it is long or deeply nested."""
    try:
        text = repr(value)
    except RecursionError:
        return "something deeply nested"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def did_you_mean(path: str, known: Iterable[str], flag: str = "") -> str:
    """Returns a hint at the most similar of the known names, "" where none is similar."""
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.4)
    return f"; did you mean {flag}{near[0]}?" if near else ""


def leaves(cls: type) -> dict[str, Any]:
    """Returns the dotted name -> the type of each field of nested settings."""
    return {name: kind for name, kind in _walk(cls) if not is_dataclass(kind)}


def _walk(cls: type, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for field in fields(cls):
        yield prefix + field.name, field.type
        if is_dataclass(field.type):
            yield from _walk(field.type, f"{prefix}{field.name}.")


def set_place(name: str, cls: type) -> None:
    """Names a class of settings in messages, and those inside it: TrainConfig "config.train"."""
    _places[cls] = name
    _places.update({kind: f"{name}.{path}" for path, kind in _walk(cls) if is_dataclass(kind)})
