"""Renders the embedded few-shot dataset: characters in the fonts that matplotlib ships.

    python -m data_prep.glyphs --output_dir=datasets/glyphs

A class is a character; an image is its rendering in one font of the DejaVu and STIX
families: black on white, centred, greyscale. This takes seconds and downloads nothing, and the
same flags give the same bytes.
"""

import functools
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
from absl import flags
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from data_prep.rendering import datasets
from fsdit import program, storage
from fsdit.data import layout
from fsdit.data.images.photos import Preparation

_OUTPUT_DIR = program.define_path("output_dir", None, "Where to write the dataset.", required=True)
_IMAGE_SIZE = flags.DEFINE_enum("image_size", "24", ["24", "32"], "Height and width in pixels.")
_SHOTS = flags.DEFINE_integer(
    "shots", 5, "Supports of each episode in the files; 0: the target itself.", lower_bound=0
)
_EPISODES = flags.DEFINE_integer(
    "episodes_per_class", 8, "Episodes of each class in the files.", lower_bound=1
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Decides the split of the classes and the episodes.", 0, 2**63 - 1
)

_CATEGORIES = {"Lu", "Ll", "Lm", "Lo", "Lt", "Nd", "Sm"}  # letters, digits, mathematics
_MIN_FONTS = 12
_MAX_FONTS = 18


def font_paths() -> list[Path]:
    """Returns the DejaVu and STIX fonts, without those that use private code points."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(
        path for path in folder.glob("*.ttf")
        if path.name.startswith(("DejaVu", "STIX")) and "NonUni" not in path.name
    )  # fmt: skip


def characters(fonts: list[Path]) -> dict[str, list[Path]]:
    """Returns each eligible character with the fonts that have it, in code point order."""
    holders: dict[int, list[Path]] = {}
    for path in fonts:
        for code in TTFont(path).getBestCmap():
            holders.setdefault(code, []).append(path)
    return {
        chr(code): paths[:_MAX_FONTS]
        for code, paths in sorted(holders.items())
        if len(paths) >= _MIN_FONTS
        and unicodedata.category(chr(code)) in _CATEGORIES
        and not unicodedata.decomposition(chr(code))
    }


def render(character: str, font: ImageFont.FreeTypeFont, image_size: int) -> np.ndarray:
    """Renders a character as (image_size, image_size, 1) uint8, its ink in the centre."""
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (image_size, image_size), 255)
    origin = ((image_size - left - right) / 2, (image_size - top - bottom) / 2)
    ImageDraw.Draw(image).text(tuple(map(round, origin)), character, fill=0, font=font)
    return np.asarray(image)[..., None]


def render_classes(image_size: int) -> datasets.Classes:
    """Renders all characters, each in its fonts."""
    load = functools.cache(lambda path: ImageFont.truetype(str(path), round(image_size * 0.8)))
    return {
        character: [
            (f"U+{ord(character):04X}/{path.stem}", render(character, load(path), image_size))
            for path in paths
        ]
        for character, paths in characters(font_paths()).items()
    }


def main(argv: list[str]) -> None:
    del argv
    with storage.new_folder(_OUTPUT_DIR.value, seal="dataset.json") as output:
        _make(output.absolute())
    print(f"dataset: {_OUTPUT_DIR.value}")


def _make(output: Path) -> None:
    partial = datasets.begin(output)
    about = layout.DatasetInfo(
        image_size=int(_IMAGE_SIZE.value),
        channels=1,
        splits={},
        command=(
            f"python -m data_prep.glyphs --image_size={_IMAGE_SIZE.value} --shots={_SHOTS.value} "
            f"--episodes_per_class={_EPISODES.value} --seed={_SEED.value}"
        ),
        seed=_SEED.value,
        preparation=Preparation(background="white", resize="center_crop"),  # dark on white
    )
    classes = render_classes(about.image_size)
    info = datasets.write(partial, classes, about, _SHOTS.value, _EPISODES.value)
    layout.publish(partial, output)
    for name, split in info.splits.items():
        print(f"{name}: {len(split.classes)} characters, {split.num_images} images")


if __name__ == "__main__":
    program.run(main)
