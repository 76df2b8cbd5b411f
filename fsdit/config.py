"""Every setting of a run: typed, frozen, and readable without JAX.

The defaults are those of the miniImageNet experiment; an experiment file changes
what it needs. pydantic's dataclasses check types and parse the text of flags.
"""

import difflib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

from fsdit.errors import ConfigError

_STRICT = pydantic.ConfigDict(extra="forbid")

# (hidden size, depth, heads): Peebles and Xie, arXiv 2212.09748, table 1.
DIT_SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Which episodes a run sees; `batch_size` is the global one."""

    dataset_dir: str = ""
    batch_size: int = 128
    shots: int = 5  # K; 0: the target is its own single support
    # "file": the episodes of the training split's files; "sampled": drawn on the fly.
    source: Literal["file", "sampled"] = "file"
    # Every run of n_classes consecutive episodes holds each class once.
    stratified: bool = False
    # Mirror the target at random.
    flip: bool = True
    workers: int = 0  # Grain worker processes; 0 reads in threads of this one.
    read_threads: int = 8
    prefetch: int = 2  # batches held ready on the devices


@dataclass(frozen=True, config=_STRICT)
class EncoderConfig:
    """The support encoder.

    "learned": a small ViT of these sizes, trained together with the DiT. "frozen": the
    published SigLIP, SigLIP 2 or DINOv2 at `location`.
    """

    name: Literal["learned", "frozen"] = "learned"
    patch_size: int = 8
    hidden_size: int = 384
    depth: int = 4
    num_heads: int = 6
    location: str = ""  # a directory in the hub's layout, or a hub id
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen one, and its features


@dataclass(frozen=True, config=_STRICT)
class CodecConfig:
    """Images -> what the flow works on, and back.

    "pixels": the images themselves. "autoencoder_kl": the latents of the frozen VAE at
    `location`, a directory in the hub's layout or a hub id.
    """

    name: Literal["pixels", "autoencoder_kl"] = "pixels"
    location: str = ""
    subfolder: str = ""  # "vae" in the checkpoint of a whole pipeline
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_batch: int = 64  # images encoded or decoded at once, over all devices


@dataclass(frozen=True, config=_STRICT)
class FeaturesConfig:
    """Where a run has the outputs of its frozen networks from.

    "online": it computes them. "precomputed": it reads what `data_prep.encode` wrote.
    """

    supports: Literal["online", "precomputed"] = "online"
    targets: Literal["online", "precomputed"] = "online"
    # Names of the files that were written; "": the last part of the network's location.
    encoder: str = ""
    codec: str = ""
    # "device": what is precomputed is loaded once, sharded over all devices.
    location: Literal["host", "device"] = "host"
    device_gb: float = 8.0  # of each device's memory that it may take
    cache_mb: float = 4_096.0  # of each host's memory for features computed online; 0: no cache
    encode_batch: int = 64  # supports encoded at once on each host


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """The DiT and its conditioning."""

    hidden_size: int = 768
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 2
    mlp_ratio: float = 4.0
    use_support_tokens: bool = True  # False: pooled condition only, whatever cross_attention says
    cross_attention: Literal["patches", "cls", "none"] = "patches"
    # Of the Perceiver that turns support tokens into the context; 0: the tokens themselves.
    num_latents: int = 64
    encoder: EncoderConfig = EncoderConfig()
    codec: CodecConfig = CodecConfig()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of matmuls; parameters are float32
    scan_layers: bool = True
    remat: Literal["none", "dots", "full"] = "none"

    @property
    def use_context(self) -> bool:
        """Whether the model attends to the supports' tokens."""
        return self.use_support_tokens and self.cross_attention != "none"


@dataclass(frozen=True, config=_STRICT)
class FlowConfig:
    """Distribution of the training time."""

    time: Literal["logit_normal", "uniform"] = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0


@dataclass(frozen=True, config=_STRICT)
class SamplingConfig:
    """How a drawing is made."""

    # "ab2": Adams-Bashforth of two steps; "sde": Euler-Maruyama, which adds noise on the way.
    # "heun" evaluates the network twice a step, the others once.
    solver: Literal["euler", "heun", "ab2", "sde"] = "euler"
    num_steps: int = 50
    schedule: Literal["uniform", "shifted"] = "uniform"
    shift: float = 3.0  # of the shifted schedule: above 1, smaller steps near noise
    noise_level: float = 1.0  # of the SDE; 0: none
    guidance_scale: float = 3.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # times at which guidance acts


@dataclass(frozen=True, config=_STRICT)
class EvaluationConfig:
    """The protocol of `fsdit.evaluate`. Two results compare when their protocols are equal."""

    shots: tuple[int, ...] = ()  # K, one table each; (): data.shots
    classes: int = 0  # of each split; 0: all unseen ones, and as many seen
    episodes_per_class: int = 1
    drawings_per_episode: int = 4
    seeds: tuple[int, ...] = (0,)  # of episodes and noise; each adds as many episodes
    guidance_scales: tuple[float, ...] = ()  # tables of the unseen classes beside the run's scale
    seen: bool = True  # also draw classes of the training split
    ways: int = 5  # classes that the few-shot classifier tells apart
    # What sees the images: the frozen encoder at this directory or hub id; "": pixels.
    judge: str = ""
    lpips: str = ""  # a directory of LPIPS weights; "": without
    inception: str = ""  # the weights file of torch-fidelity's Inception; "": without
    batch_size: int = 64  # drawings made at once


@dataclass(frozen=True, config=_STRICT)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    peak_learning_rate: float = 1e-4
    final_learning_rate: float = 1e-6
    warmup_steps: int = 5_000
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01  # on matrices only
    clip_norm: float = 1.0


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    num_steps: int = 200_000
    ema_decay: float = 0.9999
    condition_dropout: float = 0.1
    accumulate_steps: int = 1  # micro-batches a step
    overfit_batches: int = 0  # train on the first n batches for ever; 0: off
    max_nonfinite: int = 10  # skipped updates in a row that stop the run
    log_interval: int = 100
    eval_interval: int = 5_000
    eval_batches: int = 0  # validation batches; 0: the whole split
    grid_episodes: int = 8  # rows of each block of a sample grid
    # Every so many steps drawings of val classes are judged; the best checkpoint is kept.
    fsd_interval: int = 0  # 0: off
    fsd_drawings: int = 256  # about; each class has as many
    # Where what was compiled is kept for the next start. "": JAX_COMPILATION_CACHE_DIR where
    # that is set, else compilation_cache in the workdir; "off": nowhere.
    compilation_cache: str = ""


@dataclass(frozen=True, config=_STRICT)
class CheckpointConfig:
    interval: int = 1_000
    keep_last: int = 3
    keep_every: int = 0  # also keep each step divisible by this; 0: off


@dataclass(frozen=True, config=_STRICT)
class MeshConfig:
    """Sizes of the named mesh axes; -1: whatever devices are left."""

    data: int = -1
    fsdp: int = 1


@dataclass(frozen=True, config=_STRICT)
class ProfileConfig:
    """Steps under JAX's profiler, written for TensorBoard."""

    start_step: int = 0  # 0: off
    num_steps: int = 5


@dataclass(frozen=True, config=_STRICT)
class WatchdogConfig:
    """What is told of a step that hangs. Compiling, saving and evaluating are not part of it:
    they are told of when they last factor * min_seconds."""

    factor: float = 10.0  # a step this many times as long as its neighbours is told of; 0: off
    min_seconds: float = 60.0  # and no shorter one
    # Leave with status 75 when the next step has not begun after so long, whatever goes on
    # in between: longer than the longest compilation, evaluation or save. 0: never.
    stop_seconds: float = 0.0


@dataclass(frozen=True, config=_STRICT)
class Config:
    name: str = "miniimagenet"
    seed: int = 0
    data: DataConfig = DataConfig()
    features: FeaturesConfig = FeaturesConfig()
    model: ModelConfig = ModelConfig()
    flow: FlowConfig = FlowConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    profile: ProfileConfig = ProfileConfig()
    watchdog: WatchdogConfig = WatchdogConfig()


# What may differ between a checkpoint and the run that continues it: these change
# how fast, how long or how closely watched a run is, not what its steps compute.
# (num_steps moves the end of the cosine; a learning rate is lowered where a run diverged.)
_RESUMABLE = (
    "name",
    "data.dataset_dir",
    "data.workers",
    "data.read_threads",
    "data.prefetch",
    "features.location",
    "features.device_gb",
    "features.cache_mb",
    "model.encoder.location",  # of the same weights: their sum is in the checkpoint
    "model.codec.location",
    "model.codec.subfolder",
    "model.codec.max_batch",
    "model.scan_layers",
    "model.remat",
    "sampling",
    "evaluation",
    "optimizer.peak_learning_rate",
    "optimizer.final_learning_rate",
    "train.num_steps",
    "train.max_nonfinite",
    "train.log_interval",
    "train.eval_interval",
    "train.eval_batches",
    "train.grid_episodes",
    "train.fsd_interval",
    "train.fsd_drawings",
    "train.compilation_cache",
    "checkpoint",
    "mesh",
    "profile",
    "watchdog",
)


def dit(size: str, **changes: Any) -> ModelConfig:
    """The DiT of a published size: dit("B", patch_size=2)."""
    hidden_size, depth, num_heads = DIT_SIZES[size]
    return ModelConfig(hidden_size=hidden_size, depth=depth, num_heads=num_heads, **changes)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary, ready for JSON."""
    return pydantic.RootModel[type(config)](config).model_dump(mode="json")


def from_dict(values: dict[str, Any]) -> Config:
    """Inverse of `to_dict`. Raises ConfigError naming each bad field."""
    try:
        return pydantic.TypeAdapter(Config).validate_python(values)
    except pydantic.ValidationError as error:
        lines = [
            f"config.{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})"
            for e in error.errors()
        ]
        raise ConfigError("; ".join(lines)) from None


def load_experiment(path: str) -> Config:
    """Calls get_config() of an experiment file. Raises ConfigError."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"--config={path}: no such file; see experiments/")
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={path}: defines no get_config()")
    config = module.get_config()
    if not isinstance(config, Config):
        raise ConfigError(f"--config={path}: get_config() must return a fsdit.config.Config")
    return config


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=v` out of a command line: (the rest, {"a.b": "v"})."""
    rest, overrides = [], {}
    for argument in argv:
        name = argument.lstrip("-")
        if not argument.startswith("-") or not name.startswith("config."):
            rest.append(argument)
            continue
        path, equals, value = name.removeprefix("config.").partition("=")
        if not equals:
            raise ConfigError(f"{argument}: write --config.{path}=VALUE")
        overrides[path] = value
    return rest, overrides


def apply_overrides(config: Config, overrides: dict[str, str]) -> Config:
    """Sets fields by dotted path from text. Raises ConfigError for an unknown one."""
    values = to_dict(config)
    known = flatten(values)
    for path, text in overrides.items():
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.4)
            hint = f"; did you mean --config.{near[0]}?" if near else ""
            raise ConfigError(f"--config.{path}: no such field{hint}")
        *parents, leaf = path.split(".")
        holder = values
        for parent in parents:
            holder = holder[parent]
        holder[leaf] = _parse(text) if isinstance(known[path], list) else text
    return from_dict(values)


def _parse(text: str) -> Any:
    try:
        return json.loads("[" + text.strip("()[] ") + "]")
    except json.JSONDecodeError:
        return text


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changed_fields(saved: dict[str, Any], config: Config) -> list[str]:
    """What stops `config` from continuing a run saved with `saved`, one text a field."""
    old, new = flatten(saved), flatten(to_dict(config))
    return [
        f"config.{path} is {new.get(path)!r}, the checkpoint has {old.get(path)!r}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
        and not any(path == r or path.startswith(r + ".") for r in _RESUMABLE)
    ]
