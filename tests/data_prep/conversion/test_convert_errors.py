"""Conversions that cannot be done end in one line, and leave nothing behind."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import small_disk_at
from tests.data_prep.conversion.conversions import SMALL, fail, succeed, write_lists
from tests.data_prep.conversion.photos import (
    class_folders,
    encoded,
    files,
    photo,
)
from tests.programs import ROOT, environment, run_module

pytestmark = pytest.mark.medium


def empty(path):
    path.mkdir()


def one_class(path):
    class_folders(path, classes=1)


def flat(path):
    path.mkdir()
    (path / "1.jpg").write_bytes(encoded(photo(1)))


def tricky(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.jpg", b"x")


def text(path):
    path.write_text("hello")


def unreadable(path):
    class_folders(path)
    (path / "class00" / "link.jpg").symlink_to("nowhere.jpg")


WRONG = {
    "no input": (None, (), ["no such file or folder"]),
    "empty folder": (empty, (), ["no class", "--class_depth"]),
    "flat folder": (flat, (), ["no class", "--csv"]),
    "one class": (one_class, (), ["one class ('class00')"]),
    "zip with path tricks": (tricky, (), ["../../evil.jpg"]),
    "neither": (text, (), ["not a folder, zip, tar or Parquet"]),
    "unreadable file": (unreadable, (), ["class00/link.jpg", "cannot be read"]),
    "too few classes": (class_folders, ("--num_classes=60,16,20",), ["96", "has 6"]),
    "no numbers": (class_folders, ("--num_classes=60,x",), ["--num_classes=60,x"]),
    "too few images": (
        class_folders,
        ("--split=vanilla", "--images_per_class=6,3"),
        ["'class00' has 8 images", "needs 9"],
    ),
    "K too large": (class_folders, ("--shots=8",), ["8 images, --shots=8 needs 9"]),
    "no lists": (class_folders, ("--split=csv",), ["train.csv", "--csv"]),
    "no such list": (class_folders, ("--csv=/nowhere/x.csv",), ["/nowhere/x.csv"]),
    "no split folders": (class_folders, ("--split=presplit",), ["for training"]),
    "no colour": (class_folders, ("--background=whyte",), ["--background=whyte"]),
    "wrong choice": (class_folders, ("--format=gif",), ["format", "gif"]),
    "class depth": (class_folders, ("--class_depth=3",), ["no class"]),
}


@pytest.mark.parametrize(("make", "flags", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_reported_in_one_line_and_leaves_nothing(tmp_path, make, flags, words):
    source = tmp_path / "in"
    if make:
        make(source)
    line = fail(source, tmp_path / "d", *SMALL, *flags)
    for word in words:
        assert word in line
    # The working folder may stay, to be continued; it is never taken for a dataset.
    assert not (tmp_path / "d.partial" / "dataset.json").exists()


def test_a_list_that_names_absent_files_is_reported_in_one_line(tmp_path):
    write_lists(tmp_path / "in", {"train": [0, 1]})
    (tmp_path / "in" / "images" / "n0000000000000003.jpg").unlink()
    line = fail(tmp_path / "in", tmp_path / "d", "--split=csv")
    assert "train.csv" in line and "1 of its files" in line and "n0000000000000003.jpg" in line
    assert not (tmp_path / "d.partial").exists()


def test_a_list_without_labels_is_reported_in_one_line(tmp_path):
    write_lists(tmp_path / "in", {"train": [0, 1]})
    (tmp_path / "in" / "train.csv").write_text("filename\nn0000000000000003.jpg\n")
    assert "no column 'label'" in fail(tmp_path / "in", tmp_path / "d", "--split=csv")


def test_a_folder_with_another_dataset_is_left_alone(folder, converted):
    line = fail(folder, converted, *SMALL)
    assert str(converted) in line and "not empty" in line
    assert not converted.with_name("d.partial").exists()


def test_an_output_that_cannot_be_made_is_reported_in_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("precious")
    line = fail(folder, tmp_path / "file" / "d", *SMALL)
    assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "precious"


def test_after_a_full_disk_the_same_command_continues(folder, converted, tmp_path):
    """A limit on the size of files stands for a full disk: the system refuses the same writes."""
    program = [sys.executable, "-m", "data_prep.convert"]
    command = [*program, f"--input={folder}", f"--output_dir={tmp_path}/d", *SMALL]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *command],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "d.partial" in line
    assert not (tmp_path / "d").exists()
    assert "going on with" in succeed(folder, tmp_path / "d", *SMALL)
    assert files(tmp_path / "d") == files(converted)


@pytest.fixture
def small_disk(tmp_path):
    with small_disk_at(tmp_path / "disk", size="200k") as disk:
        yield disk


@pytest.mark.parametrize("kind", [pytest.param("folder", marks=pytest.mark.large), "tar"])
def test_a_disk_without_space_is_reported_with_the_output(folder, small_disk, tmp_path, kind):
    source = folder
    if kind == "tar":  # the working folder has no space for a copy of the tar
        source = Path(shutil.make_archive(str(tmp_path / "in"), "gztar", folder))
        (small_disk / "filler").write_bytes(bytes(150_000))
    line = fail(source, small_disk / "d", *SMALL)
    assert str(small_disk / "d.partial") in line and "o space left" in line


def test_the_beam_runner_without_beam_says_how_to_install_it(folder, tmp_path):
    flags = [f"--input={folder}", f"--output_dir={tmp_path}/d", *SMALL, "--runner=beam"]
    done = run_module("tests.data_prep.conversion.convert_without_beam", *flags)
    assert done.returncode == 1
    assert done.stderr == "error: --runner=beam: install it with pip install 'fsdit[beam]'\n"
