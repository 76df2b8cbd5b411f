"""The small files of a checkpoint: meta and data, which lie beside the state.

    STEP/data/metadata    {"next_index": ...}, the position in the data
    STEP/meta/metadata    the fields of `_Meta`; store.py says what they mean

A digest in meta covers both files and the number of the step. It reveals a changed byte, and
a checkpoint whose folder bears another step's number. Checkpoints that are older than the
digest are checked against the schema alone: types, bounds, and what follows from the step.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
from jax.sharding import Mesh
from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from fsdit import storage
from fsdit.config import RENAMED, Config, to_dict
from fsdit.data.run_dataset import DatasetFacts
from fsdit.errors import CheckpointError, UnavailableError, cannot_be_read, with_type
from fsdit.training.telemetry.running import Running

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "array-record")
_Word = Annotated[int, Field(ge=0, lt=2**32)]
_Nothing = Annotated[dict[str, Any], Field(max_length=0)]


@dataclasses.dataclass(frozen=True)
class _Data:
    next_index: NonNegativeInt


@dataclasses.dataclass(frozen=True)
class _DataSettings:
    batch_size: PositiveInt


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The part of a configuration that the position in the data is checked against."""

    data: _DataSettings


@dataclasses.dataclass(frozen=True)
class Score:
    """The score by which `selection.py` compares a step with others; lower is better.

    settings: those that the value depends on, by dotted path. ema: decay of the average that has
    this score, the best of those of its step; None: that of train.ema_decay, the only one.
    """

    step: PositiveInt
    value: FiniteFloat
    settings: dict[str, Any]
    ema: FiniteFloat | None = None


@dataclasses.dataclass(frozen=True)
class _Meta:
    config: _Settings
    identity: dict[str, str]
    versions: dict[str, str]
    mesh: dict[str, PositiveInt]
    running: Running | _Nothing
    fingerprint: dict[str, _Word]
    judged: Score | None = None
    best: Score | None = None
    dataset: DatasetFacts | None = None
    digest: str = ""


_META, _DATA = TypeAdapter(_Meta), TypeAdapter(_Data)


class DamagedCheckpointError(CheckpointError):
    """The content of a checkpoint is not what was saved; `reason` says how that showed."""

    def __init__(self, folder: storage.AnyPath, reason: str):
        super().__init__(f"{folder} is damaged ({reason}); name another --step")
        self.reason = reason


class UnreadableCheckpointError(CheckpointError):
    """A checkpoint could not be opened: nothing is known of its content."""


class UnreachedCheckpointError(UnreadableCheckpointError, UnavailableError):
    """The store with a checkpoint does not answer: the same command may succeed later."""


def of_start(
    config: Config, identity: Mapping[str, str], mesh: Mesh, dataset: DatasetFacts | None
) -> dict[str, Any]:
    """The fields of meta that are the same in all checkpoints of one start of a run.

    identity: digests of the dataset and of the frozen weights, by name.
    """
    return {
        "config": to_dict(config),
        "identity": dict(identity),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "mesh": {**mesh.shape, "processes": jax.process_count()},
        "dataset": dataset and dataclasses.asdict(dataset),
    }


def seal(
    step: int, meta: dict[str, Any], data: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(meta with its digest, data), as copies.

    A writer in the background holds the copies while the caller may change the originals.
    """
    meta, data = json.loads(json.dumps([meta, data]))
    return {**meta, "digest": _digest(step, meta, data)}, data


def read(folder: storage.AnyPath) -> tuple[dict[str, Any], int]:
    """(meta, next index) of the checkpoint in `folder`, whose name is its step.

    Raises DamagedCheckpointError or UnreadableCheckpointError.
    """
    try:
        texts = [(folder / name / "metadata").read_bytes() for name in ("meta", "data")]
        typed = _META.validate_json(texts[0], strict=True)
        position = _DATA.validate_json(texts[1], strict=True).next_index
        meta, data = json.loads(texts[0]), json.loads(texts[1])
    except Exception as error:  # a damaged file can cause any exception
        raise explained(folder, error) from error
    step = int(folder.name)
    if wrong := _contradiction(step, typed, position):
        raise DamagedCheckpointError(folder, wrong)
    if "digest" in meta and meta.pop("digest") != _digest(step, meta, data):
        raise DamagedCheckpointError(folder, "meta and data do not match their digest")
    return meta, position


def score_in(meta: Mapping[str, Any], name: Literal["judged", "best"]) -> Score | None:
    """The score of the checkpoint's own step ("judged"), or of the best step up to it ("best").

    None where there is none, as in checkpoints that are older than the selection. Settings
    that had another name in an older version get today's.
    """
    if not meta.get(name):
        return None
    found = Score(**meta[name])
    settings = {RENAMED.get(path, path): value for path, value in found.settings.items()}
    return dataclasses.replace(found, settings=settings)


def dataset_in(meta: Mapping[str, Any]) -> DatasetFacts | None:
    """What the run recorded of its dataset; None in checkpoints that are older than the field."""
    found = meta.get("dataset")
    return found and TypeAdapter(DatasetFacts).validate_python(found)


def _contradiction(step: int, meta: _Meta, next_index: int) -> str:
    """Returns how the files contradict the step that they should belong to, or ""."""
    position = step * meta.config.data.batch_size
    if next_index != position:
        return f"data goes on at index {next_index}, step {step} at {position}"
    if meta.fingerprint.get("step") != step:
        return f"it holds the state of step {meta.fingerprint.get('step')}"
    if meta.judged and meta.judged.step != step:
        return f"it holds the score of step {meta.judged.step}"
    if meta.best and meta.best.step > step:
        return f"it names the later step {meta.best.step} as the best"
    return ""


def _digest(step: int, meta: dict[str, Any], data: dict[str, Any]) -> str:
    text = json.dumps({"step": step, "meta": meta, "data": data}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def explained(folder: storage.AnyPath, error: Exception) -> CheckpointError:
    """The error to raise where reading failed: a damaged content, or no access to it."""
    if storage.is_unavailable(error):
        return UnreachedCheckpointError(
            f"{folder} cannot be read: the store does not answer ({_reason(error)}): nothing has "
            "been changed; start the same command again"
        )
    if cannot_be_read(error) or storage.is_out_of_reach(error):
        return UnreadableCheckpointError(
            f"{folder} cannot be read ({_reason(error)}): nothing has been changed; see to "
            "it that this user can read it, then start the same command again"
        )
    return DamagedCheckpointError(folder, _reason(error))


def _reason(error: Exception) -> str:
    """A few words for the brackets in a message."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}"
    return with_type(error)
