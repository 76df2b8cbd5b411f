"""Every setting of a run: typed, frozen, with its bounds, and readable without JAX.

The defaults are those of the miniImageNet experiment; an experiment file changes
what it needs. pydantic's dataclasses check types and bounds and parse the text of flags.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic_core import ArgsKwargs

from fsdit.config.bounds import (
    Axis,
    BatchSize,
    Count,
    CountOrNone,
    Depth,
    Finite,
    Fraction,
    Logit,
    NotNegative,
    PatchSize,
    PathText,
    Positive,
    Ratio,
    Scale,
    Seconds,
    Seed,
    Shots,
    Threads,
    Width,
    Workers,
    whole,
)
from fsdit.config.problems import settings
from fsdit.config.renamed import SUPPORT_TOKENS, is_true

# (hidden size, depth, heads): Peebles and Xie, arXiv 2212.09748, table 1.
DIT_SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


@settings
class DataConfig:
    """Which episodes a run sees; `batch_size` is the global one."""

    dataset_dir: PathText = ""
    batch_size: BatchSize = 128
    shots: Shots = 5  # K; 0: the target is its own single support
    # "file": the episodes of the training split's files; "sampled": drawn on the fly.
    source: Literal["file", "sampled"] = "file"
    # Every run of n_classes consecutive episodes holds each class once.
    stratified: bool = False
    # Mirror the target at random.
    flip: bool = True
    workers: Workers = 0  # Grain worker processes; 0 reads in threads of this one.
    read_threads: Threads = 8
    prefetch: Threads = 2  # batches held ready on the devices


@settings
class EncoderConfig:
    """The support encoder.

    "learned": a small ViT of these sizes, trained together with the DiT. "frozen": the
    published SigLIP, SigLIP 2 or DINOv2 at `location`.
    """

    name: Literal["learned", "frozen"] = "learned"
    patch_size: PatchSize = 8
    hidden_size: Width = 384
    depth: Depth = 4
    num_heads: Width = 6
    location: PathText = ""  # a directory in the hub's layout, or a hub id
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen one, and its features


@settings
class CodecConfig:
    """Images -> what the flow works on, and back.

    "pixels": the images themselves. "autoencoder_kl": the latents of the frozen VAE at
    `location`, a directory in the hub's layout or a hub id.
    """

    name: Literal["pixels", "autoencoder_kl"] = "pixels"
    location: PathText = ""
    subfolder: str = ""  # "vae" in the checkpoint of a whole pipeline
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_batch: BatchSize = 64  # images encoded or decoded at once, over all devices


@settings
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
    device_gb: Positive = 8.0  # of each device's memory that it may take
    # Of each host's memory for features computed online; 0: no cache.
    cache_mb: NotNegative = 4_096.0
    encode_batch: BatchSize = 64  # supports encoded at once on each host


@settings
class ModelConfig:
    """The DiT and its conditioning."""

    hidden_size: Width = 768
    depth: Depth = 12
    num_heads: Width = 12
    patch_size: PatchSize = 2
    mlp_ratio: Ratio = 4.0
    # Queries of the cross-attention to the supports' tokens; "none": pooled condition only.
    cross_attention: Literal["patches", "cls", "none"] = "patches"
    # Of the Perceiver that turns support tokens into the context; 0: the tokens themselves.
    num_latents: Shots = 64
    encoder: EncoderConfig = EncoderConfig()
    codec: CodecConfig = CodecConfig()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of matmuls; parameters are float32
    scan_layers: bool = True
    remat: Literal["none", "dots", "full"] = "none"

    @property
    def use_context(self) -> bool:
        """Whether the model attends to the supports' tokens."""
        return self.cross_attention != "none"

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_support_tokens(cls, given: Any) -> Any:
        """Reads `use_support_tokens=False` of older versions as `cross_attention="none"`."""
        values = given.kwargs if isinstance(given, ArgsKwargs) else given
        if not isinstance(values, Mapping) or SUPPORT_TOKENS not in values:
            return given
        rest = {name: value for name, value in values.items() if name != SUPPORT_TOKENS}
        if not is_true(values[SUPPORT_TOKENS], SUPPORT_TOKENS):
            rest["cross_attention"] = "none"
        return ArgsKwargs(given.args, rest) if isinstance(given, ArgsKwargs) else rest


@settings
class FlowConfig:
    """Distribution of the training time."""

    time: Literal["logit_normal", "uniform"] = "logit_normal"
    logit_mean: Logit = 0.0
    logit_std: Positive = 1.0


@settings
class SamplingConfig:
    """How a sample is made."""

    # "ab2": Adams-Bashforth of two steps; "sde": Euler-Maruyama, which adds noise on the way.
    # "heun" evaluates the network twice a step, the others once.
    solver: Literal["euler", "heun", "ab2", "sde"] = "euler"
    num_steps: Count = 50
    schedule: Literal["uniform", "shifted"] = "uniform"
    shift: Positive = 3.0  # of the shifted schedule: above 1, smaller steps near noise
    noise_level: NotNegative = 1.0  # of the SDE; 0: none
    guidance_scale: Scale = 3.0
    guidance_interval: tuple[Finite, Finite] = (0.0, 1.0)  # times at which guidance acts


@settings
class EvaluationConfig:
    """The protocol of `fsdit.evaluate`. Two results compare when their protocols are equal."""

    shots: tuple[Shots, ...] = ()  # numbers of supports, one table each; (): data.shots
    classes: CountOrNone = 0  # classes of each split; 0: all unseen ones, and as many seen ones
    episodes_per_class: Count = 1  # for each seed
    samples_per_episode: Count = 4
    seeds: tuple[Seed, ...] = (0,)  # of episodes and noise
    guidance_scales: tuple[Scale, ...] = ()  # more tables of the unseen classes, one each
    seen: bool = True  # also evaluate classes of the training split
    ways: Annotated[int, whole(2)] = 5  # classes that the few-shot classifier tells apart
    # The critic, in whose features images are compared: the frozen encoder at this directory
    # or hub id; "": the pixels.
    critic: PathText = ""
    lpips: PathText = ""  # directory of LPIPS weights; "": no LPIPS
    inception: PathText = ""  # file of torch-fidelity's Inception weights; "": no Inception FID
    batch_size: BatchSize = 64  # samples made at once


@settings
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    peak_learning_rate: Positive = 1e-4
    final_learning_rate: NotNegative = 1e-6
    warmup_steps: CountOrNone = 5_000
    b1: Fraction = 0.9
    b2: Fraction = 0.99
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.01  # on matrices only
    clip_norm: Positive = 1.0


@settings
class TrainConfig:
    num_steps: Count = 200_000
    ema_decay: Fraction = 0.9999
    condition_dropout: Fraction = 0.1
    accumulate_steps: BatchSize = 1  # micro-batches a step
    overfit_batches: CountOrNone = 0  # train on the first n batches for ever; 0: off
    max_nonfinite: Count = 10  # skipped updates in a row that stop the run
    log_interval: Count = 100
    eval_interval: Count = 5_000
    eval_batches: CountOrNone = 0  # validation batches; 0: the whole split
    grid_episodes: Threads = 8  # rows of each block of a sample grid
    # Every few_shot_interval steps, samples of val classes are made and compared with real
    # images; the checkpoint whose samples come nearest to them is kept. 0: off.
    few_shot_interval: CountOrNone = 0
    few_shot_samples: Count = 256  # about so many: every class has the same number
    # Where what was compiled is kept for the next start. "": JAX_COMPILATION_CACHE_DIR where
    # that is set, else compilation_cache in the workdir; "off": nowhere.
    compilation_cache: PathText = ""


@settings
class CheckpointConfig:
    interval: Count = 1_000
    keep_last: Count = 3
    keep_every: CountOrNone = 0  # also keep each step divisible by this; 0: off


@settings
class MeshConfig:
    """Sizes of the named mesh axes; -1: whatever devices are left."""

    data: Axis = -1
    fsdp: Axis = 1


@settings
class ProfileConfig:
    """Steps under JAX's profiler, written for TensorBoard."""

    start_step: CountOrNone = 0  # 0: off
    num_steps: Count = 5


@settings
class WatchdogConfig:
    """What is told of a step that hangs. Compiling, saving and evaluating are not part of it:
    they are told of when they last factor * min_seconds."""

    # A step this many times as long as its neighbours is told of; 0: off.
    factor: NotNegative = 10.0
    min_seconds: Positive = 60.0  # and no shorter one
    # Leave with status 75 when the next step has not begun after so long, whatever goes on
    # in between: longer than the longest compilation, evaluation or save. 0: never.
    stop_seconds: Seconds = 0.0


@settings
class Config:
    name: str = ""  # "": that of the dataset's folder
    seed: Seed = 0
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


def dit_size(size: str) -> dict[str, int]:
    """The settings of a ModelConfig that make a DiT of a published size, "S", "B", "L", "XL"."""
    hidden_size, depth, num_heads = DIT_SIZES[size]
    return {"hidden_size": hidden_size, "depth": depth, "num_heads": num_heads}


def dit(size: str, **changes: Any) -> ModelConfig:
    """The model of a published size with other settings: dit("B", patch_size=2)."""
    return ModelConfig(**dit_size(size), **changes)
