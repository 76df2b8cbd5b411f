"""Makes the samples of a cell, and keeps them as files.

    DIR/samples/of.json                     what the samples were made from
    DIR/samples/TABLE-seedS/00000.npy       one batch, uint8 (B, H, W, C); complete or absent

A second start makes only the samples that are missing.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from fsdit.config import Config, SamplingConfig, from_dict, to_dict
from fsdit.data import pipeline
from fsdit.data.layout import read_dataset_info, write_json
from fsdit.data.records import Episode
from fsdit.errors import ConfigError, DataError
from fsdit.evaluation.protocol import Cell
from fsdit.features.batches import Feed
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.sampling.guide import Guide
from fsdit.sampling.images import SampleImages, compile_sampling

# Bytes that must stay free on the disk, for the report and its pictures.
_MARGIN = 64e6

# The folder's name in older versions, and names in its of.json: old name -> new name.
_OLD_FOLDER = "drawings"
_RENAMED_IN_CELL = {"drawings": "samples_per_episode"}


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """Each episode `times` times in a row; after the last, the first again."""

    episodes: Sequence[Episode]
    times: int

    def __getitem__(self, index: int) -> Episode:
        return self.episodes[index // self.times % len(self.episodes)]


class EpisodeSampler:
    """Samples episodes with the networks of a run; a `SamplingConfig` is compiled once a size.

    guide: the model that `config.sampling.guide` names, or None.
    """

    def __init__(
        self, config: Config, spec: ModelSpec, feed: Feed, mesh: Mesh, guide: Guide | None = None
    ):
        self._config, self._spec, self._feed, self._mesh = config, spec, feed, mesh
        self._guide = guide
        self._guide_params = guide and jax.device_put(guide.params, sharding.replicated(mesh))
        self._info = read_dataset_info(config.data.dataset_dir)
        self._programs: dict[tuple[SamplingConfig, int], SampleImages] = {}

    def largest_batch(self, cell: Cell) -> int:
        """config.evaluation.batch_size or all samples of a seed, rounded up to the mesh."""
        wanted = min(self._config.evaluation.batch_size, cell.samples_per_seed)
        return sharding.round_up(wanted, self._mesh.size)

    def batch_size(self, cell: Cell) -> int:
        """The size of batches of one size, no larger than allowed, with the fewest empty rows."""
        count = cell.samples_per_seed
        batches = math.ceil(count / self.largest_batch(cell))
        return sharding.round_up(math.ceil(count / batches), self._mesh.size)

    def batches(
        self, ema: dict, cell: Cell, seed: int, first: int = 0, size: int | None = None
    ) -> Iterator[UInt8[np.ndarray, "B H W C"]]:
        """The samples of one seed, episode by episode, from batch `first` on.

        size: of a batch; None: `batch_size`. On a mesh of several processes, all of them must
        call it, and all get every sample.
        """
        size, count = size or self.batch_size(cell), cell.samples_per_seed
        # So many samples share a row of supports: they divide the samples of an episode, and the
        # rows of a device, so that no device or batch begins within them.
        each = math.gcd(cell.samples_per_episode, size // self._mesh.size)
        split = self._info.split(cell.split)
        episodes = _Repeated(cell.episodes(split, seed), cell.samples_per_episode // each)
        read = pipeline.examples_of(self._config, cell.split, episodes)
        missing, rows = math.ceil(count / size) - first, size // each
        batches = self._feed.batches(read, rows, missing, start=first * rows)
        draw = self._program(cell.sampling, each)
        for i, batch in enumerate(batches, start=first):
            row = batch["supports"], batch["index"], np.uint32(seed)
            images = draw(ema, self._feed.codec, *row, self._guide_params)
            yield sharding.to_host(images)[: count - i * size]

    def _program(self, sampling: SamplingConfig, each: int) -> SampleImages:
        if (sampling, each) not in self._programs:
            guide = self._guide.spec if sampling.guide else None
            program = compile_sampling(self._spec, sampling, self._mesh, guide, each)
            self._programs[sampling, each] = program
        return self._programs[sampling, each]


def by_episode(
    cell: Cell, batches: Sequence[UInt8[np.ndarray, "_ H W C"]]
) -> UInt8[np.ndarray, "N R H W C"]:
    """The batches of all seeds of a cell as R samples of each of N episodes."""
    images = np.concatenate(batches)
    return images.reshape(cell.num_episodes, cell.samples_per_episode, *images.shape[1:])


def to_source(cell: Cell) -> dict[str, Any]:
    """A cell as JSON values. The folder of a guide is left out: its weights say which it is."""
    sampling = dataclasses.replace(cell.sampling, guide="")
    return dataclasses.asdict(cell) | {"sampling": to_dict(sampling)}


class SampleFiles:
    """The samples of several cells as files below a directory.

    source: what decides the samples (weights, those of a guide, dataset, cells, and the size of
    each cell's batches), as JSON. The files of one source are not mixed with those of another:
    the constructor raises ConfigError. older_sizes: the batch sizes with which older versions
    made the same samples; an evaluation that has files of these sizes goes on with them.
    """

    def __init__(
        self,
        directory: Path,
        source: dict[str, Any],
        image_shape: tuple[int, ...],
        older_sizes: Sequence[int] = (),
    ):
        self._shape, self._source = image_shape, json.loads(json.dumps(source))
        old = directory / _OLD_FOLDER
        self._folder = old if old.is_dir() else directory / "samples"
        if directory.exists() and not directory.is_dir():
            raise ConfigError(f"--output={directory} is a file: name a directory")
        if not (self._folder / "of.json").exists():
            return
        found, older = _read_source(self._folder / "of.json"), {"batch_sizes": list(older_sizes)}
        if older_sizes and found == self._source | older:
            self._source = found
        if found != self._source:
            raise ConfigError(
                f"{directory} holds samples of another checkpoint or protocol: name another "
                f"--output, or delete {self._folder}"
            )

    def check_room(self, cells: Sequence[Cell]) -> None:
        """Raises DataError when the disk cannot hold the samples that are missing."""
        needed = sum(cell.num_samples for cell in cells) * int(np.prod(self._shape)) + _MARGIN
        held = sum(file.stat().st_size for file in self._folder.glob("*/*.npy"))
        place = next(p for p in (self._folder, *self._folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
        if needed - held > free:
            raise DataError(
                f"{place}: the samples need {(needed - held) / 1e6:,.0f} MB, {free / 1e6:,.0f} MB "
                "are free: name another --output, or lower config.evaluation.samples_per_episode"
            )

    def load_or_make(
        self,
        sampler: EpisodeSampler,
        ema: dict,
        cell: Cell,
        progress: Callable[[int], Any] = lambda count: None,
    ) -> UInt8[np.ndarray, "N R H W C"]:
        """All samples of a cell: reads the batches that are there, makes and writes the others.

        progress: called with the number of samples after each batch.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / "of.json", self._source)
        place = self._source["cells"].index(json.loads(json.dumps(to_source(cell))))
        size, batches = self._source["batch_sizes"][place], []
        for seed in cell.seeds:
            folder = self._folder / f"{cell.name}-seed{seed}"
            folder.mkdir(exist_ok=True)
            count = math.ceil(cell.samples_per_seed / size)
            files = [folder / f"{i:05d}.npy" for i in range(count)]
            missing = next((i for i, file in enumerate(files) if not file.exists()), len(files))
            for file in files[:missing]:
                batches.append(_read(file, self._shape))
                progress(len(batches[-1]))
            if missing == len(files):
                continue
            new = sampler.batches(ema, cell, seed, missing, size)
            for file, images in zip(files[missing:], new, strict=True):
                _write(file, images)
                batches.append(images)
                progress(len(images))
        return by_episode(cell, batches)


def _read_source(file: Path) -> Any:
    """The content of of.json, None where it is damaged.

    Names of older versions become those of today, and settings that did not exist yet get
    their defaults.
    """
    try:
        values = json.loads(file.read_text())
        if "plans" in values:
            values["cells"] = values.pop("plans")
        cells = values.get("cells", [])
        for i, cell in enumerate(cells):
            cells[i] = {_RENAMED_IN_CELL.get(name, name): value for name, value in cell.items()}
            cells[i]["sampling"] = to_dict(from_dict(cell["sampling"], SamplingConfig))
        return values
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, ConfigError):
        return None


def _read(file: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "B H W C"]:
    try:
        images = np.load(file, allow_pickle=False)
        reason = "" if images.shape[1:] == shape else f"samples of shape {images.shape[1:]}"
    except (OSError, ValueError, EOFError) as error:
        reason = str(error)
    if reason:
        raise DataError(f"{file} is damaged ({reason}): delete it, it will be made again")
    return images


def _write(file: Path, images: UInt8[np.ndarray, "B H W C"]) -> None:
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb") as out:
            np.save(out, images)
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
