"""Packages of emoji as `npm pack` fetches them: the icons, names and licence of one set.

The format is Iconify's (https://iconify.design/docs/types/iconify-json.html): `icons.json` holds
the insides of SVG pictures by name, `chars.json`, where a package has one, the code points that
an icon stands for, and `info.json` author and licence. Archives are read in place.
"""

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pydantic

from data_prep.conversion.inputs.entries import is_hidden, shown_name
from fsdit.errors import DataError, first_line, system_text

# The emoji sets in colour, in the order in which they name a class.
SETS = (
    "noto", "twemoji", "openmoji", "fluent-emoji-flat", "fluent-emoji", "noto-v1", "emojione",
    "emojione-v1", "fxemoji", "streamline-emojis",
)  # fmt: skip
_FILES = ("package.json", "info.json", "icons.json", "chars.json")
_OPTIONAL = "chars.json"
_MAX_BYTES = 2**28  # of a file; the largest of the published packages is 104 MB
_MAX_BODY = 2**21  # characters of one picture; the longest has 0.9 million

_Length = Annotated[float, pydantic.Field(gt=0, le=1e5)]
_Offset = Annotated[float, pydantic.Field(ge=-1e5, le=1e5)]
_Text = Annotated[str, pydantic.Field(max_length=1000)]


class Icon(pydantic.BaseModel, frozen=True):
    """One picture: what its <svg> element holds, and the part of the plane that it shows.

    None: as its set says. hidden: whether the set has withdrawn it.
    """

    body: Annotated[str, pydantic.Field(max_length=_MAX_BODY)]
    left: _Offset | None = None
    top: _Offset | None = None
    width: _Length | None = None
    height: _Length | None = None
    hidden: bool = False


class _Alias(pydantic.BaseModel, extra="allow"):
    parent: _Text


class _Icons(pydantic.BaseModel):
    prefix: _Text
    icons: dict[_Text, Icon]
    aliases: dict[_Text, _Alias] = {}
    left: _Offset = 0
    top: _Offset = 0
    width: _Length = 16  # Iconify's own default
    height: _Length = 16


class _Author(pydantic.BaseModel):
    name: _Text
    url: _Text = ""


class _Licence(pydantic.BaseModel):
    title: _Text
    spdx: _Text = ""


class _Info(pydantic.BaseModel):
    author: _Author
    license: _Licence


class _Package(pydantic.BaseModel):
    version: _Text


class IconSet:
    """One set of emoji.

    icons: name -> picture. aliases: name -> other names of the same picture. codes: name -> code
    points that it stands for, such as "1f468-200d-1f33e"; empty where the package has none.
    source: version, licence, author and address, as `dataset.json` records them.
    """

    def __init__(self, files: Mapping[str, bytes]):
        """Raises pydantic.ValidationError for files that are none of a package of icons."""
        found = _Icons.model_validate_json(files["icons.json"])
        info = _Info.model_validate_json(files["info.json"])
        codes = pydantic.TypeAdapter(dict[_Text, _Text]).validate_json(files.get(_OPTIONAL, b"{}"))
        self.name = found.prefix
        self.source = {
            "version": _Package.model_validate_json(files["package.json"]).version,
            "license": info.license.spdx or info.license.title,
            "author": info.author.name,
            "url": info.author.url,
        }
        self.icons = found.icons
        self._box = (found.left, found.top, found.width, found.height)
        self.codes: dict[str, list[str]] = {}
        for code, name in codes.items():
            self.codes.setdefault(name, []).append(code)
        self.aliases: dict[str, list[str]] = {}
        for name, alias in found.aliases.items():
            if not alias.model_extra:  # otherwise the picture is turned or mirrored
                self.aliases.setdefault(alias.parent, []).append(name)

    def box(self, icon: Icon) -> tuple[float, float, float, float]:
        """Returns left, top, width and height of what an icon shows, in its own units."""
        own = (icon.left, icon.top, icon.width, icon.height)
        return tuple(d if o is None else o for o, d in zip(own, self._box, strict=True))


def read_sets(folder: Path) -> list[IconSet]:
    """Reads the packages in a folder, .tgz files or unpacked ones, in the order of SETS.

    Raises DataError for a damaged package, and for anything else that the folder holds.
    """
    sets: dict[str, IconSet] = {}
    for path in _paths(folder):
        found = _read(path)
        if found.name not in SETS:
            raise DataError(
                f"{path}: {shown_name(found.name)!r} is no set of emoji in colour that is known "
                f"here: take it out; known are {', '.join(SETS)}"
            )
        if found.name in sets:
            raise DataError(f"{path}: a second package of {found.name}: keep one of them")
        sets[found.name] = found
    return [sets[name] for name in SETS if name in sets]


def _paths(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError as error:
        raise DataError(f"--packages={folder}: {system_text(error)}") from None
    if not paths:
        raise DataError(
            f"--packages={folder} is empty: fetch packages with `npm pack @iconify-json/{SETS[0]}`"
        )
    return paths


def _read(path: Path) -> IconSet:
    read = _folder_files if path.is_dir() else _archive_files
    try:
        files = read(path)
        missing = [name for name in _FILES if name not in files and name != _OPTIONAL]
        if missing:
            raise DataError(f"{path}: no {missing[0]} in it, so it is no package of icons")
        return IconSet(files)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = shown_name(f"{where}: {first['msg']}" if where else first["msg"])[:300]
        raise DataError(f"{path}: not a package of icons: {reason}") from None


def _folder_files(path: Path) -> dict[str, bytes]:
    """Returns the files of an unpacked package, which npm puts into a folder `package`."""
    inner = path / "package"
    root = inner if inner.is_dir() else path
    files = {}
    for name in _FILES:
        file = root / name
        if file.is_file():
            _check_size(file, file.stat().st_size)
            files[name] = file.read_bytes()
    return files


def _archive_files(path: Path) -> dict[str, bytes]:
    if path.suffix != ".tgz" or not path.is_file():
        raise DataError(
            f"{path} is no package: --packages holds .tgz files of `npm pack`, or unpacked folders"
        )
    files = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                archive.members = []  # tarfile would keep every member in memory
                _check_size(path, member.size)
                name = member.name.removeprefix("package/")
                if name in _FILES and member.isfile():
                    files[name] = archive.extractfile(member).read()
    except DataError:
        raise
    except Exception as error:  # for a damaged stream, errors of nearly any type
        raise DataError(f"{path}: damaged: {shown_name(first_line(error))}") from None
    return files


def _check_size(path: Path, size: int) -> None:
    if size > _MAX_BYTES:
        raise DataError(f"{path}: holds a file of {size} bytes, more than {_MAX_BYTES}")
