"""Autoguidance: sampling guided by another exported model instead of the null."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fsdit
from fsdit.config import SamplingConfig, apply_overrides
from fsdit.errors import CheckpointError, ConfigError, DataError
from fsdit.evaluation.protocol import Cell
from fsdit.evaluation.samples import SampleFiles, to_source
from fsdit.features.frozen import Frozen
from fsdit.flow import path
from fsdit.models.spec import ModelSpec
from fsdit.randomness import example_keys, stream_key
from fsdit.sampling import exported
from fsdit.sampling.export_files import read_info
from fsdit.sampling.generator import Generator
from fsdit.sampling.guide import check_guide
from fsdit.training.run import load_generator, load_run
from tests.conftest import experiment_file
from tests.programs import one_line_error, run_module
from tests.sampling.generators import differ, supports_for

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("guide")


@pytest.fixture
def guide(made, small_config):
    """The export of a model of other sizes than `small`, for the same images."""
    model = dataclasses.replace(
        small_config.model, hidden_size=16, depth=1, patch_size=12, cross_attention="none"
    )
    if not (made / "guide").exists():
        config, spec = dataclasses.replace(small_config, model=model), ModelSpec(model, 24, 1)
        random = np.random.default_rng(2)
        params = jax.tree.map(
            lambda p: 0.2 * random.normal(size=p.shape).astype(p.dtype), spec.abstract_params()
        )
        exported.save(made / "guide", Generator(config, spec, Frozen(), params, 3))
    return made / "guide"


def loaded(small, guide, **sampling):
    settings = {f"sampling.{name}": str(value) for name, value in sampling.items()}
    return fsdit.load(small[0] / "exported", {"sampling.guide": str(guide), **settings})


@functools.partial(jax.jit, static_argnums=0)
def _velocity(spec, params, x, t, supports):
    net = spec.model(params)
    return net.velocity(x, t, net.condition(supports))[0]


def by_hand(model, guide, supports, count, scale, steps):
    """Euler steps of equation 7, with a dispatch for each model and step."""
    repeated = jnp.broadcast_to(supports[None], (count, *supports.shape))
    index = jnp.arange(count, dtype=jnp.uint32)
    x = path.sample_noise(example_keys(stream_key(0, "drawing"), index), model.spec.latent_shape)
    for step in range(steps):
        t = jnp.full(count, step / steps)
        own, weaker = (
            np.asarray(_velocity(each.spec, each.params, x, t, repeated)) for each in (model, guide)
        )
        x = x + (weaker + scale * (own - weaker)) / steps
    return np.asarray(model.spec.codec.decode(x))


def test_samples_are_guided_by_the_other_model(small, guide):
    model, other = loaded(small, guide, guidance_scale=1.7, num_steps=4), fsdit.load(guide)
    supports = supports_for(model)
    expected = by_hand(model, other, supports, 8, 1.7, 4)
    found = model.generate(supports, 8)
    assert differ(found, expected) <= 1
    assert differ(found, by_hand(model, other, supports, 8, 1.0, 4)) > 5


def test_scale_1_is_plain_sampling_bitwise_and_a_model_does_not_guide_itself(small, guide):
    unguided = fsdit.load(small[0] / "exported", {"sampling.guidance_scale": "1"})
    supports = supports_for(unguided)
    expected = unguided.generate(supports, 8)
    found = loaded(small, guide, guidance_scale=1)
    np.testing.assert_array_equal(found.generate(supports, 8), expected)
    without = dataclasses.replace(found.config.sampling, guide="")
    np.testing.assert_array_equal(found.generate(supports, 8, sampling=without), expected)
    itself = loaded(small, small[0] / "exported", guidance_scale=3).generate(supports, 8)
    assert differ(itself, expected) <= 1


def _edit(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _edit_model(folder, part, **values):
    config = json.loads((folder / "config.json").read_text())["config"]
    config["model"][part] |= values
    _edit(folder, config=config)


MISFITS = {
    "image size": (lambda f: _edit(f, image_size=12), ConfigError, "12 x 12 x 1, .* 24 x 24 x 1"),
    "channels": (lambda f: _edit(f, channels=3), ConfigError, "24 x 24 x 3, those of the model"),
    "codec": (
        lambda f: _edit_model(f, "codec", name="autoencoder_kl", location="vae"),
        ConfigError,
        "its codec is autoencoder_kl, that of the model pixels",
    ),
    "encoder": (
        lambda f: _edit_model(f, "encoder", name="frozen", location="siglip"),
        ConfigError,
        "its encoder is frozen, that of the model learned",
    ),
    "other weights of a frozen network": (
        lambda f: _edit(f, frozen={"codec": "0"}),
        CheckpointError,
        "was trained with another codec than the model",
    ),
    "damaged": (lambda f: _edit(f, sha256="0"), DataError, "the weights are not those"),
    "no export": (shutil.rmtree, DataError, "config.json: no such file; .*fsdit.export"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_guide_that_does_not_fit_gives_one_line(small, guide, tmp_path, case):
    change, kind, message = MISFITS[case]
    folder = shutil.copytree(guide, tmp_path / "guide")
    change(folder)
    settings = {"sampling.guide": str(folder)}
    for load, model in ((fsdit.load, "exported"), (load_generator, "run"), (load_run, "run")):
        with pytest.raises(kind, match=message) as caught:
            load(small[0] / model, settings)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_guide_that_needs_tokens_the_model_is_not_given_is_refused(exported_copy, small_config):
    frozen = {"model.encoder.name": "frozen", "model.encoder.location": "siglip"}
    _edit_model(exported_copy, "encoder", name="frozen", location="siglip")
    config = apply_overrides(small_config, {"sampling.guide": str(exported_copy), **frozen})
    check_guide(config, 24, 1)
    config = apply_overrides(config, {"model.cross_attention": "none"})
    with pytest.raises(ConfigError, match="attends to the supports' tokens, and the model is"):
        check_guide(config, 24, 1)


def test_a_guide_is_read_with_its_model(small, guide):
    sampling = dataclasses.replace(small[2].config.sampling, guide=str(guide))
    with pytest.raises(ConfigError, match=r"read with its model; load .* sampling\.guide="):
        small[2].generate(supports_for(small[2]), sampling=sampling)


def test_training_and_exports_take_no_guide(made, small, guide, small_config, tmp_path):
    flag, run = f"--config.sampling.guide={guide}", f"--workdir={small[0]}/run"
    experiment = f"--config={experiment_file(made / 'experiment.py', small_config)}"
    for command, why in (
        (("fsdit.export", run, f"--output={tmp_path}/exported"), "an export holds one model"),
        (("fsdit.main", experiment, f"--workdir={tmp_path}/new"), "samples in training have no"),
    ):
        one_line_error(run_module(*command, flag), f"config.sampling.guide={guide}: {why}")
    assert list(tmp_path.iterdir()) == []
    guided = loaded(small, guide)
    with pytest.raises(ConfigError, match="an export holds one model"):
        exported.save(tmp_path / "exported", guided)


def test_samples_of_another_guide_are_not_mixed_wherever_it_lies(tmp_path):
    cell = Cell("test", 5, SamplingConfig(guide="a"), (0,), 1, 1, (0,))
    moved = dataclasses.replace(cell, sampling=SamplingConfig(guide="b"))
    source = {"guide": "1", "cells": [to_source(cell)]}
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "of.json").write_text(json.dumps(source))
    SampleFiles(tmp_path, {**source, "cells": [to_source(moved)]}, (8, 8, 1))
    with pytest.raises(ConfigError, match="samples of another checkpoint or protocol"):
        SampleFiles(tmp_path, {**source, "guide": "2"}, (8, 8, 1))
    with pytest.raises(ConfigError, match="samples of another checkpoint or protocol"):
        SampleFiles(tmp_path, {"cells": source["cells"]}, (8, 8, 1))


@pytest.mark.large
def test_an_evaluation_records_its_guide(small, guide, tmp_path):
    done = run_module(
        "fsdit.evaluate",
        *(f"--workdir={small[0]}/run", f"--output={tmp_path}/result", "--split=val"),
        *("--config.evaluation.classes=12", "--config.evaluation.samples_per_episode=2"),
        *("--config.evaluation.critic=pixels", f"--config.sampling.guide={guide}"),
        "--config.evaluation.guidance_scales=1",
    )
    assert done.returncode == 0, done.stderr
    assert f"guide: {guide}" in done.stdout
    sha256 = read_info(guide).sha256
    results = json.loads((tmp_path / "result" / "results.json").read_text())
    assert results["guide"] == sha256 and results["sampling"]["guide"] == str(guide)
    assert sha256 in (tmp_path / "result" / "report.html").read_text()
    source = json.loads((tmp_path / "result" / "samples" / "of.json").read_text())
    assert source["guide"] == sha256
