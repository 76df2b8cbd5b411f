"""Checkpoints that are whole or not there.

    W/checkpoints/STEP/state   the training state, written by every process
    W/checkpoints/STEP/data    the position in the data: the next global index
    W/checkpoints/STEP/meta    configuration, sums of dataset and frozen weights, versions,
                               mesh, running means, what was judged of the step and of the
                               best so far, and a fingerprint of the state

Orbax writes a step beside its final name and renames it when complete. The
fingerprint finds what that cannot: a step that was damaged afterwards. A step
that fails to load or to match is set aside with a warning, and the newest sound
one is used.

Kept are the last ones, each keep_every-th, and the best: it goes when a better one
is whole.
"""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    CustomSteps,
    EveryNSteps,
    LatestN,
)

from fsdit.config import Config, to_dict
from fsdit.errors import CheckpointError, first_line, remedy
from fsdit.parallel import processes
from fsdit.training.checkpoints import metadata
from fsdit.training.checkpoints.best import Judged, best_of, better, from_meta, judged, to_meta
from fsdit.training.checkpoints.listing import directory, none_is_valid, readable_metas, steps
from fsdit.training.checkpoints.metadata import DamagedCheckpointError, UnreadableCheckpointError
from fsdit.training.checkpoints.verification import fingerprint, read_back
from fsdit.training.state import TrainState

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "array-record")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint in memory. best: what it says of the best step."""

    step: int
    state: TrainState
    next_index: int
    running: dict[str, Any]
    fingerprint: dict[str, int]
    best: Judged | None


def restore(
    workdir: str | Path,
    template: PyTree[jax.ShapeDtypeStruct],
    *,
    set_aside: bool,
    start_over: bool = False,
) -> Restored | None:
    """The newest valid checkpoint, laid out as `template` says, or None.

    set_aside: rename damaged steps to STEP.damaged, as the run that goes on writing
    there must; a mere reader changes nothing. Where steps are there and none is valid, such
    a run raises CheckpointError, unless it may start over. All processes must call it; they
    use the same step. Raises UnreadableCheckpointError before anything is renamed.
    """
    damaged, restored = [], None
    for step in steps(workdir):
        folder = directory(workdir) / str(step)
        restored, reason = _valid(folder, step, template)
        if restored is not None:
            break
        damaged.append(folder)
        if processes.is_main_process():
            print(f"warning: {folder} is damaged ({reason}); trying an older step", flush=True)
    if set_aside and damaged:
        if restored is None and not start_over:
            raise none_is_valid(workdir)
        if processes.is_main_process():
            for folder in damaged:
                folder.rename(_free_name(folder))
        processes.wait_for_all("set_aside")
    return restored


def restore_step(
    workdir: str | Path, step: int, template: PyTree[jax.ShapeDtypeStruct]
) -> Restored:
    """One checkpoint and no other. Raises CheckpointError where it is damaged or unreadable."""
    folder = directory(workdir) / str(step)
    restored, reason = _valid(folder, step, template)
    if restored is None:
        raise DamagedCheckpointError(folder, reason)
    return restored


def _valid(
    folder: Path, step: int, template: PyTree[jax.ShapeDtypeStruct]
) -> tuple[Restored | None, str]:
    """(the checkpoint, "") where every process finds it valid, or (None, what is wrong)."""
    restored, problem = None, None
    try:
        restored = _read(folder, step, template)
    except CheckpointError as error:
        problem = error
    opened = not isinstance(problem, UnreadableCheckpointError)
    if not processes.agree(opened):
        raise UnreadableCheckpointError(str(problem or f"{folder}: another process cannot read it"))
    if not processes.agree(restored is not None):
        return None, getattr(problem, "reason", "another process cannot load it")
    # A computation of all processes together: only when all of them got here.
    if fingerprint(restored.state) != restored.fingerprint:
        return None, "its content does not match its fingerprint"
    return restored, ""


def _read(folder: Path, step: int, template: PyTree[jax.ShapeDtypeStruct]) -> Restored:
    """Reads with Orbax's handlers, which hold no barriers: one process may fail alone."""
    meta, next_index = metadata.read(folder)
    try:
        args = ocp.args.StandardRestore(template)
        state = ocp.StandardCheckpointHandler().restore(folder / "state", args=args)
    except jax.errors.JaxRuntimeError:
        raise  # the devices' memory, say: nothing that the files are to blame for
    except Exception as error:  # whatever a damaged file makes Orbax raise
        raise metadata.explained(folder, error) from error
    best = from_meta(meta, "best")
    return Restored(step, state, next_index, meta["running"], meta["fingerprint"], best)


def _free_name(folder: Path) -> Path:
    name, n = folder.with_name(folder.name + ".damaged"), 1
    while name.exists():
        name, n = folder.with_name(f"{folder.name}.damaged-{n}"), n + 1
    return name


class _Manager(ocp.CheckpointManager):
    """Leaves the question about preemption to the loop.

    JAX wants it asked once a step, and fixes the step at which all leave from the last one
    that asked. Orbax asks too, for the step that its thread has just finished: a notice
    that came then was for a step long past, and no one left.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """Writes checkpoints in the background; the step after goes on meanwhile."""

    def __init__(
        self,
        workdir: str | Path,
        config: Config,
        identity: Mapping[str, str],
        mesh: Mesh,
        newest: int,
        best: Judged | None = None,
    ):
        """identity: sums of the dataset and of the frozen weights, by name.

        newest, best: the step that the run goes on from, and the best one it knew then.
        """
        self._workdir, self._config = workdir, config
        self.best, self._own = _still_there(workdir, newest, best), None
        self._newest_whole = newest
        self._saving = newest
        self._saves, self._unread = 0, False  # unread: the first one, until it was read back
        self._meta = {
            "config": to_dict(config),
            "identity": dict(identity),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "mesh": {**mesh.shape, "processes": jax.process_count()},
        }
        kept = config.checkpoint
        every = [EveryNSteps(kept.keep_every)] if kept.keep_every else []
        self._kept = AnyPreservationPolicy([LatestN(kept.keep_last), *every, CustomSteps([])])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        with self._explained():
            self._manager = _Manager(directory(workdir), options=options)

    def judge(self, step: int, value: float) -> bool:
        """Takes the judged value of a step; returns whether it is the best, and to be saved.

        All processes must call it. They save together or not at all, even where their
        values differ in a last bit.
        """
        self._own = judged(self._config, step, value)
        with jax.transfer_guard("allow"):
            best = processes.agree(self._own is not None and better(self._own, self.best))
        if best:
            self.best = self._own
        return best

    def save(self, state: TrainState, step: int, next_index: int, running: dict[str, Any]) -> None:
        """Starts a save; returns once the state is copied off the devices.

        running: small values that continue a run's log, as JSON.
        Raises CheckpointError when this or the previous save failed.
        """
        if step == self._saving:
            return
        own = self._own if self._own and self._own.step == step else None
        found = to_meta(own, self.best)
        meta = {**self._meta, **found, "running": running, "fingerprint": fingerprint(state)}
        # Orbax writes them later, when the caller may have changed its own.
        meta, data = metadata.seal(step, meta, {"next_index": next_index})
        # The best one before goes when this one is whole.
        self._kept.policies[-1] = CustomSteps([self.best.step] if self.best else [])
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            meta=ocp.args.JsonSave(meta),
        )
        # Copying to the host is what saving is: the loop's transfer guard is lifted.
        # force: when to save is the loop's decision, not the manager's.
        with self._explained(), jax.transfer_guard("allow"):
            self._read_first_back(wait=True)
            self._manager.save(step, args=items, force=True)
        self._newest_whole, self._saving = self._saving, step
        self._saves, self._unread = self._saves + 1, not self._saves

    def check(self) -> None:
        """Raises CheckpointError when a save in the background has failed."""
        with self._explained():
            self._manager.check_for_errors()
            self._read_first_back(wait=False)

    def finish(self) -> None:
        """Waits until everything is written. Raises CheckpointError when it was not."""
        with self._explained():
            self._manager.wait_until_finished()
            self._read_first_back(wait=True)
            self._manager.close()

    def _read_first_back(self, *, wait: bool) -> None:
        """Once, as soon as the first save is complete; wait: now."""
        if not self._unread or (not wait and self._manager.is_saving_in_progress()):
            return
        self._manager.wait_until_finished()
        if processes.is_main_process():
            with jax.transfer_guard("allow"):
                read_back(directory(self._workdir) / str(self._saving))
        self._unread = False

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (CheckpointError, jax.errors.JaxRuntimeError):
            raise  # the latter: another process or a device, which the disk is not to blame for
        except Exception as error:
            reason = first_line(error)[:300]
            kept = f"step {self._newest_whole} is whole" if self._newest_whole else "none is whole"
            raise CheckpointError(
                f"cannot write a checkpoint to {directory(self._workdir)}: {reason}; "
                f"{kept}; {remedy(error)}"
            ) from error


def _still_there(workdir: str | Path, newest: int, best: Judged | None) -> Judged | None:
    """`best`, or with a warning the best of the other steps up to `newest` where it is lost."""
    if best is None or any(readable_metas(workdir, [best.step])):
        return best
    before = (step for step in steps(workdir) if step <= newest)
    others = best_of(meta for _, meta in readable_metas(workdir, before))
    if processes.is_main_process():
        folder = directory(workdir) / str(best.step)
        rest = f"step {others.step} is the best of the others" if others else "no other was judged"
        print(f"warning: {folder}, the best step, is damaged or gone; {rest}", flush=True)
    return others
