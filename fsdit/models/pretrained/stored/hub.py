"""Checkpoints on the hub: fetching one, and saying which of its files are needed."""

import re
from pathlib import Path

import huggingface_hub

from fsdit.config.problems import shown
from fsdit.errors import DataError

# Names of weight files without their ending: transformers', diffusers'.
STEMS = ("model", "diffusion_pytorch_model")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def fetch(location: str, subfolder: str) -> Path:
    """Fetches a hub id's snapshot, or finds it in the cache. Returns its folder.

    Raises DataError that says which files to put where.
    """
    if not _HUB_ID.fullmatch(location):
        wanted = what_to_fetch(Path("DIRECTORY"), subfolder)
        raise DataError(f"{shown(location)} is neither a directory nor a hub id; {wanted}")
    files = ["config.json", "preprocessor_config.json"]
    for stem in STEMS:
        files += [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
        files += [f"{stem}-?????-of-?????.safetensors"]
    patterns = [f"{subfolder}/{name}" if subfolder else name for name in files]
    try:
        return Path(huggingface_hub.snapshot_download(location, allow_patterns=patterns))
    except Exception as error:  # several libraries raise here, and the remedy is always the same
        reason = str(error).split(". ")[0] or type(error).__name__
        wanted = what_to_fetch(Path(location.split("/")[1]), subfolder)
        raise DataError(f"{location!r} cannot be had from the hub ({reason}); {wanted}") from error


def what_to_fetch(folder: Path, subfolder: str = "") -> str:
    """Returns the advice which files to put into `folder`, for messages."""
    return (
        f"put config.json, {STEMS[0]}.safetensors or {STEMS[1]}.safetensors (or its index.json "
        f"and all shards), and an encoder's preprocessor_config.json into {folder / subfolder} "
        f"and name {folder}"
    )
