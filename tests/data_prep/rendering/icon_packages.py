"""Small packages of emoji, in the form that npm writes."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

# code points -> name; a picture is a square whose place and size depend on the emoji
EMOJI = {
    "1f600": "grinning-face",
    "1f436": "dog-face",
    "1f355": "pizza",
    "1f697": "automobile",
    "2764-fe0f": "red-heart",
    "1f3e0": "house",
    "1f319": "crescent-moon",
    "1f334": "palm-tree",
    "1f680": "rocket",
    "1f511": "key",
}
_COLOURS = {"noto": "red", "twemoji": "green", "fluent-emoji": "blue", "fxemoji": "black"}


def square(index: int, colour: str) -> str:
    x, y, side = 3 * index, 30 - 2 * index, 8 + 2 * index
    return f'<path fill="{colour}" d="M{x} {y}h{side}v{side}h-{side}z"/>'


def package(
    name: str,
    icons: Mapping[str, str],
    codes: Mapping[str, str] | None = None,
    aliases: Mapping[str, dict] | None = None,
    size: float = 64,
) -> dict[str, bytes]:
    """Files of a package. icons: name -> body. codes: code points -> name."""
    described = {
        "icons.json": {
            "prefix": name,
            "icons": {icon: {"body": body} for icon, body in icons.items()},
            "aliases": aliases or {},
            "width": size,
            "height": size,
        },
        "info.json": {
            "author": {"name": f"Authors of {name}", "url": f"https://example.org/{name}"},
            "license": {"title": "MIT", "spdx": "MIT"},
        },
        "chars.json": codes or {},
        "package.json": {"name": f"@iconify-json/{name}", "version": "1.2.3"},
    }
    return {file: json.dumps(values).encode() for file, values in described.items()}


def emoji_set(name: str) -> dict[str, bytes]:
    """A package with all of EMOJI: fxemoji writes names in one word, two have code points."""
    names = EMOJI.values()
    if name == "fxemoji":
        names = [emoji.replace("-", "") for emoji in names]
    icons = {icon: square(i, _COLOURS[name]) for i, icon in enumerate(names)}
    return package(name, icons, EMOJI if name in ("noto", "twemoji") else None)


def write_tgz(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def write_all(folder: Path) -> Path:
    """Writes four sets as npm packs them."""
    folder.mkdir()
    for name in _COLOURS:
        write_tgz(folder / f"iconify-json-{name}-1.2.3.tgz", emoji_set(name))
    return folder
