"""The tasks of `data_prep.encode`: a file of images -> a file of features or latents.

A task is idempotent. Its file lies in the encoding folder, beside a result whose presence says
that the file is complete. When all are there, they move beside the images, the manifests list
them, and `dataset.json` describes them last. A step that is repeated changes nothing, so an
encoding can be stopped at any moment and started again.
"""

import dataclasses
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from itertools import accumulate
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_prep.encoding.outputs import Output, on_local_devices
from fsdit.data import layout
from fsdit.data.layout import DatasetInfo, FeaturesInfo, LatentsInfo
from fsdit.data.readers import ImageReader
from fsdit.data.shards import shard_name, write_shard
from fsdit.errors import ConfigError, DataError

_AHEAD = 2  # batches that are decoded ahead of use, and batches that are computed ahead


@dataclasses.dataclass(frozen=True)
class EncodingTask:
    """One image file of a split: the one of this `index` among `count`.

    images: indices of its images in the split.
    """

    split: str
    index: int
    count: int
    images: range

    def file(self, kind: str) -> str:
        """Path of its file of a kind, below the dataset and below the encoding folder."""
        return f"{self.split}/{shard_name(kind, self.index, self.count)}"


def tasks(directory: Path, info: DatasetInfo) -> list[EncodingTask]:
    """Returns one task for each image file of each split."""
    found = []
    for split in info.splits:
        manifest = layout.read_manifest(directory / split)
        counts = [manifest[name]["records"] for name in layout.files_of(manifest, "images")]
        ends = list(accumulate(counts))
        for i, (end, count) in enumerate(zip(ends, counts, strict=True)):
            found.append(EncodingTask(split, i, len(counts), range(end - count, end)))
    return found


@dataclasses.dataclass(frozen=True)
class EncodingFolder:
    """The folder in a dataset that holds what is encoded so far, and with which settings."""

    dataset: Path

    @property
    def root(self) -> Path:
        return self.dataset / layout.ENCODING

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    def result(self, task: EncodingTask, kind: str) -> Path:
        return (self.root / task.file(kind)).with_suffix(".json")

    def is_done(self, task: EncodingTask, kind: str) -> bool:
        places = (self.root / task.file(kind), self.dataset / task.file(kind))
        return self.result(task, kind).exists() and any(place.exists() for place in places)

    def begun(self) -> dict[str, Any]:
        """Reads the settings that the folder was begun with. Raises DataError."""
        return layout.read_json(self.settings, f"delete {self.root}")

    def begin(self, info: DatasetInfo, outputs: Sequence[Output], compute_dtype: str) -> None:
        """Makes the folder. Raises ConfigError where it was begun with other settings."""
        settings = {
            "images": _images_digest(self.dataset, info),
            "compute_dtype": compute_dtype,
            "outputs": {output.kind: dataclasses.asdict(output.info) for output in outputs},
        }
        if self.settings.exists():
            difference = _difference(self.begun(), json.loads(json.dumps(settings)))
            if difference:
                raise ConfigError(
                    f"{self.root} was begun with {difference}: go on with the same flags and "
                    "files, or delete it"
                )
        for split in info.splits:
            (self.root / split).mkdir(parents=True, exist_ok=True)
        layout.write_json(self.settings, settings)


def _images_digest(directory: Path, info: DatasetInfo) -> str:
    """Returns a sha256 over the names and checksums of all image files."""
    digest = hashlib.sha256()
    for split in info.splits:
        manifest = layout.read_manifest(directory / split)
        for name in layout.files_of(manifest, "images"):
            digest.update(f"{split}/{name} {manifest[name]['sha256']}\n".encode())
    return digest.hexdigest()


def _difference(begun: Any, now: Any, name: str = "") -> str | None:
    """Returns the first field that differs, with both values; None where none does."""
    if not (isinstance(begun, dict) and isinstance(now, dict)):
        return None if begun == now else f"{name} {begun}, this is with {now}"
    for key in sorted(begun.keys() | now.keys()):
        field = f"{name} {key}".strip()
        if found := _difference(begun.get(key, "nothing"), now.get(key, "nothing"), field):
            return found
    return None


def described(info: DatasetInfo, kind: str) -> FeaturesInfo | LatentsInfo | None:
    """Returns the description of a kind ("features-siglip2") in `dataset.json`, if it has one."""
    group, _, name = kind.partition("-")
    return {"features": info.features, "latents": info.latents}[group].get(name)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What all tasks of a process share. progress: called with the images of each batch."""

    folder: EncodingFolder
    info: DatasetInfo
    batch_size: int
    threads: Executor
    progress: Callable[[int], Any]

    def run(self, output: Output, tasks: Sequence[EncodingTask]) -> None:
        """Writes the files of the tasks. Raises DataError, OutputError."""
        if not tasks:
            return  # before parameters take memory of the devices
        compute = on_local_devices(output)
        for task in tasks:
            path = self.folder.root / task.file(output.kind)
            entry = write_shard(path, self._payloads(output, compute, task))
            layout.write_json(self.folder.result(task, output.kind), entry)

    def _payloads(self, output: Output, compute: Callable, task: EncodingTask) -> Iterator[bytes]:
        done = 0
        for count, (arrays, finite) in self._computed(compute, task):
            arrays, finite = jax.device_get((arrays, finite))
            for row in range(count):
                if not finite[row]:
                    raise DataError(
                        f"{self.folder.dataset / task.file('images')}, record {done + row}: its "
                        f"{output.kind} are not finite as {output.info.dtype}: try "
                        "--dtype=bfloat16, or --compute_dtype=float32"
                    )
                yield output.payload({name: array[row] for name, array in arrays.items()})
            done += count
            self.progress(count)

    def _computed(self, compute: Callable, task: EncodingTask) -> Iterator[tuple[int, Any]]:
        """Yields (number of images, Computed) of each batch; devices work _AHEAD batches ahead."""
        running: deque[tuple[int, Any]] = deque()
        for images in self._decoded(task):
            running.append((len(images), compute(_filled(images, self.batch_size))))
            if len(running) == _AHEAD:
                yield running.popleft()
        yield from running

    def _decoded(self, task: EncodingTask) -> Iterator[np.ndarray]:
        """Yields batches of images, decoded by threads ahead of use; the last may be short."""
        info = self.info
        reader = ImageReader(
            self.folder.dataset / task.split,
            info.image_size,
            info.channels,
            info.splits[task.split].num_images,
        )
        ahead: deque[Iterator[np.ndarray]] = deque()
        for start in range(0, len(task.images), self.batch_size):
            part = task.images[start : start + self.batch_size]
            ahead.append(self.threads.map(reader.__getitem__, part))
            if len(ahead) > _AHEAD:
                yield np.stack(list(ahead.popleft()))
        while ahead:
            yield np.stack(list(ahead.popleft()))


def _filled(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Fills a batch up to `batch_size` by repeating its last image."""
    return np.pad(images, ((0, batch_size - len(images)), *((0, 0),) * 3), mode="edge")


def finish(
    folder: EncodingFolder, outputs: Sequence[Output], all_tasks: Sequence[EncodingTask]
) -> None:
    """Moves the files into the dataset and describes them. Raises DataError if one is missing."""
    info = layout.read_dataset_info(folder.dataset)
    manifests = {split: layout.read_manifest(folder.dataset / split) for split in info.splits}
    files = [(task, output.kind) for output in outputs for task in all_tasks]
    for task, kind in files:
        if not folder.is_done(task, kind):
            raise DataError(
                f"{folder.root / task.file(kind)}: missing though its process has ended: "
                "--dataset_dir must be a folder that all processes see; the same command goes on"
            )
        name = Path(task.file(kind)).name
        manifests[task.split][name] = layout.read_json(
            folder.result(task, kind), "the same command goes on"
        )
    for directory in (folder.dataset, *(folder.dataset / split for split in info.splits)):
        for left in directory.glob("*.json.*.partial"):  # left by a kill during the lines below
            left.unlink()
    for task, kind in files:
        staged = folder.root / task.file(kind)
        if staged.exists():
            staged.replace(folder.dataset / task.file(kind))
    for split, manifest in manifests.items():
        layout.write_json(folder.dataset / split / "manifest.json", manifest)
    layout.write_dataset_json(folder.dataset, with_outputs(info, outputs))
    remove(folder)


def with_outputs(info: DatasetInfo, outputs: Sequence[Output]) -> DatasetInfo:
    """Returns the description of the dataset with the outputs added."""

    def added(old: Mapping[str, Any], cls: type) -> dict[str, Any]:
        return {**old, **{o.name: o.info for o in outputs if isinstance(o.info, cls)}}

    return dataclasses.replace(
        info,
        features=added(info.features, FeaturesInfo),
        latents=added(info.latents, LatentsInfo),
    )


def is_recorded(folder: EncodingFolder, info: DatasetInfo, outputs: Sequence[Output]) -> bool:
    """Whether `dataset.json` describes all outputs, and only removing the folder is left.

    False where the folder also holds outputs of another command, which could go on.
    """
    if not folder.root.exists() or any(described(info, o.kind) != o.info for o in outputs):
        return False
    if not folder.settings.exists():
        return True
    begun = folder.begun().get("outputs", {})
    return set(begun) == {output.kind for output in outputs}


def remove(folder: EncodingFolder) -> None:
    """Deletes the folder, its settings first: without them it holds nothing that is needed."""
    folder.settings.unlink(missing_ok=True)
    shutil.rmtree(folder.root)
