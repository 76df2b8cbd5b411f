"""Compares features and latents that the host reads for each step with ones on the devices.

    python -m experiments.benchmarks.input.features

Records have the true shapes (768 wide, 196 tokens, latents of 28 x 28 x 4, float16) and random
content; episodes have five supports. Both sides make the same batches through the feed of
training, and nothing else runs, so the seconds of a batch are what an infinitely fast step would
wait. Bytes are those that the host sends to the devices for one batch.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from fsdit import program
from fsdit.config import CodecConfig, Config, DataConfig, EncoderConfig, FeaturesConfig, ModelConfig
from fsdit.data import layout, pipeline, records
from fsdit.data.shards import shard_name, write_shard
from fsdit.features.batches import Feed
from fsdit.features.frozen import Frozen
from fsdit.features.resident import ResidentFeatures
from fsdit.parallel import sharding

_DIM, _GRID, _LATENT = 768, (14, 14), (28, 28, 4)


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), _IMAGES.value)
        host = config(folder, _BATCH.value)
        device = dataclasses.replace(
            host, features=dataclasses.replace(host.features, location="device")
        )
        feeds = {"host": feed(host), "device": feed(device)}
        size = {name: bytes_a_batch(c) for name, c in (("host", host), ("device", device))}
        seconds = {name: [] for name in feeds}
        for _ in range(_ROUNDS.value):
            for name, c in (("host", host), ("device", device)):
                seconds[name].append(seconds_a_batch(feeds[name], c, _BATCHES.value))
    for name, values in seconds.items():
        every = ", ".join(f"{v * 1e3:.1f}" for v in values)
        print(f"{name}: {min(values) * 1e3:.1f} ms a batch (of {every}), {size[name]:,} bytes")
    print(f"host / device: {min(seconds['host']) / min(seconds['device']):.1f} in time, "
          f"{size['host'] / size['device']:.0f} in bytes")  # fmt: skip


def config(folder: str, batch_size: int) -> Config:
    return Config(
        data=DataConfig(dataset_dir=folder, batch_size=batch_size, source="sampled"),
        model=ModelConfig(
            encoder=EncoderConfig(name="frozen", location="random"),
            codec=CodecConfig(name="autoencoder_kl", location="random"),
        ),
        features=FeaturesConfig(supports="precomputed", targets="precomputed"),
    )


def write_dataset(folder: Path, num_images: int) -> None:
    """Ten classes; random features and latents beside images of one colour."""
    rng = np.random.default_rng(0)

    def halves(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(np.float16)

    def features() -> bytes:
        record = records.FeatureRecord(halves(_DIM), halves(_GRID[0] * _GRID[1], _DIM))
        return records.encode_features(record)

    def latents() -> bytes:
        return records.encode_latents(
            records.LatentRecord(halves(2, *_LATENT), halves(2, *_LATENT))
        )

    image = records.encode_pixels(np.zeros((8, 8, 3), np.uint8))
    count = num_images // 10
    images = [records.ImageRecord(str(i), i // count, image, 8, 8) for i in range(10 * count)]
    split = folder / "train"
    layout.write_split(split, images, [])
    manifest = layout.read_manifest(split)
    for kind, payload in (("features-random", features), ("latents-random", latents)):
        name = shard_name(kind, 0, 1)
        manifest[name] = write_shard(split / name, (payload() for _ in images))
    layout.write_json(split / "manifest.json", manifest)
    described = layout.FeaturesInfo("random", "", {}, "float16", _DIM, _GRID, tokens=True)
    info = layout.DatasetInfo(
        image_size=8,
        channels=3,
        splits={"train": layout.SplitInfo(tuple("0123456789"), (count,) * 10, 0, 5)},
        command="",
        seed=0,
        features={"random": described},
        latents={"random": layout.LatentsInfo("random", "", "float16", _LATENT)},
    )
    layout.write_dataset_json(folder, info)


def feed(config: Config) -> Feed:
    mesh = sharding.make_mesh(config)
    resident = ResidentFeatures(config, mesh) if config.features.location == "device" else None
    return Feed(config, mesh, Frozen(), resident)


def seconds_a_batch(feed: Feed, config: Config, num_batches: int) -> float:
    """Returns seconds a batch, without the first one, which fills the pipeline."""
    read = pipeline.training_examples(config)
    batches = feed.batches(read, config.data.batch_size, 1 + num_batches)
    jax.block_until_ready(next(batches))
    start = time.perf_counter()
    for batch in batches:
        jax.block_until_ready(batch)
    return (time.perf_counter() - start) / num_batches


def bytes_a_batch(config: Config) -> int:
    example = pipeline.training_examples(config)(0)
    return config.data.batch_size * sum(leaf.nbytes for leaf in jax.tree.leaves(example))


if __name__ == "__main__":
    _IMAGES = flags.DEFINE_integer("num_images", 2_000, "Of the split, in ten classes.")
    _BATCH = flags.DEFINE_integer("batch_size", 128, "Episodes a batch.")
    _BATCHES = flags.DEFINE_integer("num_batches", 20, "Timed, of each side and round.")
    _ROUNDS = flags.DEFINE_integer("rounds", 3, "Of both sides in turn.")
    program.run(main)
