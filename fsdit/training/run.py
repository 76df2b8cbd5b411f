"""Loads a trained run from its workdir, for evaluation and sampling."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from fsdit import storage
from fsdit.checks import validate
from fsdit.config import Config, MeshConfig, apply_overrides, changed_fields
from fsdit.data.run_dataset import read_run_dataset
from fsdit.errors import CheckpointError, ConfigError
from fsdit.features.batches import Feed
from fsdit.features.frozen import open_networks
from fsdit.features.staging import with_local_copies
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.sampling.generator import Generator, online_networks
from fsdit.sampling.guide import Guide, open_guide
from fsdit.training import optimizer
from fsdit.training import state as train_state
from fsdit.training.checkpoints import listing, store
from fsdit.training.checkpoints.listing import Choice


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's networks on a mesh.

    ema: the EMA weights of `step`. guide: the model that `config.sampling.guide` names, or None.
    """

    config: Config
    spec: ModelSpec
    feed: Feed
    mesh: Mesh
    ema: dict
    step: int
    guide: Guide | None


def saved_config(
    workdir: storage.PathLike, overrides: Mapping[str, str], step: Choice = "newest"
) -> Config:
    """The configuration of a workdir's run. Touches no device; raises what `load_run` raises."""
    return _saved(workdir, overrides, step)[2]


def load_run(
    workdir: storage.PathLike, overrides: Mapping[str, str], step: Choice = "newest"
) -> Run:
    """Loads a workdir for evaluation, on a mesh over all devices.

    overrides: settings as text by dotted path, of those that may change on resume, and the
    kernel of attention.
    step: "newest" takes the newest valid checkpoint; "best" and a number take that checkpoint
    and no other. Raises CheckpointError, ConfigError or DataError.
    """
    found, meta, config = _saved(workdir, overrides, step)
    # Evaluation has a mesh of its own, and reads stored features on the host.
    features = dataclasses.replace(config.features, location="host")
    config = dataclasses.replace(config, mesh=MeshConfig(), features=features)
    validate(config)
    config = with_local_copies(config)
    info = read_run_dataset(config)
    spec, frozen = open_networks(config, info)
    listing.check_identity(workdir, found, meta, frozen.weights)
    guide = open_guide(config, spec, frozen)
    mesh = sharding.make_mesh(config)
    ema, found = _restored(workdir, config, spec, mesh, None if step == "newest" else found)
    return Run(config, spec, Feed(config, mesh, frozen), mesh, ema, found, guide)


def load_generator(
    workdir: storage.PathLike, overrides: Mapping[str, str], step: Choice = "newest"
) -> Generator:
    """Loads a workdir for sampling from a user's pictures, on this process's devices.

    Only the description of the dataset is read. Frozen networks are opened even where the run
    was trained on their stored outputs. Arguments and errors are those of `load_run`.
    """
    found, meta, config = _saved(workdir, overrides, step)
    validate(config)
    read = with_local_copies(config, splits=())
    info = read_run_dataset(read)
    spec, frozen = online_networks(read, info.image_size, info.channels)
    listing.check_identity(workdir, found, meta, frozen.weights)
    guide = open_guide(config, spec, frozen)
    mesh = sharding.local_mesh()
    ema, found = _restored(workdir, config, spec, mesh, None if step == "newest" else found)
    return Generator(config, spec, frozen, ema, found, info.preparation, guide)


def _saved(
    workdir: storage.PathLike, overrides: Mapping[str, str], choice: Choice
) -> tuple[int, dict[str, Any], Config]:
    """(step, meta, configuration) of the chosen checkpoint; "newest" has the newest valid meta."""
    found = listing.saved_meta(workdir, choice)
    if found is None:
        raise CheckpointError(f"{workdir} holds no checkpoint; train one with fsdit.main")
    step, meta = found
    config = apply_overrides(listing.saved_settings(workdir, step, meta), dict(overrides))
    if changes := changed_fields(meta["config"], config, training=False):
        raise ConfigError(f"{workdir} was trained otherwise: {'; '.join(changes)}")
    return step, meta, config


def _restored(
    workdir: storage.PathLike, config: Config, spec: ModelSpec, mesh: Mesh, step: int | None
) -> tuple[dict, int]:
    """(EMA weights, step) of the checkpoint of `step`, or with None of the newest valid one."""
    template = train_state.abstract(spec, optimizer.transformation(config.optimizer), mesh)
    if step is None:
        restored = store.restore(workdir, template, set_aside=False)
    else:
        restored = store.restore_step(workdir, step, template)
    if restored is None:
        raise CheckpointError(f"{workdir} holds no valid checkpoint; train again")
    return restored.state.ema, restored.step
