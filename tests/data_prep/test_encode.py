"""`python -m data_prep.encode` as a process, against the networks called directly."""

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_prep.encoding import outputs, tasks
from data_prep.verify import verify
from fsdit.data import layout, records
from fsdit.data.episodes import draw_episodes
from fsdit.data.readers import FeatureReader, ImageReader, LatentReader
from fsdit.data.records import ImageRecord
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.encoder import load_encoder
from tests.data_prep import datasets
from tests.data_prep.conversion.photos import encoded, files, photo
from tests.models.pretrained import originals
from tests.models.pretrained.autoencoder_originals import SD, original
from tests.programs import run_module, start_program

pytestmark = pytest.mark.medium

SIZE = 32
SPLITS = {"train": (9, 8), "val": (3,), "test": (4, 3)}  # images of each class
SHARDS = {"train": 4, "val": 1, "test": 2}
PRECISION = {"float16": 1e-3, "bfloat16": 8e-3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Tiny networks with random weights: `siglip` and `vae`."""
    folder = tmp_path_factory.mktemp("weights")
    originals.save(originals.siglip_vision(), originals.siglip_processor(), folder / "siglip")
    original(**SD).save_pretrained(folder / "vae")
    return folder


def write_photos(directory: Path, size: int = SIZE) -> Path:
    """Photos in several files a split, of which no batch size here fills all."""
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "d")


@pytest.fixture
def dataset(photos, tmp_path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "d"))


def both(weights: Path) -> list[str]:
    return [f"--encoder={weights / 'siglip'}", f"--vae={weights / 'vae'}", "--batch_size=4"]


def encode(dataset, *flags, devices=1):
    return run_module("data_prep.encode", f"--dataset_dir={dataset}", *flags, devices=devices)


def succeed(dataset, *flags, devices=1):
    done = encode(dataset, *flags, devices=devices)
    assert done.returncode == 0, done.stderr
    return done


def refused(dataset, *flags) -> str:
    """The one line of an encoding that fails, and leaves the dataset as it is."""
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


@pytest.fixture(scope="module")
def undisturbed(photos, weights, tmp_path_factory) -> Path:
    directory = shutil.copytree(photos, tmp_path_factory.mktemp("encoded") / "d")
    done = succeed(directory, *both(weights))
    assert "features-siglip: 27 images by process 0, " in done.stdout
    return Path(directory)


def all_images(directory: Path, split: str) -> np.ndarray:
    info = layout.read_dataset_info(directory)
    count = info.splits[split].num_images
    reader = ImageReader(directory / split, info.image_size, info.channels, count)
    return np.stack([reader[i] for i in range(count)])


def assert_near(stored: list[np.ndarray], expected, dtype: str) -> None:
    """Equal up to rounding to `dtype`, and float32's own reordering of sums."""
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


def test_what_is_stored_is_what_the_networks_give(undisturbed, weights):
    assert_features(undisturbed, weights / "siglip", "siglip")
    assert_latents(undisturbed, weights / "vae", "vae")
    assert verify(undisturbed, fast=False, workers=0).damages == []
    assert not (undisturbed / layout.ENCODING).exists()


def test_files_are_those_of_the_images_with_other_records(undisturbed):
    for split in SPLITS:
        manifest = layout.read_manifest(undisturbed / split)
        for kind in ("features-siglip", "latents-vae"):
            names = layout.files_of(manifest, kind)
            images = layout.files_of(manifest, "images")
            assert names == [name.replace("images", kind) for name in images]
            for name, image in zip(names, images, strict=True):
                assert manifest[name]["records"] == manifest[image]["records"]


def test_eight_devices_and_other_flags(dataset, weights):
    """A batch of 3 becomes one of 8; half of it is computed in another type."""
    succeed(
        dataset,
        f"--encoder={weights / 'siglip'}",
        f"--vae={weights}",
        "--vae_subfolder=vae",
        "--name=my-siglip",
        "--vae_name=sd.1",
        "--batch_size=3",
        "--dtype=bfloat16",
        devices=8,
    )
    info = layout.read_dataset_info(dataset)
    assert info.features["my-siglip"].dtype == "bfloat16"
    assert info.latents["sd.1"].codec == f"{weights}/vae"
    assert_features(dataset, weights / "siglip", "my-siglip")
    assert_latents(dataset, weights / "vae", "sd.1")
    assert verify(dataset, fast=False, workers=0).damages == []


def test_grey_images_and_pooled_features_alone(weights, tmp_path):
    dataset = datasets.write(tmp_path / "d")
    succeed(dataset, f"--encoder={weights / 'siglip'}", "--notokens", "--batch_size=64")
    assert not layout.read_dataset_info(dataset).features["siglip"].tokens
    assert_features(dataset, weights / "siglip", "siglip")
    assert verify(dataset, fast=False, workers=0).damages == []


def start(dataset, *flags):
    return start_program("data_prep.encode", f"--dataset_dir={dataset}", *flags)


def test_two_processes_write_the_files_of_one(dataset, undisturbed, weights):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    pod = [
        start(
            dataset,
            *both(weights),
            f"--coordinator_address={address}",
            "--num_processes=2",
            f"--process_id={i}",
        )
        for i in range(2)
    ]
    texts = [process.communicate(timeout=600)[0] for process in pod]
    assert [process.returncode for process in pod] == [0, 0], texts
    assert f"dataset: {dataset}" in texts[0] and "dataset:" not in texts[1]
    assert "features-siglip: 15 images by process 0" in texts[0]
    assert files(dataset) == files(undisturbed)


@pytest.mark.parametrize(("how", "after"), [(signal.SIGKILL, 2), (signal.SIGTERM, 9)])
def test_stopped_and_started_again_it_ends_as_if_never_stopped(
    dataset, undisturbed, weights, how, after
):
    folder = dataset / layout.ENCODING
    process = start(dataset, *both(weights))
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*/*-of-*.json"))) < after:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(how)
    assert process.wait(60) == -how
    whole = {
        result.with_suffix(".array_record").relative_to(folder): result.with_suffix(
            ".array_record"
        ).stat()
        for result in folder.glob("*/*-of-*.json")
    }
    assert len(whole) >= after
    succeed(dataset, *both(weights))
    assert files(dataset) == files(undisturbed)
    for name, stat in whole.items():  # the same files, not others like them
        assert (dataset / name).stat().st_ino == stat.st_ino


class Killed(BaseException):
    pass


def test_killed_while_the_dataset_is_told_it_ends_as_if_never_stopped(
    undisturbed, photos, weights, tmp_path, monkeypatch
):
    """Before each rename and each removal of the last part in turn."""
    output = outputs.features(str(weights / "siglip"), "siglip", True, "float16", "float32")
    vae = outputs.latents(
        str(weights / "vae"), "", "vae", layout.read_dataset_info(photos), "float16", "float32"
    )
    all_outputs = [output, vae]
    all_tasks = tasks.tasks(photos, layout.read_dataset_info(photos))
    before = Path(shutil.copytree(photos, tmp_path / "before"))
    folder = tasks.EncodingFolder(before)
    folder.begin(layout.read_dataset_info(before), all_outputs, "float32")
    for task in all_tasks:
        manifest = layout.read_manifest(undisturbed / task.split)
        for made in all_outputs:
            file = task.file(made.kind)
            shutil.copy(undisturbed / file, folder.root / file)
            layout.write_json(folder.result(task, made.kind), manifest[Path(file).name])

    def end(directory: Path, at: float) -> bool:
        """Whether it came to its end, and was not killed at the at-th change."""
        left = at

        def counted(function):
            def changed(*args, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return function(*args, **kwargs)

            return changed

        folder = tasks.EncodingFolder(directory)
        info = layout.read_dataset_info(directory)
        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "unlink", "rmdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                if tasks.is_recorded(folder, info, all_outputs):
                    tasks.remove(folder)
                else:
                    tasks.finish(folder, all_outputs, all_tasks)
            except Killed:
                return False
        return True

    expected, at = files(undisturbed), 0
    while True:
        directory = Path(shutil.copytree(before, tmp_path / str(at)))
        ended = end(directory, at)
        assert ended or end(directory, float("inf"))
        assert files(directory) == expected, at
        shutil.rmtree(directory)
        if ended:
            break
        at += 1
    assert at > 2 * len(all_tasks)


def test_a_name_that_is_there_is_refused(undisturbed, weights):
    line = refused(undisturbed, *both(weights))
    assert "features-siglip is already there; give another name with --name" in line
    line = refused(undisturbed, f"--vae={weights / 'vae'}")
    assert "latents-vae is already there; give another name with --vae_name" in line
    line = refused(undisturbed, f"--encoder={weights / 'siglip'}", "--notokens")
    assert "features-siglip is there, but otherwise made" in line


def test_what_is_there_already_takes_nothing_from_what_was_begun(undisturbed, weights, tmp_path):
    dataset = Path(shutil.copytree(undisturbed, tmp_path / "d"))
    info = layout.read_dataset_info(dataset)
    other = outputs.features(str(weights / "siglip"), "other", True, "float16", "float32")
    tasks.EncodingFolder(dataset).begin(info, [other], "float32")
    before = files(dataset)
    refused(dataset, *both(weights))
    assert files(dataset) == before


def test_more_can_be_added_and_episodes_rebuilt(undisturbed, weights, tmp_path):
    dataset = Path(shutil.copytree(undisturbed, tmp_path / "d"))
    fingerprint = layout.dataset_fingerprint(dataset)
    succeed(dataset, f"--encoder={weights / 'siglip'}", "--name=siglip-2", "--notokens")
    assert layout.dataset_fingerprint(dataset) == fingerprint
    rebuilt = run_module(
        "data_prep.episodes", f"--dataset_dir={dataset}", "--shots=1", "--sets_per_class=3"
    )
    assert rebuilt.returncode == 0, rebuilt.stderr
    info = layout.read_dataset_info(dataset)
    assert list(info.features) == ["siglip", "siglip-2"] and list(info.latents) == ["vae"]
    assert info.splits["train"].shots == 1
    assert_features(dataset, weights / "siglip", "siglip")
    assert_features(dataset, weights / "siglip", "siglip-2")
    assert verify(dataset, fast=False, workers=0).damages == []
    output = tmp_path / "grid.png"
    shown = run_module("data_prep.inspect", f"--dataset_dir={dataset}", f"--output={output}")
    assert shown.returncode == 0, shown.stderr
    for text in (
        "features-siglip, features-siglip-2, latents-vae",
        f"features-siglip: pooled and 2 x 2 tokens of width 48, float16, by {weights}/siglip",
        f"features-siglip-2: pooled of width 48, float16, by {weights}/siglip",
        f"latents-vae: 4 x 4 x 4, float16, by {weights}/vae",
    ):
        assert text in shown.stdout


def test_what_was_begun_is_not_gone_on_with_otherwise(dataset, weights, tmp_path):
    file = datasets.shard(dataset, "test", index=1)
    whole = file.read_bytes()
    datasets.flip(file, whole.index(b"PNG") + 40)
    line = refused(dataset, f"--encoder={weights / 'siglip'}")
    assert f"{file}, record 0: damaged" in line
    assert list((dataset / layout.ENCODING).glob("train/*.array_record"))
    other = shutil.copytree(weights / "siglip", tmp_path / "other" / "siglip")
    tensors = load_file(other / "model.safetensors")
    save_file({n: t * 1.5 for n, t in tensors.items()}, other / "model.safetensors")
    for flags, named in (
        ([f"--encoder={other}"], "begun with outputs features-siglip encoder"),
        ([f"--encoder={weights / 'siglip'}", "--dtype=bfloat16"], "dtype float16, this is with bf"),
        ([f"--encoder={weights / 'siglip'}", "--compute_dtype=bfloat16"], "compute_dtype float32"),
        ([f"--vae={weights / 'vae'}"], "features-siglip"),
    ):
        assert named in refused(dataset, *flags)
    file.write_bytes(whole)
    succeed(dataset, f"--encoder={weights / 'siglip'}")
    assert_features(dataset, weights / "siglip", "siglip")


def test_other_weights_at_the_same_place_are_not_gone_on_with(dataset, weights, tmp_path):
    location = Path(shutil.copytree(weights / "siglip", tmp_path / "siglip"))
    info = layout.read_dataset_info(dataset)
    begun = outputs.features(str(location), "siglip", True, "float16", "float32")
    tasks.EncodingFolder(dataset).begin(info, [begun], "float32")
    tensors = load_file(location / "model.safetensors")
    save_file({n: t * 1.5 for n, t in tensors.items()}, location / "model.safetensors")
    assert f"sha256 {begun.info.sha256}" in refused(dataset, f"--encoder={location}")


def test_values_that_the_type_cannot_hold_are_refused_with_the_image(dataset, weights, tmp_path):
    location = Path(shutil.copytree(weights / "vae", tmp_path / "vae"))
    file = location / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["quant_conv.weight"] *= 1e6
    save_file(tensors, file)
    line = refused(dataset, f"--vae={location}")
    assert "images-00000-of-00004.array_record, record 0: its latents-vae are not finite" in line
    assert "--dtype=bfloat16" in line
    shutil.rmtree(dataset / layout.ENCODING)
    succeed(dataset, f"--vae={location}", "--dtype=bfloat16")
    assert_latents(dataset, location, "vae")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--encoder or --vae"),
        (["--vae={weights}/vae", "--name=a"], "--name=a is for --encoder"),
        (["--encoder={weights}/siglip", "--vae_name=a"], "--vae_name=a is for --vae"),
        (["--encoder={weights}/siglip", "--name=a/b"], "--name=a/b: a name for files"),
        (["--encoder={weights}/.."], "give another with --name"),
        (["--encoder={weights}/nothing"], "neither a directory nor a hub id"),
        (["--encoder={weights}/vae"], "vae/config.json: model_type|preprocessor_config.json"),
        (["--vae={weights}"], "config.json is missing"),
        (["--vae={weights}/vae", "--num_processes=2"], "--coordinator_address, --num_processes"),
    ],
)
def test_a_wrong_flag_is_one_line(photos, weights, flags, named):
    line = refused(photos, *[flag.format(weights=weights) for flag in flags])
    assert any(part in line for part in named.split("|")), line
    assert not (photos / layout.ENCODING).exists()


def test_an_image_size_that_the_vae_cannot_take(weights, tmp_path):
    line = refused(write_photos(tmp_path / "d", size=36), f"--vae={weights / 'vae'}")
    assert (
        "multiples of 8, these are 36 x 36; convert the dataset with another --image_size" in line
    )
    assert not (tmp_path / "d" / layout.ENCODING).exists()
