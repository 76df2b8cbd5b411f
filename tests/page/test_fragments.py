"""The page's pieces of HTML: read back, they hold what they were made of."""

import base64
import io

import numpy as np
from PIL import Image

from fsdit.page import fragments
from tests.evaluation.report.page_reader import read_page
from tests.page.visits import some_pictures


def content(url):
    head, _, data = url.partition(",")
    return head, base64.b64decode(data)


def test_pictures_are_inside_the_page_and_keep_their_pixels():
    images = some_pictures(3)
    page = read_page(fragments.picture_list(images, "support", 5))
    shown = page.all("img")
    assert [each.attributes["alt"] for each in shown] == ["support 1", "support 2", "support 3"]
    assert len(page.all("span")) == 2  # places that are empty
    for element, image in zip(shown, images, strict=True):
        head, data = content(element.attributes["src"])
        assert head == "data:image/png;base64"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image[..., 0])


def test_more_pictures_than_places_and_none_are_shown():
    assert len(read_page(fragments.picture_list(some_pictures(3), "sample", 0)).all("img")) == 3
    assert read_page(fragments.picture_list(some_pictures(0), "sample", 0)).all("img") == []


def test_a_message_shows_names_as_text():
    page = read_page(fragments.message("<script>alert(1)</script>\u202e.png: no image"))
    assert page.all("script") == [] and len(page.all("p", role="alert")) == 1
    assert page.text == "<script>alert(1)</script>\\u202e.png: no image"
    assert fragments.message("") == ""


def test_links_save_files_under_their_names():
    page = read_page(fragments.links({"samples.png": b"\x89PNG", "samples.json": b"{}\n"}))
    saved = {
        each.attributes["download"]: content(each.attributes["href"]) for each in page.all("a")
    }
    assert saved == {
        "samples.png": ("data:image/png;base64", b"\x89PNG"),
        "samples.json": ("data:application/json;base64", b"{}\n"),
    }
    assert fragments.links({}) == ""
