"""Names: which can be those of images, which may be part of a path, and how they are shown."""

import posixpath
import re

# Suffixes of files that lie beside images and are none: captions, labels, lists, notes, arrays,
# weights, programs, checksums, links, sound and film. Archives and unknown suffixes are not
# here: what may hold images is opened, and named where it cannot be used.
_OTHER_SUFFIXES = """
.txt .caption .captions .tags .json .jsonl .ndjson .geojson .csv .tsv .lst .xml .yaml .yml .toml
.ini .cfg .conf .log .md .markdown .rst .html .htm .pbtxt .names .bib .tex .pdf .doc .docx .odt
.rtf .xls .xlsx .ods
.npy .npz .mat .pkl .pickle .pt .pth .ckpt .safetensors .h5 .hdf5 .parquet .arrow .feather
.msgpack .db .sqlite .sqlite3 .mdb
.py .pyc .ipynb .sh .bat .ps1 .m .js .css
.md5 .sha1 .sha256 .sha512 .crc .sfv .lnk .url .webloc .torrent .xmp .aae .pp3 .cls
.array_record .partial
.mp3 .wav .flac .ogg .m4a .mp4 .m4v .avi .mov .mkv .webm
"""
_OTHER_NAMES = """
readme license licence copying notice authors changelog makefile contents index manifest icon
"""
_SUFFIXES = frozenset(_OTHER_SUFFIXES.split())
_NAMES = frozenset(_OTHER_NAMES.split())
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def is_image_name(name: str) -> bool:
    """Whether a file may be an image by its name; the last part of a path decides.

    False for hidden files and for names that are plainly of something else ("1.txt",
    "desktop.ini", "README"), in any case. A file of an unknown suffix may be one.
    """
    base = posixpath.basename(name).strip().lower()  # macOS calls a folder's icon "Icon\r"
    if base.startswith(".") or base in _NAMES:
        return False
    return posixpath.splitext(base)[1] not in _SUFFIXES


def is_plain_name(name: str) -> bool:
    """Whether a name may be part of a path: one folder or file, on every system."""
    return len(name) <= 128 and _PLAIN.fullmatch(name) is not None


def printable(text: str) -> str:
    """Text for a terminal or a table: what would steer it is written as an escape.

    Control characters, line separators, what turns the direction of writing, and what is no
    Unicode text. Letters of every script stay.
    """
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
