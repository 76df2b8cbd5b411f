"""Renders the embedded few-shot dataset: characters in the fonts that matplotlib ships.

    python -m data_prep.glyphs --output_dir=datasets/glyphs

A class is a character; an image is its rendering in one font of the DejaVu and STIX
families: black on white, centred, greyscale. This takes seconds and downloads nothing, and the
same flags give the same bytes.
"""

import functools
import shutil
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
from absl import flags
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
from scipy.cluster.hierarchy import DisjointSet

from fsdit import program, storage
from fsdit.data import episodes, layout, records
from fsdit.data.images.photos import Preparation
from fsdit.errors import ConfigError

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
_SPLIT_SHARES = {"train": 0.70, "val": 0.14}  # test: the rest


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


def render_classes(image_size: int) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Renders all characters: character -> [(font name, pixels)]."""
    load = functools.cache(lambda path: ImageFont.truetype(str(path), round(image_size * 0.8)))
    return {
        character: [(path.stem, render(character, load(path), image_size)) for path in paths]
        for character, paths in characters(font_paths()).items()
    }


def lookalikes(classes: dict[str, list[tuple[str, np.ndarray]]]) -> list[list[str]]:
    """Groups characters that share a pixel-identical image, such as Latin and Greek A.

    All characters of a group go to one split; otherwise training would see a test image.
    """
    groups = DisjointSet(classes)
    first: dict[bytes, str] = {}
    for character, images in classes.items():
        for _, pixels in images:
            groups.merge(first.setdefault(pixels.tobytes(), character), character)
    return sorted(sorted(group) for group in groups.subsets())


def split_classes(groups: list[list[str]], seed: int) -> dict[str, list[str]]:
    """Shuffles the groups by seed and deals them to train, val and test by share."""
    total = sum(map(len, groups))
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    splits: dict[str, list[str]] = {name: [] for name in layout.SPLITS}
    for group in order:
        name = next(
            (s for s, share in _SPLIT_SHARES.items() if len(splits[s]) < share * total), "test"
        )
        splits[name] += group
    return {name: sorted(members) for name, members in splits.items()}


def write(
    directory: Path, image_size: int, shots: int, episodes_per_class: int, seed: int
) -> layout.DatasetInfo:
    """Renders everything and writes the dataset. Raises DataError for a K too large."""
    classes = render_classes(image_size)
    infos = {}
    for name, members in split_classes(lookalikes(classes), seed).items():
        info = layout.SplitInfo(
            classes=tuple(members),
            images_per_class=tuple(len(classes[c]) for c in members),
            episodes=episodes_per_class * len(members),
            shots=shots,
        )
        images = [
            records.ImageRecord(
                f"U+{ord(c):04X}/{font}", i, records.encode_pixels(pixels), *pixels.shape[:2]
            )
            for i, c in enumerate(members)
            for font, pixels in classes[c]
        ]
        drawn = episodes.draw_episodes(info, shots, episodes_per_class, seed)
        layout.write_split(directory / name, images, drawn)
        infos[name] = info
    description = layout.DatasetInfo(
        image_size=image_size,
        channels=1,
        splits=infos,
        command=(
            f"python -m data_prep.glyphs --image_size={image_size} --shots={shots} "
            f"--episodes_per_class={episodes_per_class} --seed={seed}"
        ),
        seed=seed,
        preparation=Preparation(background="white", resize="center_crop"),  # dark on white
    )
    layout.write_dataset_json(directory, description)
    return description


def _remove_interrupted(partial: Path) -> None:
    """Removes what a killed start has left. Raises ConfigError for anything else of that name."""
    if not partial.exists():
        return
    ours = {*layout.SPLITS, "dataset.json"}
    if not partial.is_dir() or any(
        path.name not in ours and path.suffix != ".partial" for path in partial.iterdir()
    ):
        raise ConfigError(f"{partial} is not of an interrupted start: move it away first")
    shutil.rmtree(partial)


def main(argv: list[str]) -> None:
    del argv
    with storage.new_folder(_OUTPUT_DIR.value, seal="dataset.json") as output:
        _make(output.absolute())
    print(f"dataset: {_OUTPUT_DIR.value}")


def _make(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output_dir={output} exists and is not empty: name a new folder")
    partial = output.with_name(output.name + ".partial")
    _remove_interrupted(partial)
    info = write(partial, int(_IMAGE_SIZE.value), _SHOTS.value, _EPISODES.value, _SEED.value)
    layout.publish(partial, output)
    for name, split in info.splits.items():
        print(f"{name}: {len(split.classes)} characters, {split.num_images} images")


if __name__ == "__main__":
    program.run(main)
