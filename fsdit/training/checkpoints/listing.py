"""What checkpoints say of themselves, read without a device; which one a reader wants."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fsdit.config import Config, changed_fields, flatten, from_dict, to_dict
from fsdit.errors import CheckpointError, ConfigError
from fsdit.training.checkpoints import metadata
from fsdit.training.checkpoints.best import from_meta
from fsdit.training.checkpoints.metadata import DamagedCheckpointError

# What a run reads -> the setting that names it.
_IDENTITIES = {
    "dataset": "data.dataset_dir",
    "encoder": "model.encoder.location",
    "codec": "model.codec.location",
}
# May change on resume, and change what steps compute.
_SAID = ("optimizer.peak_learning_rate", "optimizer.final_learning_rate", "train.num_steps")
# Which step a reader wants; "newest": the newest sound one.
Choice = int | Literal["newest", "best"]


def directory(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def steps(workdir: str | Path) -> list[int]:
    """Steps whose folders lie in the workdir, newest first, valid or not.

    Raises UnreadableCheckpointError.
    """
    folder = directory(workdir)
    try:
        entries = list(folder.iterdir())
        found = [int(p.name) for p in entries if _is_step(p.name) and p.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise metadata.explained(folder, error) from error
    return sorted(found, reverse=True)


def _is_step(name: str) -> bool:
    """Whether Orbax writes a step under this name: "5", and neither "05" nor "²"."""
    return name.isascii() and name.isdecimal() and (name[0] != "0" or name == "0")


def saved_meta(workdir: str | Path, step: Choice = "newest") -> tuple[int, dict[str, Any]] | None:
    """(step, meta) of the newest step whose meta is valid, or of the step that is chosen.

    None where there is no such newest, or no step at all. Touches no device. Raises
    CheckpointError where the step that is chosen is not there or is damaged, and
    UnreadableCheckpointError.
    """
    found = steps(workdir)
    if step == "newest" or not found:
        return next(readable_metas(workdir, found), None)
    if step == "best":
        best = from_meta(_meta(workdir, found[0]), "best")
        if best is None:
            raise CheckpointError(
                f"no step of {workdir} was judged: --step=best needs config.train.few_shot_interval"
            )
        step = best.step
    if step not in found:
        there = ", ".join(map(str, sorted(found)))
        raise CheckpointError(f"{workdir} holds no step {step}; it holds {there}")
    return step, _meta(workdir, step)


def _meta(workdir: str | Path, step: int) -> dict[str, Any]:
    return metadata.read(directory(workdir) / str(step))[0]


def readable_metas(
    workdir: str | Path, candidates: Iterable[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Damaged ones are left out. Raises UnreadableCheckpointError."""
    for step in candidates:
        with contextlib.suppress(DamagedCheckpointError):
            yield step, _meta(workdir, step)


def check_resumable(
    workdir: str | Path, config: Config, identity: Mapping[str, str], *, start_over: bool = False
) -> list[str]:
    """Raises CheckpointError when the workdir's run is not one that `config` continues.

    Returns what it computes otherwise from now on, one text a setting.
    identity: sums of what the run reads, as `Checkpoints` was given them. start_over: a
    workdir whose checkpoints are all damaged may begin again.
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
        for path in _SAID
        if old.get(path) != new[path]
    ]


def none_is_valid(workdir: str | Path, reason: str = "") -> CheckpointError:
    there = ", ".join(map(str, sorted(steps(workdir))))
    return CheckpointError(
        f"{directory(workdir)} holds the steps {there}, and none of them is valid"
        f"{f' ({reason})' if reason else ''}: nothing has been changed; --start_over sets them "
        "aside and begins again at step 0"
    )


def saved_settings(workdir: str | Path, step: int, meta: Mapping[str, Any]) -> Config:
    """The configuration that a checkpoint was written with.

    Raises CheckpointError where this version cannot read it.
    """
    try:
        return from_dict(meta.get("config"))
    except ConfigError as error:
        raise CheckpointError(
            f"{workdir}: the settings in step {step} are not those of this version: {error}"
        ) from None


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
