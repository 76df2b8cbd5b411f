"""`python -m data_prep.encode` as a process, compared with direct calls of the networks."""

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from data_prep.encoding import outputs, tasks
from data_prep.verify import verify
from fsdit.data import layout
from tests.data_prep import datasets
from tests.data_prep.conversion.photos import files
from tests.data_prep.encodings import (
    SPLITS,
    assert_features,
    assert_latents,
    both,
    refused,
    succeed,
    write_photos,
    write_weights,
)
from tests.programs import run_module, start_program

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "d")


@pytest.fixture
def dataset(photos, tmp_path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "d"))


@pytest.fixture(scope="module")
def undisturbed(photos, weights, tmp_path_factory) -> Path:
    directory = shutil.copytree(photos, tmp_path_factory.mktemp("encoded") / "d")
    done = succeed(directory, *both(weights))
    assert "features-siglip: 27 images by process 0, " in done.stdout
    return Path(directory)


def test_stored_features_and_latents_are_those_of_the_networks(undisturbed, weights):
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


def test_encoding_with_other_flags_on_eight_devices(dataset, weights):
    """Eight devices turn a batch of 3 into one of 8."""
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


def test_grey_images_are_encoded_to_pooled_features_alone(weights, tmp_path):
    dataset = datasets.write(tmp_path / "d")
    succeed(dataset, f"--encoder={weights / 'siglip'}", "--notokens", "--batch_size=64")
    assert not layout.read_dataset_info(dataset).features["siglip"].tokens
    assert_features(dataset, weights / "siglip", "siglip")
    assert verify(dataset, fast=False, workers=0).damages == []


def start(dataset, *flags):
    return start_program("data_prep.encode", f"--dataset_dir={dataset}", *flags)


def test_two_processes_write_the_same_files_as_one(dataset, undisturbed, weights):
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


@pytest.mark.parametrize(
    ("how", "after"),
    [(signal.SIGKILL, 2), pytest.param(signal.SIGTERM, 9, marks=pytest.mark.large)],
)
def test_a_stopped_encoding_ends_as_if_never_stopped(dataset, undisturbed, weights, how, after):
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


def test_an_encoding_killed_in_its_last_part_ends_as_if_never_stopped(
    undisturbed, photos, weights, tmp_path, monkeypatch
):
    """The last part is killed before each of its renames and removals in turn."""
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
        """Runs the last part; returns False if it was killed before change number `at`."""
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


def test_a_name_that_the_dataset_has_already_is_refused(undisturbed, weights):
    line = refused(undisturbed, *both(weights))
    assert "features-siglip is already there; give another name with --name" in line
    line = refused(undisturbed, f"--vae={weights / 'vae'}")
    assert "latents-vae is already there; give another name with --vae_name" in line
    line = refused(undisturbed, f"--encoder={weights / 'siglip'}", "--notokens")
    assert "features-siglip is there, but otherwise made" in line


def test_a_refused_name_leaves_another_begun_encoding_alone(undisturbed, weights, tmp_path):
    dataset = Path(shutil.copytree(undisturbed, tmp_path / "d"))
    info = layout.read_dataset_info(dataset)
    other = outputs.features(str(weights / "siglip"), "other", True, "float16", "float32")
    tasks.EncodingFolder(dataset).begin(info, [other], "float32")
    before = files(dataset)
    refused(dataset, *both(weights))
    assert files(dataset) == before


def test_features_can_be_added_and_episodes_rebuilt(undisturbed, weights, tmp_path):
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
