import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fsdit.config import EncoderConfig, ModelConfig, dit
from fsdit.errors import ConfigError
from fsdit.models.encoder import FeatureShape
from fsdit.models.spec import ModelSpec

pytestmark = pytest.mark.medium

BATCH, SHOTS, DEPTH, HEADS = 3, 2, 2, 2
LATENT = (12, 12, 1)
CROSS = ["patches", "cls", "none"]


def spec(image_size=12, **settings) -> ModelSpec:
    encoder = EncoderConfig(patch_size=6, hidden_size=16, depth=1, num_heads=2)
    defaults = {"dtype": "float32", "num_latents": 3, "patch_size": 6, "depth": DEPTH}
    config = ModelConfig(hidden_size=16, num_heads=HEADS, encoder=encoder, **defaults | settings)
    return ModelSpec(config, image_size, channels=1)


def perturbed(params):
    """Every parameter moved away from its initial value, so that no gate is zero."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return tree.unflatten([p + 0.2 * rng.normal(size=p.shape).astype(np.float32) for p in leaves])


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    supports = rng.integers(0, 256, (BATCH, SHOTS, 12, 12, 1))
    x = jnp.asarray(rng.normal(size=(BATCH, *LATENT)), jnp.float32)
    return x, jnp.linspace(0.1, 0.9, BATCH), jnp.asarray(supports, jnp.uint8)


@functools.cache
def init(nets, seed=0):
    return nets.init(seed)


@functools.partial(jax.jit, static_argnames=("nets", "diagnose"))
def velocity(nets, params, x, t, supports, diagnose=False):
    model = nets.model(params)
    return model.velocity(x, t, model.condition(supports), diagnose)


@pytest.mark.parametrize(
    ("cross_attention", "dtype"), [*((c, "float32") for c in CROSS), ("patches", "bfloat16")]
)
def test_the_velocity_is_exactly_zero_at_the_start(cross_attention, dtype):
    nets = spec(cross_attention=cross_attention, dtype=dtype)
    params = init(nets)
    u, _ = velocity(nets, params, *inputs())
    assert u.shape == (BATCH, *LATENT)
    assert not jnp.any(u)
    assert jnp.any(velocity(nets, perturbed(params), *inputs())[0])


@pytest.mark.parametrize("cross_attention", CROSS)
def test_the_velocity_depends_on_point_time_and_supports_of_its_own_example(cross_attention):
    nets = spec(cross_attention=cross_attention)
    params = perturbed(init(nets))
    before, _ = velocity(nets, params, *inputs())
    for i, other in enumerate(inputs(seed=1)):
        arguments = list(inputs())
        arguments[i] = arguments[i].at[0].set(other[0] if i != 1 else 0.5)
        after, _ = velocity(nets, params, *arguments)
        assert jnp.abs(after[0] - before[0]).max() > 1e-3
        np.testing.assert_allclose(after[1:], before[1:], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"patch_size": 2}, True),
        ({"patch_size": 2, "scan_layers": False, "num_latents": 0}, True),
        ({"cross_attention": "cls", "num_latents": 0}, False),
        ({"patch_size": 6}, False),  # few tokens attend, so no keys are made of the context
        ({"cross_attention": "cls"}, False),
        ({"cross_attention": "none"}, False),
    ],
)
def test_a_prepared_condition_gives_the_same_velocity(settings, layers):
    nets = spec(**settings)
    params = perturbed(init(nets))
    x, t, supports = inputs()
    expected, _ = velocity(nets, params, x, t, supports)
    model = nets.model(params)
    prepared = model.prepare(model.condition(supports), rows=BATCH)
    assert isinstance(prepared.context, tuple) == layers
    np.testing.assert_allclose(model.velocity(x, t, prepared)[0], expected, atol=1e-4)

    # Rows of one episode share its condition, and rows of no episode the null.
    shared = model.condition(supports[:1])
    null = model.conditioner.null_condition()
    joined = model.prepare(shared, null, rows=BATCH)
    found = model.velocity(jnp.concatenate([x, x]), jnp.concatenate([t, t]), joined)[0]
    each = model.condition(jnp.repeat(supports[:1], BATCH, axis=0))
    dropped = model.conditioner.apply_null(each, jnp.ones(BATCH, bool))
    plain = [model.velocity(x, t, condition)[0] for condition in (each, dropped)]
    np.testing.assert_allclose(found, jnp.concatenate(plain), atol=1e-4)


@pytest.mark.parametrize("cross_attention", ["patches", "cls"])
def test_the_context_reaches_every_patch(cross_attention):
    nets = spec(cross_attention=cross_attention)
    model = nets.model(perturbed(init(nets)))
    x, t, supports = inputs()
    condition = model.condition(supports)
    moved = condition.replace(context=condition.context + 1 + jnp.arange(16.0))
    change = jnp.abs(model.velocity(x, t, moved)[0] - model.velocity(x, t, condition)[0])
    patches = change.reshape(BATCH, 2, 6, 2, 6).max((2, 4))
    assert patches.min() > 1e-4


def test_the_velocity_depends_on_the_position_of_a_patch():
    nets = spec()
    x, t, supports = inputs()
    u, _ = velocity(nets, perturbed(init(nets)), jnp.zeros_like(x), t, supports)
    left, right = u[:, :, :6], u[:, :, 6:]
    assert jnp.abs(left - right).max() > 1e-3


def test_bfloat16_compute_gives_a_float32_velocity_near_that_of_float32():
    results = {}
    for dtype in ("float32", "bfloat16"):
        nets = spec(dtype=dtype)
        params = init(nets)
        assert {p.dtype.name for p in jax.tree.leaves(params)} == {"float32"}
        results[dtype], _ = velocity(nets, perturbed(params), *inputs())
        assert results[dtype].dtype == jnp.float32
    scale = jnp.abs(results["float32"]).max()
    difference = jnp.abs(results["bfloat16"] - results["float32"]).max()
    assert 0 < difference < 0.1 * scale


@pytest.mark.parametrize(
    ("cross_attention", "scan_layers"), [*((c, True) for c in CROSS), ("patches", False)]
)
def test_diagnostics_have_a_layer_axis_and_do_not_change_the_velocity(cross_attention, scan_layers):
    nets = spec(cross_attention=cross_attention, scan_layers=scan_layers)
    params = perturbed(init(nets))
    plain, nothing = velocity(nets, params, *inputs())
    diagnosed, stats = velocity(nets, params, *inputs(), diagnose=True)
    assert nothing == {}
    np.testing.assert_allclose(diagnosed, plain, atol=1e-5)
    by_head = {"self_attention_entropy"}
    by_head |= {"cross_attention_entropy"} if cross_attention != "none" else set()
    by_layer = {"activation_mean_abs", "activation_rms", "modulation_norm"}
    shapes = dict.fromkeys(by_head, (DEPTH, HEADS)) | dict.fromkeys(by_layer, (DEPTH,))
    shapes |= {"time_norm": (), "condition_norm": ()}
    assert {name: s.shape for name, s in stats.items()} == shapes
    assert all(jnp.all(s > 0) for s in stats.values())


def test_attention_entropies_lie_below_that_of_even_attention():
    nets = spec()
    _, stats = velocity(nets, perturbed(init(nets)), *inputs(), diagnose=True)
    assert (stats["self_attention_entropy"] <= np.log(4) + 1e-5).all()
    assert (stats["cross_attention_entropy"] <= np.log(3) + 1e-5).all()


@pytest.mark.parametrize("settings", [{"scan_layers": False}, {"remat": "full"}])
def test_how_the_layers_run_does_not_change_the_parameters_nor_the_velocity(settings):
    params = perturbed(init(spec()))
    other = spec(**settings)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, perturbed(init(other))))
    expected, _ = velocity(spec(), params, *inputs())
    np.testing.assert_allclose(velocity(other, params, *inputs())[0], expected, atol=1e-5)


def test_initial_parameters_are_a_pure_function_of_the_seed():
    first, again, other = (spec().init(seed) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, first, again))
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, first, other))


def test_positions_are_no_parameters():
    small, large = (spec(image_size=s).abstract_params() for s in (12, 24))
    # The learned encoder's pooling is one map of all tokens: it alone knows their number.
    assert small["encoder"].pop("pool") != large["encoder"].pop("pool")
    assert small == large


def test_a_patch_size_that_does_not_divide_the_image_is_named():
    with pytest.raises(ConfigError, match=r"config.model.patch_size=5 does not divide the size 12"):
        spec(patch_size=5)


@pytest.mark.parametrize(
    ("size", "width", "depth", "millions"),
    [("S", 384, 12, 33), ("B", 768, 12, 130), ("L", 1024, 24, 458), ("XL", 1152, 28, 675)],
)
def test_the_presets_have_the_published_number_of_parameters(size, width, depth, millions):
    # Peebles and Xie (arXiv 2212.09748), table 4; their models have no cross-attention.
    config = dit(size, cross_attention="none")
    params = ModelSpec(config, image_size=32, channels=4).abstract_params()
    assert params["blocks"]["mlp"]["up"]["kernel"].shape == (depth, width, 4 * width)
    own = {name: p for name, p in params.items() if name not in ("encoder", "conditioner")}
    count = sum(p.size for p in jax.tree.leaves(own))
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(
    ("size", "supports", "settings", "message"),
    [
        (12, 2, {}, None),
        (12, 2, {"cross_attention": "cls"}, "5 tokens of the DiT with its cls"),
        (18, 2, {}, "9 tokens of the DiT"),
        (12, 2, {"num_latents": 9}, "9 latents of the Perceiver"),
        (12, 2, {"num_latents": 3}, None),
        (12, 1, {"num_latents": 0}, None),
        (18, 2, {"patch_size": 3}, "9 tokens of a support"),
        (18, 3, {"patch_size": 9, "cross_attention": "none"}, "9 tokens of a support"),
    ],
)
def test_cudnn_trains_on_even_numbers_of_tokens_only(size, supports, settings, message):
    plain = spec(size, **settings)
    plain.check_training(supports)
    chosen = spec(size, attention="cudnn", **settings)
    if message is None:
        chosen.check_training(supports)
        return
    with pytest.raises(ConfigError, match=rf"^config\.model\.attention=cudnn .*{message}: set "):
        chosen.check_training(supports)


def test_odd_tokens_of_a_frozen_encoder_are_odd_tokens_of_the_context():
    features = FeatureShape(8, (3, 3))
    chosen = dataclasses.replace(
        spec(num_latents=0, patch_size=3, attention="cudnn"), features=features
    )
    chosen.check_training(2)
    with pytest.raises(ConfigError, match="27 tokens of the context"):
        chosen.check_training(3)


def test_packed_attention_trains_on_as_many_tokens_as_a_core_holds():
    features = FeatureShape(8, (14, 14))
    chosen = dataclasses.replace(spec(24, num_latents=0, attention="packed"), features=features)
    chosen.check_training(5)
    with pytest.raises(ConfigError, match=r"attention=packed: .*16 x 39200 tokens do not fit"):
        chosen.check_training(200)


def test_packed_attention_is_that_of_the_train_step_only():
    """XLA cannot split the kernel over devices, so that it serves where each has its own rows."""
    packed = spec(attention="packed")
    for by_device, kernel in ((False, "plain"), (True, "packed")):
        step = dataclasses.replace(packed, by_device=by_device)
        model = nnx.eval_shape(lambda step=step: step.model(step.init(0)))
        assert model.blocks.attention.kernel == kernel


@pytest.mark.parametrize("cross", CROSS)
def test_the_kernel_of_attention_changes_no_parameter(cross):
    plain, chosen = (spec(cross_attention=cross, attention=a) for a in ("plain", "cudnn"))
    jax.tree.map(np.testing.assert_array_equal, plain.init(3), chosen.init(3))
