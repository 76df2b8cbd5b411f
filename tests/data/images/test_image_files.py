"""Files that are opened as images, in conversion, in readers and as supports."""

import ast
import os
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from fsdit.data import records
from fsdit.data.images import image_files
from fsdit.data.images.image_files import UnusableImageError, opened, read_file
from fsdit.data.images.photos import read_photo
from fsdit.errors import DataError
from tests.conftest import ROOT
from tests.data.images.image_bytes import encoded, jpeg_of

PNG = records.encode_pixels(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto\n"


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header gives this size."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + PNG[24:29]
    return PNG[:12] + header + zlib.crc32(header).to_bytes(4, "big") + PNG[33:]


def webp_of(width: int, height: int) -> bytes:
    data = encoded("WEBP")
    start = data.index(b"\x9d\x01\x2a") + 3
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return data[:start] + size + data[start + 4 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image of a known format"),
        (EPS, "not an image of a known format"),
        (PNG[:-30], "cannot be decoded"),
        (png_of(8193, 8192), "8193x8192 pixels, more than 67108864 in all"),
        # The largest size allowed: image and result, 4 bytes a pixel each, take 512 MiB.
        (png_of(8192, 8192), "cannot be decoded"),
        (jpeg_of(8192, 8000, "RGB", progressive=True), "JPEG take about 625 MiB to decode, more"),
        (jpeg_of(8192, 6000, "CMYK", progressive=True), "JPEG take about 562 MiB"),
        (webp_of(6500, 6500), "6500x6500 pixels of WEBP take about 644 MiB to decode, more than 5"),
    ],
)
def test_an_unusable_image_is_refused_with_a_reason(data, reason, tmp_path):
    with pytest.raises(UnusableImageError, match=reason), opened(data) as image:
        image.load()
    with pytest.raises(DataError, match=f"image cannot be decoded: .*{reason}"):
        records.decode_pixels(data, 3)
    path = tmp_path / "support.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"support\.png: .*{reason}"):
        read_photo(path, 16, 3)


def test_a_record_starts_no_program(tmp_path, monkeypatch):
    """Pillow starts Ghostscript to decode EPS files."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(DataError, match="not an image of a known format"):
        records.decode_pixels(EPS, 3)
    assert not started.exists()


def no_file(path):
    pass


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**28 + 1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_file, "No such file or directory"),
        (fifo, "not a regular file"),
        (device, "not a regular file"),
        (huge, "a file of 268435457 bytes, more than 268435456"),
        (lambda path: path.mkdir(), "not a regular file"),
    ],
    ids=["missing", "FIFO", "device", "huge", "folder"],
)
def test_a_support_that_is_no_regular_file_of_moderate_size_is_refused(make, reason, tmp_path):
    path = tmp_path / "support.png"
    make(path)
    with pytest.raises(DataError, match=rf"support\.png: {reason}"):
        read_photo(path, 16, 3)


def test_a_link_to_a_picture_is_read(tmp_path):
    (tmp_path / "picture.png").write_bytes(PNG)
    (tmp_path / "link.png").symlink_to("picture.png")
    assert read_file(tmp_path / "link.png") == PNG


def test_every_format_is_known_to_pillow():
    Image.init()
    assert set(image_files._FORMATS) <= set(Image.OPEN)


def test_images_are_opened_only_with_a_list_of_formats():
    """Pillow's default list has EPS, for which Pillow starts a program."""
    calls = [
        (path.name, {keyword.arg for keyword in node.keywords})
        for path in (*ROOT.glob("fsdit/**/*.py"), *ROOT.glob("data_prep/**/*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert {name for name, _ in calls} == {"image_files.py", "inception.py"}
    assert all(keywords == {"formats"} for _, keywords in calls)
