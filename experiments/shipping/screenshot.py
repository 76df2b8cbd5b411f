"""Takes the screenshot of the page that README shows.

    python -m experiments.shipping.screenshot

Needs fsdit[app], Playwright and Chromium (Debian: chromium).
"""

import io

from absl import flags
from PIL import Image

from experiments.shipping.browser import CHROMIUM, browsed, generate, served, take_example
from fsdit import program
from fsdit.errors import ConfigError

_OUTPUT = program.define_path("output", "docs/app.png", "The PNG file to write.")
_WIDTH = flags.DEFINE_integer("width", 1300, "Width of the window in pixels.", lower_bound=320)
_EXAMPLE = flags.DEFINE_string("example", "greek-psi", "Example whose supports are shown.")

_COLOURS = 64  # of the file, which is a third of its size so


def main(argv: list[str]) -> None:
    del argv
    if CHROMIUM is None:
        raise ConfigError("Chromium is not installed (Debian: chromium)")
    with served() as address, browsed(address, _WIDTH.value) as (page, _):
        take_example(page, _EXAMPLE.value)
        generate(page, count=16)
        shot = page.screenshot(full_page=True)
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").quantize(_COLOURS).save(_OUTPUT.value, optimize=True)
    print(_OUTPUT.value)


if __name__ == "__main__":
    program.run(main)
