"""The guide of autoguidance: an exported model that guides a better one of the same kind."""

import dataclasses
from collections.abc import Iterator

from fsdit.checks import Check
from fsdit.config import Config
from fsdit.errors import CheckpointError, ConfigError, DataError
from fsdit.features.frozen import Frozen
from fsdit.models.spec import ModelSpec
from fsdit.sampling.export_files import ExportedInfo, read_config, read_info, read_params


@dataclasses.dataclass(frozen=True, eq=False)
class Guide:
    """A model that guides another one.

    params: its EMA weights, on the host. step: their step. sha256: digest of their file.
    """

    spec: ModelSpec
    params: dict
    step: int
    sha256: str


def check_guide(config: Config, image_size: int, channels: int) -> None:
    """Checks that the export that `config.sampling.guide` names fits a model; "" always does.

    image_size, channels: those of the model's images. Reads no weights. Raises ConfigError or
    DataError.
    """
    if config.sampling.guide:
        _fitting(config, image_size, channels)


def open_guide(config: Config, spec: ModelSpec, frozen: Frozen) -> Guide | None:
    """Reads the guide that `config.sampling.guide` names, on the host; None for "".

    spec, frozen: networks of the model that is guided. Its codec and the outputs of its frozen
    encoder serve the guide too. Raises ConfigError, DataError, or CheckpointError where the
    guide was trained with other frozen networks.
    """
    directory = config.sampling.guide
    if not directory:
        return None
    info, saved = _fitting(config, spec.image_size, spec.channels)
    for name in ("encoder", "codec"):
        if info.frozen.get(name) != frozen.weights.get(name):
            raise CheckpointError(
                f"config.sampling.guide={directory} was trained with another {name} than the "
                f"model: name a guide with the weights of config.model.{name}.location="
                f"{getattr(config.model, name).location}"
            )
    # The kernel of attention is a property of the machine. "plain" runs everywhere.
    kernel = "plain" if config.model.attention == "plain" else saved.model.attention
    settings = dataclasses.replace(saved.model, attention=kernel)
    own = dataclasses.replace(spec, config=settings)
    return Guide(own, read_params(directory, info, own), info.step, info.sha256)


def _fitting(config: Config, image_size: int, channels: int) -> tuple[ExportedInfo, Config]:
    """What the guide's config.json says, after a check that it fits the model."""
    directory = config.sampling.guide
    try:
        info = read_info(directory)
        saved = read_config(directory, info)
    except DataError as error:
        raise DataError(f"config.sampling.guide: {error}") from None
    for wrong, message in _mismatches(config, saved, info, image_size, channels):
        if wrong:
            raise ConfigError(f"config.sampling.guide={directory}: {message}")
    return info, saved


def _mismatches(
    config: Config, saved: Config, info: ExportedInfo, image_size: int, channels: int
) -> Iterator[Check]:
    yield (
        (info.image_size, info.channels) != (image_size, channels),
        f"its images are {_size(info.image_size, info.channels)}, those of the model "
        f"{_size(image_size, channels)}: name a guide of the same size",
    )
    own, guides = config.model, saved.model
    yield (
        guides.codec.name != own.codec.name,
        f"its codec is {guides.codec.name}, that of the model {own.codec.name}: name a guide "
        "that works on the same latents",
    )
    yield (
        guides.encoder.name != own.encoder.name,
        f"its encoder is {guides.encoder.name}, that of the model {own.encoder.name}: name a "
        "guide that takes the same supports",
    )
    # A model without cross-attention is given the pooled outputs of a frozen encoder only.
    yield (
        own.encoder.name == "frozen" and guides.use_context and not own.use_context,
        "it attends to the supports' tokens, and the model is given none: name a guide with "
        "config.model.cross_attention=none",
    )


def _size(image_size: int, channels: int) -> str:
    return f"{image_size} x {image_size} x {channels}"
