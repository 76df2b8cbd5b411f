"""Checks of a configuration that the type of one field cannot make."""

import math
from collections.abc import Iterator

from fsdit.config import Config, flatten, to_dict
from fsdit.errors import ConfigError


def validate(config: Config) -> None:
    """Raises ConfigError naming a field that cannot be so."""
    model, encoder, data, train = config.model, config.model.encoder, config.data, config.train
    rates = config.optimizer
    positive = (
        "data.batch_size data.read_threads data.prefetch model.hidden_size "
        "model.depth model.num_heads model.patch_size "
        "model.encoder.patch_size model.encoder.hidden_size model.encoder.depth "
        "model.encoder.num_heads sampling.num_steps train.num_steps train.accumulate_steps "
        "train.log_interval train.eval_interval train.max_nonfinite train.grid_episodes "
        "train.fsd_drawings checkpoint.interval checkpoint.keep_last "
        "model.codec.max_batch features.encode_batch profile.num_steps "
        "evaluation.episodes_per_class evaluation.drawings_per_episode evaluation.batch_size"
    )
    flat = flatten(to_dict(config))
    problems = [
        f"config.{p} must be at least 1, got {flat[p]}" for p in positive.split() if flat[p] < 1
    ]
    not_negative = (
        "seed data.shots data.workers model.num_latents train.overfit_batches train.eval_batches "
        "optimizer.warmup_steps optimizer.weight_decay checkpoint.keep_every features.cache_mb "
        "train.fsd_interval evaluation.classes profile.start_step "
        "watchdog.factor watchdog.stop_seconds"
    )
    problems += [
        f"config.{p} must not be negative, got {flat[p]}"
        for p in not_negative.split()
        if flat[p] < 0
    ]
    if problems:
        raise ConfigError("; ".join(problems))
    checks = [
        (not data.dataset_dir, "config.data.dataset_dir is empty: name a dataset directory"),
        (
            model.hidden_size % model.num_heads or (model.hidden_size // model.num_heads) % 2,
            f"config.model.num_heads={model.num_heads} must split "
            f"config.model.hidden_size={model.hidden_size} into heads of even width",
        ),
        (
            model.hidden_size % 4,
            f"config.model.hidden_size={model.hidden_size} must be a multiple of 4",
        ),
        (
            encoder.hidden_size % encoder.num_heads or encoder.hidden_size % 4,
            f"config.model.encoder.hidden_size={encoder.hidden_size} must be a multiple of 4 "
            f"and of config.model.encoder.num_heads={encoder.num_heads}",
        ),
        (
            data.batch_size % train.accumulate_steps,
            f"config.data.batch_size={data.batch_size} is not divisible by "
            f"config.train.accumulate_steps={train.accumulate_steps}",
        ),
        (
            not 0 <= train.condition_dropout < 1,
            f"config.train.condition_dropout={train.condition_dropout} must be in [0, 1)",
        ),
        (
            not config.flow.logit_std > 0,
            f"config.flow.logit_std={config.flow.logit_std} must be positive",
        ),
        (
            config.sampling.guidance_interval[0] > config.sampling.guidance_interval[1],
            f"config.sampling.guidance_interval={config.sampling.guidance_interval} is empty: "
            "give (low, high)",
        ),
        (
            not 0 < config.sampling.shift < math.inf,
            f"config.sampling.shift={config.sampling.shift} must be positive and finite",
        ),
        (
            not 0 <= config.sampling.noise_level < math.inf,
            f"config.sampling.noise_level={config.sampling.noise_level} must be finite and "
            "not negative",
        ),
        (
            not (rates.peak_learning_rate > 0 and rates.final_learning_rate >= 0),
            "config.optimizer: learning rates must be positive",
        ),
        (
            not (rates.clip_norm > 0 and rates.eps > 0 and model.mlp_ratio > 0),
            "config.optimizer.clip_norm, config.optimizer.eps and config.model.mlp_ratio "
            "must be positive",
        ),
        (
            config.seed >= 2**32,
            f"config.seed={config.seed} must be below 2**32",
        ),
        (
            not 0 <= train.ema_decay < 1,
            f"config.train.ema_decay={train.ema_decay} must be in [0, 1)",
        ),
        (
            min(config.mesh.data, config.mesh.fsdp) < -1
            or 0 in (config.mesh.data, config.mesh.fsdp),
            "config.mesh: an axis is a positive size, or -1 for what is left",
        ),
        (
            not 0 < config.watchdog.min_seconds < math.inf,
            f"config.watchdog.min_seconds={config.watchdog.min_seconds} must be positive",
        ),
        (
            0 < config.watchdog.factor <= 1,
            f"config.watchdog.factor={config.watchdog.factor} must be above 1, or 0 for off",
        ),
    ]
    for wrong, message in (*checks, *_frozen_checks(config), *_evaluation_checks(config)):
        if wrong:
            raise ConfigError(message)


def _frozen_checks(config: Config) -> Iterator[tuple[bool, str]]:
    """(whether it is wrong, message) about the frozen networks."""
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
    yield (
        features.location == "device"
        and "precomputed" not in (features.supports, features.targets),
        "config.features.location=device is for what is precomputed: set config.features.supports "
        "or config.features.targets to precomputed",
    )
    yield features.device_gb <= 0, "config.features.device_gb must be positive"


def _evaluation_checks(config: Config) -> Iterator[tuple[bool, str]]:
    protocol = config.evaluation
    yield (
        not protocol.seeds or not all(0 <= seed < 2**32 for seed in protocol.seeds),
        f"config.evaluation.seeds={protocol.seeds} must be one or more numbers below 2**32",
    )
    for name in ("seeds", "shots", "guidance_scales"):
        values = getattr(protocol, name)
        yield len(set(values)) < len(values), f"config.evaluation.{name}={values} repeats a value"
    yield (
        any(k < 0 for k in protocol.shots),
        f"config.evaluation.shots={protocol.shots} must not be negative",
    )
    yield protocol.ways < 2, f"config.evaluation.ways={protocol.ways} must be at least 2"
