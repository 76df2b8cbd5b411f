"""Trained models that come with the package, so that it samples before anyone trains.

    NAME/config.json, NAME/model.safetensors   an export, as `fsdit.export` writes it
    NAME/README.md                             what the model is and what it learned from
    NAME/examples/SET/*.png                    supports of classes that training never saw

`python -m experiments.shipping.weights` makes such a folder of a trained run.
"""

from pathlib import Path

from fsdit import storage
from fsdit.errors import DataError

HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Names of the models in the package, in order."""
    return tuple(sorted(file.parent.name for file in HERE.glob("*/config.json")))


def is_shipped(model: storage.PathLike) -> bool:
    """Whether `located` takes this for the name of a model in the package."""
    return str(model) in names() and not _is_there(model)


def located(model: storage.PathLike) -> storage.PathLike:
    """The folder of an exported model, which is named by its path or by its name in the package.

    A path wins, as it did before models came with the package. Raises DataError for a plain name
    that is neither.
    """
    if is_shipped(model):
        return HERE / str(model)
    name = str(model)
    if name == Path(name).name and not storage.is_remote(name) and not _is_there(name):
        raise DataError(
            f"{name}: no such folder, and no such model in the package, which has: "
            f"{', '.join(names())}"
        )
    return model


def examples(model: storage.PathLike) -> dict[str, tuple[Path, ...]]:
    """Example supports that lie with an export on a disk: name of a set -> files, in order.

    model: as `located` takes it. Most exports have none.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted((Path(located(model)) / "examples").glob("*/*.png")):
        found.setdefault(file.parent.name, []).append(file)
    return {name: tuple(files) for name, files in found.items()}


def _is_there(model: storage.PathLike) -> bool:
    try:
        return Path(model).expanduser().exists()
    except OSError:  # for example a name that is too long
        return False
