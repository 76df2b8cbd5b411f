"""Encodings of small photos by tiny networks, started as by a user."""

from pathlib import Path

import jax
import numpy as np

from fsdit.data import layout, records
from fsdit.data.episodes import draw_episodes
from fsdit.data.readers import FeatureReader, ImageReader, LatentReader
from fsdit.data.records import ImageRecord
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.encoder import load_encoder
from tests.data_prep.conversion.photos import encoded, files, photo
from tests.models.pretrained import originals
from tests.models.pretrained.autoencoder_originals import SD, original
from tests.programs import run_module

SIZE = 32
SPLITS = {"train": (9, 8), "val": (3,), "test": (4, 3)}  # images of each class
SHARDS = {"train": 4, "val": 1, "test": 2}
PRECISION = {"float16": 1e-3, "bfloat16": 8e-3}


def write_weights(folder: Path) -> Path:
    """Writes tiny networks with random weights: `siglip` and `vae`."""
    originals.save(originals.siglip_vision(), originals.siglip_processor(), folder / "siglip")
    original(**SD).save_pretrained(folder / "vae")
    return folder


def write_photos(directory: Path, size: int = SIZE) -> Path:
    """Writes photos in files of several sizes, which no batch size of the tests all divides."""
    infos, seed = {}, 0
    for name, sizes in SPLITS.items():
        classes = tuple(f"{name}{c}" for c in range(len(sizes)))
        info = layout.SplitInfo(classes, sizes, episodes=2 * len(sizes), shots=2)
        images = []
        for class_id, count in enumerate(sizes):
            for _ in range(count):
                data = encoded(photo(seed, size, size), "PNG")
                images.append(ImageRecord(str(seed), class_id, data, size, size))
                seed += 1
        drawn = draw_episodes(info, 2, 2, 0)
        layout.write_split(directory / name, images, drawn, shards=SHARDS[name])
        infos[name] = info
    layout.write_dataset_json(directory, layout.DatasetInfo(size, 3, infos, "command", 0))
    return directory


def both(weights: Path) -> list[str]:
    return [f"--encoder={weights / 'siglip'}", f"--vae={weights / 'vae'}", "--batch_size=4"]


def encode(dataset, *flags, devices=1):
    return run_module("data_prep.encode", f"--dataset_dir={dataset}", *flags, devices=devices)


def succeed(dataset, *flags, devices=1):
    done = encode(dataset, *flags, devices=devices)
    assert done.returncode == 0, done.stderr
    return done


def refused(dataset, *flags) -> str:
    """The error line of an encoding, which must fail and leave the dataset as it is."""
    before = files(dataset)
    done = encode(dataset, *flags)
    assert done.returncode == 1, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert "Traceback" not in done.stderr
    after = files(dataset)
    assert {name: after[name] for name in after if layout.ENCODING not in name} == {
        name: before[name] for name in before if layout.ENCODING not in name
    }
    return line


def all_images(directory: Path, split: str) -> np.ndarray:
    info = layout.read_dataset_info(directory)
    count = info.splits[split].num_images
    reader = ImageReader(directory / split, info.image_size, info.channels, count)
    return np.stack([reader[i] for i in range(count)])


def assert_near(stored: list[np.ndarray], expected, dtype: str) -> None:
    """Checks equality up to rounding to `dtype` and to the order of float32 sums."""
    found = np.stack(stored)
    assert found.dtype == records.HALF_TYPES[dtype]
    np.testing.assert_allclose(
        found.astype(np.float32), np.asarray(expected), rtol=PRECISION[dtype], atol=1e-4
    )


def assert_features(directory: Path, location: Path, name: str) -> None:
    info = layout.read_dataset_info(directory)
    of = info.features[name]
    network, params = load_encoder(str(location))
    assert of.encoder == str(location) and of.sha256 == network.checkpoint.sha256()
    assert (of.dim, of.grid) == (network.dim, network.grid)
    for split in info.splits:
        images = all_images(directory, split)
        pooled, tokens = jax.jit(network)(params, images[:, None])
        reader = FeatureReader(directory / split, name, of, len(images))
        rows = [reader[i] for i in range(len(images))]
        assert_near([row["pooled"] for row in rows], pooled[:, 0], of.dtype)
        assert ["tokens" in row for row in rows] == [of.tokens] * len(rows)
        if of.tokens:
            assert_near([row["tokens"] for row in rows], tokens[:, 0], of.dtype)


def assert_latents(directory: Path, location: Path, name: str) -> None:
    info = layout.read_dataset_info(directory)
    of = info.latents[name]
    codec = autoencoder_kl.load(str(location))
    assert of.codec == str(location) and of.shape == codec.latent_shape(SIZE, 3)
    for split in info.splits:
        images = all_images(directory, split)
        reader = LatentReader(directory / split, name, of, len(images))
        rows = [reader[i] for i in range(len(images))]
        for place, pictures in enumerate((images, images[:, :, ::-1])):
            moments = jax.jit(autoencoder_kl.AutoencoderKL.moments)(codec, pictures)
            for stored, expected in zip(zip(*rows, strict=True), moments, strict=True):
                assert_near([array[place] for array in stored], expected, of.dtype)
