"""Settings that had another name in an older version, which is still read everywhere."""

from collections.abc import Mapping
from typing import Any

import pydantic

# Dotted old name -> dotted new name, as they stand in a configuration.
RENAMED: dict[str, str] = {
    "evaluation.drawings_per_episode": "evaluation.samples_per_episode",
    "evaluation.judge": "evaluation.critic",
    "train.fsd_drawings": "train.few_shot_samples",
    "train.fsd_interval": "train.few_shot_interval",
}

# A setting of ModelConfig that has become a value of `cross_attention`; ModelConfig reads it.
SUPPORT_TOKENS = "use_support_tokens"
# Dotted names of settings that are gone and still read.
REPLACED = frozenset((f"model.{SUPPORT_TOKENS}",))


def with_cross_attention(values: Any) -> Any:
    """Reads `use_support_tokens=False` of a ModelConfig as `cross_attention="none"`.

    Raises ValueError where it is no truth value. What is no mapping is returned as it is.
    """
    if not isinstance(values, Mapping) or SUPPORT_TOKENS not in values:
        return values
    rest = {name: value for name, value in values.items() if name != SUPPORT_TOKENS}
    try:
        if not pydantic.TypeAdapter(bool).validate_python(values[SUPPORT_TOKENS]):
            rest["cross_attention"] = "none"
    except pydantic.ValidationError:
        raise ValueError(f"{SUPPORT_TOKENS} must be true or false") from None
    return rest


def renamed_in(group: str) -> dict[str, str]:
    """The entries of `RENAMED` in one group: "evaluation" -> {"judge": "critic", ...}."""
    prefix = f"{group}."
    return {
        old.removeprefix(prefix): new.removeprefix(prefix)
        for old, new in RENAMED.items()
        if old.startswith(prefix) and new.startswith(prefix)
    }


def with_new_names(
    values: Mapping[str, Any], renamed: Mapping[str, str] = RENAMED
) -> Mapping[str, Any]:
    """Nested settings with each old name replaced by its new one; `values` is not changed.

    Where both names are there, the value of the new one counts.
    """
    values = dict(values)
    for old, new in renamed.items():
        *parents, leaf = old.split(".")
        holder = _group(values, parents)
        if holder is not None and leaf in holder:
            value = holder.pop(leaf)
            *parents, leaf = new.split(".")
            _group(values, parents, make=True).setdefault(leaf, value)
    return values


def _group(values: dict[str, Any], path: list[str], make: bool = False) -> dict[str, Any] | None:
    """The dictionary at a path; where there is none, a new one if `make`, else None.

    `values` is changed: the dictionaries along the path are replaced by copies, so that the
    ones it came with stay as they are.
    """
    for name in path:
        inner = values.get(name, {} if make else None)
        if not isinstance(inner, dict):
            return None
        values[name] = dict(inner)
        values = values[name]
    return values
