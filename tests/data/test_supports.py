import dataclasses

import numpy as np
import pytest
from PIL import Image

from fsdit.data import supports
from fsdit.data.input import evaluation_examples
from fsdit.errors import ConfigError, DataError


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_files_come_in_the_order_given_with_their_paths(picture, tmp_path):
    other = tmp_path / "another.jpg"
    Image.new("RGB", (9, 9), "red").save(other)
    made = supports.from_files([picture, other], 16, 3)
    assert made.origin == {"files": [str(picture), str(other)]}
    assert made.images.shape == (2, 16, 16, 3)
    assert made.images[1].mean((0, 1)).argmax() == 0
    assert supports.from_files([tmp_path], 16, 3).origin == {"files": [str(other), str(picture)]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.unlink(), "picture.png: No such file"),
        (lambda path: path.write_text("words"), "picture.png: not an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "picture.png: cannot be decoded"),
    ],
    ids=["missing", "no image", "truncated"],
)
def test_a_file_that_is_no_picture_is_named(picture, make, message):
    make(picture)
    with pytest.raises(DataError, match=message):
        supports.from_files([picture], 16, 1)


def test_a_stray_file_in_a_folder_is_named(picture):
    picture.with_name("notes.txt").write_text("words")
    with pytest.raises(DataError, match=r"notes\.txt: not an image"):
        supports.from_files([picture.parent], 16, 1)


def test_nothing_to_draw_from(tmp_path):
    with pytest.raises(DataError, match="no support pictures are named"):
        supports.from_files([], 16, 1)
    with pytest.raises(DataError, match=f"{tmp_path}: this folder has no files"):
        supports.from_files([tmp_path], 16, 1)


def test_episodes_are_those_of_evaluation(small_config):
    read, size = evaluation_examples(small_config, "val")
    made = supports.from_episodes(small_config, "val", [size - 1, 0])
    assert [each.origin for each in made] == [
        {"split": "val", "episode": size - 1},
        {"split": "val", "episode": 0},
    ]
    np.testing.assert_array_equal(made[0].images, read.pictures(size - 1)[0])
    np.testing.assert_array_equal(made[1].images, read.pictures(0)[0])
    one_shot = dataclasses.replace(small_config.data, shots=1)
    config = dataclasses.replace(small_config, data=one_shot)
    assert len(supports.from_episodes(config, "val", [3])[0].images) == 1


def test_an_episode_or_split_that_is_not_there(small_config):
    for number in (-1, 10**6):
        with pytest.raises(ConfigError, match=f"episode {number} of the split 'val': it has 0 to"):
            supports.from_episodes(small_config, "val", [number])
    with pytest.raises(DataError, match="no split 'more' in the dataset; it has train, val, test"):
        supports.from_episodes(small_config, "more", [0])
