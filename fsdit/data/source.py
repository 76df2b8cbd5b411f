"""The dataset of a run, and what to say where it is not there."""

from pathlib import Path

from fsdit.config import Config
from fsdit.data.layout import REBUILDING, DatasetInfo, read_dataset_info
from fsdit.errors import DataError


def read_run_dataset(config: Config) -> DatasetInfo:
    """The description of `config.data.dataset_dir`.

    Raises DataError: it is missing, which names the setting, or damaged.
    """
    directory = Path(config.data.dataset_dir)
    if not any((directory / name).exists() for name in ("dataset.json", REBUILDING)):
        relative = "" if directory.is_absolute() else f", looked for from {Path.cwd()}"
        raise DataError(
            f"{directory / 'dataset.json'}: no such file{relative}; name where the dataset lies "
            "with --config.data.dataset_dir=DIR, or make one with "
            "`python -m data_prep.glyphs --output_dir=DIR`"
        )
    return read_dataset_info(directory)
