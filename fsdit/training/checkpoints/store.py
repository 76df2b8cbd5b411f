"""Checkpoints that are complete or absent: saving, keeping and restoring them.

    W/checkpoints/STEP/state   the training state, written by every process
    W/checkpoints/STEP/data    the position in the data: the next global index
    W/checkpoints/STEP/meta    configuration, digests of dataset and frozen weights, versions,
                               mesh, running means, the scores of this step and of the best
                               step so far, and a fingerprint of the state

Orbax writes a step under a temporary name and renames it when it is complete. The
fingerprint reveals damage that came after that. A step that cannot be loaded or does not
match its fingerprint is set aside with a warning, and the newest valid step is used.

Orbax keeps the last `keep_last` checkpoints, every `keep_every`-th, and the best one, which
it deletes once a better one is complete.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
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

from fsdit import storage
from fsdit.config import Config
from fsdit.data.run_dataset import DatasetFacts
from fsdit.errors import CheckpointError, UnavailableError, first_line, remedy
from fsdit.parallel import processes
from fsdit.training.checkpoints import listing, metadata
from fsdit.training.checkpoints.listing import directory, none_is_valid, steps
from fsdit.training.checkpoints.metadata import (
    DamagedCheckpointError,
    Score,
    UnreadableCheckpointError,
    score_in,
)
from fsdit.training.checkpoints.selection import Selection
from fsdit.training.checkpoints.verification import fingerprint, read_back
from fsdit.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint in memory. best: the score of the best step up to this one."""

    step: int
    state: TrainState
    next_index: int
    running: dict[str, Any]
    fingerprint: dict[str, int]
    best: Score | None


def restore(
    workdir: storage.PathLike,
    template: PyTree[jax.ShapeDtypeStruct],
    *,
    set_aside: bool,
    start_over: bool = False,
) -> Restored | None:
    """The newest valid checkpoint with the shardings of `template`, or None.

    set_aside: rename damaged steps to STEP.damaged. The run that goes on writing to the
    workdir must do so; a reader must not. start_over: with set_aside, return None where
    the workdir holds steps and none is valid, instead of raising CheckpointError.
    All processes must call it, and all get the same step. Raises UnreadableCheckpointError
    before anything is renamed.
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
    if set_aside and processes.is_main_process():
        for folder in listing.unfinished(workdir):
            folder.rmtree()  # else a save of the same step would mix with it
    return restored


def restore_step(
    workdir: storage.PathLike, step: int, template: PyTree[jax.ShapeDtypeStruct]
) -> Restored:
    """The checkpoint of `step`. Raises CheckpointError where it is damaged or unreadable."""
    folder = directory(workdir) / str(step)
    restored, reason = _valid(folder, step, template)
    if restored is None:
        raise DamagedCheckpointError(folder, reason)
    return restored


def _valid(
    folder: storage.AnyPath, step: int, template: PyTree[jax.ShapeDtypeStruct]
) -> tuple[Restored | None, str]:
    """(the checkpoint, "") where every process finds it valid, or (None, what is wrong)."""
    restored, problem = None, None
    try:
        restored = _read(folder, step, template)
    except CheckpointError as error:
        problem = error
    opened = not isinstance(problem, UnreadableCheckpointError)
    if not processes.agree(opened):
        other = UnreadableCheckpointError(f"{folder}: another process cannot read it")
        raise other if opened else problem
    if not processes.agree(restored is not None):
        return None, getattr(problem, "reason", "another process cannot load it")
    # All processes compute the fingerprint together, so all of them must have got here.
    if fingerprint(restored.state) != restored.fingerprint:
        return None, "its content does not match its fingerprint"
    return restored, ""


def _read(folder: storage.AnyPath, step: int, template: PyTree[jax.ShapeDtypeStruct]) -> Restored:
    """Reads a checkpoint with Orbax's handlers: these have no barriers, so that one process
    may fail while the others succeed."""
    meta, next_index = metadata.read(folder)
    try:
        args = ocp.args.StandardRestore(template)
        state = ocp.StandardCheckpointHandler().restore(folder / "state", args=args)
    except jax.errors.JaxRuntimeError:
        raise  # by a device, such as one out of memory: no fault of the files
    except Exception as error:  # a damaged file can make Orbax raise anything
        raise metadata.explained(folder, error) from error
    best = score_in(meta, "best")
    return Restored(step, state, next_index, meta["running"], meta["fingerprint"], best)


def _free_name(folder: storage.AnyPath) -> storage.AnyPath:
    name, n = folder.with_name(folder.name + ".damaged"), 1
    while name.exists():
        name, n = folder.with_name(f"{folder.name}.damaged-{n}"), n + 1
    return name


class _Manager(ocp.CheckpointManager):
    """Never asks JAX whether a preemption was announced: only the training loop does.

    JAX lets all processes leave at the call after the last one that any of them made. Orbax
    would make calls of its own, with the number of a step that was saved in the background:
    a notice that came during such a call named a step in the past, and no process left.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """Saves checkpoints in the background while training goes on, and keeps the right ones.

    selection: decides which step is the best; that checkpoint is kept.
    """

    def __init__(
        self,
        workdir: storage.PathLike,
        config: Config,
        identity: Mapping[str, str],
        mesh: Mesh,
        newest: int,
        selection: Selection | None = None,
        dataset: DatasetFacts | None = None,
    ):
        """identity: digests of the dataset and of the frozen weights, by name.

        newest: the step that the run resumes from, or 0. selection: None for a new one.
        dataset: what is recorded of the dataset, if anything.
        """
        self._workdir = workdir
        self.selection = selection or Selection(config)
        self._newest_complete = newest
        self._saving = newest
        # The first checkpoint of a start is read back once; _unread: that is still to be done.
        self._saves, self._unread = 0, False
        self._begun: float | None = None
        # Seconds of the longest save that ended before the next one began; None: of none yet.
        self.longest_save: float | None = None
        self._meta = metadata.of_start(config, identity, mesh, dataset)
        kept = config.checkpoint
        every = [EveryNSteps(kept.keep_every)] if kept.keep_every else []
        self._kept = AnyPreservationPolicy([LatestN(kept.keep_last), *every, CustomSteps([])])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            # In a bucket a step has no temporary name: Orbax would delete each that lacks its mark
            # of completeness, and with that every checkpoint that was copied from a disk.
            cleanup_tmp_directories=not storage.is_remote(workdir),
            enable_async_checkpointing=True,
        )
        with self._explained():
            self._manager = _Manager(directory(workdir), options=options)

    def save(self, state: TrainState, step: int, next_index: int, running: dict[str, Any]) -> None:
        """Starts a save; returns once the state is copied off the devices.

        running: the running means of the log, as JSON values. Raises CheckpointError when
        this or the previous save failed.
        """
        if step == self._saving:
            return
        meta = {
            **self._meta,
            **self.selection.to_meta(step),
            "running": running,
            "fingerprint": fingerprint(state),
        }
        # Orbax writes them in the background: it gets copies, which the caller cannot change.
        meta, data = metadata.seal(step, meta, {"next_index": next_index})
        # Orbax applies this once the new checkpoint is complete, so that the best one before
        # it is deleted only then.
        best = self.selection.best
        self._kept.policies[-1] = CustomSteps([best.step] if best else [])
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            meta=ocp.args.JsonSave(meta),
        )
        # Saving copies to the host, so the loop's transfer guard is lifted.
        # force: the loop decides when to save, not the manager.
        with self._explained(), jax.transfer_guard("allow"):
            self._read_first_back(wait=True)
            self._begun = time.monotonic()
            self._manager.save(step, args=items, force=True)
        self._newest_complete, self._saving = self._saving, step
        self._unread = self._saves == 0
        self._saves += 1

    def check(self) -> None:
        """Raises CheckpointError where a save in the background has failed."""
        with self._explained():
            self._manager.check_for_errors()
            self._time_save()
            self._read_first_back(wait=False)

    def finish(self) -> None:
        """Waits until everything is written. Raises CheckpointError where a save has failed."""
        with self._explained():
            self._manager.wait_until_finished()
            self._read_first_back(wait=True)
            self._manager.close()

    def _time_save(self) -> None:
        if self._begun is not None and not self._manager.is_saving_in_progress():
            took, self._begun = time.monotonic() - self._begun, None
            self.longest_save = took if self.longest_save is None else max(took, self.longest_save)

    def _read_first_back(self, *, wait: bool) -> None:
        """Reads the first checkpoint of this start back, once it is complete.

        wait: whether to wait for it, instead of trying again at the next call.
        """
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
        except (CheckpointError, UnavailableError, jax.errors.JaxRuntimeError):
            raise  # a JaxRuntimeError comes from another process or a device, not from the disk
        except Exception as error:
            reason = first_line(error)[:300]
            newest = self._newest_complete
            kept = f"step {newest} is complete" if newest else "none is complete"
            failed = f"cannot write a checkpoint to {directory(self._workdir)}"
            if storage.is_unavailable(error):
                text = f"{failed}: the store does not answer ({reason}); {kept}"
                raise UnavailableError(f"{text}; start the same command again") from error
            raise CheckpointError(f"{failed}: {reason}; {kept}; {remedy(error)}") from error
