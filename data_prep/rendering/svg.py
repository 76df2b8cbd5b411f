"""Pictures in SVG -> pixels, by resvg in worker processes.

resvg (the extra `emoji`) would read files that a picture names, and nothing bounds the memory
and time that it takes. So only elements that draw shapes are let through, and a worker that
takes too much is killed by the system, which the pool reports.
"""

import dataclasses
import resource
import signal
import xml.etree.ElementTree as ET
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from data_prep import pool
from fsdit.data.images.image_files import opened
from fsdit.errors import ConfigError, DataError, first_line

_OVERSAMPLING = 4  # shapes that touch leave no seam once the pixels are averaged
_MAX_SECONDS = 20  # for one picture; the slowest of the published ones takes a fraction of one
_MAX_MEMORY = 2**32  # bytes of address space of a worker
_ELEMENTS = {
    "svg", "g", "defs", "symbol", "use", "title", "desc", "path", "rect", "circle", "ellipse",
    "line", "polyline", "polygon", "clipPath", "mask", "linearGradient", "radialGradient", "stop",
    "filter", "feBlend", "feColorMatrix", "feComposite", "feFlood", "feGaussianBlur", "feMerge",
    "feMergeNode", "feMorphology", "feOffset",
}  # fmt: skip
_OPEN = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'width="{side}" height="{side}" viewBox="{box}">'
)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A picture to render. name: for messages. body: what its <svg> element holds.

    box: left, top, width, height of what it shows. size: height and width in pixels; a picture
    that is no square lies in the middle of one.
    """

    name: str
    body: str
    box: tuple[float, float, float, float]
    size: int


def render_all(
    drawings: Mapping[str, Drawing], workers: int
) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """Renders drawings on white, by key, in processes.

    Raises ConfigError without resvg, and DataError for a drawing that is refused.
    """
    try:
        import resvg_py  # noqa: F401 (for its absence; workers use it)
    except ImportError:
        raise ConfigError("resvg is missing: install it with pip install 'fsdit[emoji]'") from None
    done: dict[str, np.ndarray] = {}
    for (key, drawing), pixels in pool.results(_render, drawings.items(), workers):
        if pixels is None:
            raise DataError(
                f"{drawing.name}: resvg ended over it, or took over {_MAX_SECONDS} s or "
                f"{_MAX_MEMORY >> 30} GiB: take its package out"
            )
        done[key] = pixels
    return {key: done[key] for key in drawings}


def _render(task: tuple[str, Drawing]) -> UInt8[np.ndarray, "H W 3"]:
    """Renders one drawing in a worker, which the system kills where it takes too long."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MAX_MEMORY if most == resource.RLIM_INFINITY else min(_MAX_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    signal.alarm(_MAX_SECONDS)
    try:
        return render(task[1])
    finally:
        signal.alarm(0)


def render(drawing: Drawing) -> UInt8[np.ndarray, "H W 3"]:
    """Renders one drawing on white. Raises DataError for one that is refused."""
    import resvg_py

    side = _OVERSAMPLING * drawing.size
    box = " ".join(f"{value:g}" for value in drawing.box)
    text = f"{_OPEN.format(side=side, box=box)}{drawing.body}</svg>"
    try:
        _check(text)
        png = resvg_py.svg_to_bytes(
            svg_string=text, width=side, height=side, background="white", skip_system_fonts=True
        )
    except (ValueError, ET.ParseError) as error:
        raise DataError(f"{drawing.name}: {first_line(error)}") from None
    with opened(png) as image:
        return np.asarray(image.convert("RGB").reduce(_OVERSAMPLING))


def _check(text: str) -> None:
    """Raises ValueError for what could read a file or take more than its size."""
    if "<!" in text or "<?" in text:  # entities, which can grow without end
        raise ValueError("it holds a declaration")
    for element in ET.fromstring(text).iter():
        name = element.tag.rpartition("}")[2]
        if name not in _ELEMENTS:
            raise ValueError(f"it holds <{name[:40]}>, which is not drawn here")
        for attribute, value in element.attrib.items():
            if attribute.rpartition("}")[2] == "href" and not value.startswith("#"):
                raise ValueError("it refers to a file")
