"""What a run is, in words: one line for the terminal, pages of text for TensorBoard."""

import html
import math
import re
from collections.abc import Iterable, Sequence

import jax
from clu import parameter_overview
from jaxtyping import Array, PyTree

from fsdit.config import Config, flatten, to_dict
from fsdit.data.layout import DatasetInfo
from fsdit.data.records import num_supports
from fsdit.models.spec import ModelSpec
from fsdit.text import printable

_MARKS = re.compile(r"([\\`*_|\[\]])")  # of Markdown, inside of a cell


def model_line(
    config: Config, spec: ModelSpec, params: PyTree[jax.ShapeDtypeStruct | Array]
) -> str:
    """The model in one line: name of the run, parameters, tokens of a sample and of supports."""
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    rows, columns = spec.grid
    shots, patch = num_supports(config.data.shots), spec.config.patch_size
    unit = "pixels" if config.model.codec.name == "pixels" else "latents"
    return (
        f"model {printable(config.name)}: {count:,} parameters; a sample is {spec.num_tokens} "
        f"tokens ({rows} x {columns} patches of {patch} x {patch} {unit}); {shots} "
        f"support{'s' if shots > 1 else ''} of {_supports(spec)}"
    )


def _supports(spec: ModelSpec) -> str:
    if not spec.config.use_context:
        return "one pooled vector each"
    latents = spec.config.num_latents
    through = f", read through {latents} latents" if latents else ""
    return f"{spec.support_tokens} tokens each{through}"


def pages(
    config: Config, info: DatasetInfo, params: PyTree[jax.ShapeDtypeStruct | Array]
) -> dict[str, str]:
    """Name -> Markdown of TensorBoard's pages of text."""
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    indented = "".join(f"    {line}\n" for line in table.splitlines())  # a block of code
    return {
        "configuration": _configuration(config),
        "data": _data(config, info),
        "model": indented,
    }


def _configuration(config: Config) -> str:
    """Settings that differ from the defaults, then all of them."""
    values, defaults = flatten(to_dict(config)), flatten(to_dict(Config()))
    changed = [(n, value, defaults[n]) for n, value in values.items() if value != defaults[n]]
    return "\n".join(
        [
            "### Settings that differ from the defaults",
            _table(("setting", "value", "default"), changed),
            "\n### All settings",
            _table(("setting", "value"), values.items()),
        ]
    )


def _data(config: Config, info: DatasetInfo) -> str:
    """The dataset and its splits."""
    facts = {
        "dataset": config.data.dataset_dir,
        "images": f"{info.image_size} x {info.image_size} x {info.channels}",
        "supports of an episode": config.data.shots,
        "episodes": config.data.source,
        "made by": info.command,
        "features": ", ".join(info.features) or "none",
        "latents": ", ".join(info.latents) or "none",
    }
    splits = [
        (name, len(split.classes), split.num_images, split.episodes)
        for name, split in info.splits.items()
    ]
    return "\n".join(
        [
            _table(("what", "value"), facts.items()),
            "",
            _table(("split", "classes", "images", "stored episodes"), splits),
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    """A value as the text of a cell, in which nothing is markup of Markdown or HTML."""
    return _MARKS.sub(r"\\\1", html.escape(printable(str(value)), quote=False))
