"""The weights that a run starts from, where `train.init_from` names another model.

It names an export, by its folder or its name in the package, or the workdir of a run. The EMA
weights there become the parameters of step 0, and every average of theirs; the optimizer and the
count of steps begin anew. A parameter without an array of its name and shape there is initialised
as in any other run. A resumed run does not read them again.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from fsdit import storage
from fsdit.config import Config
from fsdit.data.images.photos import Preparation
from fsdit.data.run_dataset import DatasetFacts
from fsdit.errors import CheckpointError, ConfigError, DataError
from fsdit.parallel import processes
from fsdit.sampling.export_files import read_arrays, read_info, tensors
from fsdit.training.checkpoints import listing, metadata
from fsdit.training.checkpoints.verification import fingerprint
from fsdit.weights import shipped

_NAMED = 6  # arrays in a line that names some
_SETTING = "config.train.init_from"

Arrays = dict[str, np.ndarray]  # by name, such as "blocks/attention/qkv/kernel"


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A model to start from, of which no weights are read yet.

    step: that of its weights. identity: digests of its frozen weights, by name. preparation: how
    its training images were made; None where that was not recorded. word: 32 bits that are the
    same where two processes opened the same weights. read: its EMA weights, on the host.
    """

    location: str
    step: int
    identity: Mapping[str, str]
    preparation: Preparation | None
    word: int
    read: Callable[[], Arrays]


def open_start(location: str) -> Start:
    """Opens the model that `train.init_from` names; touches no device.

    Raises DataError or CheckpointError where there is none, or none that can be read.
    """
    folder = storage.absolute(location)
    if (folder / "checkpoints").is_dir():
        return _of_run(folder)
    try:
        place = shipped.located(location)
        info = read_info(place)
    except DataError as error:
        raise DataError(f"{_SETTING}: no run and no exported model: {error}") from None
    word = int(info.sha256[:8], 16)
    read = functools.partial(read_arrays, place, info)
    return Start(location, info.step, info.frozen, info.preparation, word, read)


def _of_run(folder: storage.AnyPath) -> Start:
    found = listing.saved_meta(folder)
    if found is None:
        raise CheckpointError(f"{_SETTING}={folder} holds no valid checkpoint: name another run")
    step, meta = found
    facts = metadata.dataset_in(meta)

    def read() -> Arrays:
        return _ema_of(listing.directory(folder) / str(step), meta["fingerprint"])

    return Start(str(folder), step, meta["identity"], facts and facts.preparation, step, read)


def _ema_of(folder: storage.AnyPath, expected: Mapping[str, int]) -> Arrays:
    """The average of `train.ema_decay` in a checkpoint, compared with its fingerprint.

    Each process reads all of it. Raises CheckpointError.
    """
    handler = ocp.PyTreeCheckpointHandler()
    try:
        saved = handler.metadata(folder / "state").tree["ema"]
        ema = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), ema)
        args = ocp.args.PyTreeRestore({"ema": ema}, {"ema": as_numpy}, partial_restore=True)
        found = handler.restore(folder / "state", args=args)
    except jax.errors.JaxRuntimeError:
        raise  # by a device: no fault of the files
    except Exception as error:  # a damaged file can make Orbax raise anything
        raise metadata.explained(folder, error) from error
    for name, word in fingerprint(jax.tree.map(jnp.asarray, found)).items():
        if expected.get(name) != word:
            raise CheckpointError(
                f"{_SETTING}: {folder} is damaged (its content does not match its fingerprint): "
                "export an older step with fsdit.export --step=NUMBER, and name the export"
            )
    return traverse_util.flatten_dict(found["ema"], sep="/")


def read_start(
    config: Config, params: dict, dataset: DatasetFacts, identity: Mapping[str, str]
) -> Arrays:
    """The arrays with which parameters start, by name; the others are initialised.

    There are none where `config` names no start. params: the template of the parameters.
    dataset, identity: those of the run. Lines say what fits and what does not. All processes
    must call it. Raises ConfigError where nothing fits, and what `open_start` raises.
    """
    location = config.train.init_from
    if not location:
        return {}
    start = open_start(location)
    if not processes.same(start.word):
        raise CheckpointError(
            f"{_SETTING}={location} has changed while the processes of this job opened it: start "
            "the same command again"
        )
    found, wanted = start.read(), tensors(params)
    taken = {
        name: found[name].astype(leaf.dtype)
        for name, leaf in wanted.items()
        if name in found and found[name].shape == leaf.shape
    }
    if not taken:
        raise ConfigError(
            f"{_SETTING}={location}: none of its {len(found)} arrays fits this model: name a "
            "model of these sizes, or set config.model to the sizes of that one"
        )
    if processes.is_main_process():
        print(
            f"starting from step {start.step} of {location}: "
            f"{len(taken)} of {len(wanted)} arrays are taken"
        )
        for line in (*_left_out(found, wanted), *_differences(start, dataset, identity)):
            print(f"  {line}", flush=True)
    return taken


def _left_out(found: Arrays, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[str]:
    """A line for each reason for which an array is not taken, or is initialised."""
    groups = {
        "of another shape there, initialised": (
            f"{name} {leaf.shape}, there {found[name].shape}"
            for name, leaf in wanted.items()
            if name in found and found[name].shape != leaf.shape
        ),
        "not there, initialised": (name for name in wanted if name not in found),
        "only there, left out": (name for name in found if name not in wanted),
    }
    for reason, names in groups.items():
        if named := list(names):
            yield f"{reason}: {_some(named)}"


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more


def _differences(start: Start, dataset: DatasetFacts, identity: Mapping[str, str]) -> Iterator[str]:
    """Lines about what its weights have learned to expect, and this run does not give."""
    for name in ("encoder", "codec"):
        if start.identity.get(name) != identity.get(name):
            yield f"it was trained with another {name}: its weights expect the outputs of that one"
    before, now = start.preparation, dataset.preparation
    if before and now and before != now:
        yield f"its training images were made {before}, those of this dataset {now}"
