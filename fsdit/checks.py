"""Checks of a configuration that the type of one field cannot make."""

import functools
import math
from collections.abc import Callable, Iterator

from fsdit.config import Config
from fsdit.errors import ConfigError, divisors, multiples_near, would

# Whether the settings are wrong (True, or a number that is not 0), and the message then.
Check = tuple[bool | int, str]


def validate(config: Config) -> None:
    """Raises ConfigError naming a setting that does not go with the others."""
    checks = (
        *_size_checks(config),
        *_attention_checks(config),
        *_run_checks(config),
        *_frozen_checks(config),
        *_alignment_checks(config),
        *_routing_checks(config),
        *_evaluation_checks(config),
    )
    for wrong, message in checks:
        if wrong:
            raise ConfigError(message)


def check_unguided(config: Config, why: str) -> None:
    """Raises ConfigError where a setting names a guide. why: the reason that there can be none."""
    if config.sampling.guide:
        raise ConfigError(f"config.sampling.guide={config.sampling.guide}: {why}")


def _size_checks(config: Config) -> Iterator[Check]:
    model, encoder = config.model, config.model.encoder
    yield (
        model.hidden_size % 4,
        f"config.model.hidden_size={model.hidden_size} must be a multiple of 4: "
        f"{multiples_near(model.hidden_size, 4)}",
    )
    even = [n for n in divisors(model.hidden_size) if model.hidden_size // n % 2 == 0]
    yield (
        model.num_heads not in even,
        f"config.model.num_heads={model.num_heads} must split config.model.hidden_size="
        f"{model.hidden_size} into heads of even width: {would(model.num_heads, even)}",
    )
    by_fours = [n for n in even if model.hidden_size // n % 4 == 0]
    yield (
        model.rotary and model.num_heads not in by_fours,
        f"config.model.rotary=True turns half of a head by rows and half by columns, in pairs: "
        f"config.model.num_heads={model.num_heads} must split config.model.hidden_size="
        f"{model.hidden_size} into heads of a multiple of 4: {would(model.num_heads, by_fours)}",
    )
    unit = math.lcm(4, encoder.num_heads)
    yield (
        encoder.hidden_size % unit,
        f"config.model.encoder.hidden_size={encoder.hidden_size} must be a multiple of 4 and of "
        f"config.model.encoder.num_heads={encoder.num_heads}: "
        f"{multiples_near(encoder.hidden_size, unit)}",
    )
    yield (
        int(model.hidden_size * model.mlp_ratio) < 1,
        f"config.model.mlp_ratio={model.mlp_ratio} leaves nothing of "
        f"config.model.hidden_size={model.hidden_size}",
    )


# Widths of a head that cuDNN's attention takes, and the widest on GPUs before Hopper: those that
# JAX checks in jax/_src/cudnn/fused_attention_stablehlo.py. (cuDNN's guide names 128 as the
# widest for training on A100 and its generation, and 256 for Hopper.)
CUDNN_WIDTHS = range(8, 256 + 1, 8)
CUDNN_WIDEST_BEFORE_HOPPER = 128
PACKED_COLUMNS = 128  # that the packed kernel computes at once: lanes of a TPU's registers


def head_widths(config: Config) -> Iterator[tuple[str, int, int]]:
    """(setting of the number of heads, this number, width of a head) of each attention that is
    trained."""
    model, encoder = config.model, config.model.encoder
    yield "config.model.num_heads", model.num_heads, model.hidden_size // model.num_heads
    if encoder.name == "learned":
        width = encoder.hidden_size // encoder.num_heads
        yield "config.model.encoder.num_heads", encoder.num_heads, width


def heads_would(heads: int, width: int, allowed: Callable[[int], bool]) -> str:
    """Returns `would` for a number of heads whose width has to change with their sum kept.

    allowed: whether a head may be so wide.
    """
    size = heads * width
    return would(heads, (n for n in divisors(size) if allowed(size // n)))


def _attention_checks(config: Config) -> Iterator[Check]:
    kernel = config.model.attention
    if kernel == "plain":
        return
    yield (
        config.model.dtype != "bfloat16",
        f"config.model.attention={kernel} computes in bfloat16 only: set config.model.dtype="
        f"bfloat16 (it is {config.model.dtype}), or config.model.attention=plain",
    )
    for setting, heads, width in head_widths(config):
        yield (
            kernel == "cudnn" and width not in CUDNN_WIDTHS,
            f"config.model.attention=cudnn: heads of width {width} are not possible; change "
            f"{setting}={heads} so that the width is a multiple of 8, at most {CUDNN_WIDTHS[-1]}: "
            f"{heads_would(heads, width, CUDNN_WIDTHS.__contains__)}; or set "
            "config.model.attention=plain",
        )
    if kernel == "packed":
        yield from _packed_checks(config)


def _packed_checks(config: Config) -> Iterator[Check]:
    """The packed kernel computes 128 columns at once, of complete heads."""
    for setting, heads, width in head_widths(config):
        fitting = heads_would(heads, width, lambda n: n % 2 == 0 and PACKED_COLUMNS % n == 0)
        yield (
            PACKED_COLUMNS % width,
            f"config.model.attention=packed: heads of width {width} are not possible; change "
            f"{setting}={heads} so that the width divides {PACKED_COLUMNS}: {fitting}; or set "
            "config.model.attention=plain",
        )
        side = setting.replace("num_heads", "hidden_size")
        size = functools.reduce(getattr, side.split(".")[1:], config)
        yield (
            size % PACKED_COLUMNS,
            f"config.model.attention=packed: {side}={size} is no multiple of {PACKED_COLUMNS}: "
            f"{multiples_near(size, PACKED_COLUMNS)}; or set config.model.attention=plain",
        )


def _run_checks(config: Config) -> Iterator[Check]:
    batch, micro = config.data.batch_size, config.train.accumulate_steps
    yield not config.data.dataset_dir, "config.data.dataset_dir is empty: name a dataset directory"
    yield (
        batch % micro,
        f"config.data.batch_size={batch} is not divisible by config.train.accumulate_steps="
        f"{micro}: {multiples_near(batch, micro)}",
    )
    decays = config.train.all_decays
    yield (
        len(set(decays)) < len(decays),
        f"config.train.ema_decays={config.train.ema_decays} repeats a value, or "
        f"config.train.ema_decay={config.train.ema_decay}",
    )
    low, high = config.sampling.guidance_interval
    yield (
        low > high,
        f"config.sampling.guidance_interval={(low, high)} is empty: give (low, high)",
    )
    pushed = config.train.contrastive
    yield (
        config.sampling.contrastive > pushed,
        f"config.sampling.contrastive={config.sampling.contrastive} takes out more than "
        f"config.train.contrastive={pushed} has put in: set at most that",
    )
    yield (
        config.sampling.contrastive > 0 and config.sampling.guide != "",
        f"config.sampling.contrastive={config.sampling.contrastive} belongs to guidance by the "
        "null: set it to 0, or config.sampling.guide to nothing",
    )
    yield (
        0 in (config.mesh.data, config.mesh.fsdp),
        "config.mesh: an axis is a positive size, or -1 for what is left",
    )
    factor = config.watchdog.factor
    yield (
        0 < factor <= 1,
        f"config.watchdog.factor={factor} must be above 1, or 0 for off",
    )


def _frozen_checks(config: Config) -> Iterator[Check]:
    """Checks of the settings of frozen networks."""
    encoder, codec, features = config.model.encoder, config.model.codec, config.features
    for path, network, trivial, source in (
        ("model.encoder", encoder, "learned", f"supports={features.supports}"),
        ("model.codec", codec, "pixels", f"targets={features.targets}"),
    ):
        yield (
            network.name != trivial and not network.location,
            f"config.{path}.location is empty: name the directory or hub id of the weights",
        )
        yield (
            network.name == trivial and source.endswith("precomputed"),
            f"config.features.{source}: config.{path}.name={trivial} has nothing to precompute",
        )
    augmented = config.data.class_augmentation
    for path, network, stored in (
        ("model.encoder.name", encoder.name, "frozen"),
        ("features.targets", features.targets, "precomputed"),
    ):
        yield (
            augmented > 0 and network == stored,
            f"config.data.class_augmentation={augmented:g} turns images, and with config.{path}="
            f"{stored} a run reads what was computed of them as they are: set it to 0",
        )
    yield (
        features.location == "device"
        and "precomputed" not in (features.supports, features.targets),
        "config.features.location=device is for what is precomputed: set config.features.supports "
        "or config.features.targets to precomputed",
    )


def _alignment_checks(config: Config) -> Iterator[Check]:
    """Checks of `train.alignment`; the grids of tokens are compared where networks are opened."""
    train, model = config.train, config.model
    if not train.alignment:
        return
    yield (
        train.alignment_layer > model.depth,
        f"config.train.alignment_layer={train.alignment_layer}: there are "
        f"config.model.depth={model.depth} blocks; name one of them, or 0",
    )
    learned = model.encoder.name == "learned"
    yield (
        learned and model.codec.name != "pixels",
        f"config.train.alignment={train.alignment:g} with config.model.encoder.name=learned takes "
        f"gradients of pixels, and config.model.codec.name={model.codec.name} has none: set "
        "config.model.encoder.name=frozen, or 0",
    )
    yield (
        not learned and not model.use_context,
        f"config.train.alignment={train.alignment:g} needs the tokens of the frozen encoder, "
        "which config.model.cross_attention=none leaves out: set cls or patches, or 0",
    )


def _routing_checks(config: Config) -> Iterator[Check]:
    train, depth = config.train, config.model.depth
    if not train.routing:
        return
    first, last = train.routing_start, train.routing_last(depth)
    skipped = f"config.train.routing_start={first} and config.train.routing_end={train.routing_end}"
    yield (
        not first < last <= depth,
        f"{skipped} leave no block of config.model.depth={depth} to skip: choose a start below the "
        f"end, and an end from 1 to {depth}",
    )
    aligned = train.aligned_layer(depth)
    yield (
        train.alignment > 0 and first < aligned < last,
        f"{skipped} skip blocks {first + 1} to {last}, and config.train.alignment is after block "
        f"{aligned}, where tokens are missing: set config.train.alignment_layer={first or last}",
    )


def _evaluation_checks(config: Config) -> Iterator[Check]:
    protocol = config.evaluation
    yield not protocol.seeds, "config.evaluation.seeds is empty: name one or more seeds"
    for name in ("seeds", "shots", "guidance_scales"):
        values = getattr(protocol, name)
        yield len(set(values)) < len(values), f"config.evaluation.{name}={values} repeats a value"
