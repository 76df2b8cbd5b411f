"""Settings of the flow, of sampling, and of the evaluation of samples."""

from typing import Annotated, Literal

from fsdit.config.bounds import (
    BatchSize,
    Count,
    CountOrNone,
    Finite,
    Fraction,
    Logit,
    NotNegative,
    PathText,
    Positive,
    Scale,
    Seed,
    Shots,
    whole,
)
from fsdit.config.problems import settings


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
    guidance_scale: Scale = 3.0  # strength of guidance; 1: none, 0: what guides, alone
    guidance_interval: tuple[Finite, Finite] = (0.0, 1.0)  # times t at which guidance acts
    # What guides. "": the model's own null, which is classifier-free guidance; otherwise the
    # exported model in this folder, a weaker one of the same kind (autoguidance). Training and
    # exports take no guide.
    guide: PathText = ""
    # Takes train.contrastive out of the guided velocity: that weight again, or less. 0: off.
    contrastive: Fraction = 0.0


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
