"""Every setting of a run: typed, frozen, with its bounds, and readable without JAX.

The defaults are those of the miniImageNet experiment; an experiment file changes what it
needs. pydantic's dataclasses check types and bounds and parse the text of flags. A comment
above a setting, or behind it, says what it means and in which unit.
"""

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
from fsdit.config.renamed import with_cross_attention


@settings
class DataConfig:
    """The dataset, which of its episodes a run trains on, and how they are read."""

    dataset_dir: PathText = ""  # the folder that holds dataset.json; it may lie in a bucket
    # Folder for the copy of a dataset that lies in a bucket; "": in ~/.cache/fsdit; "off": no
    # copy, each record is read from the bucket.
    cache_dir: PathText = ""
    batch_size: BatchSize = 128  # episodes of a step, over all processes and devices
    shots: Shots = 5  # K, supports of an episode; 0: the target is its own single support
    # "file": the episodes in the files of the training split; "sampled": sampled by seed.
    source: Literal["file", "sampled"] = "file"
    # Whether any n_classes consecutive episodes hold each class once.
    stratified: bool = False
    flip: bool = True  # mirror each target with probability 1/2, by seed
    workers: Workers = 0  # processes that read on each host; 0: threads of the main process
    read_threads: Threads = 8  # threads that read, in each of these processes
    prefetch: Threads = 2  # batches held ready on the devices


@settings
class EncoderConfig:
    """The support encoder, which turns support images into a pooled vector and tokens.

    "learned": a small ViT of the sizes below, trained together with the DiT. "frozen": the
    published SigLIP, SigLIP 2 or DINOv2 at `location`.
    """

    name: Literal["learned", "frozen"] = "learned"
    patch_size: PatchSize = 8  # of the learned encoder, in pixels
    hidden_size: Width = 384  # of the learned encoder, as are depth and num_heads
    depth: Depth = 4
    num_heads: Width = 6
    location: PathText = ""  # of the frozen encoder: a directory in the hub's layout, or a hub id
    # Type that the frozen encoder computes in, and of the features that it gives.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


@settings
class CodecConfig:
    """The latent codec, which maps images to what the flow works on, and back.

    "pixels": the flow works on the images themselves. "autoencoder_kl": on the latents of the
    frozen VAE at `location`.
    """

    name: Literal["pixels", "autoencoder_kl"] = "pixels"
    location: PathText = ""  # of the VAE: a directory in the hub's layout, or a hub id
    subfolder: str = ""  # of the VAE in `location`: "vae" in a pipeline's checkpoint
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16"  # type that the VAE's convolutions compute in
    )
    max_batch: BatchSize = 64  # images encoded or decoded at once, over all devices


@settings
class FeaturesConfig:
    """Where the outputs of the frozen networks come from.

    "online": the run computes them. "precomputed": it reads what `data_prep.encode` has written.
    """

    supports: Literal["online", "precomputed"] = "online"  # features of the frozen encoder
    targets: Literal["online", "precomputed"] = "online"  # moments of the VAE's latents
    # NAME of the precomputed features-NAME and latents-NAME files; "": the last part of the
    # network's location.
    encoder: str = ""
    codec: str = ""
    # "host": precomputed records are read for each batch. "device": they are loaded once, sharded
    # over all devices.
    location: Literal["host", "device"] = "host"
    device_gb: Positive = 8.0  # the most GB of each device's memory that they may take
    cache_mb: NotNegative = 4_096.0  # MB of each host's memory for online features; 0: no cache
    encode_batch: BatchSize = 64  # supports encoded at once on each host


@settings
class ModelConfig:
    """The DiT, how it is conditioned, and the networks around it."""

    hidden_size: Width = 768  # width of the tokens
    depth: Depth = 12  # number of blocks
    num_heads: Width = 12  # heads of each attention
    patch_size: PatchSize = 2  # side of a patch, in latents (pixels where the codec has none)
    mlp_ratio: Ratio = 4.0  # hidden width of an MLP, in multiples of hidden_size
    # Which tokens of the DiT attend to the supports' tokens: all patches, one class token, or
    # none; with "none" only the pooled vector conditions the model.
    cross_attention: Literal["patches", "cls", "none"] = "patches"
    # Latents of the Perceiver that turns support tokens into the context; 0: no Perceiver, the
    # tokens are the context.
    num_latents: Shots = 64
    encoder: EncoderConfig = EncoderConfig()
    codec: CodecConfig = CodecConfig()
    # Type that matmuls compute in; parameters, norms and softmax are float32.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    # Kernel of attention: "plain" on any device; "cudnn" in bfloat16 on NVIDIA GPUs from A100 on,
    # where it is faster (docs/gpu.md).
    attention: Literal["plain", "cudnn"] = "plain"
    scan_layers: bool = True  # one compiled body for all blocks, which compiles quickly
    # What the backward pass computes again to save memory: nothing, all but matmuls, or all.
    remat: Literal["none", "dots", "full"] = "none"

    @property
    def use_context(self) -> bool:
        """Whether the model attends to the supports' tokens."""
        return self.cross_attention != "none"

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_support_tokens(cls, given: Any) -> Any:
        """Reads `use_support_tokens=False` of older versions as `cross_attention="none"`."""
        if not isinstance(given, ArgsKwargs):
            return with_cross_attention(given)
        return ArgsKwargs(given.args, with_cross_attention(given.kwargs))


@settings
class FlowConfig:
    """Distribution of the times t in [0, 1] at which training evaluates the flow."""

    time: Literal["logit_normal", "uniform"] = "logit_normal"
    logit_mean: Logit = 0.0  # mean of log(t / (1 - t)) under logit_normal; below 0: more noise
    logit_std: Positive = 1.0  # its standard deviation


@settings
class SamplingConfig:
    """How samples are generated from a condition."""

    # "ab2": Adams-Bashforth of two steps; "sde": Euler-Maruyama, which adds noise on the way.
    # "heun" evaluates the network twice a step, the others once.
    solver: Literal["euler", "heun", "ab2", "sde"] = "euler"
    num_steps: Count = 50  # steps of the solver from noise to data
    schedule: Literal["uniform", "shifted"] = "uniform"  # where the steps lie in time
    shift: Positive = 3.0  # of the shifted schedule: above 1, smaller steps near noise
    noise_level: NotNegative = 1.0  # strength of the noise of "sde"; 0: none
    guidance_scale: Scale = 3.0  # of classifier-free guidance; 1: none, 0: unconditional
    guidance_interval: tuple[Finite, Finite] = (0.0, 1.0)  # times t at which guidance acts


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
    # In whose features images are compared: "trained" on the training split, "pixels", or the
    # frozen encoder at this directory or hub id. "auto": trained, for images up to 64 x 64.
    critic: PathText = "auto"
    lpips: PathText = ""  # directory of LPIPS weights; "": no LPIPS
    inception: PathText = ""  # file of torch-fidelity's Inception weights; "": no Inception FID
    batch_size: BatchSize = 64  # samples made at once


@settings
class OptimizerConfig:
    """The optimizer, with linear warm-up and cosine decay of its learning rate."""

    # "muon" updates the matrices of blocks by Muon, all other parameters by AdamW.
    method: Literal["adamw", "muon"] = "adamw"
    momentum: Fraction = 0.95  # of Muon: decay of the mean of gradients
    peak_learning_rate: Positive = 1e-4  # at the end of the warm-up
    final_learning_rate: NotNegative = 1e-6  # at the last step of the run
    warmup_steps: CountOrNone = 5_000
    b1: Fraction = 0.9  # decay of the mean of gradients
    b2: Fraction = 0.99  # decay of the mean of squared gradients
    eps: Positive = 1e-8  # added to the root of the latter
    weight_decay: NotNegative = 0.01  # on matrices only
    clip_norm: Positive = 1.0  # the largest norm of all gradients together


@settings
class TrainConfig:
    """Length of a run, its loss and EMA, and what it writes on the way. Intervals are in steps."""

    num_steps: Count = 200_000  # updates of the run, those before a resume included
    ema_decay: Fraction = 0.9999  # of the average of the parameters, at each step
    condition_dropout: Fraction = 0.1  # share of examples trained with the null condition
    accumulate_steps: BatchSize = 1  # parts of a batch whose gradients are added one by one
    overfit_batches: CountOrNone = 0  # train on the first n batches again and again; 0: off
    max_nonfinite: Count = 10  # updates skipped in a row, for non-finite values, that stop the run
    log_interval: Count = 100  # between lines of metrics
    eval_interval: Count = 5_000  # between evaluations of the loss, which also write sample grids
    eval_batches: CountOrNone = 0  # validation batches; 0: the whole split
    grid_episodes: Threads = 8  # rows of each block of a sample grid
    # Every few_shot_interval steps, samples of val classes are made and compared with real
    # images; the checkpoint whose samples come nearest to them is kept. 0: off.
    few_shot_interval: CountOrNone = 0
    few_shot_samples: Count = 256  # about so many: every class has the same number
    # Where what was compiled is kept for the next start. "": JAX_COMPILATION_CACHE_DIR where
    # that is set, else compilation_cache in the workdir; "off": nowhere.
    compilation_cache: PathText = ""
    stop_after_minutes: NotNegative = 0.0  # of a process: it saves and leaves (75) by then; 0: off


@settings
class CheckpointConfig:
    """When checkpoints are saved and which are kept. The best one, if any, is kept too."""

    interval: Count = 1_000  # steps between saves
    keep_last: Count = 3  # newest checkpoints that are kept
    keep_every: CountOrNone = 0  # also keep each step divisible by this; 0: off


@settings
class MeshConfig:
    """Sizes of the named axes of the device mesh; -1: all devices that the other one leaves."""

    data: Axis = -1  # copies of the state; each takes a part of the batch
    fsdp: Axis = 1  # parts of the state; each takes a part of the batch too


@settings
class ProfileConfig:
    """Steps that JAX's profiler records, for TensorBoard."""

    start_step: CountOrNone = 0  # first step that is recorded; 0: none is
    num_steps: Count = 5  # steps that are recorded


@settings
class WatchdogConfig:
    """Settings of the watchdog, which reports a step that takes far longer than its neighbours.

    It reports compilations, saves and evaluations too, after factor * min_seconds.
    """

    factor: NotNegative = 10.0  # a step is reported after this many times its neighbours; 0: never
    min_seconds: Positive = 60.0  # a shorter step is not reported
    # Exit with status 75 when no new step has begun for this long, whatever goes on: choose more
    # than the longest compilation, evaluation or save. 0: never.
    stop_seconds: Seconds = 0.0


@settings
class Config:
    """All settings of a run. A flag sets one by its path: --config.data.batch_size=64."""

    name: str = ""  # of the run, in logs and reports; "": that of the dataset's folder
    seed: Seed = 0  # decides initialisation, order of data, noise, times and dropout
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
