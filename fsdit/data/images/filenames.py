"""Names of files: which can be those of images, and which may be part of a path."""

import posixpath
import re

# Suffixes of files that lie beside images and are none: captions, labels, lists, notes, arrays,
# weights, programs, checksums, links, sound and film. Archives and unknown suffixes are not in
# the list: such a file may hold an image, so it is opened, and reported where it cannot be used.
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
    """Whether a name may be that of one folder or file on every system."""
    return len(name) <= 128 and _PLAIN.fullmatch(name) is not None
