"""The checkpoints of a workdir and their metas, read without a device."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from fsdit import storage
from fsdit.config import Config, changed_fields, flatten, from_dict, to_dict
from fsdit.config.objects import parse_object
from fsdit.errors import CheckpointError, ConfigError
from fsdit.training.checkpoints import metadata
from fsdit.training.checkpoints.metadata import DamagedCheckpointError, score_in

# Name of what a run reads -> the setting that says where it is.
_IDENTITIES = {
    "dataset": "data.dataset_dir",
    "encoder": "model.encoder.location",
    "codec": "model.codec.location",
}
# Settings that may change on resume although they change what steps compute.
_ANNOUNCED = ("optimizer.peak_learning_rate", "optimizer.final_learning_rate", "train.num_steps")
# The checkpoint that a reader asks for; "newest" is the newest valid one.
Choice = int | Literal["newest", "best"]


def directory(workdir: storage.PathLike) -> storage.AnyPath:
    """The folder of a workdir that holds its checkpoints."""
    return storage.absolute(workdir) / "checkpoints"


def steps(workdir: storage.PathLike) -> list[int]:
    """The steps that have a folder in the workdir, newest first, whether valid or not.

    Those that a killed run was still saving do not count. Raises UnreadableCheckpointError.
    """
    return [step for step, complete in _folders(workdir) if complete]


def unfinished(workdir: storage.PathLike) -> list[storage.AnyPath]:
    """The folders of steps in a bucket whose save was cut off by a kill.

    On a disk a step has a temporary name until it is complete. Raises UnreadableCheckpointError.
    """
    return [directory(workdir) / str(step) for step, done in _folders(workdir) if not done]


def _folders(workdir: storage.PathLike) -> list[tuple[int, bool]]:
    """(step, whether its save came to an end) of each folder of a step, newest first."""
    folder = directory(workdir)
    try:
        entries = list(folder.iterdir())
        found = [
            (int(p.name), not _was_cut_off(p)) for p in entries if _is_step(p.name) and p.is_dir()
        ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as error:
        if isinstance(error, OSError) or storage.is_out_of_reach(error):
            raise metadata.explained(folder, error) from error
        raise
    return sorted(found, reverse=True)


def _was_cut_off(folder: storage.AnyPath) -> bool:
    """Whether Orbax began a step in a bucket, and did not note the time at which it was complete.

    A step without that note, such as a half-copied one, is not known to be cut off.
    """
    if not storage.is_remote(folder):
        return False
    try:
        note = parse_object((folder / "_CHECKPOINT_METADATA").read_bytes())
    except (FileNotFoundError, ValueError, TypeError):
        return False
    return (
        note.get("init_timestamp_nsecs") is not None
        and note.get("commit_timestamp_nsecs", 0) is None
        and not (folder / "commit_success.txt").exists()
    )


def _is_step(name: str) -> bool:
    """Whether Orbax would give a step's folder this name: "5", but neither "05" nor "²"."""
    return name.isascii() and name.isdecimal() and (name[0] != "0" or name == "0")


def saved_meta(
    workdir: storage.PathLike, step: Choice = "newest"
) -> tuple[int, dict[str, Any]] | None:
    """(step, meta) of the checkpoint that `step` chooses; "newest" is the newest valid meta.

    None where the workdir holds no step, or no valid one to be the newest. Touches no device.
    Raises CheckpointError where another choice is not there or is damaged, and
    UnreadableCheckpointError.
    """
    found = steps(workdir)
    if step == "newest" or not found:
        return next(readable_metas(workdir, found), None)
    if step == "best":
        best = score_in(_meta(workdir, found[0]), "best")
        if best is None:
            raise CheckpointError(
                f"no step of {workdir} has a score: --step=best needs "
                "config.train.few_shot_interval"
            )
        step = best.step
    if step not in found:
        there = ", ".join(map(str, sorted(found)))
        raise CheckpointError(f"{workdir} holds no step {step}; it holds {there}")
    return step, _meta(workdir, step)


def _meta(workdir: storage.PathLike, step: int) -> dict[str, Any]:
    return metadata.read(directory(workdir) / str(step))[0]


def readable_metas(
    workdir: storage.PathLike, candidates: Iterable[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, meta) of each candidate whose meta is valid. Raises UnreadableCheckpointError."""
    for step in candidates:
        with contextlib.suppress(DamagedCheckpointError):
            yield step, _meta(workdir, step)


def check_resumable(
    workdir: storage.PathLike,
    config: Config,
    identity: Mapping[str, str],
    *,
    start_over: bool = False,
) -> list[str]:
    """Raises CheckpointError unless `config` can continue the workdir's run.

    Returns a line for each setting that changes what the steps compute from now on.
    identity: digests of the dataset and of the frozen weights, by name. start_over: whether
    a workdir whose checkpoints are all damaged may begin again.
    """
    found = saved_meta(workdir)
    if found is None:
        if steps(workdir) and not start_over:
            raise none_is_valid(workdir)
        return []
    step, meta = found
    saved_settings(workdir, step, meta)
    if changes := changed_fields(meta["config"], config):
        raise CheckpointError(
            f"{workdir} holds step {step} of another configuration: {'; '.join(changes)}; "
            "name a new --workdir, or undo the change"
        )
    check_identity(workdir, step, meta, identity)
    old, new = flatten(meta["config"]), flatten(to_dict(config))
    return [
        f"config.{path} was {old.get(path)} up to step {step}, from now on it is {new[path]}"
        for path in _ANNOUNCED
        if old.get(path) != new[path]
    ]


def none_is_valid(workdir: storage.PathLike) -> CheckpointError:
    """The error of a run whose checkpoints are all damaged."""
    there = ", ".join(map(str, sorted(steps(workdir))))
    return CheckpointError(
        f"{directory(workdir)} holds the steps {there}, and none of them is valid: "
        "nothing has been changed; --start_over sets them aside and begins again at step 0"
    )


def saved_settings(workdir: storage.PathLike, step: int, meta: Mapping[str, Any]) -> Config:
    """The configuration in a checkpoint's meta.

    Raises CheckpointError where this version cannot read it.
    """
    try:
        return from_dict(meta.get("config"))
    except ConfigError as error:
        raise CheckpointError(
            f"{workdir}: the settings in step {step} are not those of this version: {error}"
        ) from None


def check_identity(
    workdir: storage.PathLike, step: int, meta: Mapping[str, Any], identity: Mapping[str, str]
) -> None:
    """Raises CheckpointError where a digest in `identity` differs from the saved one."""
    for name, found in identity.items():
        if meta["identity"].get(name) != found:
            raise CheckpointError(
                f"{workdir} holds step {step} of a run on another {name} than "
                f"config.{_IDENTITIES[name]}: undo the change, or name another --workdir"
            )
