"""Changes random bytes of a dataset, one at a time, and checks that each change is reported.

    python -m tests.data_prep.flip_bytes DATASET COUNT SEED

Fails when verify does not report a change of content, or when a reader returns other
content than the original's. Prints each change before it is made, and at the end the number
of reported changes.
"""

import json
import sys
from pathlib import Path

import numpy as np

from data_prep.verify import verify
from fsdit.data import layout, readers
from fsdit.errors import DataError


def read_everything(directory: Path) -> dict:
    """All that the readers return for a dataset, without what raises an error."""
    try:
        info = layout.read_dataset_info(directory)
    except DataError:
        return {}
    content = {"info": info}
    for name, split in info.splits.items():
        folder = directory / name
        images = (folder, info.image_size, info.channels, split.num_images)
        content |= read_all(name, readers.ImageReader, *images)
        content |= read_all(name, readers.EpisodeReader, folder, split, split.shots)
    return content


def read_all(split: str, kind: type, *arguments) -> dict:
    try:
        reader = kind(*arguments)
    except DataError:
        return {}
    content = {}
    for i in range(len(reader)):
        try:
            value = reader[i]
        except DataError:
            continue
        content[split, kind, i] = value.tobytes() if isinstance(value, np.ndarray) else value
    return content


def content_of(path: Path) -> object:
    """The values of a JSON file, whose white space may change; the bytes of any other file."""
    data = path.read_bytes()
    if path.suffix != ".json":
        return data
    try:
        return json.loads(data)
    except ValueError:
        return data


def changed(data: bytes, rng: np.random.Generator) -> tuple[int, bytes]:
    """Flips a bit or replaces a byte, mostly of nonzero bytes; returns (position, content)."""
    content = np.frombuffer(data, np.uint8).copy()
    used = np.flatnonzero(content)
    position = int(rng.choice(used) if rng.random() < 0.8 else rng.integers(len(content)))
    by_bit, other = 1 << int(rng.integers(8)), int(rng.integers(1, 256))
    content[position] ^= by_bit if rng.random() < 0.5 else other
    return position, content.tobytes()


def main(directory: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    original = read_everything(directory)
    noticed = 0
    for _ in range(count):
        path = files[rng.integers(len(files))]
        data, before = path.read_bytes(), content_of(path)
        position, flipped = changed(data, rng)
        print(f"{path.relative_to(directory)} {position}", flush=True)
        path.write_bytes(flipped)
        try:
            reported = bool(verify(directory, fast=False, workers=0).damages)
        except DataError:
            reported = True
        noticed += reported
        assert reported or content_of(path) == before, "verify did not report the change"
        for key, value in read_everything(directory).items():
            assert value == original.get(key), f"a reader gave another {key}"
        path.write_bytes(data)
    print(noticed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
