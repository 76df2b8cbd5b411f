"""What is found in each kind of input: names, classes, splits and bytes."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from etils import epath
from pyarrow import parquet

from data_prep.conversion.inputs import classes, sources
from data_prep.conversion.inputs.entries import File, images_of
from fsdit.errors import DataError
from tests.data_prep.conversion.photos import class_folders, encoded, files, photo


@pytest.fixture
def folder(tmp_path):
    """Three classes of two images."""
    return class_folders(tmp_path / "in", classes=3, images=2)


def opened(path: Path, class_depth=None, columns=("image", "label")) -> sources.ListedInput:
    spool = epath.Path(path).parent / "spool"
    return sources.list_input(path, spool, class_depth, columns)


def contents(source: sources.ListedInput) -> dict[tuple[str, str], bytes]:
    """(class, name) -> bytes, read as a worker would."""
    reader = pickle.loads(pickle.dumps(source.reader))
    return {(e.label, e.name): reader.read(e.place) for e in source.entries}


def expected(folder: Path, prefix: str = "") -> dict[tuple[str, str], bytes]:
    return {(n.split("/")[-2], prefix + n): data for n, data in files(folder).items()}


def labels(names: list[str], class_depth=None) -> dict[str, tuple[str, str | None]]:
    found = classes.classify([File(n, 1, n) for n in names], class_depth)
    return {e.name: (e.label, e.split) for e in found}


def make_zip(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files(folder).items():
            archive.writestr(prefix + name, data)
    return path


def make_tar(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, "photos")
    return path


def test_a_folder_of_class_folders_is_read(folder):
    source = opened(folder)
    assert contents(source) == expected(folder)
    names = [e.name for e in source.entries]
    assert names == sorted(names)


def test_a_zip_is_read_in_place(folder, tmp_path):
    path = make_zip(folder, tmp_path / "in.zip", "photos/")
    assert contents(opened(path)) == expected(folder, "photos/")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "in.zip"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_is_read_plain_or_compressed(folder, tmp_path, mode):
    path = make_tar(folder, tmp_path / "in.tar", mode)
    assert contents(opened(path)) == expected(folder, "photos/")
    spooled = {"spool"} if mode != "w" else set()
    assert {p.name for p in tmp_path.iterdir()} == {"in", "in.tar"} | spooled


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine")])
@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("kind", ["named", "number", "text"])
def test_parquet_files_that_hubs_export_are_read(tmp_path, columns, struct, kind):
    pictures = [encoded(photo(i)) for i in range(6)]
    classes = [0, 1, 2, 0, 1, 2]  # not class by class
    names = ["ant", "bee", "cat"]
    images = [{"bytes": b, "path": f"{i}.jpg"} if struct else b for i, b in enumerate(pictures)]
    values = [names[c] for c in classes] if kind == "text" else classes
    table = pa.table({columns[0]: images, columns[1]: values})
    if kind == "named":
        features = {columns[1]: {"names": names, "_type": "ClassLabel"}}
        note = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(note)
    (tmp_path / "data").mkdir()
    parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    source = opened(tmp_path / "data", columns=columns)
    assert list(contents(source).values()) == pictures
    assert {e.split for e in source.entries} == {"train"}
    shown = [str(c) if kind == "number" else names[c] for c in classes]
    assert [e.label for e in source.entries] == shown


def test_a_row_without_image_is_an_empty_file(tmp_path):
    images = pa.array([{"bytes": None, "path": "gone.jpg"}, None, {"bytes": b"x", "path": None}])
    parquet.write_table(pa.table({"image": images, "label": [0, 0, 0]}), tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet")
    assert list(contents(source).values()) == [b"", b"", b"x"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"image": [b"x"], "class": [0]}, "no column --label_column=label; has image, class"),
        ({"label": [0]}, "no column --image_column=image"),
        ({"image": ["a.jpg"], "label": [0]}, "--image_column=image holds string"),
        ({"image": [b"x"], "label": [0.5]}, "--label_column=label holds double"),
    ],
)
def test_parquet_files_with_other_columns_are_refused(tmp_path, table, message):
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "a.parquet")


def test_the_class_is_the_holding_folder_or_a_chosen_depth():
    names = ["animals/cat/black/1.jpg", "animals/dog/2.jpg", "toys/cat/3.jpg"]
    assert [c for c, _ in labels(names).values()] == ["black", "dog", "cat"]
    assert [c for c, _ in labels(names, 1).values()] == ["animals", "animals", "toys"]
    deeper = [c for c, _ in labels(names, 2).values()]
    assert deeper == ["animals/cat", "animals/dog", "toys/cat"]


@pytest.mark.parametrize("prefix", ["", "mini/", "a/b/"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_are_recognised_below_what_all_share(prefix, val):
    names = [f"{prefix}{s}/{c}/1.jpg" for s in ("train", val, "test") for c in ("ant", "bee")]
    found = labels(names)
    assert [found[n] for n in names] == [
        (c, s) for s in ("train", "val", "test") for c in ("ant", "bee")
    ]


def test_a_class_may_be_called_train():
    assert labels(["train/1.jpg", "plane/1.jpg"]) == {
        "train/1.jpg": ("train", None),
        "plane/1.jpg": ("plane", None),
    }


def test_an_image_outside_class_folders_has_no_class():
    found = labels(["cover.jpg", "ant/1.jpg", "bee/1.jpg"])
    assert found["cover.jpg"] == ("", None)
    found = labels(["mini/cover.jpg", "mini/ant/1.jpg", "mini/bee/1.jpg"])
    assert found["mini/cover.jpg"] == ("", None)


def test_files_that_are_no_images_by_name_are_counted_by_kind():
    hidden = ["ant/.DS_Store", "__MACOSX/ant/._1.jpg", ".git/config", "lost+found/1.jpg"]
    beside = ["README.md", "ant/1.txt", "bee/1.TXT", "ant/Thumbs.db", "LICENSE", "bee/desktop.ini"]
    images = ["ant/1.jpg", "bee/1.jpg"]
    files = [File(n, 1, n) for n in (*hidden, *beside, *images)]
    found, others = images_of(files)
    assert [file.path for file in found] == images
    assert others == {".*": 4, "*.md": 1, "*.txt": 2, "*.db": 1, "*.ini": 1, "LICENSE": 1}


def test_links_to_class_folders_are_followed_but_not_in_circles(folder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for sub in folder.iterdir():
        (linked / sub.name).symlink_to(sub)
    (folder / "class00" / "circle").symlink_to(linked)
    assert contents(opened(linked)) == expected(folder)


def test_names_that_are_no_text_are_kept_readable(tmp_path):
    for name in (b"ant", b"b\xff"):
        folder = tmp_path / "in" / os.fsdecode(name)
        folder.mkdir(parents=True)
        (folder / os.fsdecode(b"\xfe.jpg")).write_bytes(name)
    assert contents(opened(tmp_path / "in")) == {
        ("ant", "ant/\\xfe.jpg"): b"ant",
        ("b\\xff", "b\\xff/\\xfe.jpg"): b"b\xff",
    }


@pytest.mark.parametrize("name", ["../evil.jpg", "a/../../evil.jpg", "/etc/evil.jpg", "C:\\e.jpg"])
def test_archives_with_path_tricks_are_refused_by_name(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("ant/1.jpg", b"x")
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, b"x")
    with pytest.raises(DataError, match=r"evil|e\.jpg") as error:
        opened(tmp_path / "in.zip")
    assert "outside the archive" in str(error.value)
    for mode in ("w", "w:gz"):
        with tarfile.open(tmp_path / "in.tar", mode) as archive:
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        with pytest.raises(DataError, match="outside the archive"):
            opened(tmp_path / "in.tar")
    assert {p.name for p in tmp_path.iterdir()} <= {"in.zip", "in.tar", "spool"}


def test_links_and_devices_in_a_tar_are_no_files(folder, tmp_path):
    path = make_tar(folder, tmp_path / "in.tar")
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"photos/class00/{kind.decode()}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert contents(opened(path)) == expected(folder, "photos/")


def test_the_last_of_two_members_of_one_name_in_a_tar_is_read(tmp_path):
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for data in (b"old", b"newer"):
            member = tarfile.TarInfo("a/ant/1.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert list(contents(opened(tmp_path / "in.tar")).values()) == [b"newer"]


@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("kind", ["zip", "tar", "w:gz", "w:xz"])
def test_a_damaged_archive_is_refused_or_says_which_member(folder, tmp_path, kind, keep):
    path = tmp_path / "in.archive"
    make_zip(folder, path) if kind == "zip" else make_tar(folder, path, kind.replace("tar", "w"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    try:
        source = opened(path)
    except DataError as error:
        assert str(path) in str(error)
    else:  # a plain tar may lose its end: what is left is listed, what is cut is not read
        assert kind == "tar"
        whole = {name: data for (_, name), data in expected(folder, "photos/").items()}
        for entry in source.entries:
            try:
                assert source.reader.read(entry.place) == whole[entry.name]
            except OSError as error:
                assert "ends after" in str(error)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ant/1.jpg", b"x")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag for encryption in the zip's directory
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"ant/1.jpg.* is encrypted"):
        opened(path)


def test_files_of_another_kind_and_missing_ones_are_refused(tmp_path):
    (tmp_path / "in.txt").write_text("hello")
    with pytest.raises(DataError, match=r"in.txt: not a folder, zip, tar or Parquet file"):
        opened(tmp_path / "in.txt")
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        opened(tmp_path / "nowhere")
