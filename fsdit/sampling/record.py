"""What is recorded with samples: all that is needed to make them again."""

from collections.abc import Mapping
from typing import Any

from fsdit import __version__, storage
from fsdit.config import SamplingConfig, to_dict
from fsdit.sampling.generator import Generator
from fsdit.weights import shipped


def model_name(model: storage.PathLike) -> str:
    """A model as other folders find it: its name in the package, or an absolute path."""
    return str(model) if shipped.is_shipped(model) else str(storage.absolute(model))


def facts(
    generator: Generator,
    model: storage.PathLike,
    command: str,
    overrides: Mapping[str, str],
    supports: list[dict[str, Any]],
    sampling: SamplingConfig,
    num_samples: int,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """The facts of samples, ready for JSON.

    model: workdir, folder of an export, or name in the package. command: makes the samples
    again. overrides: settings that were changed, by dotted path. supports: origin of each set.
    """
    return {
        "command": command,
        "version": __version__,
        "model": model_name(model),
        "name": generator.config.name,
        "step": generator.step,
        "ema_decay": generator.ema_decay,
        "overrides": dict(overrides),
        "supports": supports,
        "num_samples": num_samples,
        "seed": seed,
        "batch_size": batch_size,
        "sampling": to_dict(sampling),
        "guide": generator.guide.sha256 if generator.guide else "",
    }
