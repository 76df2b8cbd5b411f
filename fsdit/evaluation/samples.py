"""Drawing for the episodes of a plan, and keeping what is drawn as files.

    DIR/drawings/of.json                        what they are drawings of
    DIR/drawings/TABLE-seedS/00000.npy          one batch, uint8 (B, H, W, C); whole or not there

A second start draws what is missing.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from fsdit.config import Config, SamplingConfig, from_dict, to_dict
from fsdit.data import pipeline
from fsdit.data.layout import read_dataset_info, write_json
from fsdit.data.records import Episode
from fsdit.errors import ConfigError, DataError
from fsdit.evaluation.protocol import Plan
from fsdit.features.batches import Feed
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.sampling.images import SampleImages, compile_sampling

# Left free on the disk: the report and its pictures need room too.
_MARGIN = 64e6


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """Each episode `times` times over, then again from the first."""

    episodes: Sequence[Episode]
    times: int

    def __getitem__(self, index: int) -> Episode:
        return self.episodes[index // self.times % len(self.episodes)]


class Drawer:
    """Draws for episodes with the networks of a run; each sampling is compiled once."""

    def __init__(self, config: Config, spec: ModelSpec, feed: Feed, mesh: Mesh):
        self._config, self._spec, self._feed, self._mesh = config, spec, feed, mesh
        self._info = read_dataset_info(config.data.dataset_dir)
        self._programs: dict[SamplingConfig, SampleImages] = {}

    def batch_size(self, plan: Plan) -> int:
        count = plan.episodes_per_seed * plan.drawings
        rows = min(self._config.evaluation.batch_size, count)
        return sharding.round_up(rows, self._mesh.size)

    def num_batches(self, plan: Plan) -> int:
        return math.ceil(plan.episodes_per_seed * plan.drawings / self.batch_size(plan))

    def batches(
        self, ema: dict, plan: Plan, seed: int, first: int = 0
    ) -> Iterator[UInt8[np.ndarray, "B H W C"]]:
        """The drawings of one seed, from batch `first` on; episode by episode.

        On a mesh of several processes all of them must call it, and all get everything.
        """
        size, count = self.batch_size(plan), plan.episodes_per_seed * plan.drawings
        split = self._info.split(plan.split)
        episodes = _Repeated(plan.episodes(split, seed), plan.drawings)
        read = pipeline.examples_of(self._config, plan.split, episodes)
        batches = self._feed.batches(read, size, self.num_batches(plan) - first, start=first * size)
        draw = self._draw(plan.sampling)
        for number, batch in enumerate(batches, start=first):
            drawn = draw(ema, self._feed.codec, batch["supports"], batch["index"], np.uint32(seed))
            yield sharding.to_host(drawn)[: count - number * size]

    def _draw(self, sampling: SamplingConfig) -> SampleImages:
        if sampling not in self._programs:
            self._programs[sampling] = compile_sampling(self._spec, sampling, self._mesh)
        return self._programs[sampling]


def in_episodes(
    plan: Plan, drawn: Sequence[UInt8[np.ndarray, "_ H W C"]]
) -> UInt8[np.ndarray, "N R H W C"]:
    """The batches of all seeds in one array."""
    images = np.concatenate(drawn)
    return images.reshape(plan.num_episodes, plan.drawings, *images.shape[1:])


class Shards:
    """The drawings of plans in a directory. `of` tells them from those of anything else."""

    def __init__(self, directory: Path, of: dict[str, Any], image_shape: tuple[int, ...]):
        self._shape = image_shape
        self._folder, self._of = directory / "drawings", of
        if directory.exists() and not directory.is_dir():
            raise ConfigError(f"--output={directory} is a file: name a directory")
        found = self._folder / "of.json"
        if found.exists() and _described(found) != json.loads(json.dumps(of)):
            raise ConfigError(
                f"{directory} holds drawings of another checkpoint or protocol: name another "
                f"--output, or delete {self._folder}"
            )

    def check_room(self, plans: Sequence[Plan]) -> None:
        """Raises DataError when the disk cannot hold what is to be drawn."""
        needed = sum(plan.num_drawings for plan in plans) * int(np.prod(self._shape)) + _MARGIN
        held = sum(file.stat().st_size for file in self._folder.glob("*/*.npy"))
        place = next(p for p in (self._folder, *self._folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
        if needed - held > free:
            raise DataError(
                f"{place}: the drawings need {(needed - held) / 1e6:,.0f} MB, {free / 1e6:,.0f} MB "
                "are free: name another --output, or lower config.evaluation.drawings_per_episode"
            )

    def draw(
        self,
        drawer: Drawer,
        ema: dict,
        plan: Plan,
        progress: Callable[[int], Any] = lambda count: None,
    ) -> UInt8[np.ndarray, "N R H W C"]:
        """All drawings of a plan; those that are there already are read.

        progress: called with the number of drawings after each batch.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / "of.json", self._of)
        drawn = []
        for seed in plan.seeds:
            folder = self._folder / f"{plan.name}-seed{seed}"
            folder.mkdir(exist_ok=True)
            files = [folder / f"{i:05d}.npy" for i in range(drawer.num_batches(plan))]
            missing = next((i for i, file in enumerate(files) if not file.exists()), len(files))
            for file in files[:missing]:
                drawn.append(_read(file, self._shape))
                progress(len(drawn[-1]))
            if missing == len(files):
                continue
            new = drawer.batches(ema, plan, seed, missing)
            for file, images in zip(files[missing:], new, strict=True):
                _write(file, images)
                drawn.append(images)
                progress(len(images))
        return in_episodes(plan, drawn)


def _described(file: Path) -> Any:
    """What of.json says, None where it is damaged. Settings that are younger have defaults."""
    try:
        values = json.loads(file.read_text())
        for plan in values.get("plans", []):
            plan["sampling"] = to_dict(from_dict(plan["sampling"], SamplingConfig))
        return values
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, ConfigError):
        return None


def _read(file: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "B H W C"]:
    try:
        images = np.load(file, allow_pickle=False)
        reason = "" if images.shape[1:] == shape else f"drawings of shape {images.shape[1:]}"
    except (OSError, ValueError, EOFError) as error:
        reason = str(error)
    if reason:
        raise DataError(f"{file} is damaged ({reason}): delete it, it will be drawn again")
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
