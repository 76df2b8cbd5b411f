"""Precomputed features and latents on the devices: the host sends only indices of images."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from fsdit.config import Config
from fsdit.data import run_dataset
from fsdit.data.layout import read_dataset_info
from fsdit.data.pipeline import Batch, ReadExample
from fsdit.data.readers import FeatureReader, LatentReader
from fsdit.errors import ConfigError
from fsdit.parallel import sharding


class _FeatureRows:
    """A sequence whose row i holds the features of image i."""

    def __init__(self, reader: FeatureReader, tokens: bool):
        self._reader, self._tokens = reader, tokens

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        features = self._reader[row]
        return features if self._tokens else {"pooled": features["pooled"]}


class _LatentRows:
    """A sequence whose rows 2 i and 2 i + 1 hold the moments of image i, plain and mirrored."""

    def __init__(self, reader: LatentReader):
        self._reader = reader

    def __len__(self) -> int:
        return 2 * len(self._reader)

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        image, mirrored = divmod(row, 2)
        return tuple(moment[mirrored] for moment in self._reader[image])


class ResidentFeatures:
    """The precomputed features and latents of the training split, split over all devices.

    They are loaded once. Raises ConfigError where they take more than
    `config.features.device_gb` on a device.
    """

    def __init__(self, config: Config, mesh: Mesh):
        info = read_dataset_info(config.data.dataset_dir)
        sources = {}
        if run_dataset.features_name(config):
            reader = run_dataset.feature_reader(config, info, "train")
            sources["supports"] = _FeatureRows(reader, config.model.use_context)
        if run_dataset.latents_name(config):
            sources["target"] = _LatentRows(run_dataset.latent_reader(config, info, "train"))
        self._check_size(config, mesh, sources)
        self._tables = {
            name: sharding.row_table(mesh, rows.__getitem__, len(rows))
            for name, rows in sources.items()
        }
        self._gather = jax.jit(
            lambda tables, rows: jax.tree.map(
                lambda table: sharding.gather_rows(mesh, table, rows), tables
            ),
            out_shardings=sharding.batch_sharding(mesh),
        )

    @staticmethod
    def _check_size(config: Config, mesh: Mesh, sources: dict[str, Any]) -> None:
        needed = sum(
            len(rows) * leaf.nbytes
            for rows in sources.values()
            for leaf in jax.tree.leaves(rows[0])
        )
        gigabytes, budget = needed / mesh.size / 1e9, config.features.device_gb
        if gigabytes > budget:
            raise ConfigError(
                f"config.features.location=device needs {gigabytes:.3g} GB on each of {mesh.size} "
                f"devices ({needed / 1e9:.3g} GB in all), config.features.device_gb={budget:g} "
                "allows less: raise it, take more devices, or set config.features.location=host"
            )

    def __call__(self, read: ReadExample, batch: Batch) -> Batch:
        """The batch with features and latents in place of the indices that `read` put there."""
        indexed = {"supports": read.supports == "indices", "target": read.targets == "indices"}
        found: dict[str, PyTree[jax.Array]] = {
            name: self._gather(table, batch[name])
            for name, table in self._tables.items()
            if indexed[name]
        }
        if read.aligned and indexed["supports"]:
            aligned = batch["aligned"]
            tokens = self._gather(self._tables["supports"]["tokens"], aligned["image"])
            found["aligned"] = {"mirrored": aligned["mirrored"], "tokens": tokens}
        return {**batch, **found}
