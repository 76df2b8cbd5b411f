"""Encodings that are refused: they end in one line, and leave the dataset as it is."""

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from data_prep.encoding import outputs, tasks
from fsdit.data import layout
from tests.data_prep import datasets
from tests.data_prep.encodings import (
    assert_features,
    assert_latents,
    refused,
    succeed,
    write_photos,
    write_weights,
)

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


def test_a_begun_encoding_is_not_continued_with_other_flags(dataset, weights, tmp_path):
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


def test_a_begun_encoding_is_not_continued_with_changed_weights(dataset, weights, tmp_path):
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
def test_a_wrong_flag_is_reported_in_one_line(photos, weights, flags, named):
    line = refused(photos, *[flag.format(weights=weights) for flag in flags])
    assert any(part in line for part in named.split("|")), line
    assert not (photos / layout.ENCODING).exists()


def test_an_image_size_that_the_vae_cannot_take_is_refused(weights, tmp_path):
    line = refused(write_photos(tmp_path / "d", size=36), f"--vae={weights / 'vae'}")
    assert (
        "multiples of 8, these are 36 x 36; convert the dataset with another --image_size" in line
    )
    assert not (tmp_path / "d" / layout.ENCODING).exists()
