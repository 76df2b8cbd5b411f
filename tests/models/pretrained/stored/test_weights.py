import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fsdit.errors import DataError
from fsdit.models.pretrained.stored import weights

L, IN, OUT = 2, 3, 4


def tensors(dtype=np.float32) -> dict[str, np.ndarray]:
    """Two layers with queries and keys, and a text tower."""
    random = np.random.default_rng(0)
    named = {}
    for i in range(L):
        for part in ("q", "k"):
            named[f"layer.{i}.{part}.weight"] = random.normal(size=(OUT, IN))
            named[f"layer.{i}.{part}.bias"] = random.normal(size=(OUT,))
    named["norm.weight"], named["norm.bias"] = random.normal(size=(2, IN))
    named["text.weight"] = random.normal(size=(5, 5))
    return {name: value.astype(dtype) for name, value in named.items()}


MAPPING = {
    **weights.linear("blocks/0/qk", "layer.{}.q", "layer.{}.k", layers=L),
    **weights.norm("norm", "norm"),
}


def template(dtype="float32") -> dict:
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    return {
        "blocks": {0: {"qk": {"kernel": array(L, IN, 2 * OUT), "bias": array(L, 2 * OUT)}}},
        "norm": {"scale": array(IN), "bias": array(IN)},
    }


def write(folder, named, stem="model", shards=1):
    (folder / "config.json").write_text(json.dumps({"model_type": "small", "width": 3}))
    if shards == 1:
        save_file(named, folder / f"{stem}.safetensors")
        return folder
    where = {}
    for i in range(shards):
        part = dict(list(named.items())[i::shards])
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def load(folder, **options):
    checkpoint = weights.open_checkpoint(str(folder))
    return weights.load_params(checkpoint, template(**options), MAPPING, ignored=("text.",))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_parameters_are_the_tensors_joined_and_stacked(tmp_path, dtype, stem, shards):
    named = tensors(dtype)
    params = load(write(tmp_path, named, stem, shards))
    qk = params["blocks"][0]["qk"]
    for i in range(L):
        for part, columns in (("q", slice(OUT)), ("k", slice(OUT, None))):
            weight = named[f"layer.{i}.{part}.weight"].astype(np.float32)
            np.testing.assert_array_equal(qk["kernel"][i][:, columns], weight.T)
            bias = named[f"layer.{i}.{part}.bias"].astype(np.float32)
            np.testing.assert_array_equal(qk["bias"][i, columns], bias)
    np.testing.assert_array_equal(params["norm"]["scale"], named["norm.weight"].astype("f4"))
    np.testing.assert_array_equal(params["norm"]["bias"], named["norm.bias"].astype("f4"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_parameters_have_the_templates_type(tmp_path):
    params = load(write(tmp_path, tensors()), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("bfloat16")}


def changed(**changes):
    named = tensors() | changes
    return {name: value for name, value in named.items() if value is not None}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (changed(**{"layer.1.k.bias": None}), r"'layer\.1\.k\.bias' is missing"),
        (changed(extra=np.ones(3, "f4")), r"'extra' is left over"),
        (changed(**{"layer.2.q.weight": np.ones(3, "f4")}), r"'layer\.2\.q\.weight' is left over"),
        (changed(**{"norm.bias": np.ones(4, "f4")}), r"'norm\.bias' of shape \(4,\)"),
        (changed(**{"norm.bias": np.ones((), "f4")}), r"'norm\.bias' of shape \(\)"),
        (
            changed(**{"layer.0.q.weight": np.ones((OUT + 1, IN), "f4")}),
            r"'layer\.0\.q\.weight' of shape \(5, 3\)",
        ),
        (changed(**{"norm.bias": np.ones(3, "i8")}), r"'norm\.bias' holds I64, not float32"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, named, message):
    with pytest.raises(DataError, match=message) as error:
        load(write(tmp_path, named))
    assert "\n" not in str(error.value)


def test_a_mapping_that_leaves_a_parameter_out_is_a_defect(tmp_path):
    checkpoint = weights.open_checkpoint(str(write(tmp_path, tensors())))
    with pytest.raises(ValueError, match="norm/bias"):
        part = {path: source for path, source in MAPPING.items() if path != "norm/bias"}
        weights.load_params(checkpoint, template(), part, ignored=("text.", "norm.bias"))


def test_sha256_of_a_single_file_is_that_files(tmp_path):
    checkpoint = weights.open_checkpoint(str(write(tmp_path, tensors())))
    expected = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert checkpoint.sha256() == expected


def test_sha256_changes_with_any_shard(tmp_path):
    sums = set()
    for bias in (0.0, 1.0):
        folder = tmp_path / str(bias)
        folder.mkdir()
        named = changed(**{"text.weight": np.full((5, 5), bias, "f4")})
        sums.add(weights.open_checkpoint(str(write(folder, named, shards=3))).sha256())
    assert len(sums) == 2


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
def test_a_damaged_folder_is_one_line_that_names_the_file(tmp_path, shards, damage, message):
    damage(write(tmp_path, tensors(), shards=shards))
    with pytest.raises(DataError, match=message) as error:
        weights.open_checkpoint(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_subfolder_is_a_checkpoint_of_its_own(tmp_path):
    (tmp_path / "vae").mkdir()
    write(tmp_path / "vae", tensors())
    assert weights.open_checkpoint(str(tmp_path), "vae").config["model_type"] == "small"
    with pytest.raises(DataError, match=r"config\.json is missing"):
        weights.open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("location", ["no/such/directory", "nowhere", "../up"])
def test_what_is_neither_directory_nor_hub_id(location):
    with pytest.raises(DataError, match="neither a directory nor a hub id; put config"):
        weights.open_checkpoint(location)


@pytest.mark.parametrize("location", ["x" * 5000, "~nobody_of_this_name/x", "a\0b"])
def test_a_location_that_cannot_be_a_path_is_one_line(location):
    with pytest.raises(DataError) as error:
        weights.open_checkpoint(location)
    assert len(str(error.value)) < 700 and "\n" not in str(error.value)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hub_id_without_a_network_says_what_to_fetch(offline):
    with pytest.raises(DataError, match=r"model\.safetensors .* into siglip2/vae") as error:
        weights.open_checkpoint("google/siglip2", "vae")
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
    checkpoint = weights.open_checkpoint("google/siglip2")
    assert checkpoint.directory == snapshot
    assert checkpoint.files.keys() == tensors().keys()
