"""Settings of the optimizer, the run, its checkpoints and the mesh."""

from typing import Literal

from fsdit.config.bounds import (
    Axis,
    BatchSize,
    Count,
    CountOrNone,
    Fraction,
    NotNegative,
    PathText,
    Positive,
    Share,
    Threads,
)
from fsdit.config.problems import settings


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

    # A run's workdir, an exported model or "glyphs" of the package, whose EMA weights are the
    # parameters before the first step; "": new ones. Only a new run reads it.
    init_from: PathText = ""
    num_steps: Count = 200_000  # updates of the run, those before a resume included
    ema_decay: Fraction = 0.9999  # of the average of the parameters, at each step
    # Decays of further averages that are kept beside it, for --ema. Each needs as much memory as
    # the parameters, on the devices and in every checkpoint, and each is scored where
    # few_shot_interval is on, which takes as long again.
    ema_decays: tuple[Fraction, ...] = ()
    condition_dropout: Fraction = 0.1  # share of examples trained with the null condition
    # Weight with which a predicted velocity is pushed away from the velocity of an example of
    # another class (contrastive flow matching); 0: off. The paper takes 0.05.
    contrastive: Fraction = 0.0
    # Weight of representation alignment: tokens of a block are drawn to features of the target
    # image, the frozen encoder's or else oriented gradients; 0: off. REPA takes 0.5.
    alignment: NotNegative = 0.0
    alignment_layer: CountOrNone = 0  # blocks before the aligned tokens; 0: a third of all
    alignment_stop: Share = 0.5  # share of the run after which alignment stops; 1: never
    # Token routing: share of an example's patches, chosen at random in each step, whose tokens skip
    # the blocks after the first `routing_start`, up to `routing_end`; 0: off. TREAD takes 0.5.
    routing: Fraction = 0.0
    routing_start: CountOrNone = 2
    routing_end: CountOrNone = 0  # 0: all but the last four
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

    @property
    def all_decays(self) -> tuple[float, ...]:
        """The decay of each average of a run, that of `ema_decay` first."""
        return (self.ema_decay, *self.ema_decays)

    def aligned_layer(self, depth: int) -> int:
        """The number of blocks before the tokens that alignment takes, of `depth` blocks."""
        return self.alignment_layer or max(1, depth // 3)

    def routing_last(self, depth: int) -> int:
        """The number of the last block that routed tokens skip, of `depth` blocks."""
        return self.routing_end or depth - 4


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
