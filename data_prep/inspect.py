"""Shows a dataset to a person: a table, and a picture of what the model will see.

    python -m data_prep.inspect --dataset_dir=datasets/mini --output=grid.png

A row of the picture is an episode: its supports, a bar, its target.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from fsdit import program, storage
from fsdit.data import layout, pictures, readers
from fsdit.data.shards import shard_kind
from fsdit.errors import ConfigError
from fsdit.text import printable

_DATASET_DIR = program.define_path("dataset_dir", None, "The dataset to show.", required=True)
_OUTPUT = program.define_path("output", None, "The PNG file to write.", required=True)
_SPLIT = flags.DEFINE_string("split", "train", "The split whose episodes are drawn.")
_EPISODES = flags.DEFINE_integer("episodes", 8, "Rows of the picture.", lower_bound=1)

_COLUMNS = (
    "split",
    "classes",
    "images",
    "per class",
    "episodes",
    "K",
    "bytes",
    "features, latents",
)


def table(directory: Path, info: layout.DatasetInfo) -> str:
    """Returns a table with one row for each split; images per class as min / median / max."""
    rows = [_COLUMNS, *(_row(directory, info, name) for name in info.splits)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    size = f"{info.image_size} x {info.image_size} x {info.channels}"
    made = f"made {info.preparation}" if info.preparation else "how they were made is not recorded"
    return "\n".join([f"{size}, {made}", *lines, *_precomputed(info), *_sources(info)])


def _precomputed(info: layout.DatasetInfo) -> Iterator[str]:
    for name, of in info.features.items():
        tokens = f" and {of.grid[0]} x {of.grid[1]} tokens" if of.tokens else ""
        yield f"features-{name}: pooled{tokens} of width {of.dim}, {of.dtype}, by {of.encoder}"
    for name, of in info.latents.items():
        yield f"latents-{name}: {' x '.join(map(str, of.shape))}, {of.dtype}, by {of.codec}"


def _sources(info: layout.DatasetInfo) -> Iterator[str]:
    for name, of in info.sources.items():
        known = [of[field] for field in ("license", "author", "url") if field in of]
        yield printable(f"{name} {of.get('version', '')}: {', '.join(known)}")


def _row(directory: Path, info: layout.DatasetInfo, name: str) -> tuple[str, ...]:
    split = info.splits[name]
    manifest = layout.read_manifest(directory / name)
    sizes = split.images_per_class or (0,)
    present = {str(shard_kind(file)) for file in manifest} - {"images", "episodes"}
    return (
        name,
        str(len(split.classes)),
        str(split.num_images),
        f"{min(sizes)} / {statistics.median(sizes):g} / {max(sizes)}",
        str(split.episodes),
        str(split.shots),
        f"{sum(entry['bytes'] for entry in manifest.values()):,}",
        ", ".join(sorted(present)) or "none",
    )


def picture(directory: Path, info: layout.DatasetInfo, name: str, rows: int) -> np.ndarray:
    """Draws the first episodes of a split, (Y, X, C) uint8. Raises DataError."""
    split = info.split(name)
    episodes = readers.EpisodeReader(directory / name, split, split.shots)
    images = readers.ImageReader(directory / name, info.image_size, info.channels, split.num_images)
    chosen = [episodes[i] for i in range(min(rows, len(episodes)))]
    supports = np.stack([np.stack([images[i] for i in e.supports]) for e in chosen])
    targets = np.stack([images[e.target] for e in chosen])
    return pictures.episode_grid(supports, [targets])


def main(argv: list[str]) -> None:
    del argv
    with storage.output_file(_OUTPUT.value) as output:
        _inspect(storage.local_copy(_DATASET_DIR.value), output)
    print(f"picture: {_OUTPUT.value}")


def _inspect(directory: Path, output: Path) -> None:
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ConfigError(f"--output={output} must be a file in a folder that exists")
    info = layout.read_dataset_info(directory)
    print(table(directory, info))
    pixels = picture(directory, info, _SPLIT.value, _EPISODES.value)
    pictures.save_picture(output, pixels, zoom=max(1, 64 // info.image_size))


if __name__ == "__main__":
    program.run(main)
