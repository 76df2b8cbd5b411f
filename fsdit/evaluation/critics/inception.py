"""The Frechet Inception distance, by torch-fidelity: for comparison with papers.

torch-fidelity and PyTorch are an extra, `pip install 'fsdit[fid]'`, and are imported here
only, when they are needed.
"""

import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fsdit.data.pictures import save_folder
from fsdit.errors import ConfigError, DataError, first_line
from fsdit.evaluation.figures.blas import one_blas_thread


def write_images(folder: Path, images: UInt8[np.ndarray, "N H W C"]) -> None:
    """Writes RGB PNG files into a new folder; greyscale is repeated."""
    rgb = np.broadcast_to(images, (*images.shape[:3], 3))
    save_folder(folder, {f"{i:06d}.png": pixels for i, pixels in enumerate(rgb)})


def check_inception(weights: Path) -> None:
    """Whether `inception_fid` can be computed, to be known before hours of drawing.

    Errors:
        ConfigError: torch-fidelity is not there.
        DataError: `weights` is missing, or not the state of torch-fidelity's Inception.
    """
    with _checked_copy(weights):
        pass


def inception_fid(real: Path, drawn: Path, weights: Path) -> float:
    """The FID between two folders of PNG files, two or more of one size in each.

    weights: torch-fidelity's own file, weights-inception-2015-12-05-6726825d.pth. On a GPU
    where PyTorch finds one.

    Errors:
        ConfigError: torch-fidelity is not there.
        DataError: as of `check_inception`; a folder or an image that cannot be read.
    """
    files = [_images_of(folder) for folder in (real, drawn)]
    with _checked_copy(weights) as copy, one_blas_thread():
        torch, fidelity = _package("torch"), _package("torch_fidelity")
        first, second = (_dataset(torch, paths) for paths in files)
        metrics = fidelity.calculate_metrics(
            input1=first,
            input2=second,
            fid=True,
            feature_extractor_weights_path=str(copy),
            cuda=torch.cuda.is_available(),
            cache=False,
            save_cpu_ram=True,  # no worker processes: forked, they would inherit JAX's threads
            verbose=False,
        )
    return float(metrics[fidelity.KEY_METRIC_FID])


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision raises others where it does not fit PyTorch
        raise ConfigError(
            f"config.evaluation.inception needs torch-fidelity, which cannot be imported "
            f"({first_line(error)}): pip install 'fsdit[fid]', or leave it empty"
        ) from None


@contextlib.contextmanager
def _checked_copy(weights: Path) -> Iterator[Path]:
    """A file of the same weights that torch-fidelity can load.

    It loads whatever a file holds, and that may be code. So this file is read as weights
    only, and what torch-fidelity reads was written here.
    """
    torch, fidelity = _package("torch"), _package("torch_fidelity")
    state = _read_state(torch, weights)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "inception.pth"
        torch.save(state, copy)
        del state
        try:
            fidelity.FeatureExtractorInceptionV3("fid", ["2048"], str(copy))
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{weights}: not the weights of Inception: {reason}") from None
        yield copy


def _read_state(torch: ModuleType, weights: Path) -> Any:
    if not weights.is_file():
        raise DataError(
            f"{weights} is missing; fetch weights-inception-2015-12-05-6726825d.pth of "
            "torch-fidelity's release v0.2.0 and name it in config.evaluation.inception"
        )
    try:
        return torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file brings about
        raise DataError(
            f"{weights}: cannot be read as weights and nothing else: {first_line(error)}"
        ) from None


def _images_of(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.png"))
    if len(files) < 2:
        raise DataError(f"{folder}: {len(files)} PNG files, the FID needs two or more")
    return files


def _dataset(torch: ModuleType, files: list[Path]) -> Any:
    """uint8 (3, H, W) each, as torch-fidelity reads a folder, which it needs torchvision for."""

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            return torch.from_numpy(_pixels(files[index], size).transpose(2, 0, 1).copy())

    with _readable(files[0]), Image.open(files[0], formats=("PNG",)) as first:
        size = first.size
    return Pictures()


def _pixels(file: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    with _readable(file), Image.open(file, formats=("PNG",)) as image:
        if image.size != size:
            raise DataError(f"{file}: {image.size} pixels, the first of its folder has {size}")
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as an image: {error}") from None
