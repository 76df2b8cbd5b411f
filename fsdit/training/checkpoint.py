"""Checkpoints that are whole or not there.

    W/checkpoints/STEP/state   the training state, written by every process
    W/checkpoints/STEP/data    the position in the data: the next global index
    W/checkpoints/STEP/meta    configuration, sums of dataset and frozen weights, versions,
                               mesh, running means, and a fingerprint of the state

Orbax writes a step beside its final name and renames it when complete. The
fingerprint finds what that cannot: a step that was damaged afterwards. A step
that fails to load or to match is set aside with a warning, and the newest sound
one is used.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import PyTree

from fsdit.config import Config, changed_fields, to_dict
from fsdit.errors import CheckpointError
from fsdit.parallel import runtime
from fsdit.training.state import TrainState

# What a run reads -> the setting that names it.
_IDENTITIES = {
    "dataset": "data.dataset_dir",
    "encoder": "model.encoder.location",
    "codec": "model.codec.location",
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "array-record")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint in memory."""

    step: int
    state: TrainState
    next_index: int
    running: dict[str, Any]
    fingerprint: dict[str, int]


def directory(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def steps(workdir: str | Path) -> list[int]:
    """Steps whose folders lie in the workdir, newest first, sound or not."""
    folder = directory(workdir)
    if not folder.is_dir():
        return []
    found = [int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()]
    return sorted(found, reverse=True)


def saved_meta(workdir: str | Path) -> tuple[int, dict[str, Any]] | None:
    """(step, meta) of the newest step whose meta can be read. Touches no device."""
    for step in steps(workdir):
        try:
            return step, _read_json(directory(workdir) / str(step) / "meta")
        except (OSError, ValueError):
            continue
    return None


def check_resumable(workdir: str | Path, config: Config, identity: Mapping[str, str]) -> None:
    """Raises CheckpointError when the workdir's run is not one that `config` continues.

    identity: sums of what the run reads, as `Checkpoints` was given them.
    """
    found = saved_meta(workdir)
    if found is None:
        return
    step, meta = found
    changes = changed_fields(meta["config"], config)
    if changes:
        raise CheckpointError(
            f"{workdir} holds step {step} of another configuration: {'; '.join(changes)}; "
            "name a new --workdir, or undo the change"
        )
    check_identity(workdir, step, meta, identity)


def check_identity(
    workdir: str | Path, step: int, meta: Mapping[str, Any], identity: Mapping[str, str]
) -> None:
    """Raises CheckpointError where a sum in `identity` is not the one saved."""
    for name, found in identity.items():
        if meta["identity"].get(name) != found:
            raise CheckpointError(
                f"{workdir} holds step {step} of a run on another {name} than "
                f"config.{_IDENTITIES[name]}: undo the change, or name another --workdir"
            )


def restore(
    workdir: str | Path, template: PyTree[jax.ShapeDtypeStruct], *, set_aside: bool
) -> Restored | None:
    """The newest sound checkpoint, laid out as `template` says, or None.

    set_aside: rename damaged steps to STEP.damaged, as the run that goes on writing
    there must; a mere reader changes nothing. All processes must call it; they use
    the same step.
    """
    for step in steps(workdir):
        folder = directory(workdir) / str(step)
        restored, reason = _read(folder, step, template)
        if runtime.agree(restored is not None):
            # A computation of all processes together: only when all of them got here.
            if fingerprint(restored.state) == restored.fingerprint:
                return restored
            reason = "its content does not match its fingerprint"
        if runtime.is_main_process():
            print(f"warning: {folder} is damaged ({reason}); trying an older step", flush=True)
            if set_aside:
                folder.rename(_free_name(folder))
        runtime.wait_for_all(f"set_aside_{step}")
    return None


def _read(
    folder: Path, step: int, template: PyTree[jax.ShapeDtypeStruct]
) -> tuple[Restored | None, str]:
    """Reads with Orbax's handlers, which hold no barriers: one process may fail alone."""
    try:
        meta, data = _read_json(folder / "meta"), _read_json(folder / "data")
        args = ocp.args.StandardRestore(template)
        state = ocp.StandardCheckpointHandler().restore(folder / "state", args=args)
        return Restored(step, state, data["next_index"], meta["running"], meta["fingerprint"]), ""
    except Exception as error:  # whatever a damaged file makes Orbax raise
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"


def _read_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata").read_text())


def _free_name(folder: Path) -> Path:
    name, n = folder.with_name(folder.name + ".damaged"), 1
    while name.exists():
        name, n = folder.with_name(f"{folder.name}.damaged-{n}"), n + 1
    return name


@jax.jit
def _leaf_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    def weighted_sum(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        weights = jnp.ones(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            position = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            weights = weights * jnp.uint32(2 * size + 1) + 2 * position
        return (bits * weights).sum(dtype=jnp.uint32)

    return [weighted_sum(leaf) for leaf in leaves]


def fingerprint(state: TrainState) -> dict[str, int]:
    """One number an array, from its bits and their places, modulo 2**32.

    Integer sums do not depend on their order, so any mesh computes the same. The
    weights are odd: one changed word always shows.
    """
    leaves = jax.tree.leaves_with_path(state)
    sums = jax.device_get(_leaf_sums([leaf for _, leaf in leaves]))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(value)
        for (path, _), value in zip(leaves, sums, strict=True)
    }


class Checkpoints:
    """Writes checkpoints in the background; the step after goes on meanwhile."""

    def __init__(
        self,
        workdir: str | Path,
        config: Config,
        identity: Mapping[str, str],
        mesh: Mesh,
        newest: int,
    ):
        """identity: sums of the dataset and of the frozen weights, by name."""
        self._workdir = workdir
        self._newest_whole = newest
        self._saving = newest
        self._meta = {
            "config": to_dict(config),
            "identity": dict(identity),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "mesh": {**mesh.shape, "processes": jax.process_count()},
        }
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.checkpoint.keep_last,
            keep_period=config.checkpoint.keep_every or None,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        with self._explained():
            self._manager = ocp.CheckpointManager(directory(workdir), options=options)

    def save(self, state: TrainState, step: int, next_index: int, running: dict[str, Any]) -> None:
        """Starts a save; returns once the state is copied off the devices.

        running: small values that continue a run's log, as JSON.
        Raises CheckpointError when this or the previous save failed.
        """
        if step == self._saving:
            return
        meta = {**self._meta, "running": running, "fingerprint": fingerprint(state)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave({"next_index": next_index}),
            meta=ocp.args.JsonSave(meta),
        )
        # Copying to the host is what saving is: the loop's transfer guard is lifted.
        # force: when to save is the loop's decision, not the manager's.
        with self._explained(), jax.transfer_guard("allow"):
            self._manager.save(step, args=items, force=True)
        self._newest_whole, self._saving = self._saving, step

    def check(self) -> None:
        """Raises CheckpointError when a save in the background has failed."""
        with self._explained():
            self._manager.check_for_errors()

    def finish(self) -> None:
        """Waits until everything is written. Raises CheckpointError when it was not."""
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = str(error).splitlines()[0][:300]
            kept = f"step {self._newest_whole} is whole" if self._newest_whole else "none is whole"
            raise CheckpointError(
                f"cannot write a checkpoint to {directory(self._workdir)}: {reason}; "
                f"{kept}; make room and start the same command again"
            ) from error
