import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.config import Config, EncoderConfig, MeshConfig, ModelConfig, SamplingConfig
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.planning import costs
from fsdit.sampling.images import compile_sampling

COUNT, SIZE = 8, 12
INDEX = np.arange(40, 40 + COUNT, dtype=np.uint32)
SUPPORTS = np.random.default_rng(0).integers(0, 256, (COUNT, 2, SIZE, SIZE, 1), np.uint8)
SAMPLING = SamplingConfig(num_steps=6, guidance_scale=2.0, guidance_interval=(0.1, 0.7))
NETWORKS = ModelSpec(
    ModelConfig(
        hidden_size=16,
        num_heads=2,
        depth=1,
        patch_size=6,
        num_latents=0,
        encoder=EncoderConfig(patch_size=6, hidden_size=16, depth=1, num_heads=2),
        dtype="float32",
    ),
    SIZE,
    channels=1,
)


def disturbed(spec, scale):
    """Parameters at which the velocity is not zero, as it is before training."""
    leaves, tree = jax.tree.flatten(jax.jit(lambda: spec.init(0))())
    random = np.random.default_rng(1)
    noise = [scale * random.normal(size=p.shape).astype(p.dtype) for p in leaves]
    return tree.unflatten([p + n for p, n in zip(leaves, noise, strict=True)])


@pytest.fixture(scope="module")
def params():
    return disturbed(NETWORKS, 0.1)


def mesh_of(data, fsdp):
    devices = jax.devices()[: data * fsdp]
    return sharding.make_mesh(Config(mesh=MeshConfig(data, fsdp)), devices)


@functools.cache
def compiled(devices, each=1, **settings):
    mesh = mesh_of(devices, 1)
    return compile_sampling(NETWORKS, dataclasses.replace(SAMPLING, **settings), mesh, each=each)


def draw(params, rows=slice(None), devices=1, seed=0, **settings):
    supports, index = jnp.asarray(SUPPORTS[rows]), jnp.asarray(INDEX[rows])
    function = compiled(devices, **settings)
    drawn = function(params, NETWORKS.codec, supports, index, np.uint32(seed))
    return np.asarray(drawn).astype(int)


@pytest.mark.medium
@pytest.mark.several_devices
def test_devices_with_parts_of_the_parameters_gather_them_once_and_exchange_nothing_else():
    wide = dataclasses.replace(NETWORKS.config, hidden_size=128)
    spec, mesh = dataclasses.replace(NETWORKS, config=wide), mesh_of(1, 8)
    params = disturbed(spec, 0.02)
    shardings = sharding.state_shardings(mesh, params)
    rows = jax.device_put((SUPPORTS, INDEX), sharding.batch_sharding(mesh))
    arguments = jax.device_put(params, shardings), spec.codec, *rows, np.uint32(0)
    program = compile_sampling(spec, SAMPLING, mesh).lower(*arguments).compile()
    split = sum(any(placed.spec) for placed in jax.tree.leaves(shardings))
    exchanged = costs.count(program).collectives
    assert {found.kind for found in exchanged} == {"all-gather"}
    assert sum(found.count for found in exchanged) <= split
    alone = compile_sampling(spec, SAMPLING, mesh_of(1, 1))
    expected = alone(params, spec.codec, SUPPORTS, INDEX, np.uint32(0))
    difference = np.asarray(program(*arguments)).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1 and np.asarray(expected).std() > 1


@pytest.mark.medium
@pytest.mark.several_devices
@pytest.mark.parametrize(
    "solver", ["euler", "sde", *(pytest.param(s, marks=pytest.mark.large) for s in ("heun", "ab2"))]
)
def test_a_sample_depends_on_its_index_and_not_on_its_batch_or_mesh(params, solver):
    """Samples may differ by the rounding of a pixel."""
    settings = {"solver": solver, "schedule": "shifted"}
    whole = draw(params, **settings)
    rows = np.array([6, 1, 4, 3])
    assert np.abs(draw(params, rows, **settings) - whole[rows]).max() <= 1
    assert np.abs(draw(params, devices=4, **settings) - whole).max() <= 1
    assert np.abs(draw(params, seed=1, **settings) - whole).max() > 20


@pytest.mark.medium
@pytest.mark.several_devices
@pytest.mark.parametrize("devices", [1, 4])
def test_images_of_one_episode_share_its_supports(params, devices):
    """Samples may differ by the rounding of a pixel."""
    given, episodes = SUPPORTS[[1, 5, 3, 2]], np.arange(20, 24, dtype=np.uint32)
    rest = np.uint32(0)
    shared = compiled(devices, each=2)(params, NETWORKS.codec, given, episodes, rest)
    alone = compiled(devices)(params, NETWORKS.codec, np.repeat(given, 2, axis=0), INDEX, rest)
    assert np.abs(np.asarray(shared, int) - np.asarray(alone, int)).max() <= 1


@pytest.mark.medium
def test_solvers_and_schedules_turn_the_same_noise_into_different_samples(params):
    settings = [{"solver": solver} for solver in ("euler", "heun", "ab2", "sde")]
    settings += [{"schedule": "uniform"}, {"shift": 1.5}, {"solver": "sde", "noise_level": 0.5}]
    drawn = {draw(params, **{"schedule": "shifted"} | s).tobytes() for s in settings}
    assert len(drawn) == len(settings)


def test_settings_that_a_solver_does_not_use_change_nothing(params):
    plain = draw(params)
    np.testing.assert_array_equal(draw(params, noise_level=0.2, shift=7.0), plain)
