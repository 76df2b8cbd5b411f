"""The report as a person sees it, in a headless Chromium."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from fsdit.evaluation.report import write
from tests.evaluation import results_example as example

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
HEIGHT = 6000
# A frame holds the page, because a window of Chromium is never as narrow as a phone. The script
# also opens and measures everything that the page folds away.
FRAME = """<!doctype html><body style="margin: 0">
<iframe width="{width}" height="{height}" style="border: 0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const images = [...page.images];
  const folded = page.documentElement.scrollWidth;
  for (const each of page.querySelectorAll("details")) each.open = true;
  document.body.dataset.found = JSON.stringify({{
    title: page.title,
    widths: [page.documentElement.clientWidth, folded, page.documentElement.scrollWidth],
    images: images.length,
    broken: images.filter(each => !each.complete || !each.naturalWidth).length,
    hidden: images.filter(each => !each.getBoundingClientRect().width).length,
  }});
}};
</script>"""


def chromium(profile, address, *flags):
    return subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", "--enable-logging=stderr", f"--user-data-dir={profile}"),
            *(*flags, address),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )


@pytest.mark.large
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)")
def test_the_page_fits_phones_and_desks_and_shows_every_picture(tmp_path):
    rng = np.random.default_rng(0)
    names = [*(f"class {i}" for i in range(29)), "a_name_that_is_long_and_has_no_space_" * 3]
    results = example.results(rng, names, guidance=(1.0, 3.0))
    pictures = example.pictures(rng, results, size=24)
    write.write(tmp_path, results, pictures)
    page = (tmp_path / "report.html").read_text("utf-8")
    for width in (390, 1280):
        frame = tmp_path / f"{width}.html"
        frame.write_text(
            FRAME.format(width=width, height=HEIGHT, page=html.escape(page)), encoding="utf-8"
        )
        profile = tmp_path / f"profile-{width}"
        shown = chromium(profile, frame.as_uri(), "--dump-dom", f"--window-size=1280,{HEIGHT}")
        assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
        [found] = re.findall(r'<body[^>]* data-found="([^"]*)"', shown.stdout)
        found = json.loads(html.unescape(found))
        assert found["title"] == "glyphs: 1- and 5-shot samples of test classes"
        assert found["widths"] == [width, width, width]  # no sideways scrolling
        assert found["images"] > 4 * len(pictures)  # four strips for each, and the charts
        assert found["broken"] == found["hidden"] == 0

        shot = tmp_path / f"{width}.png"
        chromium(profile, frame.as_uri(), f"--screenshot={shot}", f"--window-size=1280,{HEIGHT}")
        with Image.open(shot) as image:
            assert image.size == (1280, HEIGHT)
            shades = np.asarray(image.convert("L"), int)
        assert (shades[:, width:] == 255).all()
        # Each sixth of the page has ink, and the margins have none.
        ink = np.abs(shades[:, :width] - 255) > 60
        assert all(0.005 < part.mean() < 0.5 for part in np.split(ink, 6))
        assert not ink[:, :8].any() and not ink[:, width - 8 : width].any()
