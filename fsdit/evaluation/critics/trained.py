"""The trained critic: tells unseen classes apart by what separates the training classes.

Linear discriminant analysis (Fisher 1936; Rao 1948) of fixed features (gradients.py), fitted to
images of the training split alone. Of real images of unseen classes it finds the class more
often than pixels do. The fit takes seconds and is kept beside the dataset.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fsdit import storage
from fsdit.data.layout import DatasetInfo
from fsdit.data.manifests import digests_in
from fsdit.data.readers import split_images
from fsdit.data.shards import attempt_name
from fsdit.errors import ConfigError, system_text
from fsdit.evaluation.critics.gradients import gradient_features
from fsdit.evaluation.figures.blas import one_blas_thread

SPLIT = "train"  # whose images it is fitted to
FILE = "critic.safetensors"  # in the folder of the dataset
_VERSION = "1"  # of features and fit; another version is another critic
_DIMENSIONS = 64  # of its features, at most
_SHRINKAGE = 0.1  # share of the covariance within classes that is replaced by a multiple of one
_MOST_IMAGES = 50_000  # that it is fitted to
_BATCH_PIXELS = 2**19  # of the images whose features are computed at once
_LARGEST_FILE = 2**26  # bytes


@dataclass(frozen=True, eq=False)
class Discriminant:
    """A linear map of F features to d dimensions: (x - mean) @ axes."""

    mean: Float[np.ndarray, "F"]
    axes: Float[np.ndarray, "F d"]

    def __call__(self, images: Iterable[UInt8[np.ndarray, "H W C"]]) -> Float[np.ndarray, "N d"]:
        """The features of N >= 1 images, of unit length, so that distances are of directions."""
        with one_blas_thread():
            mapped = (_features(images) - self.mean) @ self.axes
        lengths = np.linalg.norm(mapped, axis=1, keepdims=True)
        return mapped / np.maximum(lengths, np.finfo(np.float32).tiny)


def fit(features: Float[np.ndarray, "N F"], classes: Int[np.ndarray, "N"]) -> Discriminant:
    """The axes that maximise variance between classes over variance within them.

    They solve S_b v = lambda S_w v for the largest lambda, with the covariance of the class means
    S_b and that within classes S_w, which is shrunk: 0.9 S_w + 0.1 trace(S_w) / F.
    """
    from scipy.linalg import eigh  # slow to import

    with one_blas_thread():
        features = features.astype(np.float64)
        _, place, counts = np.unique(classes, return_inverse=True, return_counts=True)
        means = np.zeros((len(counts), features.shape[1]))
        np.add.at(means, place, features)
        means /= counts[:, None]
        within = features - means[place]
        scatter = within.T @ within / len(features)
        scatter *= 1 - _SHRINKAGE
        # An epsilon, for images that are all equal within each class.
        scatter[np.diag_indices_from(scatter)] += (
            _SHRINKAGE / (1 - _SHRINKAGE) * np.trace(scatter) / len(scatter) + 1e-9
        )
        between = np.cov(means.T, bias=True)
        size = len(scatter)
        count = min(_DIMENSIONS, len(counts) - 1, size)
        _, axes = eigh(between, scatter, subset_by_index=[size - count, size - 1])
    mean, axes = (np.ascontiguousarray(x, np.float32) for x in (features.mean(0), axes))
    return Discriminant(mean, axes)


def is_possible(info: DatasetInfo) -> bool:
    """Whether a dataset has a training split with two classes of two images or more."""
    return SPLIT in info.splits and sum(n > 1 for n in info.split(SPLIT).images_per_class) > 1


def open_trained(directory: storage.PathLike, info: DatasetInfo) -> tuple[str, Discriminant]:
    """The trained critic of a dataset and its name, "trained-" and digits of the images' sha256.

    It is read from FILE in the folder, or else fitted and written there. Raises ConfigError
    where it is not possible.
    """
    folder = storage.place(directory)
    if not is_possible(info):
        raise ConfigError(
            "config.evaluation.critic=trained needs a training split with two classes of two "
            f"images or more, {directory} has none: name pixels, or a frozen encoder"
        )
    images = digests_in(folder / SPLIT)["images"]
    source = hashlib.sha256(f"{_VERSION} {images}".encode()).hexdigest()
    name = f"trained-{source[:8]}"
    kept = not storage.is_remote(directory)
    found = _read(Path(folder) / FILE, source) if kept else None
    if found is None:
        found = fit(*_training_features(directory, info))
        if kept:
            _write(Path(folder) / FILE, found, source)
    return name, found


def _training_features(
    directory: storage.PathLike, info: DatasetInfo
) -> tuple[Float[np.ndarray, "N F"], Int[np.ndarray, "N"]]:
    """Features and classes of the first images of each training class, as many as allowed."""
    split = info.split(SPLIT)
    most = max(2, _MOST_IMAGES // len(split.classes))
    chosen = [split.class_range(c)[:most] for c in range(len(split.classes))]
    reader = split_images(directory, info, SPLIT)
    images = (reader[i] for i in itertools.chain.from_iterable(chosen))
    return _features(images), np.repeat(np.arange(len(chosen)), [len(c) for c in chosen])


def _features(images: Iterable[UInt8[np.ndarray, "H W C"]]) -> Float[np.ndarray, "N F"]:
    each = iter(images)
    first = next(each)
    size = max(1, _BATCH_PIXELS // (first.shape[0] * first.shape[1]))
    each = itertools.chain([first], each)
    batches = iter(lambda: list(itertools.islice(each, size)), [])
    return np.concatenate([gradient_features(np.stack(batch)) for batch in batches])


def _read(path: Path, source: str) -> Discriminant | None:
    """The kept critic; None where there is none of this source, or it is damaged."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return None
        with safe_open(path, "numpy") as file:
            notes, arrays = file.metadata() or {}, [file.get_tensor(n) for n in ("mean", "axes")]
    except (OSError, SafetensorError, TypeError, ValueError):
        return None
    critic = Discriminant(*arrays)
    return critic if notes.get("sha256") == _digest(critic, source) else None


def _write(path: Path, critic: Discriminant, source: str) -> None:
    """Writes the critic and its digest in one step. A folder that is read-only is said."""
    arrays = {"mean": critic.mean, "axes": critic.axes}
    partial = path.with_name(f"{path.name}.{attempt_name()}.partial")
    try:
        partial.write_bytes(save(arrays, {"sha256": _digest(critic, source)}))
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        print(f"the trained critic is not kept: {path}: {system_text(error)}", flush=True)


def _digest(critic: Discriminant, source: str) -> str:
    """A sha256 of what the critic was fitted to, and of its values."""
    values = critic.mean.tobytes() + critic.axes.tobytes()
    return hashlib.sha256(source.encode() + values).hexdigest()
