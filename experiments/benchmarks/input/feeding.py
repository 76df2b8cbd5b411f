"""Compares what the input pipeline delivers with what the train step consumes.

    python -m experiments.benchmarks.input.feeding

Both have the size of `train_step`: episodes of five supports of 196 tokens, latents of 28 x 28
x 4. "Precomputed" reads features and latents from files of random records. "Online" takes
features from the cache of a SigLIP 2 B/16 with random weights that has seen every image, and
latents from files. One image is one target; the pipelines and the step take turns. The records
are few enough to stay in the system's memory, so disks are not measured.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.benchmarks.compute import train_step
from experiments.benchmarks.input import features
from experiments.benchmarks.turns import machine, rates
from fsdit import program
from fsdit.config import Config, FeaturesConfig
from fsdit.data import pipeline
from fsdit.features.batches import Feed
from fsdit.features.frozen import Frozen
from fsdit.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Settings:
    """num_images: of the dataset. batches, steps: of a turn."""

    num_images: int = 100
    turns: int = 3
    batches: int = 20
    steps: int = 2


def main(argv: list[str]) -> None:
    del argv
    result = measure(Settings(_IMAGES.value, _TURNS.value, _BATCHES.value, _STEPS.value))
    for side, found in result["images_per_second"].items():
        print(f"{side}: {found['best']:.1f} images/s, median {found['median']:.1f}")
    for form, ratio in result["times_the_step"].items():
        print(f"{form} / train step: {ratio['best']:.1f}, median {ratio['median']:.1f}")
    print(result["machine"])


def measure(settings: Settings) -> dict[str, Any]:
    """images/s of each form and of the step, and how many times the step's each form is."""
    with tempfile.TemporaryDirectory() as folder:
        features.write_dataset(Path(folder), settings.num_images)
        precomputed = features.config(folder, train_step.BATCH)
        online = dataclasses.replace(
            precomputed,
            features=FeaturesConfig(supports="online", targets="precomputed", encode_batch=8),
        )
        step = train_step.trainer(train_step.config(tokens=True, scan=True))
        sides = {
            "precomputed": _reader(features.feed(precomputed), precomputed, settings.batches),
            "online": _reader(_warm_feed(online, settings.num_images), online, settings.batches),
            "train step": lambda: _seconds(step, settings.steps) / settings.steps,
        }
        step(1)  # compiles
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(settings.turns):
            for side, call in sides.items():
                seconds[side].append(call())
    found = {side: rates(values, train_step.BATCH) for side, values in seconds.items()}
    return {
        "images_per_second": found,
        "times_the_step": times_the_step(found),
        "machine": machine(),
    }


def times_the_step(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns, for each form, the ratio of the best and of the median rates."""
    step = found["train step"]
    return {
        form: {kind: values[kind] / step[kind] for kind in ("best", "median")}
        for form, values in found.items()
        if form != "train step"
    }


def _reader(feed: Feed, config: Config, batches: int) -> Callable[[], float]:
    return lambda: features.seconds_a_batch(feed, config, batches)


def _seconds(step: Callable[[int], jax.Array], steps: int) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(step(steps))
    return time.perf_counter() - begun


def _warm_feed(config: Config, num_images: int) -> Feed:
    """A feed whose encoder has seen every image of the split."""
    abstract = train_step.opened(train_step.config(tokens=True, scan=True))[1]
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.02 * random.standard_normal(leaf.shape, np.float32), abstract.encoder_params
    )
    frozen = Frozen(encoder=abstract.encoder, encoder_params=params)
    feed = Feed(config, sharding.make_mesh(config), frozen)
    read = pipeline.training_examples(config)
    batches = feed.batches(read, config.data.batch_size, 100 * num_images)
    while feed.counters().get("encoder_cache/misses", 0) < num_images:
        jax.block_until_ready(next(batches))
    batches.close()
    return feed


if __name__ == "__main__":
    _IMAGES = flags.DEFINE_integer("num_images", Settings.num_images, "Images of the dataset.")
    _TURNS = flags.DEFINE_integer("turns", Settings.turns, "Turns of each side.", lower_bound=1)
    _BATCHES = flags.DEFINE_integer("batches", Settings.batches, "Read in a turn.", lower_bound=1)
    _STEPS = flags.DEFINE_integer("steps", Settings.steps, "Steps of a turn.", lower_bound=1)
    program.run(main)
