"""Drawing from a user's pictures, by a workdir's model and by an exported one."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from PIL import Image

import fsdit
from fsdit.config import MeshConfig, apply_overrides, to_dict
from fsdit.data import pipeline
from fsdit.errors import CheckpointError, ConfigError, DataError
from fsdit.sampling import exported
from fsdit.sampling.drawing import make_draw
from fsdit.training.checkpoints import metadata
from fsdit.training.run import load_generator, load_run
from tests.conftest import small_disk_at
from tests.training.checkpoints.saved_runs import save_run

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Makes, once each, a workdir with its export by the name of a configuration."""
    made = {}

    def of(name, config):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            state = save_run(folder / "run", config)
            generator = load_generator(folder / "run", {})
            exported.save(folder / "exported", generator)
            made[name] = folder, state, generator
        return made[name]

    return of


@pytest.fixture
def small(kept, small_config):
    return kept("small", small_config)


@pytest.fixture
def frozen(kept, frozen_config):
    return kept("frozen", frozen_config)


@pytest.fixture
def exported_copy(small, tmp_path):
    """One that a test may damage."""
    return shutil.copytree(small[0] / "exported", tmp_path / "exported")


def supports_for(generator, count=3, seed=0):
    spec = generator.spec
    shape = (count, spec.image_size, spec.image_size, spec.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def differ(left, right):
    return int(np.abs(left.astype(int) - right.astype(int)).max())


@pytest.mark.parametrize("name", ["small", "frozen"])
def test_an_exported_model_draws_the_same_to_the_bit(request, name):
    folder, _, generator = request.getfixturevalue(name)
    loaded = fsdit.load(folder / "exported")
    supports = supports_for(generator)
    drawn = generator.draw(supports, 9, seed=3)
    np.testing.assert_array_equal(loaded.draw(supports, 9, seed=3), drawn)
    assert drawn.dtype == np.uint8 and drawn.shape == (9, *supports.shape[1:])
    assert drawn.std() > 5
    assert loaded.step == generator.step == 5
    assert to_dict(loaded.config) == to_dict(generator.config)


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


def test_a_drawing_depends_on_seed_and_number_only(small):
    generator = small[2]
    supports = supports_for(generator)
    whole = generator.draw(supports, 20, batch_size=24)
    assert differ(generator.draw(supports, 20, batch_size=8), whole) <= 1
    assert differ(generator.draw(supports, 1), whole[:1]) <= 1
    assert differ(generator.draw(supports, 3, batch_size=3), whole[:3]) <= 1
    assert min(differ(whole[0], other) for other in whole[1:]) > 20
    assert differ(generator.draw(supports, 1, seed=2**32 - 1), whole[:1]) > 20
    others = generator.draw(supports_for(generator, seed=1), 20, batch_size=24)
    assert differ(others, whole) > 20


def test_any_number_of_supports_and_any_sampling(small):
    generator = small[2]
    supports = supports_for(generator, 6)
    drawn = [generator.draw(supports[:k]) for k in (1, 2, 6)]
    assert len({d.tobytes() for d in drawn}) == 3
    assert differ(generator.draw(supports[::-1]), drawn[-1]) <= 1
    settings = dataclasses.replace(generator.config.sampling, guidance_scale=1.0, solver="heun")
    assert differ(generator.draw(supports, sampling=settings), drawn[-1]) > 1


def test_progress_counts_the_drawings(small):
    generator, seen = small[2], []
    generator.draw(supports_for(generator), 20, batch_size=8, progress=seen.append)
    assert seen == [8, 8, 4]


@pytest.mark.parametrize("name", ["small", "frozen"])
def test_it_draws_from_an_episode_what_evaluation_draws(request, name):
    folder, _, generator = request.getfixturevalue(name)
    run = load_run(folder / "run", {})
    read, _ = pipeline.evaluation_examples(run.config, "val")
    first = dataclasses.replace(read, episodes=_Constant(read.episodes[0]))
    batch = next(run.feed.batches(first, 16, 1))
    draw = make_draw(run.spec, run.config.sampling, run.mesh)
    drawn = draw(run.ema, run.feed.codec, batch["supports"], batch["index"], np.uint32(4))
    expected = np.asarray(drawn)
    assert differ(generator.draw(read.pictures(0)[0], 16, seed=4), expected) <= 1


@dataclasses.dataclass(frozen=True)
class _Constant:
    episode: object

    def __getitem__(self, index):
        return self.episode


def test_a_run_on_stored_features_draws_from_new_pictures(tmp_path, frozen, frozen_config, encoded):
    """The same weights, their stored outputs named: the towers are opened all the same."""
    config = apply_overrides(
        frozen_config,
        {
            "data.dataset_dir": str(encoded),
            "features.supports": "precomputed",
            "features.targets": "precomputed",
            "features.location": "device",
            "features.cache_mb": "0.001",
        },
    )
    save_run(tmp_path / "run", config)
    generator = load_generator(tmp_path / "run", {})
    supports = supports_for(generator)
    np.testing.assert_array_equal(generator.draw(supports), frozen[2].draw(supports))


def test_drawing_asks_nothing_of_the_training_mesh(tmp_path, small, small_config):
    """Three micro-batches of four rows fit no eight devices, as training on four may have."""
    data = dataclasses.replace(small_config.data, batch_size=12)
    train = dataclasses.replace(small_config.train, accumulate_steps=3)
    config = dataclasses.replace(small_config, data=data, train=train, mesh=MeshConfig(1, 4))
    workdir = shutil.copytree(small[0] / "run", tmp_path / "run")
    meta, data = (workdir / "checkpoints" / "5" / name / "metadata" for name in ("meta", "data"))
    saved = json.loads(meta.read_text()) | {"config": to_dict(config)}
    del saved["digest"]
    for file, content in zip(
        (meta, data), metadata.seal(5, saved, {"next_index": 5 * 12}), strict=True
    ):
        file.write_text(json.dumps(content))
    generator, supports = load_generator(workdir, {}), supports_for(small[2])
    np.testing.assert_array_equal(generator.draw(supports), small[2].draw(supports))


def test_a_folder_is_its_files_in_order_of_name(small, tmp_path):
    generator = small[2]
    for name, pixels in zip("cab", supports_for(generator), strict=True):
        Image.fromarray(pixels[..., 0]).resize((50, 40)).save(tmp_path / f"{name}.png")
    (tmp_path / ".hidden").write_text("no picture")
    files = [tmp_path / f"{name}.png" for name in "abc"]
    supports = generator.read_supports([tmp_path])
    np.testing.assert_array_equal(supports, generator.read_supports(files))
    np.testing.assert_array_equal(supports[1:], generator.read_supports(map(str, files[1:])))
    assert supports.shape == (3, 24, 24, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:0], r"shape \(0, 24, 24, 1\).* K at least 1"),
        (lambda s: s[0], r"shape \(24, 24, 1\)"),
        (lambda s: s[:, :20], r"shape \(3, 20, 24, 1\).*takes uint8 of shape \(K, 24, 24, 1\)"),
        (lambda s: np.repeat(s, 3, axis=-1), r"shape \(3, 24, 24, 3\)"),
        (lambda s: s / np.float32(255), "type float32"),
    ],
)
def test_supports_that_the_model_cannot_take(small, change, message):
    with pytest.raises(DataError, match=message):
        small[2].draw(change(supports_for(small[2])))


@pytest.mark.parametrize(
    "settings", [{"count": 0}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**32}], ids=str
)
def test_settings_that_cannot_be(small, settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}=.* must be at least"):
        small[2].draw(supports_for(small[2]), **settings)


def test_sampling_that_cannot_be(small):
    sampling = dataclasses.replace(small[2].config.sampling, guidance_interval=(0.8, 0.2))
    with pytest.raises(ConfigError, match=r"config.sampling.guidance_interval=.* is empty"):
        small[2].draw(supports_for(small[2]), sampling=sampling)


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
def test_a_damaged_export_is_one_line(exported_copy, damage):
    change, message = DAMAGES[damage]
    change(exported_copy)
    with pytest.raises(DataError, match=message) as caught:
        fsdit.load(exported_copy)
    assert str(exported_copy) in str(caught.value) and "\n" not in str(caught.value)


def test_what_was_trained_cannot_be_overridden(small):
    folder = small[0] / "exported"
    assert fsdit.load(folder, {"sampling.num_steps": "7"}).config.sampling.num_steps == 7
    with pytest.raises(ConfigError, match=r"otherwise: config\.model\.depth is 3"):
        fsdit.load(folder, {"model.depth": "3"})


def test_an_export_older_than_a_setting_draws_with_its_default(small, exported_copy):
    config = json.loads((exported_copy / "config.json").read_text())["config"]
    del config["sampling"]["shift"], config["features"]
    _edit(exported_copy, config=config)
    assert to_dict(fsdit.load(exported_copy).config) == to_dict(small[2].config)
    _edit(exported_copy, config={**config, "unheard_of": 1})
    with pytest.raises(DataError, match=r"config\.json: config\.unheard_of: no such field"):
        fsdit.load(exported_copy)


def test_frozen_weights_may_move_but_not_change(frozen, tmp_path, weights):
    moved = shutil.copytree(weights / "siglip", tmp_path / "moved")
    location = {"model.encoder.location": str(moved)}
    supports = supports_for(frozen[2])
    drawn = fsdit.load(frozen[0] / "exported", location).draw(supports)
    np.testing.assert_array_equal(drawn, frozen[2].draw(supports))

    _flip(moved)
    for load, model in ((fsdit.load, "exported"), (load_generator, "run")):
        with pytest.raises(CheckpointError, match=r"another encoder than config\.model"):
            load(frozen[0] / model, location)


def test_outputs_of_another_shape_are_refused(frozen, tmp_path):
    """As where a preprocessor was edited to make images of another size."""
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
