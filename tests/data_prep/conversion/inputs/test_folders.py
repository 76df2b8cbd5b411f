"""Folders with devices, FIFOs, links, folders that cannot be read, and odd names."""

import os
import socket
import unicodedata
from pathlib import Path

import pytest
from etils import epath

from data_prep.conversion.inputs import classes, folders, lists, reading, sources
from data_prep.conversion.inputs.entries import File
from data_prep.conversion.inputs.reading import read_input
from fsdit.data.images.image_files import UnusableImageError
from fsdit.errors import DataError
from tests.data_prep.conversion.photos import class_folders, files


def opened(path: Path, class_depth=None, csv=()) -> reading.Input:
    spool = epath.Path(path.parent / "spool")
    return read_input(path, spool, class_depth, ("image", "label"), list(csv))


@pytest.fixture
def folder(tmp_path) -> Path:
    return class_folders(tmp_path / "in", classes=3, images=2)


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path has a limit
        end.bind(path.name)
        os.chdir(here)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.parents[2] / "fifo")
    path.symlink_to("../../fifo")


SPECIAL = {
    "FIFO": (os.mkfifo, "a FIFO"),
    "socket": (bind_socket, "a socket"),
    "endless device": (lambda p: p.symlink_to("/dev/zero"), "a device"),
    "empty device": (lambda p: p.symlink_to("/dev/null"), "a device"),
    "link to a FIFO": (link_to_fifo, "a FIFO"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_file_that_is_not_regular_is_reported_and_not_opened(folder, kind):
    make, reported = SPECIAL[kind]
    make(folder / "class01" / "odd.jpg")
    found = opened(folder)
    assert {e.name for e in found.entries} == {n for n in files(folder) if "odd" not in n}
    assert list(found.rows) == [("", "", "class01/odd.jpg", f"{reported}, not a regular file")]
    with pytest.raises(UnusableImageError, match="not a regular file"):
        folders.FolderReader(str(folder)).read("class01/odd.jpg")


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("flag", ["--input", "--csv"])
def test_an_input_or_a_list_that_is_no_regular_file_is_refused(folder, tmp_path, kind, flag):
    (tmp_path / "a").mkdir()
    odd = tmp_path / "a" / "b" / "odd.csv"
    odd.parent.mkdir()
    SPECIAL[kind][0](odd)
    with pytest.raises(DataError, match=rf"{flag}={odd}: .*regular file"):
        opened(odd) if flag == "--input" else opened(folder, csv=[odd])


@pytest.mark.parametrize("place", ["class01", "class01/inner", "."])
def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch, place):
    """The test raises the error itself, since root may read every folder."""
    (folder / "class01" / "inner").mkdir()
    denied = str((folder / place).resolve())
    scandir = os.scandir

    def refuse(path):
        if str(Path(path).resolve()) == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=rf"{folder / place} cannot be read: Permission denied"):
        opened(folder)


def test_a_folder_that_two_links_lead_to_is_read_once_and_reported(folder, tmp_path):
    other = class_folders(tmp_path / "other", classes=1, images=2) / "class00"
    (folder / "zebra").symlink_to(other)
    (folder / "zoo").symlink_to(other)
    found = opened(folder)
    assert {e.label for e in found.entries} == {"class00", "class01", "class02", "zebra"}
    assert list(found.rows) == [("", "", "zoo", "the same folder as zebra")]


def test_hidden_and_system_folders_are_not_entered(folder):
    for name in (".git", "lost+found", "@eaDir"):
        (folder / name).mkdir()
        (folder / name / "1.jpg").write_bytes(b"x")
    found = opened(folder)
    assert {e.label for e in found.entries} == {"class00", "class01", "class02"}
    assert [row[2:] for row in found.rows] == [(".*", "3 files that are by their names no images")]
    assert list(found.notes) == ["passed over, by their names no images: 3 .*"]


def entries_of(*names: str, class_depth=None):
    return classes.classify([File(n, 1, n) for n in names], class_depth)


SAME_NAMES = {
    "alphabets": (
        [f"{a}/character0{i}/1.png" for a in ("Greek", "Latin") for i in (1, 2)],
        r"'character01' is the name of 2 folders \(Greek/character01, Latin/character01\), and 1 "
        "more names likewise: --class_depth=2 tells",
    ),
    "alphabets below what all share": (
        [f"o/back/{a}/c{i}/1.png" for a in ("Greek", "Korean", "Latin") for i in (1, 2)],
        r"'c1' is the name of 3 folders \(o/back/Greek/c1, o/back/Korean/c1, ...\).*depth=2 tells",
    ),
    "a folder called images in each class": (
        [f"n{i}/images/1.png" for i in range(4)],
        "'images' is the name of 4 folders .*: --class_depth=1 tells",
    ),
    "the same below split folders": (
        [f"{s}/n{i}/images/1.png" for s in ("train", "val") for i in range(2)],
        r"'images' is the name of 2 folders \(train/n0/images.*: --class_depth=1 tells",
    ),
    "two folders for one split": (
        ["val/ant/1.png", "validation/ant/2.png", "train/bee/1.png"],
        r"'ant' is the name of 2 folders \(val/ant, validation/ant\): rename them",
    ),
}


@pytest.mark.parametrize(("names", "reported"), SAME_NAMES.values(), ids=SAME_NAMES.keys())
def test_folders_of_one_name_are_not_merged(names, reported):
    with pytest.raises(DataError, match=reported):
        classes.check_same_names(entries_of(*names))


@pytest.mark.parametrize(
    "names",
    [
        ["train/ant/1.png", "val/ant/2.png", "test/ant/3.png"],
        ["animals/cat/1.png", "animals/dog/1.png", "toys/car/1.png"],
        ["ant/1.png", "bee/1.png", "bee/2.png"],
        [f"{unicodedata.normalize(form, 'café')}/{form}.png" for form in ("NFC", "NFD")],
    ],
)
def test_folders_without_a_clash_of_names_are_accepted(names):
    classes.check_same_names(entries_of(*names))


def test_one_name_in_two_forms_of_unicode_is_one_class_and_reported():
    names = [f"{unicodedata.normalize(form, 'café')}/{form}.png" for form in ("NFC", "NFD")]
    found = entries_of(*names, "thé/1.png")
    assert {e.label for e in found} == {"café", "thé"}
    (note,) = classes.spellings(found)
    assert note.startswith("'café': folders whose names differ only in their form of Unicode")


def test_only_images_decide_which_folders_are_splits(tmp_path):
    for split in ("train", "val", "test"):
        class_folders(tmp_path / "in" / "mini" / split, classes=2, images=1)
    for name in ("README.md", "labels/all.txt", ".gitattributes", "mini/LICENSE"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    found = opened(tmp_path / "in")
    assert {(e.split, e.label) for e in found.entries} == {
        (s, c) for s in ("train", "val", "test") for c in ("class00", "class01")
    }


def test_one_split_folder_is_a_split():
    found = entries_of("mini/train/ant/1.jpg", "mini/train/bee/1.jpg")
    assert [(e.split, e.label) for e in found] == [("train", "ant"), ("train", "bee")]
    assert [e.split for e in entries_of("train/1.jpg", "train/2.jpg")] == [None, None]


NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
HEADER = "filename,label"
LISTS = {
    "other form of Unicode": (f"images/{NFD}.jpg", HEADER, f"{NFC}.jpg,ant"),
    "other form, the other way": (f"images/{NFC}.jpg", HEADER, f"images/{NFD}.jpg,ant"),
    "dot": ("images/1.jpg", HEADER, "./images/1.jpg,ant"),
    "dots": ("images/1.jpg", HEADER, "../images/1.jpg,ant"),
    "backslash": ("images/1.jpg", HEADER, "images\\1.jpg,ant"),
    "dot and backslash": ("images/1.jpg", HEADER, ".\\images\\1.jpg,ant"),
    "the input's own name": ("images/1.jpg", HEADER, "in/images/1.jpg,ant"),
    "absolute": ("images/1.jpg", HEADER, "/data/in/images/1.jpg,ant"),
    "capitals": ("images/1.jpg", "Filename,Label", "1.jpg,ant"),
    "spaces": ("images/1.jpg", " filename , label ", " 1.jpg , ant "),
    "quotes": ("images/1.jpg", '"filename","label"', '"1.jpg","ant"'),
    "more columns": ("images/1.jpg", "id,LABEL,size,FileName", "7,ant,9,1.jpg"),
    "byte order mark": ("images/1.jpg", "\ufefffilename,label", "1.jpg,ant"),
    "semicolons": ("images/1.jpg", "filename;label", "1.jpg;ant"),
    "tabs": ("images/1.jpg", "filename\tlabel", "1.jpg\tant"),
    "listed twice alike": ("images/1.jpg", HEADER, "1.jpg,ant\nimages/1.jpg,ant"),
    "empty lines": ("images/1.jpg", HEADER, "\n1.jpg,ant\n\n"),
    "a backslash in the file's name": ("images/a\\1.jpg", HEADER, "a\\1.jpg,ant"),
}


@pytest.mark.parametrize(("name", "header", "line"), LISTS.values(), ids=LISTS.keys())
def test_a_list_finds_its_files_however_it_is_written(tmp_path, name, header, line):
    (tmp_path / "val.csv").write_text(f"{header}\n{line}\n", "utf-8")
    found, rows = lists.relabel(entries_of(name), [tmp_path / "val.csv"], "/data/in")
    assert [(e.place, e.label, e.split) for e in found] == [(name, "ant", "val")]
    assert rows == []


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("filename,label\n2.jpg,ant\n", "1 of its files are not in --input, the first is '2.jpg'"),
        ("filename,label\nother/1.jpg,ant\n", "1 of its files are not in"),
        ("file,label\n1.jpg,ant\n", "no column 'filename'"),
        ("filename,Label,label\n1.jpg,a,b\n", "two columns 'label'"),
        ("", "no column 'filename'"),
        ("filename,label\n1.jpg\n", "line 2: no filename or no label"),
    ],
)
def test_a_list_that_is_wrong_says_where(tmp_path, text, reported):
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(DataError, match=reported):
        lists.relabel(entries_of("images/1.jpg"), [tmp_path / "val.csv"], "/data/in")


def test_names_that_would_steer_a_terminal_are_escaped(tmp_path):
    (tmp_path / "in" / "\x1b[31mred").mkdir(parents=True)
    (tmp_path / "in" / "\x1b[31mred" / "a\nb\u202egpj.jpg").write_bytes(b"x")
    (entry,) = sources.list_input(
        tmp_path / "in", epath.Path(tmp_path / "s"), None, ("image", "label")
    ).entries
    assert entry.name == "\\x1b[31mred/a\\nb\\u202egpj.jpg"
    assert entry.label == "\\x1b[31mred"
