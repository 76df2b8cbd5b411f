import dataclasses

import numpy as np
import pytest
from PIL import Image

from fsdit.data import layout, readers, records
from fsdit.data.shards import shard_name, write_shard
from tests.data_prep import datasets
from tests.programs import run_module

pytestmark = pytest.mark.medium

ZOOM = 64 // datasets.SIZE
CELL = (datasets.SIZE + 2) * ZOOM  # an image and its frame


@pytest.fixture
def dataset(tmp_path):
    return datasets.write(tmp_path / "d")


def inspect(dataset, output, *flags):
    return run_module("data_prep.inspect", f"--dataset_dir={dataset}", f"--output={output}", *flags)


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in text.splitlines()}


def cell(picture: np.ndarray, row: int, left: int) -> np.ndarray:
    """The image in a frame whose left edge is at `left`, at its own size."""
    framed = picture[row * CELL : (row + 1) * CELL : ZOOM, left : left + CELL : ZOOM]
    return framed[1:-1, 1:-1, None]


def test_the_picture_shows_supports_and_target_of_the_first_episodes(dataset, tmp_path):
    output = tmp_path / "grid.png"
    done = inspect(dataset, output, "--split=val", "--episodes=3")
    assert done.returncode == 0, done.stderr
    picture = np.asarray(Image.open(output))
    assert picture.shape == (3 * CELL, (datasets.SHOTS + 1) * CELL + 3 * ZOOM)
    split = layout.read_dataset_info(dataset).splits["val"]
    episodes = readers.EpisodeReader(dataset / "val", split, datasets.SHOTS)
    for row in range(3):
        for k, image in enumerate(episodes[row].supports):
            np.testing.assert_array_equal(
                cell(picture, row, k * CELL), datasets.pixels("val", image)
            )
        left = datasets.SHOTS * CELL + 3 * ZOOM
        target = datasets.pixels("val", episodes[row].target)
        np.testing.assert_array_equal(cell(picture, row, left), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "grid.png"]


def test_the_table_has_sizes_and_precomputed_features(dataset, tmp_path):
    manifest = layout.read_manifest(dataset / "val")
    file = shard_name("features-siglip2-base", 0, 1)
    manifest[file] = write_shard(dataset / "val" / file, [b"x"] * 7)
    layout.write_json(dataset / "val" / "manifest.json", manifest)
    reported = rows(inspect(dataset, tmp_path / "grid.png").stdout)
    size = f"{sum(entry['bytes'] for entry in manifest.values()):,}"
    assert reported["train"][:9] == ["train", "3", "12", "3", "/", "4", "/", "5", "9"]
    assert reported["val"][:6] == ["val", "2", "7", "3", "/", "3.5"]
    assert reported["val"][-2:] == [size, "features-siglip2-base"]
    assert reported["train"][-1] == "none"


def test_more_rows_than_episodes_show_all_episodes(dataset, tmp_path):
    assert inspect(dataset, tmp_path / "grid.png", "--episodes=99").returncode == 0
    assert Image.open(tmp_path / "grid.png").height == 9 * CELL


@pytest.mark.parametrize(
    ("output", "flags", "named"),
    [
        ("nowhere/grid.png", [], "--output="),
        ("grid.png", ["--split=dev"], "no split 'dev'"),
        (".", [], "--output="),
    ],
)
def test_a_wrong_flag_ends_in_one_line_and_writes_nothing(dataset, tmp_path, output, flags, named):
    done = inspect(dataset, tmp_path / output, *flags)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and named in line
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_damaged_image_is_named_and_an_older_picture_stays(dataset, tmp_path):
    (tmp_path / "grid.png").write_bytes(b"older")
    file = datasets.shard(dataset, index=0)
    record = records.ImageRecord("k", 0, b"no picture", 6, 6)
    datasets.rewrite(file, lambda payloads: [records.encode_image(record)] * len(payloads))
    done = inspect(dataset, tmp_path / "grid.png")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{file}, record " in line and "cannot be decoded" in line
    assert (tmp_path / "grid.png").read_bytes() == b"older"


def test_a_split_without_episodes_is_named(dataset, tmp_path):
    datasets.rewrite(datasets.shard(dataset, kind="episodes"), lambda payloads: [])
    info = layout.read_dataset_info(dataset)
    train = dataclasses.replace(info.splits["train"], episodes=0)
    splits = {**info.splits, "train": train}
    layout.write_dataset_json(dataset, dataclasses.replace(info, splits=splits))
    done = inspect(dataset, tmp_path / "grid.png")
    assert done.returncode == 1
    assert "train: has no episodes" in done.stderr
