import hashlib

import numpy as np
import pytest

from fsdit.errors import DataError
from fsdit.models.pretrained.stored.checkpoint import open_checkpoint
from tests.models.pretrained.stored.small_checkpoint import changed, tensors, write


def test_sha256_of_a_single_file_checkpoint_is_that_of_the_file(tmp_path):
    checkpoint = open_checkpoint(str(write(tmp_path, tensors())))
    expected = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert checkpoint.sha256() == expected


def test_sha256_changes_with_any_shard(tmp_path):
    digests = set()
    for bias in (0.0, 1.0):
        folder = tmp_path / str(bias)
        folder.mkdir()
        named = changed(**{"text.weight": np.full((5, 5), bias, "f4")})
        digests.add(open_checkpoint(str(write(folder, named, shards=3))).sha256())
    assert len(digests) == 2


def remove(name):
    return lambda folder: (folder / name).unlink()


def overwrite(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


@pytest.mark.parametrize(
    ("shards", "damage", "message"),
    [
        (1, remove("config.json"), r"config\.json is missing"),
        (1, overwrite("config.json", b"{"), r"config\.json is not JSON"),
        (1, overwrite("config.json", b"\xff"), r"config\.json is not JSON"),
        (1, overwrite("config.json", b"[]"), r"config\.json holds no JSON object"),
        (1, remove("model.safetensors"), r"put config\.json, model\.safetensors or"),
        (1, truncate("model.safetensors"), r"model\.safetensors is damaged"),
        (1, overwrite("model.safetensors", b"PK"), r"model\.safetensors is damaged"),
        (
            3,
            remove("model-00002-of-00003.safetensors"),
            r"model-00002-of-00003\.safetensors is mis",
        ),
        (3, overwrite("model.safetensors.index.json", b"{}"), r"index\.json: weight_map"),
        (
            3,
            overwrite("model.safetensors.index.json", b'{"weight_map": {"a": "../b.safetensors"}}'),
            r"index\.json: weight_map",
        ),
        (
            3,
            overwrite(
                "model.safetensors.index.json",
                b'{"weight_map": {"a": "model-00001-of-00003.safetensors"}}',
            ),
            r"index\.json: tensor 'a' is in none of its files",
        ),
    ],
)
def test_a_damaged_folder_gives_one_line_that_names_the_file(tmp_path, shards, damage, message):
    damage(write(tmp_path, tensors(), shards=shards))
    with pytest.raises(DataError, match=message) as error:
        open_checkpoint(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_subfolder_is_a_checkpoint_of_its_own(tmp_path):
    (tmp_path / "vae").mkdir()
    write(tmp_path / "vae", tensors())
    assert open_checkpoint(str(tmp_path), "vae").config["model_type"] == "small"
    with pytest.raises(DataError, match=r"config\.json is missing"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("location", ["no/such/directory", "nowhere", "../up"])
def test_a_location_that_is_neither_directory_nor_hub_id_is_refused(location):
    with pytest.raises(DataError, match="neither a directory nor a hub id; put config"):
        open_checkpoint(location)


@pytest.mark.parametrize("location", ["x" * 5000, "~nobody_of_this_name/x", "a\0b"])
def test_a_location_that_cannot_be_a_path_gives_one_line(location):
    with pytest.raises(DataError) as error:
        open_checkpoint(location)
    assert len(str(error.value)) < 700 and "\n" not in str(error.value)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Switch the network off, and return the path of an empty cache of the hub."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hub_id_without_a_network_says_what_to_fetch(offline):
    with pytest.raises(DataError, match=r"model\.safetensors .* into siglip2/vae") as error:
        open_checkpoint("google/siglip2", "vae")
    message = str(error.value)
    assert "'google/siglip2'" in message
    assert "\n" not in message


def test_a_hub_id_is_found_in_the_cache_without_a_network(offline):
    repository = offline / "models--google--siglip2"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    write(snapshot, tensors())
    checkpoint = open_checkpoint("google/siglip2")
    assert checkpoint.directory == snapshot
    assert checkpoint.files.keys() == tensors().keys()
