"""What checkpoints say of themselves, read without a device; which one a reader wants."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fsdit.config import Config, changed_fields, from_dict
from fsdit.errors import CheckpointError, ConfigError
from fsdit.training.best import from_meta

# What a run reads -> the setting that names it.
_IDENTITIES = {
    "dataset": "data.dataset_dir",
    "encoder": "model.encoder.location",
    "codec": "model.codec.location",
}
# Which step a reader wants; "newest": the newest sound one.
Choice = int | Literal["newest", "best"]


def directory(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def steps(workdir: str | Path) -> list[int]:
    """Steps whose folders lie in the workdir, newest first, sound or not."""
    folder = directory(workdir)
    if not folder.is_dir():
        return []
    found = [int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()]
    return sorted(found, reverse=True)


def saved_meta(workdir: str | Path, step: Choice = "newest") -> tuple[int, dict[str, Any]] | None:
    """(step, meta) of the newest step whose meta can be read, or of the step that is chosen.

    None where there is no such newest, or no step at all. Touches no device. Raises
    CheckpointError where the step that is chosen is not there or is damaged.
    """
    found = steps(workdir)
    if step == "newest" or not found:
        return next(readable_metas(workdir, found), None)
    if step == "best":
        best = from_meta(_meta(workdir, found[0]), "best")
        if best is None:
            raise CheckpointError(
                f"no step of {workdir} was judged: --step=best needs config.train.fsd_interval"
            )
        step = best.step
    if step not in found:
        there = ", ".join(map(str, sorted(found)))
        raise CheckpointError(f"{workdir} holds no step {step}; it holds {there}")
    return step, _meta(workdir, step)


def _meta(workdir: str | Path, step: int) -> dict[str, Any]:
    folder = directory(workdir) / str(step)
    try:
        return read_json(folder / "meta")
    except (OSError, ValueError) as error:
        raise damaged(folder, reason_of(error)) from error


def readable_metas(
    workdir: str | Path, candidates: Iterable[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    for step in candidates:
        with contextlib.suppress(CheckpointError):
            yield step, _meta(workdir, step)


def damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{folder} is damaged ({reason}); name another --step")


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {''.join(str(error).splitlines()[:1])[:200]}"


def check_resumable(workdir: str | Path, config: Config, identity: Mapping[str, str]) -> None:
    """Raises CheckpointError when the workdir's run is not one that `config` continues.

    identity: sums of what the run reads, as `Checkpoints` was given them.
    """
    found = saved_meta(workdir)
    if found is None:
        return
    step, meta = found
    saved_settings(workdir, step, meta)
    if changes := changed_fields(meta["config"], config):
        raise CheckpointError(
            f"{workdir} holds step {step} of another configuration: {'; '.join(changes)}; "
            "name a new --workdir, or undo the change"
        )
    check_identity(workdir, step, meta, identity)


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


def read_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata").read_text())
