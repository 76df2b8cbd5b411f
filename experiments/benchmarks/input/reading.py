"""Compares reading episodes with a loader over the raw folder, and measures bytes on disk.

    python -m experiments.benchmarks.input.reading

One episode is a target and five supports. Our side is the training pipeline over a converted
dataset. The other side does what a PyTorch data loader does: worker processes open the files of
each episode, decode them, make them 256 x 256, stack batches and send them to the main process;
once over the original photos, and once over images that already have that size. Then it measures
the parts of a read, and what features take on disk.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
from absl import flags
from PIL import Image

from experiments.benchmarks.input.photos import make_photos
from experiments.benchmarks.programs import run_program
from fsdit import program
from fsdit.config import Config, DataConfig
from fsdit.data import pipeline, records
from fsdit.data.episodes import SampledEpisodes
from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import RecordReader
from fsdit.data.records import Episode
from fsdit.data.shards import write_shard

_BATCHES = flags.DEFINE_integer("num_batches", 40, "Batches of 16 episodes a measurement.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes of the other loader, and of ours.")
_BATCH = 16
_SIZE = 256
_SHOTS = 5
_IMAGES = 2_000


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
        photos, dataset, resized = (Path(folder) / name for name in ("photos", "d", "resized"))
        make_photos(photos, _IMAGES)
        convert(photos, dataset)
        unpack(dataset, resized)
        speeds(photos, dataset, resized)
        parts(dataset)
        disk(dataset, Path(folder))


def convert(photos: Path, output: Path) -> None:
    run_program(
        "data_prep.convert",
        *(f"--input={photos}", f"--output_dir={output}"),
        *("--num_classes=98,0,2", f"--image_size={_SIZE}"),
        *("--duplicates=keep", "--sets_per_class=10"),
    )


def unpack(dataset: Path, folder: Path) -> None:
    """The dataset's images as a folder of class folders."""
    reader = RecordReader(dataset / "train", "images")
    for i in range(len(reader)):
        record = records.decode_image(reader[i])
        path = folder / record.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.data)


def speeds(photos: Path, dataset: Path, resized: Path) -> None:
    count = _BATCHES.value * _BATCH * (_SHOTS + 1)

    def rate(batches: Iterator) -> float:
        next(batches)  # starts the workers
        start = time.perf_counter()
        left = sum(1 for _ in batches)
        return left * _BATCH * (_SHOTS + 1) / (time.perf_counter() - start)

    print(f"images/s, target and supports, decoded ({count} images each):")
    sides = {
        "ours, threads": lambda: ours(dataset, 0),
        f"ours, {_WORKERS.value} processes": lambda: ours(dataset, _WORKERS.value),
        f"folder of originals, {_WORKERS.value} processes": lambda: folder_loader(photos, dataset),
        f"folder of {_SIZE} x {_SIZE}, {_WORKERS.value} processes": lambda: folder_loader(
            resized, dataset
        ),
    }
    rates = {name: [] for name in sides}
    for _ in range(3):  # in turns, so that a disturbance meets all
        for name, make in sides.items():
            rates[name].append(rate(make()))
    best = {name: max(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"  {name}: {best[name]:.0f} (of {', '.join(f'{v:.0f}' for v in values)})")
    mine = max(best["ours, threads"], best[f"ours, {_WORKERS.value} processes"])
    for name in list(sides)[2:]:
        print(f"  ours / {name}: {mine / best[name]:.2f}")
    print(f"  load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def ours(dataset: Path, workers: int) -> Iterator:
    config = DataConfig(
        dataset_dir=str(dataset), batch_size=_BATCH, shots=_SHOTS, source="sampled", workers=workers
    )
    return pipeline.host_batches(
        pipeline.training_examples(Config(data=config)),
        rows=range(_BATCH),
        batch_size=_BATCH,
        start=0,
        num_batches=_BATCHES.value,
        config=config,
        place=lambda batch: batch,
    )


def folder_loader(root: Path, dataset: Path) -> Iterator:
    """The same episodes from files, in worker processes that are two batches ahead."""
    split = read_dataset_info(dataset).splits["train"]
    reader = RecordReader(dataset / "train", "images")
    paths = [str(root / records.decode_image(reader[i]).key) for i in range(len(reader))]
    episodes = SampledEpisodes(split, _SHOTS, seed=0)
    batches = [
        [(paths[e.target], *(paths[i] for i in e.supports)) for e in group]
        for group in (
            [episodes[b * _BATCH + r] for r in range(_BATCH)] for b in range(_BATCHES.value)
        )
    ]
    with multiprocessing.get_context("spawn").Pool(_WORKERS.value) as pool:
        yield from pool.imap(read_files, batches)


def read_files(episodes: list[tuple[str, ...]]) -> dict[str, np.ndarray]:
    images = np.stack([np.stack([open_image(path) for path in e]) for e in episodes])
    return {"target": images[:, 0], "supports": images[:, 1:]}


def open_image(path: str) -> np.ndarray:
    with Image.open(path) as image:
        image = image.convert("RGB")
        if image.size != (_SIZE, _SIZE):
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            image = image.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR, box=box)
        return np.asarray(image)


def parts(dataset: Path) -> None:
    """Seconds of reading records and of decoding them, in one thread, in random order."""
    reader = RecordReader(dataset / "train", "images")
    order = np.random.default_rng(0).permutation(len(reader)).tolist()
    start = time.perf_counter()
    payloads = [reader[i] for i in order]
    read = time.perf_counter() - start
    start = time.perf_counter()
    for payload in payloads:
        records.decode_pixels(records.decode_image(payload).data, 3)
    decode = time.perf_counter() - start
    print(f"of a read, decoding is {decode / (read + decode):.1%} ({len(order)} images)")


def disk(dataset: Path, folder: Path) -> None:
    """36,000 episodes of 60 classes of 600 images, SigLIP2 features of 196 x 768 float16."""
    features = {"pooled": bytes(768 * 2), "tokens": bytes(196 * 768 * 2)}
    one = len(msgpack.packb({"v": 1, **features}))
    inside = len(msgpack.packb({"v": 1, "supports": [features] * _SHOTS}))
    reader = RecordReader(dataset / "train", "images")
    images = [reader[i] for i in range(100)]
    image = sum(map(len, images)) / len(images)
    episode = len(records.encode_episode(Episode(59, 35_000, (35_001,) * _SHOTS)))
    ours, other = (36_000 * (image + one + episode), 36_000 * (image + inside))
    print(
        f"36,000 episodes and images, from record sizes: {ours / 1e9:.1f} GB, "
        f"features inside episodes {other / 1e9:.1f} GB, ratio {other / ours:.2f}"
    )
    count = 100

    def written(name: str, payloads: Iterator[bytes]) -> int:
        return write_shard(folder / name, payloads)["bytes"]

    random = np.random.default_rng(0)

    def feature_bytes() -> dict[str, bytes]:
        return {name: random.bytes(len(value)) for name, value in features.items()}

    stored = (
        written("images", iter(images))
        + written("features", (msgpack.packb({"v": 1, **feature_bytes()}) for _ in range(count)))
        + written(
            "episodes",
            (records.encode_episode(Episode(59, 35_000, (35_001,) * _SHOTS)) for _ in range(count)),
        )
    )
    nested = written("images", iter(images)) + written(
        "nested",
        (
            msgpack.packb({"v": 1, "supports": [feature_bytes() for _ in range(_SHOTS)]})
            for _ in range(count)
        ),
    )
    print(
        f"written for {count} episodes and images: {stored / 1e6:.1f} MB and "
        f"{nested / 1e6:.1f} MB, ratio {nested / stored:.2f}; "
        f"from record sizes: {count * ours / 36e9:.1f} MB and {count * other / 36e9:.1f} MB"
    )


if __name__ == "__main__":
    program.run(main)
