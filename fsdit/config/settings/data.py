"""Settings of the dataset and of the features of frozen networks."""

from typing import Literal

from fsdit.config.bounds import (
    BatchSize,
    NotNegative,
    PathText,
    Positive,
    Share,
    Shots,
    Threads,
    Workers,
)
from fsdit.config.problems import settings


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
    # Share of training episodes whose images are all turned or mirrored alike, by seed (in colour
    # their channels change places, too), which makes more classes. For a learned encoder.
    class_augmentation: Share = 0.0
    workers: Workers = 0  # processes that read on each host; 0: threads of the main process
    read_threads: Threads = 8  # threads that read, in each of these processes
    prefetch: Threads = 2  # batches held ready on the devices


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
