"""The Fréchet Inception distance (FID) as torch-fidelity computes it, to compare with papers.

torch-fidelity and PyTorch are an extra, `pip install 'fsdit[fid]'`. Only this module imports
them, and only inside the functions that need them.
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
    """Writes RGB PNG files into a new folder; a grey channel is repeated three times."""
    rgb = np.broadcast_to(images, (*images.shape[:3], 3))
    save_folder(folder, {f"{i:06d}.png": pixels for i, pixels in enumerate(rgb)})


def check_inception(weights: Path) -> None:
    """Checks that `inception_fid` can run, before hours are spent on making samples.

    Errors:
        ConfigError: torch-fidelity is not installed.
        DataError: `weights` is missing, or not the state of torch-fidelity's Inception.
    """
    with _checked_copy(weights):
        pass


def inception_fid(real: Path, samples: Path, weights: Path) -> float:
    """The FID between two folders of PNG files, each of two or more images of one size.

    It runs on a GPU if PyTorch finds one.

    weights: torch-fidelity's own file, weights-inception-2015-12-05-6726825d.pth.

    Errors:
        ConfigError: torch-fidelity is not installed.
        DataError: the weights are bad, as in `check_inception`, or a folder or an image
            cannot be read.
    """
    files = [_image_files(folder) for folder in (real, samples)]
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
            save_cpu_ram=True,  # no worker processes: JAX's threads would break a fork
            verbose=False,
        )
    return float(metrics[fidelity.KEY_METRIC_FID])


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # not only ImportError: a torchvision may not fit PyTorch
        raise ConfigError(
            f"config.evaluation.inception needs torch-fidelity, which cannot be imported "
            f"({first_line(error)}): pip install 'fsdit[fid]', or leave it empty"
        ) from None


@contextlib.contextmanager
def _checked_copy(weights: Path) -> Iterator[Path]:
    """A temporary copy of the weights, which torch-fidelity can load safely.

    torch-fidelity unpickles the file that it is given, and a pickle may hold code. So the
    user's file is read as weights only, and torch-fidelity gets the copy written from them.
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
    except Exception as error:  # a damaged or hostile file can cause any error
        raise DataError(
            f"{weights}: cannot be read as weights and nothing else: {first_line(error)}"
        ) from None


def _image_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.png"))
    if len(files) < 2:
        raise DataError(f"{folder}: {len(files)} PNG files, the FID needs two or more")
    return files


def _dataset(torch: ModuleType, files: list[Path]) -> Any:
    """A PyTorch data set of the files as uint8 (3, H, W).

    torch-fidelity can read a folder itself, but needs torchvision to do so.
    """

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
