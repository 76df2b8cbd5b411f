"""The files of `data_prep.encode`: a file of images -> a file of features or latents.

Each is a task of its own and idempotent. It is kept in a working folder, with a result
whose presence says that it is whole. When all are there, they move beside the images, the
manifests list them, and `dataset.json` is told last. A step that is repeated changes
nothing, so this can be stopped at any moment and started again.
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

_AHEAD = 2  # batches that are decoded, and as many computed, before they are needed


@dataclasses.dataclass(frozen=True)
class Task:
    """The image file `index` of the `count` of a split; `images`: their indices in it."""

    split: str
    index: int
    count: int
    images: range

    def file(self, kind: str) -> str:
        """Path of its file of a kind, below the dataset and below the working folder."""
        return f"{self.split}/{shard_name(kind, self.index, self.count)}"


def tasks(directory: Path, info: DatasetInfo) -> list[Task]:
    """One for each image file of each split."""
    found = []
    for split in info.splits:
        manifest = layout.read_manifest(directory / split)
        counts = [manifest[name]["records"] for name in layout.files_of(manifest, "images")]
        ends = list(accumulate(counts))
        for i, (end, count) in enumerate(zip(ends, counts, strict=True)):
            found.append(Task(split, i, len(counts), range(end - count, end)))
    return found


@dataclasses.dataclass(frozen=True)
class WorkingFolder:
    """In the dataset: what is done, and with which settings."""

    dataset: Path

    @property
    def root(self) -> Path:
        return self.dataset / layout.ENCODING

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    def result(self, task: Task, kind: str) -> Path:
        return (self.root / task.file(kind)).with_suffix(".json")

    def is_done(self, task: Task, kind: str) -> bool:
        places = (self.root / task.file(kind), self.dataset / task.file(kind))
        return self.result(task, kind).exists() and any(place.exists() for place in places)

    def begun(self) -> dict[str, Any]:
        """The settings that it was begun with. Raises DataError."""
        return layout.read_json(self.settings, f"delete {self.root}")

    def begin(self, info: DatasetInfo, outputs: Sequence[Output], compute_dtype: str) -> None:
        """Makes the folder, or finds it begun in the same way. Raises ConfigError."""
        settings = {
            "images": _images_sum(self.dataset, info),
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


def _images_sum(directory: Path, info: DatasetInfo) -> str:
    digest = hashlib.sha256()
    for split in info.splits:
        manifest = layout.read_manifest(directory / split)
        for name in layout.files_of(manifest, "images"):
            digest.update(f"{split}/{name} {manifest[name]['sha256']}\n".encode())
    return digest.hexdigest()


def _difference(begun: Any, now: Any, name: str = "") -> str | None:
    """The first field that differs, and how."""
    if not (isinstance(begun, dict) and isinstance(now, dict)):
        return None if begun == now else f"{name} {begun}, this is with {now}"
    for key in sorted(begun.keys() | now.keys()):
        field = f"{name} {key}".strip()
        if found := _difference(begun.get(key, "nothing"), now.get(key, "nothing"), field):
            return found
    return None


def described(info: DatasetInfo, kind: str) -> FeaturesInfo | LatentsInfo | None:
    """What `dataset.json` says of a kind."""
    group, _, name = kind.partition("-")
    return {"features": info.features, "latents": info.latents}[group].get(name)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What all tasks of a process share. `progress` is told of each batch's images."""

    folder: WorkingFolder
    info: DatasetInfo
    batch_size: int
    threads: Executor
    progress: Callable[[int], Any]

    def run(self, output: Output, tasks: Sequence[Task]) -> None:
        """Writes the files of the tasks. Raises DataError, OutputError."""
        if not tasks:
            return  # nothing is put on devices
        compute = on_local_devices(output)
        for task in tasks:
            path = self.folder.root / task.file(output.kind)
            entry = write_shard(path, self._payloads(output, compute, task))
            layout.write_json(self.folder.result(task, output.kind), entry)

    def _payloads(self, output: Output, compute: Callable, task: Task) -> Iterator[bytes]:
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

    def _computed(self, compute: Callable, task: Task) -> Iterator[tuple[int, Any]]:
        """(images, their Rows) of each batch; devices are some batches ahead."""
        running: deque[tuple[int, Any]] = deque()
        for images in self._decoded(task):
            running.append((len(images), compute(_filled(images, self.batch_size))))
            if len(running) == _AHEAD:
                yield running.popleft()
        yield from running

    def _decoded(self, task: Task) -> Iterator[np.ndarray]:
        """Batches of images, decoded in threads ahead of their use; the last may be short."""
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
    """A whole batch: the last image is repeated."""
    return np.pad(images, ((0, batch_size - len(images)), *((0, 0),) * 3), mode="edge")


def finish(folder: WorkingFolder, outputs: Sequence[Output], all_tasks: Sequence[Task]) -> None:
    """Makes the files part of the dataset. Raises DataError where one is missing."""
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
        for left in directory.glob("*.json.*.partial"):  # by a kill in the middle of what follows
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
    def added(old: Mapping[str, Any], cls: type) -> dict[str, Any]:
        return {**old, **{o.name: o.info for o in outputs if isinstance(o.info, cls)}}

    return dataclasses.replace(
        info,
        features=added(info.features, FeaturesInfo),
        latents=added(info.latents, LatentsInfo),
    )


def is_told(folder: WorkingFolder, info: DatasetInfo, outputs: Sequence[Output]) -> bool:
    """Whether all is done but the removal of a working folder that holds nothing else."""
    if not folder.root.exists() or any(described(info, o.kind) != o.info for o in outputs):
        return False
    if not folder.settings.exists():
        return True
    begun = folder.begun().get("outputs", {})
    return set(begun) == {output.kind for output in outputs}


def remove(folder: WorkingFolder) -> None:
    """The settings first: a folder without them holds nothing of worth."""
    folder.settings.unlink(missing_ok=True)
    shutil.rmtree(folder.root)
