"""Tampered checkpoints of frozen networks fail soon, in one line and in little memory."""

import shutil

import pytest

from experiments.benchmarks import random_weights
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.encoder import load_encoder
from tests.models.pretrained.stored import hostile

NETWORKS = {
    "siglip": lambda folder: load_encoder(str(folder))[1],
    "dinov2": lambda folder: load_encoder(str(folder))[1],
    "vae": lambda folder: autoencoder_kl.load(str(folder)).params,
}
FILES = ("config.json", "preprocessor_config.json", "*.safetensors")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid") / "weights"
    random_weights.write(folder)
    hostile.write_dinov2(folder / "dinov2")
    return folder


@pytest.fixture(params=NETWORKS)
def network(request, valid, tmp_path):
    """A function that makes a new copy of a checkpoint: (folder, function that loads it)."""
    number = 0

    def copy():
        nonlocal number
        number += 1
        folder = shutil.copytree(valid / request.param, tmp_path / str(number))
        return folder, lambda: NETWORKS[request.param](folder)

    return copy


def files_of(folder):
    return [file for pattern in FILES for file in sorted(folder.glob(pattern))]


def test_a_checkpoint_without_changes_loads(network):
    _, load = network()
    hostile.attempt(load, "nothing")
    assert load()


@pytest.mark.medium
@pytest.mark.parametrize(
    "part", [0, *(pytest.param(i, marks=pytest.mark.large) for i in range(1, 9))]
)
def test_no_value_of_a_configuration_hangs_fills_memory_or_shows_a_traceback(network, part):
    folder, load = network()
    for file in folder.glob("*.json"):
        whole = file.read_bytes()
        for number, place in list(enumerate(hostile.values_in(file)))[part::9]:
            for value in hostile.some_values(number):
                hostile.with_value(file, place, value)
                hostile.attempt(load, f"{file.name}: {place} = {str(value)[:50]!r}")
                file.write_bytes(whole)


def test_every_replaced_file_is_refused_in_one_line(network):
    for index, _ in enumerate(files_of(network()[0])):
        for mutation, tamper in hostile.FILES.items():
            folder, load = network()
            file = files_of(folder)[index]
            tamper(file)
            assert hostile.attempt(load, f"{file.name} is {mutation}"), (file.name, mutation)


def test_every_invalid_json_file_is_refused_in_one_line(network):
    for mutation, text in hostile.JSON.items():
        folder, load = network()
        for file in folder.glob("*.json"):
            whole = file.read_bytes()
            file.write_bytes(text)
            assert hostile.attempt(load, f"{file.name}: {mutation}"), (file.name, mutation)
            file.write_bytes(whole)


def test_invalid_tensors_are_refused(network):
    for mutation, tamper in hostile.TENSORS.items():
        folder, load = network()
        tamper(next(folder.glob("*.safetensors")))
        assert hostile.attempt(load, mutation), mutation


@pytest.mark.medium
def test_no_flipped_bit_of_a_header_shows_a_traceback(network):
    for seed in range(60):
        folder, load = network()
        hostile.flipped(files_of(folder)[seed % len(files_of(folder))], seed)
        hostile.attempt(load, f"flip {seed}")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("vae", "scaling_factor", 0),
        ("vae", "scaling_factor", float("nan")),
        ("vae", "scaling_factor", -0.2),
        ("vae", "scaling_factor", 1e39),
        ("vae", "shift_factor", float("inf")),
        ("vae", "layers_per_block", 10**9),
        ("vae", "block_out_channels", [16] * 1000),
        ("siglip", "hidden_size", 10**12),
        ("siglip", "num_hidden_layers", 4000),
        ("siglip", "layer_norm_eps", float("nan")),
        ("siglip", "layer_norm_eps", 1e9),
        ("siglip", "num_attention_heads", 0),
        ("dinov2", "mlp_ratio", 1e9),
        ("dinov2", "mlp_ratio", float("inf")),
        ("dinov2", "num_register_tokens", 10**9),
        ("dinov2", "patch_size", 0),
    ],
)
def test_an_absurd_value_is_refused_with_its_name(valid, tmp_path, name, field, value):
    folder = shutil.copytree(valid / name, tmp_path / name)
    hostile.with_value(folder / "config.json", (field,), value)
    with pytest.raises(hostile.FsditError, match=rf"config\.json: .*({field}|layers)"):
        NETWORKS[name](folder)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("image_std",), [0.5, 0.0, 0.5]),
        (("image_std",), [float("nan")] * 3),
        (("image_mean",), [float("inf")] * 3),
        (("rescale_factor",), 0),
        (("rescale_factor",), float("nan")),
        (("size",), {"height": 10**9, "width": 10**9}),
    ],
)
def test_absurd_preprocessing_is_refused_with_its_name(valid, tmp_path, place, value):
    folder = shutil.copytree(valid / "siglip", tmp_path / "siglip")
    hostile.with_value(folder / "preprocessor_config.json", place, value)
    with pytest.raises(hostile.FsditError, match=rf"preprocessor_config\.json: {place[0]}"):
        NETWORKS["siglip"](folder)
