"""The page as a visitor sees it, in Chromium; skipped where a part of that is not installed."""

import importlib.util
import json
import re
import shlex
import zipfile
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from experiments.shipping.browser import CHROMIUM, browsed, generate, served, take_example
from tests.programs import run_module

MISSING = [
    *(name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None),
    *(["Chromium (Debian: chromium)"] if CHROMIUM is None else []),
]
pytestmark = [
    pytest.mark.large,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def address():
    with served() as started:
        yield started


def draw(page):
    """Draws a V on the canvas, and adds it."""
    box = page.locator("canvas").bounding_box()
    places = [(0.2, 0.2), (0.5, 0.8), (0.8, 0.2)]
    across = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*across[0])
    page.mouse.down()
    for place in across[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()
    page.get_by_role("button", name="Add drawing").click()


def number(page, label, value):
    page.get_by_label(label).first.fill(str(value))
    page.keyboard.press("Tab")


def save(page, name, folder):
    with page.expect_download() as waited:
        page.get_by_role("link", name=name).click()
    waited.value.save_as(folder / name)
    return folder / name


def test_a_visitor_draws_generates_and_saves(address, tmp_path):
    with browsed(address, 1300) as (page, asked):
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        draw(page)
        page.locator("#supports img").first.wait_for()
        draw(page)
        page.locator("#supports img").nth(1).wait_for()
        assert page.locator("#supports span").count() == 3
        number(page, "number input for Number of samples", 6)
        number(page, "number input for Steps", 5)
        number(page, "Seed", 3)
        generate(page, count=6)
        facts = json.loads(save(page, "samples.json", tmp_path).read_text())
        picture = save(page, "samples.png", tmp_path)
        with zipfile.ZipFile(save(page, "samples.zip", tmp_path)) as archive:
            archive.extractall(tmp_path)
        assert errors == []
    assert (facts["num_samples"], facts["seed"], facts["sampling"]["num_steps"]) == (6, 3, 5)
    # The V as the model sees it: dark on white.
    with Image.open(tmp_path / "supports" / "1.png") as image:
        seen = np.asarray(image)
    assert seen[12, 0] == 255 and seen[4, 12] == 255 and seen[17:20, 12].min() < 60

    _, _, module, *flags = shlex.split(facts["command"])
    done = run_module(module, *flags, cwd=tmp_path, real=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "again.png") as again, Image.open(picture) as first:
        apart = np.asarray(again).astype(int) - np.asarray(first)
    assert np.abs(apart).max() <= 2

    assert {urlsplit(url).hostname for url in asked if not url.startswith("data:")} == {"127.0.0.1"}


@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_fits_phones_and_desks(address, width, tmp_path):
    with browsed(address, width) as (page, asked):
        take_example(page, "greek-psi")
        generate(page, count=16)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
        assert broken == 0
    assert {urlsplit(url).hostname for url in asked if not url.startswith("data:")} == {"127.0.0.1"}


def test_a_wrong_file_gives_a_message_and_the_page_goes_on(address, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    with browsed(address, 1300) as (page, _):
        files = page.locator("input[type=file]").first
        files.set_input_files(tmp_path / "notes.png")
        wrong = page.get_by_role("alert")
        wrong.wait_for()
        assert wrong.inner_text() == "notes.png: not an image of a known format"
        page.get_by_role("button", name="Generate").click()
        page.get_by_text("add one to five pictures first").wait_for()
        take_example(page, "greek-psi")
        assert not re.search("Traceback|notes", page.content())
