"""What an evaluation was made of, in words for the report: model, data, training, versions."""

import importlib.metadata
import platform

import jax

from fsdit.config import Config, EncoderConfig
from fsdit.data.layout import DatasetInfo

_PACKAGES = ("fsdit", "jax", "flax", "numpy", "scikit-learn")


def about(
    config: Config, info: DatasetInfo, ema: dict, step: int, seconds: float | None
) -> dict[str, str]:
    """Name -> words. ema: the weights of `step`. seconds: of training up to it, if known."""
    count = sum(x.size for x in jax.tree.leaves(ema))
    model, train = config.model, config.train
    codec = "pixels" if model.codec.name == "pixels" else f"latents of {model.codec.location}"
    schedule = f"step {step:,} of {train.num_steps:,}, {config.data.batch_size:,} images a step"
    return {
        "model": f"{count / 1e6:.2f} million parameters: {model.depth} blocks of width "
        f"{model.hidden_size} on {codec}, {_encoder(model.encoder)}",
        "data": _data(config, info),
        "training": schedule if seconds is None else f"{schedule}, {_duration(seconds)}",
        "versions": f"Python {platform.python_version()}, " + ", ".join(map(_version, _PACKAGES)),
        "computed on": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _encoder(encoder: EncoderConfig) -> str:
    if encoder.name == "learned":
        depth = f"{encoder.depth} block{'s' if encoder.depth > 1 else ''}"
        return f"supports by an encoder of {depth} that is trained with it"
    return f"supports by the frozen {encoder.location}"


def _data(config: Config, info: DatasetInfo) -> str:
    kind = "greyscale" if info.channels == 1 else "colour"
    splits = [
        f"{name} {split.num_images:,} of {len(split.classes):,} classes"
        for name, split in info.splits.items()
    ]
    size = f"{info.image_size} x {info.image_size}"
    return f"{config.data.dataset_dir}: {kind} images of {size}, {', '.join(splits)}"


def _duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 100 else f"{hours:,} h"


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return f"{package} of a checkout"
