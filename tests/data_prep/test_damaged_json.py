"""Damaged and forged JSON files end in one line, and nothing outside the dataset is written."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import rebuild
from data_prep.encoding import tasks
from data_prep.verify import conclude, table, verify
from fsdit.data import layout
from fsdit.errors import DataError, FsditError
from tests.data_prep import datasets
from tests.data_prep.conversion.photos import files

FILES = ("dataset.json", "train/manifest.json")
VALUES = [None, -1, 10**30, 1.5, float("nan"), "../victim", "\ud800", "\x1b[31m", [1], {"a": 1}]


def places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    """Paths of keys to every value in nested JSON; of a list, only to its first item."""
    yield here
    keys = value if isinstance(value, dict) else range(1) if isinstance(value, list) else ()
    for key in keys:
        if key not in ("val", "test"):  # these are like train
            yield from places(value[key], (*here, key))


def changed(base: Any, place: tuple, value: Any) -> Any:
    copy = json.loads(json.dumps(base))
    if not place:
        return value
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


def renamed(base: Any, place: tuple) -> Any:
    copy = json.loads(json.dumps(base))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner["../victim"] = inner.pop(place[-1])
    return copy


def signed(values: Any) -> bytes:
    """JSON with the right checksum, as someone who forges a file would write it."""
    if isinstance(values, dict) and "sha256" in values:
        del values["sha256"]
        with contextlib.suppress(ValueError):
            values["sha256"] = layout._content_sum(values)
    return json.dumps(values).encode()


def encode_nothing(directory: Path) -> None:
    """Runs an encoding without networks on a dataset. Raises FsditError."""
    info = layout.read_dataset_info(directory)
    tasks.EncodingFolder(directory).begin(info, [], "float32")
    tasks.finish(tasks.EncodingFolder(directory), [], tasks.tasks(directory, info))


def checked(directory: Path) -> None:
    report = verify(directory, fast=True, workers=0)
    table(report)
    conclude(directory, report)


PROGRAMS = {
    "episodes": lambda d: rebuild.rebuild(d, 1, 2, 0),
    "verify": checked,
    "encode": encode_nothing,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("valid") / "d")


def one_line(original: Path, folder: Path, program: str, file: str, content: bytes) -> None:
    """Checks that the program succeeds or raises FsditError, and writes nothing outside."""
    directory = folder / "d"
    if not directory.exists():
        shutil.copytree(original, directory)
    (directory / file).write_bytes(content)
    try:
        PROGRAMS[program](directory)
    except FsditError as error:
        assert "\x1b" not in str(error)
        (directory / file).write_bytes((original / file).read_bytes())
        shutil.rmtree(directory / layout.ENCODING, ignore_errors=True)
    else:
        shutil.rmtree(directory)
    assert {path.name for path in folder.iterdir()} <= {"d"}


@pytest.mark.medium
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("file", FILES)
def test_no_value_in_a_json_file_ends_in_a_traceback(original, tmp_path, program, file):
    base = json.loads((original / file).read_text())
    for place in places(base):
        for value in VALUES:
            content = signed(changed(base, place, value))
            one_line(original, tmp_path, program, file, content)
        if place and isinstance(place[-1], str):
            one_line(original, tmp_path, program, file, signed(renamed(base, place)))


BYTES = {
    "nothing": b"",
    "half": b'{"a": 1',
    "no text": b"\xff\xfe",
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 500 + b"1" + b"}" * 500,
    "long number": b'{"a": ' + b"9" * 5000 + b"}",
    "list": b"[]",
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES.keys())
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_bytes_that_are_no_json_end_in_one_line(original, tmp_path, program, file, content):
    one_line(original, tmp_path, program, file, content)


NAMES = (
    "../victim",
    "..",
    "/tmp/victim",
    "a/b",
    "",
    "a\\b",
    "C:x",
    "a\x1b[31m",
    ".hidden",
    "x" * 200,
)


@pytest.mark.parametrize("kind", ["splits", "features", "latents"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(original, tmp_path, kind, name):
    directory = Path(shutil.copytree(original, tmp_path / "d"))
    values = json.loads((directory / "dataset.json").read_text())
    described = {
        "splits": values["splits"]["val"],
        "features": {
            "encoder": "e", "sha256": "", "preprocessing": {}, "dtype": "float16", "dim": 2,
            "grid": [1, 1], "tokens": False,
        },
        "latents": {"codec": "c", "sha256": "", "dtype": "float16", "shape": [1, 1, 1]},
    }  # fmt: skip
    values[kind][name] = described[kind]
    (directory / "dataset.json").write_bytes(signed(values))
    shutil.copytree(directory / "val", tmp_path / "victim")
    before = files(tmp_path / "victim")
    for program in PROGRAMS.values():
        with pytest.raises(DataError, match=f"dataset.json: {kind}: .* is no name for files"):
            program(directory)
    assert files(tmp_path / "victim") == before


@pytest.mark.parametrize(
    "name",
    [
        "../train/images-00000-of-00002.array_record",
        "features-../x-00000-of-00001.array_record",
        "images/../../x-00000-of-00001.array_record",
        "features-a/b-00000-of-00001.array_record",
        "images-0-of-1.array_record",
        "pictures-00000-of-00001.array_record",
        "/etc/passwd",
    ],
)
def test_a_file_that_a_manifest_names_elsewhere_is_refused(original, tmp_path, name):
    directory = Path(shutil.copytree(original, tmp_path / "d"))
    path = directory / "val" / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, name: next(iter(values.values()))}))
    with pytest.raises(DataError, match=r"val/manifest.json: .* is no file name of this format"):
        layout.read_manifest(directory / "val")


def exchange(directory: Path) -> None:
    (directory / "val").rename(directory / "other")
    (directory / "test").rename(directory / "val")
    (directory / "other").rename(directory / "test")


def test_splits_that_were_exchanged_are_noticed_by_every_reader(original, tmp_path):
    directory = Path(shutil.copytree(original, tmp_path / "d"))
    exchange(directory)
    with pytest.raises(DataError, match=r"val/manifest.json: lists other images"):
        layout.read_dataset_info(directory)


def test_a_dataset_older_than_the_digests_is_read_and_checked_as_before(original, tmp_path):
    directory = Path(shutil.copytree(original, tmp_path / "d"))
    values = json.loads((directory / "dataset.json").read_text())
    for split in values["splits"].values():
        assert split.pop("digests").keys() == {"images", "episodes"}
    (directory / "dataset.json").write_bytes(signed(values))
    assert layout.read_dataset_info(directory) == layout.read_dataset_info(original)
    assert verify(directory, False, 0).damages == []


def test_missing_images_get_no_episodes(original, tmp_path):
    directory = Path(shutil.copytree(original, tmp_path / "d"))
    values = json.loads((directory / "dataset.json").read_text())
    values["splits"]["val"]["images_per_class"] = [4, 4]
    (directory / "dataset.json").write_bytes(signed(values))
    with pytest.raises(DataError, match=r"val/manifest.json: lists 7 images, dataset.json .* 8"):
        rebuild.rebuild(directory, 1, 1, 0)
