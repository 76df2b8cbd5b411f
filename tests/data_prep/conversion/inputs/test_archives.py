"""Tars and zips with more than plain files: each member is read, or reported in a row."""

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from etils import epath

from data_prep.conversion.inputs import archives, sources, spool
from fsdit.errors import DataError, OutputError
from tests.data_prep.conversion.photos import encoded, photo

MODES = ("w", "w:gz")


def member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def link(name: str, target: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target)


def make_tar(path: Path, members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def opened(path: Path) -> sources.ListedInput:
    return sources.list_input(path, epath.Path(path.parent / "spool"), None, ("image", "label"))


def found(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """(name -> content of what can be read, name -> reason of what is left out)."""
    source = opened(path)
    contents = {entry.name: source.reader.read(entry.place) for entry in source.entries}
    return contents, {name: reason for _, _, name, reason in source.rows}


HARD, SOFT = tarfile.LNKTYPE, tarfile.SYMTYPE
PLAIN = [member("in/ant/1.jpg", b"one"), member("in/bee/1.jpg", b"two")]
# case -> (members, the content of in/ant/2.jpg or a part of the reason why it is left out)
LINKS = {
    "hard link": ([link("in/ant/2.jpg", "in/ant/1.jpg", HARD)], b"one"),
    "hard link with ./": ([link("in/ant/2.jpg", "./in/ant/1.jpg", HARD)], b"one"),
    "hard link to a hard link": (
        [link("in/bee/9.jpg", "in/ant/1.jpg", HARD), link("in/ant/2.jpg", "in/bee/9.jpg", HARD)],
        b"one",
    ),
    "hard link to what comes later": (
        [link("in/ant/2.jpg", "in/ant/3.jpg", HARD), member("in/ant/3.jpg", b"three")],
        b"three",
    ),
    "symbolic link": ([link("in/ant/2.jpg", "1.jpg", SOFT)], b"one"),
    "symbolic link to another folder": ([link("in/ant/2.jpg", "../bee/1.jpg", SOFT)], b"two"),
    "chain of links": (
        [link("in/ant/2.jpg", "3.jpg", SOFT), link("in/ant/3.jpg", "../bee/1.jpg", SOFT)],
        b"two",
    ),
    "link to nowhere": ([link("in/ant/2.jpg", "4.jpg", SOFT)], "no file of the archive"),
    "link to outside": ([link("in/ant/2.jpg", "/etc/passwd", SOFT)], "no file of the archive"),
    "hard link to outside": ([link("in/ant/2.jpg", "/etc/passwd", HARD)], "no file"),
    "circle": (
        [link("in/ant/2.jpg", "3.jpg", SOFT), link("in/ant/3.jpg", "2.jpg", SOFT)],
        "no file of the archive",
    ),
    "link to a folder": ([link("in/ant/2.jpg", "../bee", SOFT)], "no file of the archive"),
    "FIFO": ([member("in/ant/2.jpg", type=tarfile.FIFOTYPE)], "no regular file"),
    "device": ([member("in/ant/2.jpg", type=tarfile.CHRTYPE)], "no regular file"),
    "sparse": ([member("in/ant/2.jpg", type=tarfile.GNUTYPE_SPARSE)], "sparse"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_read_as_its_target_and_other_members_are_reported(tmp_path, name, mode):
    members, expected = LINKS[name]
    contents, rows = found(make_tar(tmp_path / "in.tar", [*PLAIN, *members], mode))
    assert contents["in/ant/1.jpg"] == b"one" and contents["in/bee/1.jpg"] == b"two"
    assert {"in/ant/2.jpg"} <= contents.keys() ^ rows.keys()
    if isinstance(expected, bytes):
        assert contents["in/ant/2.jpg"] == expected
    else:
        assert expected in rows["in/ant/2.jpg"]


@pytest.mark.parametrize("mode", MODES)
def test_a_hard_link_keeps_content_that_a_later_member_replaces(tmp_path, mode):
    newer = [link("in/ant/2.jpg", "in/ant/1.jpg", HARD), member("in/ant/1.jpg", b"newer")]
    contents, rows = found(make_tar(tmp_path / "in.tar", [*PLAIN, *newer], mode))
    assert contents["in/ant/1.jpg"] == b"newer" and contents["in/ant/2.jpg"] == b"one"
    assert rows == {"in/ant/1.jpg": "an older member of this name"}


@pytest.mark.parametrize("behind", ["a second tar", "nothing", "zeros"])
@pytest.mark.parametrize("mode", MODES)
def test_data_after_the_end_of_a_tar_is_reported(tmp_path, mode, behind):
    path = make_tar(tmp_path / "in.tar", PLAIN, "w")
    second = make_tar(tmp_path / "second.tar", [member("in/cat/1.jpg", b"three")])
    more = {"a second tar": second.read_bytes(), "nothing": b"", "zeros": bytes(100_000)}[behind]
    data = path.read_bytes() + more
    path.write_bytes(gzip.compress(data) if mode == "w:gz" else data)
    contents, rows = found(path)
    assert set(contents) == {"in/ant/1.jpg", "in/bee/1.jpg"}
    assert list(rows) == (["in.tar"] if behind == "a second tar" else [])


HEADERS = {
    "damaged": lambda header: b"\xff" * 512,
    "cut": lambda header: header[:100],
    "checksum": lambda header: b"x" + header[1:],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("damage", HEADERS)
def test_a_damaged_header_in_a_tar_is_refused(tmp_path, damage, mode):
    path = make_tar(tmp_path / "in.tar", [*PLAIN, member("in/cat/1.jpg", b"three")])
    data = path.read_bytes()
    place = data.index(b"in/cat/1.jpg")
    header = HEADERS[damage](data[place : place + 512])
    data = data[:place] + header + (b"" if damage == "cut" else data[place + 512 :])
    path.write_bytes(gzip.compress(data) if mode == "w:gz" else data)
    with pytest.raises(DataError, match="damaged tar"):
        opened(path)


@pytest.mark.parametrize("size", [2**30, 2**40])
def test_a_header_that_claims_much_is_not_read_into_memory(tmp_path, size):
    info, _ = member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME)
    info.size = size
    data = info.tobuf(tarfile.GNU_FORMAT) + make_tar(tmp_path / "in.tar", PLAIN).read_bytes()
    (tmp_path / "in.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"damaged tar|not a folder, zip, tar"):
        opened(tmp_path / "in.tar")


def test_many_nested_headers_are_refused(tmp_path):
    info, _ = member("././@LongLink", b"", type=tarfile.GNUTYPE_LONGNAME)
    ones = make_tar(tmp_path / "in.tar", PLAIN).read_bytes()
    place = ones.index(b"in/bee/1.jpg")
    (tmp_path / "in.tar").write_bytes(ones[:place] + info.tobuf() * 5000 + ones[place:])
    with pytest.raises(DataError, match="damaged tar"):
        opened(tmp_path / "in.tar")


def test_only_files_of_a_compressed_tar_that_may_be_images_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1000)
    huge = member("in/ant/huge.jpg", bytes(50_000))
    notes = member("in/ant/1.txt", bytes(50_000))
    contents, rows = found(make_tar(tmp_path / "in.tgz", [*PLAIN, huge, notes], "w:gz"))
    assert set(contents) == {"in/ant/1.jpg", "in/bee/1.jpg"}
    assert rows == {"in/ant/huge.jpg": "a file of 50000 bytes"}
    assert (tmp_path / "spool").stat().st_size == len(b"onetwo")


def test_a_file_that_does_not_begin_as_an_image_is_not_copied_in_full(tmp_path):
    whole = encoded(photo(1))
    members = [
        member("in/ant/1.jpg", whole),
        member("in/ant/zeros.jpg", bytes(2**20)),
        member("in/bee/2.jpg", whole[:700]),
        member("in/bee/3.jpg", b""),
    ]
    contents, rows = found(make_tar(tmp_path / "in.tgz", members, "w:gz"))
    assert contents["in/ant/1.jpg"] == whole and contents["in/bee/2.jpg"] == whole[:700]
    assert 0 < len(contents["in/ant/zeros.jpg"]) < 1000 and contents["in/bee/3.jpg"] == b""
    assert rows == {} and (tmp_path / "spool").stat().st_size < len(whole) + 2000


Usage = namedtuple("Usage", "total used free")


def test_a_copy_stops_before_the_disk_is_full(tmp_path, monkeypatch):
    path = make_tar(
        tmp_path / "in.tgz", [*PLAIN, member("in/ant/2.jpg", encoded(photo(1, 400, 400)))], "w:gz"
    )
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda folder: Usage(10_000, 9_400, 600))
    with pytest.raises(OutputError, match=f"{tmp_path}: no space left for a copy of --input"):
        opened(path)
    assert (tmp_path / "spool").stat().st_size <= len(b"onetwo")


def make_zip(path: Path, contents: dict[str, bytes], **fields) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, content)
    return path


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["ant\\1.jpg", "bee\\1.jpg"], ["ant", "bee"]),
        (["in\\ant\\1.jpg", "in\\bee\\1.jpg"], ["ant", "bee"]),
        (["in/ant\\1.jpg", "in/bee/1.jpg", "in\\cat\\"], ["ant", "bee"]),
        ([".\\ant\\1.jpg", ".\\bee\\1.jpg"], ["ant", "bee"]),
        (["a:b/1.jpg", "c:d/1.jpg"], ["a:b", "c:d"]),
        (["in/a:b/1.jpg", "in/bee/1.jpg"], ["a:b", "bee"]),
    ],
)
def test_names_that_windows_programs_write_are_read(tmp_path, names, classes):
    source = opened(make_zip(tmp_path / "in.zip", dict.fromkeys(names, b"x")))
    assert [entry.label for entry in source.entries] == classes
    assert all(source.reader.read(entry.place) == b"x" for entry in source.entries)
    if not names[-1].endswith("\\") and "in/ant\\1.jpg" not in names:
        tar = make_tar(tmp_path / "in.tar", [member(name, b"x") for name in names])
        assert [entry.label for entry in opened(tar).entries] == classes


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("..\\evil.jpg", "outside"),
        ("a\\..\\..\\evil.jpg", "outside"),
        ("\\evil.jpg", "outside"),
        ("C:/evil.jpg", "outside"),
        ("C:\\evil.jpg", "outside"),
        ("\\\\server\\share\\evil.jpg", "outside"),
        ("ant/evil.jpg\0.png", "a zero byte"),
    ],
)
def test_windows_names_that_lead_out_of_the_archive_are_refused(tmp_path, name, reported):
    path = make_zip(tmp_path / "in.zip", {"ant/1.jpg": b"x", name: b"x"})
    with pytest.raises(DataError, match=rf"member .*evil.*{reported}"):
        opened(path)


def test_a_link_in_a_zip_is_read_as_its_target(tmp_path):
    path = make_zip(tmp_path / "in.zip", {"ant/1.jpg": b"one", "bee/1.jpg": b"two"})
    with zipfile.ZipFile(path, "a") as archive:
        for name, target in {"ant/2.jpg": b"../bee/1.jpg", "ant/3.jpg": b"/etc/passwd"}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    contents, rows = found(path)
    assert contents == {"ant/1.jpg": b"one", "ant/2.jpg": b"two", "bee/1.jpg": b"two"}
    assert rows == {"ant/3.jpg": "a link to /etc/passwd, which is no file of the archive"}


def test_the_last_of_two_members_of_one_name_in_a_zip_is_read(tmp_path):
    path = make_zip(tmp_path / "in.zip", {"in\\ant\\1.jpg": b"old", "in/ant/1.jpg": b"new"})
    contents, rows = found(path)
    assert contents == {"in/ant/1.jpg": b"new"}
    assert rows == {"in/ant/1.jpg": "an older member of this name"}


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_no_damage_of_an_archive_ends_in_a_traceback(tmp_path, kind):
    """One byte in eight is changed, one at a time: the archive is read or refused."""
    folder = tmp_path / "in"
    for label in ("ant", "bee"):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.jpg").write_bytes(label.encode() * 3)
    path = Path(shutil.make_archive(str(tmp_path / "whole"), kind, folder))
    data = path.read_bytes()
    for place in range(0, min(len(data), 6000), 8):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
        try:
            source = opened(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert all(isinstance(entry.name, str) for entry in source.entries)
