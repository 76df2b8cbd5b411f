"""Pieces of the page as HTML. Pictures and files are inside it, so that a browser asks for none.

All text is escaped: names of files come from visitors.
"""

import base64
import html
from collections.abc import Mapping

from fsdit.data.pictures import png
from fsdit.page.session import Pictures
from fsdit.text import printable

_TYPES = {"png": "image/png", "json": "application/json", "zip": "application/zip"}


def picture_list(images: Pictures, name: str, places: int) -> str:
    """Pictures in a row that wraps, and empty frames up to a number of places.

    name: what one picture is, for those who hear the page: "support".
    """
    size = images.shape[1]
    shown = [
        f'<img src="{_data_url("png", png(image))}" width="{size}" height="{size}" '
        f'alt="{name} {i}">'
        for i, image in enumerate(images, 1)
    ]
    empty = ["<span></span>"] * (places - len(shown))
    return f'<div class="pictures {name}">{"".join([*shown, *empty])}</div>'


def message(text: str) -> str:
    """A message about what went wrong, or nothing."""
    return f'<p class="message" role="alert">{html.escape(printable(text))}</p>' if text else ""


def status(text: str) -> str:
    return f'<p class="status" role="status">{html.escape(text)}</p>'


def links(files: Mapping[str, bytes]) -> str:
    """Links that save files under their names; "" without files."""
    shown = "".join(
        f'<a download="{name}" href="{_data_url(name.rpartition(".")[2], content)}">{name}</a>'
        for name, content in files.items()
    )
    return f'<div class="downloads">Save: {shown}</div>' if files else ""


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{_TYPES[kind]};base64,{base64.b64encode(content).decode()}"
