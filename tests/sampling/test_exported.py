"""Exported models: what they hold, that they sample the same, and how damaged ones fail."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

import fsdit
from fsdit.config import without_folders
from fsdit.errors import CheckpointError, ConfigError, DataError
from fsdit.sampling import exported
from fsdit.training.run import load_generator
from tests.conftest import small_disk_at
from tests.sampling.generators import supports_for

pytestmark = pytest.mark.medium


@pytest.mark.parametrize("name", ["small", pytest.param("frozen", marks=pytest.mark.large)])
def test_an_exported_model_samples_the_same_bit_for_bit(request, name):
    folder, _, generator = request.getfixturevalue(name)
    loaded = fsdit.load(folder / "exported")
    supports = supports_for(generator)
    drawn = generator.generate(supports, 9, seed=3)
    np.testing.assert_array_equal(loaded.generate(supports, 9, seed=3), drawn)
    assert drawn.dtype == np.uint8 and drawn.shape == (9, *supports.shape[1:])
    assert drawn.std() > 5
    assert loaded.step == generator.step == 5
    assert loaded.config == without_folders(generator.config)


def test_an_export_holds_the_ema_and_nothing_else(small):
    folder, state, _ = small
    found = safetensors.numpy.load_file(folder / "exported" / "model.safetensors")
    expected = traverse_util.flatten_dict(state.ema, sep="/")
    assert found.keys() == expected.keys() and "blocks/attention/qkv/kernel" in found
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    params = traverse_util.flatten_dict(state.params, sep="/")
    assert all((found[name] != value).any() for name, value in params.items())
    assert {p.name for p in (folder / "exported").iterdir()} == {"model.safetensors", "config.json"}


def test_a_float16_export_is_half_as_large_and_loads_as_float32(small, tmp_path):
    folder, _, generator = small
    exported.save(tmp_path / "half", generator, stored_type="float16")
    sizes = [
        (f / "model.safetensors").stat().st_size for f in (folder / "exported", tmp_path / "half")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    weights = traverse_util.flatten_dict(generator.params)
    for name, value in traverse_util.flatten_dict(fsdit.load(tmp_path / "half").params).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, np.float32(np.float16(weights[name])))


def test_a_weight_that_float16_cannot_hold_is_refused(small, tmp_path):
    generator = small[2]
    params = {**generator.params, "embed": {**generator.params["embed"]}}
    params["embed"]["bias"] = params["embed"]["bias"] + np.float32(1e6)
    large = dataclasses.replace(generator, params=params)
    with pytest.raises(ConfigError, match="embed/bias does not fit into float16"):
        exported.save(tmp_path / "half", large, stored_type="float16")
    assert list(tmp_path.iterdir()) == []
    exported.save(tmp_path / "full", large)


def _rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(change(tensors), file)


def _edit(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _flip(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 0x10
    file.write_bytes(data)


def _truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES = {
    "truncated": (_truncate, "model.safetensors is damaged"),
    "flipped": (_flip, "damaged or exchanged; export again"),
    "missing tensor": (
        lambda f: _rewrite(f, lambda t: {k: v for k, v in t.items() if k != "embed/kernel"}),
        "tensor 'embed/kernel' is missing",
    ),
    "extra tensor": (
        lambda f: _rewrite(f, lambda t: {**t, "more": np.zeros(3, np.float32)}),
        "tensor 'more' is left over",
    ),
    "misshapen": (
        lambda f: _rewrite(f, lambda t: {**t, "embed/bias": np.zeros(3, np.float32)}),
        r"'embed/bias' of shape \(3,\) does not fit",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights there"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file.*export"),
    "cut config": (lambda f: (f / "config.json").write_text('{"version"'), "is not JSON"),
    "version": (lambda f: _edit(f, version=9), "format version 9, this program reads 1"),
    "field": (lambda f: _edit(f, image_size="big"), "config.json: image_size: .*'big'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_gives_one_line(exported_copy, damage):
    change, message = DAMAGES[damage]
    change(exported_copy)
    with pytest.raises(DataError, match=message) as caught:
        fsdit.load(exported_copy)
    assert str(exported_copy) in str(caught.value) and "\n" not in str(caught.value)


def test_settings_of_the_trained_model_cannot_be_overridden(small):
    folder = small[0] / "exported"
    assert fsdit.load(folder, {"sampling.num_steps": "7"}).config.sampling.num_steps == 7
    with pytest.raises(ConfigError, match=r"otherwise: config\.model\.depth is 3"):
        fsdit.load(folder, {"model.depth": "3"})


def test_a_model_trained_with_cudnns_attention_is_sampled_here_with_the_plain_one(exported_copy):
    config = json.loads((exported_copy / "config.json").read_text())["config"]
    config["model"] |= {"attention": "cudnn", "dtype": "bfloat16"}
    _edit(exported_copy, config=config)
    loaded = fsdit.load(exported_copy)
    with pytest.raises(
        ConfigError, match=r"this device is cpu: set config\.model\.attention=plain"
    ):
        loaded.generate(supports_for(loaded))
    plain = fsdit.load(exported_copy, {"model.attention": "plain"})
    assert plain.generate(supports_for(plain), 2).std() > 5


def test_an_export_older_than_a_setting_samples_with_its_default(small, exported_copy):
    config = json.loads((exported_copy / "config.json").read_text())["config"]
    del config["sampling"]["shift"], config["features"]
    _edit(exported_copy, config=config)
    assert fsdit.load(exported_copy).config == without_folders(small[2].config)
    _edit(exported_copy, config={**config, "unheard_of": 1})
    with pytest.raises(DataError, match=r"config\.json: config\.unheard_of: no such field"):
        fsdit.load(exported_copy)


@pytest.mark.large
def test_frozen_weights_may_move_but_not_change(frozen, tmp_path, weights):
    moved = shutil.copytree(weights / "siglip", tmp_path / "moved")
    location = {"model.encoder.location": str(moved)}
    supports = supports_for(frozen[2])
    drawn = fsdit.load(frozen[0] / "exported", location).generate(supports)
    np.testing.assert_array_equal(drawn, frozen[2].generate(supports))

    _flip(moved)
    for load, model in ((fsdit.load, "exported"), (load_generator, "run")):
        with pytest.raises(CheckpointError, match=r"another encoder than config\.model"):
            load(frozen[0] / model, location)


def test_outputs_of_another_shape_are_refused(frozen, tmp_path):
    """Features change their shape when a preprocessor is edited to another image size."""
    folder = shutil.copytree(frozen[0] / "exported", tmp_path / "exported")
    assert json.loads((folder / "config.json").read_text())["features"]["grid"] == [4, 4]
    _edit(folder, features={"dim": 32, "grid": [3, 3]})
    with pytest.raises(CheckpointError, match=r"grid=\(3, 3\).*grid=\(4, 4\).*preprocessing"):
        fsdit.load(folder)


def test_an_export_replaces_nothing(small, exported_copy):
    before = (exported_copy / "config.json").stat()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        exported.save(exported_copy, small[2])
    assert (exported_copy / "config.json").stat() == before


def test_an_export_to_a_full_disk_leaves_nothing(small, tmp_path):
    with small_disk_at(tmp_path / "disk", size="40k") as disk:
        with pytest.raises(OSError, match="No space left"):
            exported.save(disk / "exported", small[2])
        assert list(disk.iterdir()) == []
