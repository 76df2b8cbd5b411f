import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from data_prep.conversion.images import ImageOptions, normalise
from fsdit.data import supports
from fsdit.data.images.photos import Preparation
from fsdit.data.pipeline import evaluation_examples
from fsdit.data.records import decode_pixels
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


def test_a_preparation_that_was_not_recorded_is_the_default_and_a_line_says_so(picture, capsys):
    made = supports.from_files([picture], 16, 3, Preparation())
    assert not capsys.readouterr().out
    unknown = supports.from_files([picture], 16, 3, None)
    np.testing.assert_array_equal(unknown.images, made.images)
    (line,) = capsys.readouterr().out.splitlines()
    assert "was not recorded" in line and "--resize=center_crop --background=white" in line


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


def folder_beside(picture, *names):
    for name in names:
        picture.with_name(name).write_text("words")
    return picture.parent


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        (["notes.txt"], "'notes.txt'"),
        (["Thumbs.db", "desktop.ini"], "'Thumbs.db', 'desktop.ini'"),
        (["picture.json", "picture.txt", "README"], "'README', 'picture.json', 'picture.txt'"),
        ([f"{i}.txt" for i in range(7)], "'0.txt', '1.txt', '2.txt', '3.txt', '4.txt' and 2 more"),
        (["\x1b[31m.txt"], r"'\x1b[31m.txt'"),
        ([".DS_Store", "._picture.png"], None),
    ],
    ids=str,
)
def test_other_files_beside_pictures_are_reported_in_one_line(picture, capsys, names, left_out):
    made = supports.from_files([folder_beside(picture, *names)], 16, 1)
    assert made.origin == {"files": [str(picture)]}
    said = f"{picture.parent}: left out, no image files: {left_out}\n"
    assert capsys.readouterr().out == (said if left_out else "")


def test_files_that_are_not_regular_are_left_out_of_a_folder(picture, capsys):
    os.mkfifo(picture.with_name("pipe.png"))
    picture.with_name("zero.png").symlink_to("/dev/zero")
    picture.with_name("more").mkdir()
    made = supports.from_files([picture.parent], 16, 1)
    assert made.origin == {"files": [str(picture)]}
    assert capsys.readouterr().out.endswith(": 'more', 'pipe.png', 'zero.png'\n")


def test_a_folder_that_may_not_be_read_is_named(picture, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(picture), "iterdir", refuse)
    with pytest.raises(DataError, match=f"{picture.parent}: Permission denied"):
        supports.from_files([picture.parent], 16, 1)
    with pytest.raises(DataError, match="aaa: File name too long"):
        supports.from_files(["a" * 300], 16, 1)


@pytest.mark.parametrize("name", ["damaged.png", "picture.heic", "picture"])
def test_a_file_named_like_an_image_that_is_none_is_reported(picture, name):
    with pytest.raises(DataError, match=f"{name}: not an image"):
        supports.from_files([folder_beside(picture, name)], 16, 1)


@pytest.mark.parametrize("resize", ["center_crop", "squash", "pad"])
@pytest.mark.parametrize("background", ["white", "#204060"])
@pytest.mark.parametrize("channels", [1, 3])
def test_supports_are_prepared_as_a_conversion_prepares_images(
    tmp_path, resize, background, channels
):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 4), np.uint8)
    for name, mode in (("a.png", "RGBA"), ("b.png", "LA"), ("c.jpg", "CMYK"), ("d.png", "RGB")):
        image = Image.fromarray(pixels).convert("RGB" if mode == "CMYK" else mode).convert(mode)
        image.save(tmp_path / name)
    preparation = Preparation(background, resize)
    options = ImageOptions(channels, 16, resize, background, "png")
    made = supports.from_files([tmp_path], 16, channels, preparation)
    for file, support in zip(sorted(tmp_path.iterdir()), made.images, strict=True):
        stored = normalise(file.read_bytes(), options).data
        np.testing.assert_array_equal(support, decode_pixels(stored, channels))


def test_no_files_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="no support pictures are named"):
        supports.from_files([], 16, 1)
    with pytest.raises(DataError, match=f"{tmp_path}: this folder has no image files"):
        supports.from_files([tmp_path], 16, 1)


def test_supports_of_an_episode_are_those_of_evaluation(small_config):
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


def test_a_missing_episode_or_split_is_named(small_config):
    for number in (-1, 10**6):
        with pytest.raises(ConfigError, match=f"episode {number} of the split 'val': it has 0 to"):
            supports.from_episodes(small_config, "val", [number])
    with pytest.raises(DataError, match="no split 'more' in the dataset; it has train, val, test"):
        supports.from_episodes(small_config, "more", [0])
