"""Loads a trained run from its workdir, for evaluation and sampling."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from fsdit import storage
from fsdit.checks import validate
from fsdit.config import Config, MeshConfig, apply_overrides, changed_fields
from fsdit.data.run_dataset import DatasetFacts, facts_of, read_run_dataset
from fsdit.errors import CheckpointError, ConfigError
from fsdit.features.batches import Feed
from fsdit.features.frozen import open_networks
from fsdit.features.staging import with_local_copies, with_local_networks
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.sampling.generator import Generator, online_networks
from fsdit.sampling.guide import Guide, open_guide
from fsdit.training import optimizer
from fsdit.training import state as train_state
from fsdit.training.alignment import with_projection, without_projection
from fsdit.training.checkpoints import listing, store
from fsdit.training.checkpoints.listing import Choice
from fsdit.training.checkpoints.metadata import dataset_in, score_in
from fsdit.training.telemetry import goodput


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's networks on a mesh.

    ema: the EMA weights of `step`, of decay `ema_decay`. guide: the model that
    `config.sampling.guide` names, or None.
    """

    config: Config
    spec: ModelSpec
    feed: Feed
    mesh: Mesh
    ema: dict
    step: int
    ema_decay: float
    guide: Guide | None


class _Saved(NamedTuple):
    """The chosen checkpoint of a run and the chosen decay. settings: with overrides."""

    step: int
    meta: dict[str, Any]
    settings: Config
    ema_decay: float


def saved_config(
    workdir: storage.PathLike,
    overrides: Mapping[str, str],
    step: Choice = "newest",
    ema: float | None = None,
) -> Config:
    """The configuration of a workdir's run. Touches no device; raises what `load_run` raises."""
    return _saved(workdir, overrides, step, ema).settings


def saved_dataset(
    workdir: storage.PathLike,
    overrides: Mapping[str, str],
    step: Choice = "newest",
    ema: float | None = None,
) -> DatasetFacts:
    """What a workdir's run records of its dataset. Touches no device.

    Runs of older versions record nothing: their dataset is read. Raises what `load_run` raises.
    """
    return _dataset_of(_saved(workdir, overrides, step, ema))


def _dataset_of(saved: _Saved) -> DatasetFacts:
    if (recorded := dataset_in(saved.meta)) is not None:
        return recorded
    return facts_of(read_run_dataset(with_local_copies(saved.settings, splits=())))


def load_run(
    workdir: storage.PathLike,
    overrides: Mapping[str, str],
    step: Choice = "newest",
    ema: float | None = None,
) -> Run:
    """Loads a workdir for evaluation, on a mesh over all devices.

    overrides: settings as text by dotted path, of those that may change on resume, and the
    kernel of attention.
    step: "newest" takes the newest valid checkpoint; "best" and a number take that checkpoint
    and no other. ema: decay of the average to take; None: the one that scored best where `step`
    is "best", otherwise that of train.ema_decay. Raises CheckpointError, ConfigError or
    DataError.
    """
    saved = _saved(workdir, overrides, step, ema)
    # Evaluation has a mesh of its own, and reads stored features on the host.
    features = dataclasses.replace(saved.settings.features, location="host")
    config = dataclasses.replace(saved.settings, mesh=MeshConfig(), features=features)
    validate(config)
    config = with_local_copies(config)
    info = read_run_dataset(config)
    spec, frozen = open_networks(config, info)
    listing.check_identity(workdir, saved.step, saved.meta, frozen.weights)
    guide = open_guide(config, spec, frozen)
    mesh = sharding.make_mesh(config)
    weights, found = _restored(workdir, saved, spec, mesh, newest=step == "newest")
    feed = Feed(config, mesh, frozen)
    return Run(config, spec, feed, mesh, weights, found, saved.ema_decay, guide)


def load_generator(
    workdir: storage.PathLike,
    overrides: Mapping[str, str],
    step: Choice = "newest",
    ema: float | None = None,
) -> Generator:
    """Loads a workdir for sampling from a user's pictures, on this process's devices.

    The dataset need not be there, except for a run of an older version (`saved_dataset`).
    Frozen networks are opened even where the run was trained on their stored outputs. Arguments
    and errors are those of `load_run`.
    """
    saved = _saved(workdir, overrides, step, ema)
    config = saved.settings
    validate(config)
    facts = _dataset_of(saved)
    spec, frozen = online_networks(with_local_networks(config), facts.image_size, facts.channels)
    listing.check_identity(workdir, saved.step, saved.meta, frozen.weights)
    guide = open_guide(config, spec, frozen)
    mesh = sharding.local_mesh()
    weights, found = _restored(workdir, saved, spec, mesh, newest=step == "newest")
    about = (found, facts.preparation, guide, saved.ema_decay)
    return Generator(config, spec, frozen, weights, *about)


def training_seconds(workdir: storage.PathLike, step: int) -> float | None:
    """Seconds of training up to `step`, over all starts; None where the run did not keep them."""
    path = storage.place(workdir) / "goodput.jsonl"
    if not storage.is_there(path):
        return None
    rows = goodput.read_lines(storage.local_file(path))
    found = goodput.account(row for row in rows if row["step"] <= step)
    return found.wall - found.seconds["down"]


def _saved(
    workdir: storage.PathLike, overrides: Mapping[str, str], choice: Choice, ema: float | None
) -> _Saved:
    """The chosen checkpoint's step and meta; "newest" has the newest valid meta."""
    found = listing.saved_meta(workdir, choice)
    if found is None:
        raise CheckpointError(f"{workdir} holds no checkpoint; train one with fsdit.main")
    step, meta = found
    config = apply_overrides(listing.saved_settings(workdir, step, meta), dict(overrides))
    if changes := changed_fields(meta["config"], config, training=False):
        raise ConfigError(f"{workdir} was trained otherwise: {'; '.join(changes)}")
    kept = config.train.all_decays
    if ema is None:
        scored = score_in(meta, "judged") if choice == "best" else None
        ema = scored.ema if scored and scored.ema is not None else config.train.ema_decay
    if ema not in kept:
        there = ", ".join(map(str, kept))
        raise CheckpointError(f"{workdir} keeps no average of decay {ema}: --ema can be {there}")
    return _Saved(step, meta, _with_kernel_of_samples(config), ema)


def _with_kernel_of_samples(config: Config) -> Config:
    """The configuration with a kernel of attention that samples: the packed one only trains."""
    if config.model.attention != "packed":
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention="plain"))


def _restored(
    workdir: storage.PathLike, saved: _Saved, spec: ModelSpec, mesh: Mesh, *, newest: bool
) -> tuple[dict, int]:
    """(EMA weights, step) of the saved checkpoint, or of the newest valid one."""
    tx, decays = optimizer.transformation(saved.settings.optimizer), saved.settings.train.all_decays
    trained = with_projection(spec, saved.settings)
    template = train_state.abstract(trained, tx, mesh, len(decays))
    if newest:
        restored = store.restore(workdir, template, set_aside=False)
    else:
        restored = store.restore_step(workdir, saved.step, template)
    if restored is None:
        raise CheckpointError(f"{workdir} holds no valid checkpoint; train again")
    average = restored.state.averages[decays.index(saved.ema_decay)]
    return without_projection(average), restored.step
