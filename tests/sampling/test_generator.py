"""Sampling from a user's pictures with the model of a workdir."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fsdit.config import MeshConfig, apply_overrides, to_dict
from fsdit.data import pipeline
from fsdit.errors import ConfigError, DataError
from fsdit.sampling.generator import Generator
from fsdit.sampling.images import compile_sampling
from fsdit.training.checkpoints import metadata
from fsdit.training.run import load_generator, load_run
from tests.sampling.generators import differ, supports_for
from tests.training.checkpoints.saved_runs import save_run

pytestmark = pytest.mark.medium


def test_a_sample_depends_on_seed_and_index_only(small):
    generator = small[2]
    supports = supports_for(generator)
    whole = generator.generate(supports, 20, batch_size=24)
    assert differ(generator.generate(supports, 20, batch_size=8), whole) <= 1
    assert differ(generator.generate(supports, 1), whole[:1]) <= 1
    assert differ(generator.generate(supports, 3, batch_size=3), whole[:3]) <= 1
    assert min(differ(whole[0], other) for other in whole[1:]) > 20
    assert differ(generator.generate(supports, 1, seed=2**32 - 1), whole[:1]) > 20
    others = generator.generate(supports_for(generator, seed=1), 20, batch_size=24)
    assert differ(others, whole) > 20


def test_the_name_of_earlier_versions_still_samples():
    assert Generator.draw is Generator.generate


def test_any_number_of_supports_and_any_sampling(small, capsys):
    generator = dataclasses.replace(small[2])
    supports = supports_for(generator, 6)
    drawn = [generator.generate(supports[:k]) for k in (1, 2, 6)]
    assert len({d.tobytes() for d in drawn}) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[:2] for line in lines] == [
        ["warning", f" {k} supports, and the model was trained with 5"] for k in (1, 2, 6)
    ]
    assert differ(generator.generate(supports[::-1]), drawn[-1]) <= 1
    settings = dataclasses.replace(generator.config.sampling, guidance_scale=1.0, solver="heun")
    assert differ(generator.generate(supports, sampling=settings), drawn[-1]) > 1
    assert not capsys.readouterr().out  # it was said already


def test_samples_between_two_sets_go_from_one_to_the_other_with_the_same_noise(small):
    generator = small[2]
    first, second = supports_for(generator), supports_for(generator, seed=1)
    weights, seen = [0.0, 0.5, 1.0], []
    way = generator.generate_between(
        first, second, weights, 3, seed=2, batch_size=8, progress=seen.append
    )
    assert way.shape == (3, 3, *first.shape[1:]) and sum(seen) == 9
    for place, supports in ((0, first), (2, second)):
        assert differ(way[place], generator.generate(supports, 3, seed=2)) <= 1
    back = generator.generate_between(second, first, weights, 3, seed=2, batch_size=8)
    assert differ(back[::-1], way) <= 1
    assert min(differ(way[1], way[0]), differ(way[1], way[2])) > 20
    same = generator.generate_between(first, first, [0.5], 3, seed=2, batch_size=8)
    assert differ(same[0], way[0]) <= 1


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (2, [0.5], "sets of 3 and 2 supports: .*name as many supports in both"),
        (3, [], "must be one or more numbers from 0 to 1"),
        (3, [0.0, 1.5], "must be one or more numbers from 0 to 1"),
        (3, [float("nan")], "must be one or more numbers from 0 to 1"),
    ],
)
def test_a_way_that_the_model_cannot_take_is_refused(small, count, weights, message):
    """This model has no latents, so its contexts are as long as the sets."""
    first, second = supports_for(small[2]), supports_for(small[2], count)
    with pytest.raises(ConfigError, match=message):
        small[2].generate_between(first, second, weights)


def test_progress_counts_the_samples(small):
    generator, seen = small[2], []
    generator.generate(supports_for(generator), 20, batch_size=8, progress=seen.append)
    assert seen == [8, 8, 4]


def test_a_stream_yields_what_generate_joins(small):
    generator = small[2]
    supports = supports_for(generator)
    batches = list(generator.stream(supports, 20, seed=4, batch_size=8))
    assert [len(images) for images in batches] == [8, 8, 4]
    joined = generator.generate(supports, 20, seed=4, batch_size=8)
    np.testing.assert_array_equal(np.concatenate(batches), joined)
    with pytest.raises(ConfigError, match="count=0 must be"):
        generator.stream(supports, 0)  # the call itself


@pytest.mark.parametrize("name", ["frozen", pytest.param("small", marks=pytest.mark.large)])
def test_the_generator_samples_from_an_episode_as_evaluation_does(request, name):
    folder, _, generator = request.getfixturevalue(name)
    run = load_run(folder / "run", {})
    read, _ = pipeline.evaluation_examples(run.config, "val")
    first = dataclasses.replace(read, episodes=_Constant(read.episodes[0]))
    batch = next(run.feed.batches(first, 16, 1))
    draw = compile_sampling(run.spec, run.config.sampling, run.mesh)
    drawn = draw(run.ema, run.feed.codec, batch["supports"], batch["index"], np.uint32(4))
    expected = np.asarray(drawn)
    assert differ(generator.generate(read.pictures(0)[0], 16, seed=4), expected) <= 1


@dataclasses.dataclass(frozen=True)
class _Constant:
    episode: object

    def __getitem__(self, index):
        return self.episode


def test_a_run_on_stored_features_samples_new_pictures(tmp_path, frozen, frozen_config, encoded):
    """The run's configuration names stored features; sampling still opens the networks."""
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
    np.testing.assert_array_equal(generator.generate(supports), frozen[2].generate(supports))


def test_sampling_does_not_need_the_training_mesh(tmp_path, small):
    """Training on four devices may use three micro-batches of four rows; eight devices cannot."""
    config = small[2].config
    data = dataclasses.replace(config.data, batch_size=12)
    train = dataclasses.replace(config.train, accumulate_steps=3)
    config = dataclasses.replace(config, data=data, train=train, mesh=MeshConfig(1, 4))
    workdir = shutil.copytree(small[0] / "run", tmp_path / "run")
    meta, data = (workdir / "checkpoints" / "5" / name / "metadata" for name in ("meta", "data"))
    saved = json.loads(meta.read_text()) | {"config": to_dict(config)}
    del saved["digest"]
    for file, content in zip(
        (meta, data), metadata.seal(5, saved, {"next_index": 5 * 12}), strict=True
    ):
        file.write_text(json.dumps(content))
    generator, supports = load_generator(workdir, {}), supports_for(small[2])
    np.testing.assert_array_equal(generator.generate(supports), small[2].generate(supports))


def test_a_folder_is_read_in_order_of_file_names(small, tmp_path):
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
def test_supports_that_the_model_cannot_take_are_refused(small, change, message):
    with pytest.raises(DataError, match=message):
        small[2].generate(change(supports_for(small[2])))


@pytest.mark.parametrize(
    "settings", [{"count": 0}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**32}], ids=str
)
def test_impossible_settings_are_refused(small, settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}=.* must be at least"):
        small[2].generate(supports_for(small[2]), **settings)


def test_impossible_sampling_settings_are_refused(small):
    sampling = dataclasses.replace(small[2].config.sampling, guidance_interval=(0.8, 0.2))
    with pytest.raises(ConfigError, match=r"config.sampling.guidance_interval=.* is empty"):
        small[2].generate(supports_for(small[2]), sampling=sampling)
