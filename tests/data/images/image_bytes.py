"""Encoded images whose headers give the size that a test wants."""

import io

from PIL import Image


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (16, 16)).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_of(width: int, height: int, mode: str, **options) -> bytes:
    data = encoded("JPEG", mode, **options)
    start = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    return data[:start] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[start + 4 :]
