"""Image files that Pillow does not write, made from arrays."""

import struct
import zlib

import numpy as np


def packed(values: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Bytes of each row of `values`, `bits` a value, the first value in a byte's highest bits."""
    if bits >= 16:
        kind = {16: "u2", 32: "u4"}[bits] if values.dtype.kind == "u" else f"i{bits // 8}"
        return [row.tobytes() for row in np.ascontiguousarray(values.astype(order + kind))]
    rows = values.reshape(len(values), -1).astype(np.uint16)
    each = (rows[:, :, None] >> np.arange(bits)[::-1]) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in each]


def png(values: np.ndarray, bits: int, transparent: int | tuple | None = None) -> bytes:
    """A PNG of grey values (H, W), of grey with alpha (H, W, 2) or of RGB (H, W, 3)."""
    kind = {1: 0, 2: 4, 3: 2}[values.shape[2] if values.ndim == 3 else 1]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if transparent is not None:
        chunks.append((b"tRNS", np.array(transparent, ">u2").tobytes()))
    rows = b"".join(b"\0" + row for row in packed(values, bits))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: np.ndarray, bits: int, photometric: int = 1, order: str = "<") -> bytes:
    """A TIFF of one raw strip. photometric: 0 white is zero, 1 black is zero, 2 RGB, 8 LAB."""
    data = b"".join(packed(values, bits, order))
    channels = values.shape[2] if values.ndim == 3 else 1
    where = 8 + len(data) + len(data) % 2
    tags = [(256, values.shape[1]), (257, values.shape[0]), (259, 1), (262, photometric)]
    tags += [(273, 8), (277, channels), (278, values.shape[0]), (279, len(data))]
    tags += [(339, 2 if values.dtype.kind == "i" else 1)]
    bits_place, many = (
        where + 2 + 12 * (len(tags) + 1) + 4,
        struct.pack(f"{order}{channels}H", *[bits] * channels),
    )
    entries = {tag: struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags}
    entries[258] = struct.pack(order + "HHI", 258, 3, channels) + (
        many.ljust(4, b"\0") if channels < 3 else struct.pack(order + "I", bits_place)
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", where)
    folder = struct.pack(order + "H", len(entries)) + b"".join(
        v for _, v in sorted(entries.items())
    )
    return head + data.ljust(where - 8, b"\0") + folder + bytes(4) + many
