"""Pictures in SVG: their pixels, and those that are refused."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep.rendering import svg
from fsdit.errors import ConfigError, DataError


def drawing(body: str, box=(0.0, 0.0, 8.0, 8.0), size: int = 8) -> svg.Drawing:
    return svg.Drawing("noto: the picture 'a'", body, box, size)


def test_shapes_are_drawn_on_white():
    pixels = svg.render(drawing('<path fill="#f00" d="M0 0h4v8h-4z"/>'))
    assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
    assert (pixels[:, :4] == (255, 0, 0)).all() and (pixels[:, 4:] == 255).all()


def test_half_transparent_ink_shows_the_white_behind_it():
    pixels = svg.render(drawing('<path fill="#000" opacity=".5" d="M0 0h8v8h-8z"/>'))
    assert np.abs(pixels.astype(int) - 127).max() <= 1


def test_what_is_no_square_lies_in_the_middle_of_one():
    pixels = svg.render(drawing('<path d="M2 1h8v4h-8z"/>', box=(2.0, 1.0, 8.0, 4.0)))
    assert (pixels[2:6] == 0).all() and (pixels[[0, 1, 6, 7]] == 255).all()


def test_shapes_that_touch_leave_no_seam():
    halves = '<path d="M0 0h3.7v8h-3.7z"/><path d="M3.7 0h4.3v8h-4.3z"/>'
    assert svg.render(drawing(halves)).max() < 40


HOSTILE = {
    "file": ('<image href="{file}" width="8" height="8"/>', "it holds <image>"),
    "old link": ('<image xlink:href="{file}" width="8" height="8"/>', "it holds <image>"),
    "filter": ('<filter id="a"><feImage href="{file}"/></filter>', "it holds <feImage>"),
    "use of a file": ('<use href="{file}#a"/>', "it refers to a file"),
    "use of an address": ('<use xlink:href="https://example.org/a.svg#a"/>', "refers to a file"),
    "script": ("<script>1</script>", "it holds <script>"),
    "style": ("<style>@import url({file});</style>", "it holds <style>"),
    "text": ("<text>a</text>", "it holds <text>"),
    "entities": ('<!DOCTYPE a [<!ENTITY b "c">]>', "it holds a declaration"),
    "instruction": ('<?xml-stylesheet href="{file}"?>', "it holds a declaration"),
    "end of the picture": ("</svg><svg>", "junk after document element"),
    "no XML": ("<path", ""),
    "unknown prefix": ('<g a:b="c"/>', "unbound prefix"),
    "deep": ("<g>" * 3000 + '<path d="M0 0h9v9z"/>' + "</g>" * 3000, "nodes limit"),
}


@pytest.mark.parametrize(("body", "reported"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_picture_that_could_read_files_or_is_none_is_refused(tmp_path, body, reported):
    file = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(file)
    with pytest.raises(DataError, match=f"^noto: the picture 'a': .*{re.escape(reported)}"):
        svg.render(drawing(body.format(file=file)))


def test_the_size_of_the_plane_costs_no_memory():
    assert svg.render(drawing('<path d="M0 0h1e5v1e5z"/>', box=(0.0, 0.0, 1e5, 1e5))).min() == 0


def test_the_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ConfigError, match=r"pip install 'fsdit\[emoji\]'"):
        svg.render_all({"a": drawing("<g/>")}, workers=1)


@pytest.mark.medium
def test_drawings_come_in_their_order_from_any_number_of_workers():
    drawings = {str(i): drawing(f'<path d="M0 0h{i}v8h-{i}z"/>') for i in range(1, 8)}
    one, two = (svg.render_all(drawings, workers) for workers in (1, 2))
    assert list(one) == list(two) == list(drawings)
    assert all((one[key] == svg.render(drawings[key])).all() for key in drawings)
    assert all((one[key] == two[key]).all() for key in drawings)


@pytest.mark.medium
def test_a_picture_that_ends_the_renderer_is_named():
    """Layers in layers need a deep stack, so that resvg is ended by the system."""
    layers = '<g opacity=".5">' * 900 + '<path d="M0 0h9v9z"/>' + "</g>" * 900
    drawings = {"good": drawing("<g/>"), "bad": drawing(layers)}
    with pytest.raises(DataError, match="noto: the picture 'a': resvg ended over it"):
        svg.render_all(drawings, workers=1)
