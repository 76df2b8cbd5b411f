"""The emoji dataset as its user makes it, from packages as npm writes them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fsdit import storage
from fsdit.data.layout import SPLITS, read_dataset_info
from fsdit.data.readers import ImageReader, RecordReader
from fsdit.data.records import decode_image
from fsdit.storage import bucket as objects
from tests.data_prep.conversion.conversions import check_valid
from tests.data_prep.conversion.photos import files
from tests.data_prep.rendering.icon_packages import EMOJI, emoji_set, package, write_all, write_tgz
from tests.programs import run_module

pytestmark = pytest.mark.medium

SMALL = ("--min_images=4", "--shots=2", "--image_size=16", "--workers=1")


def emoji(packages: Path | str, output: Path | str, *flags: str):
    return run_module("data_prep.emoji", f"--packages={packages}", f"--output_dir={output}", *flags)


def fail(packages: Path, output: Path, *flags: str) -> str:
    done = emoji(packages, output, *SMALL, *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert not output.exists()
    return line


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    return write_all(tmp_path_factory.mktemp("emoji") / "packages")


@pytest.fixture(scope="module")
def made(packages) -> Path:
    output = packages.with_name("dataset")
    done = emoji(packages, output, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "fxemoji 1.2.3 (MIT): 10 of 10 pictures; left out: none" in done.stdout
    assert "sets that are not there: openmoji, fluent-emoji-flat, noto-v1" in done.stdout
    return output


def test_a_class_is_an_emoji_and_its_images_are_those_of_the_sets(made):
    info = read_dataset_info(made)
    assert (info.image_size, info.channels) == (16, 3)
    classes = [name for split in info.splits.values() for name in split.classes]
    assert sorted(classes) == sorted(EMOJI.values())
    assert [len(split.classes) for split in info.splits.values()] == [7, 2, 1]
    for name, split in info.splits.items():
        reader = RecordReader(made / name, "images")
        keys = [decode_image(reader[i]).key for i in range(len(reader))]
        sets = ("noto", "twemoji", "fluent-emoji", "fxemoji")
        assert keys == [f"{emoji}/{icons}" for emoji in split.classes for icons in sets]


def test_the_description_has_licences_and_the_preparation(made):
    info = read_dataset_info(made)
    assert info.sources.keys() == {"noto", "twemoji", "fluent-emoji", "fxemoji"}
    assert info.sources["fxemoji"]["license"] == "MIT"
    assert info.sources["fxemoji"]["version"] == "1.2.3"
    assert (info.preparation.background, info.preparation.resize) == ("white", "pad")
    assert info.command.endswith("--min_images=4 --shots=2 --episodes_per_class=8 --seed=0")


def test_pictures_have_their_colours_on_white(made):
    info = read_dataset_info(made)
    reader = ImageReader(made / "train", info.image_size, info.channels)
    for i, colour in enumerate([(255, 0, 0), (0, 128, 0), (0, 0, 255), (0, 0, 0)]):
        values = np.unique(reader[i].reshape(-1, 3), axis=0)
        assert colour in map(tuple, values) and (255, 255, 255) in map(tuple, values)


def test_other_programs_take_it(made, tmp_path):
    check_valid(made)
    flags = (f"--dataset_dir={made}", f"--output={tmp_path / 'grid.png'}")
    done = run_module("data_prep.inspect", *flags)
    assert done.returncode == 0, done.stderr
    assert "noto 1.2.3: MIT, Authors of noto, https://example.org/noto\n" in done.stdout
    copy = shutil.copytree(made, tmp_path / "copy")
    flags = (f"--dataset_dir={copy}", "--shots=1", "--sets_per_class=2")
    run_module("data_prep.episodes", *flags).check_returncode()
    assert read_dataset_info(copy).sources == read_dataset_info(made).sources


def test_the_same_packages_give_the_same_bytes_for_any_number_of_workers(packages, tmp_path):
    for name, workers in (("a", 1), ("b", 2)):
        emoji(packages, tmp_path / name, *SMALL, f"--workers={workers}").check_returncode()
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_emoji_that_look_alike_are_in_one_split(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("noto", "twemoji", "fluent-emoji", "fxemoji"):
        content = emoji_set(name)
        icons = json.loads(content["icons.json"])
        bodies = icons["icons"]
        for first, second in zip(list(bodies)[::2], list(bodies)[1::2], strict=True):
            bodies[second] = bodies[first]
        write_tgz(
            tmp_path / "in" / f"{name}.tgz", content | {"icons.json": json.dumps(icons).encode()}
        )
    emoji(tmp_path / "in", tmp_path / "d", *SMALL).check_returncode()
    info = read_dataset_info(tmp_path / "d")
    of = {name: split for split in SPLITS for name in info.splits[split].classes}
    names = list(EMOJI.values())
    assert all(of[a] == of[b] for a, b in zip(names[::2], names[1::2], strict=True))


def test_too_few_sets_are_reported_and_leave_nothing(packages, tmp_path):
    assert "0 emoji are in --min_images=5 of its 4 sets" in fail(
        packages, tmp_path / "d", "--min_images=5"
    )
    (tmp_path / "in").mkdir()
    assert "is empty: fetch packages" in fail(tmp_path / "in", tmp_path / "d")
    write_tgz(tmp_path / "in" / "a.tgz", emoji_set("fxemoji"))
    assert "none of them says which emoji an icon is" in fail(tmp_path / "in", tmp_path / "d")


def test_a_picture_that_names_a_file_stops_it_in_one_line(packages, tmp_path):
    (tmp_path / "in").mkdir()
    for path in packages.iterdir():
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    bodies = dict.fromkeys(EMOJI.values(), '<image href="/etc/passwd"/>')
    write_tgz(tmp_path / "in" / "iconify-json-noto-1.2.3.tgz", package("noto", bodies, codes=EMOJI))
    line = fail(tmp_path / "in", tmp_path / "d")
    assert "noto: the picture 'crescent-moon': it holds <image>" in line


def test_more_supports_than_sets_are_refused(packages, tmp_path):
    assert "needs 5" in fail(packages, tmp_path / "d", "--shots=4")


def test_a_folder_that_holds_something_is_left_alone(packages, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    done = emoji(packages, tmp_path, *SMALL)
    assert done.returncode == 1 and "exists and is not empty" in done.stderr
    assert files(tmp_path) == {"mine.txt": b"precious"}


def test_packages_and_dataset_may_lie_in_a_bucket(bucket, packages, made):
    for path in packages.iterdir():
        objects.upload(path, f"{bucket}/packages/{path.name}")
    done = emoji(f"{bucket}/packages", f"{bucket}/emoji", *SMALL)
    assert done.returncode == 0, done.stderr
    assert files(storage.local_copy(f"{bucket}/emoji")) == files(made)
