"""Packages of icons: packed and unpacked, damaged, and others than emoji."""

import gzip
import json
import os

import pytest

from data_prep.rendering import packages
from fsdit.errors import DataError
from tests.data_prep.rendering.icon_packages import emoji_set, package, write_folder, write_tgz


def names(folder) -> list[str]:
    return [icons.name for icons in packages.read_sets(folder)]


def test_archives_and_unpacked_folders_are_read_in_one_order(tmp_path):
    write_tgz(tmp_path / "a.tgz", emoji_set("fxemoji"))
    write_folder(tmp_path / "b", emoji_set("twemoji"))
    write_folder(tmp_path / "c" / "package", emoji_set("noto"))
    (tmp_path / ".hidden").write_text("x")
    noto, twemoji, fxemoji = packages.read_sets(tmp_path)
    assert (noto.name, twemoji.name, fxemoji.name) == ("noto", "twemoji", "fxemoji")
    assert noto.codes["dog-face"] == ["1f436"] and not fxemoji.codes
    assert noto.source == {
        "version": "1.2.3",
        "license": "MIT",
        "author": "Authors of noto",
        "url": "https://example.org/noto",
    }


def test_an_icon_shows_its_own_part_of_the_plane_or_that_of_its_set(tmp_path):
    files = package("noto", {"a": "<g/>", "b": "<g/>"}, size=36)
    described = json.loads(files["icons.json"])
    described["icons"]["b"] |= {"height": 25.5, "top": 3}
    write_folder(tmp_path / "noto", files | {"icons.json": json.dumps(described).encode()})
    (noto,) = packages.read_sets(tmp_path)
    assert noto.box(noto.icons["a"]) == (0, 0, 36, 36)
    assert noto.box(noto.icons["b"]) == (0, 3, 36, 25.5)


def test_an_alias_that_turns_the_picture_is_no_name_of_it(tmp_path):
    aliases = {"other": {"parent": "a"}, "mirrored": {"parent": "a", "hFlip": True}}
    write_folder(tmp_path / "noto", package("noto", {"a": "<g/>"}, aliases=aliases))
    (noto,) = packages.read_sets(tmp_path)
    assert noto.aliases == {"a": ["other"]}


def changed(name: str, **values) -> dict[str, bytes]:
    files = emoji_set("noto")
    return files | {name: json.dumps(json.loads(files[name]) | values).encode()}


WRONG = {
    "no icons": (
        {k: v for k, v in emoji_set("noto").items() if k != "icons.json"},
        "no icons.json",
    ),
    "other icons": (package("mdi", {"a": "<g/>"}), "'mdi' is no set of emoji in colour"),
    "one colour": (package("emojione-monotone", {"a": "<g/>"}), "no set of emoji in colour"),
    "no JSON": (emoji_set("noto") | {"info.json": b"{"}, "Invalid JSON"),
    "deep JSON": (emoji_set("noto") | {"info.json": b"[" * 10**6}, "not a package of icons"),
    "no body": (changed("icons.json", icons={"a": {}}), r"icons\.a\.body: Field required"),
    "endless size": (changed("icons.json", width=1e300), "width: "),
    "codes": (changed("chars.json", x=1), "not a package of icons: x: "),
}


@pytest.mark.parametrize(("files", "reported"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("packed", [True, False])
def test_a_package_that_is_none_is_named(tmp_path, files, reported, packed):
    path = tmp_path / "one.tgz"
    (write_tgz if packed else write_folder)(path, files)
    with pytest.raises(DataError, match=rf"^{path}: .*{reported}"):
        names(tmp_path)


@pytest.mark.parametrize("cut", [10, 200, -30])
def test_a_damaged_archive_is_named(tmp_path, cut):
    path = write_tgz(tmp_path / "one.tgz", emoji_set("noto"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=rf"{path}: damaged: "):
        names(tmp_path)


def test_a_member_that_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    path = write_tgz(tmp_path / "one.tgz", emoji_set("noto") | {"README.md": bytes(10**6)})
    monkeypatch.setattr(packages, "_MAX_BYTES", 10**5)
    with pytest.raises(DataError, match="holds a file of 1000000 bytes, more than 100000"):
        names(tmp_path)
    assert path.stat().st_size < 10**5


def test_what_is_no_package_is_named(tmp_path):
    write_tgz(tmp_path / "one.tgz", emoji_set("noto"))
    other = tmp_path / "picture.svg"
    other.write_text("<svg/>")
    with pytest.raises(DataError, match=rf"{other} is no package: --packages holds .tgz files"):
        names(tmp_path)
    other.unlink()
    os.mkfifo(tmp_path / "two.tgz")
    with pytest.raises(DataError, match=r"two.tgz is no package"):
        names(tmp_path)


def test_an_archive_that_is_no_tar_is_damaged(tmp_path):
    (tmp_path / "one.tgz").write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(DataError, match=r"one\.tgz: damaged"):
        names(tmp_path)


def test_two_versions_of_a_set_are_refused(tmp_path):
    write_tgz(tmp_path / "a.tgz", emoji_set("noto"))
    write_tgz(tmp_path / "b.tgz", emoji_set("noto"))
    with pytest.raises(DataError, match=r"b.tgz: a second package of noto"):
        names(tmp_path)


def test_a_folder_that_is_not_there_or_empty_says_how_to_fill_it(tmp_path):
    with pytest.raises(DataError, match=f"--packages={tmp_path / 'x'}: No such file"):
        names(tmp_path / "x")
    with pytest.raises(DataError, match="is empty: fetch packages with `npm pack @iconify-json/"):
        names(tmp_path)
