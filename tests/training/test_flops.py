import dataclasses

import jax
import jax.numpy as jnp
import pytest

from fsdit.config import Config, ModelConfig
from fsdit.models.encoder import FeatureShape
from fsdit.models.spec import ModelSpec
from fsdit.training import flops
from fsdit.training.objective import example_losses


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def xla(function, *args):
    """XLA's count before it optimises, which is right where there is no loop."""
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def products(x, w, kernel):
    y = jnp.einsum("bnd,de->bne", x, w)
    scores = jnp.einsum("bnd,bmd->bnm", y, y)
    image = y.reshape(y.shape[0], 4, 4, -1)
    return jax.lax.conv_general_dilated(
        image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ), scores


def test_products_and_convolutions_are_counted_as_by_xla():
    args = shape(3, 16, 8), shape(8, 12), shape(2, 2, 12, 5)
    by_hand = 2 * (3 * 16 * 8 * 12 + 3 * 16 * 16 * 12 + 3 * 2 * 2 * 5 * (2 * 2 * 12))
    assert flops.of(products, *args) == by_hand == xla(products, *args)


def test_a_grouped_convolution_counts_its_own_channels_only():
    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )

    args = shape(2, 5, 5, 6), shape(3, 3, 2, 9)
    assert flops.of(grouped, *args) == 2 * (2 * 3 * 3 * 9) * (3 * 3 * 2) == xla(grouped, *args)


def test_loops_calls_and_branches_are_counted_through():
    w, x = shape(8, 8), shape(4, 8)
    once = 2 * 4 * 8 * 8

    def scanned(w, x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    def nested(w, x):
        return jax.lax.fori_loop(0, 3, lambda _, x: scanned(w, x), x)

    def branching(w, x):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x)

    assert flops.of(scanned, w, x) == 7 * once
    assert flops.of(nested, w, x) == 21 * once
    assert flops.of(branching, w, x) == 2 * once
    ruled = jax.custom_vjp(scanned)
    ruled.defvjp(lambda w, x: (scanned(w, x), None), lambda _, g: (None, g))
    ruled_forward = jax.custom_jvp(scanned)
    ruled_forward.defjvp(lambda primals, _: (scanned(*primals),) * 2)
    for called in (jax.jit(scanned), jax.checkpoint(scanned), ruled, ruled_forward):
        assert flops.of(called, w, x) == 7 * once
    assert flops.of(jax.vmap(scanned, (None, 0)), w, shape(5, 4, 8)) == 35 * once


def test_a_function_that_cannot_be_counted_is_refused():
    def until(w, x):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="while"):
        flops.of(until, shape(8, 8), shape(8, 8))

    def outside(x):
        return jax.pure_callback(lambda x: x, shape(8, 8), x)

    with pytest.raises(ValueError, match="pure_callback"):
        flops.of(outside, shape(8, 8))

    def steps(x):  # a loop without matrix products counts as zero
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x - 1, x)

    assert flops.of(steps, shape(8, 8)) == 0


def dit(**changes):
    """Return (spec, config, parameters, batch) of a DiT of 36 patches."""
    model = ModelConfig(
        hidden_size=192, depth=3, num_heads=3, patch_size=2, dtype="float32", **changes
    )
    spec = ModelSpec(model, 12, 4, features=FeatureShape(48, (2, 2)))
    batch = {
        "index": shape(8, dtype="uint32"),
        "target": shape(8, 12, 12, 4, dtype="uint8"),
        "supports": {"pooled": shape(8, 5, 48), "tokens": shape(8, 5, 4, 48)},
    }
    return spec, Config(model=model), spec.abstract_params(), batch


@pytest.mark.parametrize(
    ("settings", "mlp", "modulations"),
    [
        ({}, 8, 3),
        ({"norm": "rms", "qk_norm": True, "rotary": True}, 8, 3),  # no matrix products
        ({"mlp": "swiglu"}, 8, 3),  # three products of D x 8 D / 3
        ({"modulation": "single"}, 8, 1),
    ],
)
def test_a_dit_costs_what_its_formula_says(settings, mlp, modulations):
    b, n, d, layers, patch = 8, 36, 192, 3, 2 * 2 * 4
    # Attention 4 N D² + 2 N² D, MLP 8 N D², modulation 6 D²; twice each, for multiply and add.
    block = 2 * (n * (4 + mlp) * d**2 + 2 * n**2 * d)
    ends = 2 * (2 * n * patch * d + 2 * d**2 + (256 + d) * d)
    formula = 3 * b * (layers * block + modulations * 2 * 6 * d**2 + ends)
    spec, config, params, batch = dit(cross_attention="none", **settings)
    counted = flops.of_step(spec, config, params, batch)
    # The difference is the projection of the pooled supports.
    assert formula < counted < formula + 3 * 2 * b * 5 * 4 * d**2


@pytest.mark.medium
def test_a_step_does_not_cost_more_for_being_scanned_or_rematerialised():
    counts = {
        flops.of_step(*dit(scan_layers=scan, remat=remat))
        for scan in (False, True)
        for remat in ("none", "full")
    }
    assert len(counts) == 1


def test_a_step_is_what_xla_counts_of_an_unrolled_one():
    spec, config, params, batch = dit(scan_layers=False)

    def loss(params, batch):
        return example_losses(spec, config, params, batch, "train", 0, 0.1)[0].mean()

    counted = flops.of_step(spec, config, params, batch)
    by_xla = xla(jax.grad(loss), params, batch)
    # XLA also counts norms, softmax and GELU, and leaves out the gradient of the inputs.
    assert 0.9 * by_xla < counted < 1.02 * by_xla


def test_attention_of_cudnn_is_counted_by_its_shapes():
    """The kernel of cuDNN hides its products; it lowers on GPUs only, but traces anywhere."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    q = shape(2, 64, 3, 32, dtype="bfloat16")
    kv = shape(2, 128, 3, 32, dtype="bfloat16")

    def attend(q, k, v):
        return cudnn._dot_product_attention_fwd_p.bind(
            *(q, k, v),
            *(jnp.zeros((), q.dtype),) * 7,
            scale=1.0,
            seed=0,
            dropout_rate=0.0,
            variadic_args=(False, False),
            mask_type=cudnn.MaskType.NO_MASK,
            layout=cudnn.AttentionLayout.BTNH.value,
            sliding_window_length=None,
            is_training=False,
        )

    assert flops.of(attend, q, kv, kv) == 2 * 2 * (2 * 3 * 64 * 128 * 32)


def test_accumulating_does_not_change_the_count():
    spec, config, params, batch = dit()
    train = dataclasses.replace(config.train, accumulate_steps=4)
    parts = dataclasses.replace(config, train=train)
    expected = flops.of_step(spec, config, params, batch)
    assert flops.of_step(spec, parts, params, batch) == expected


def test_routed_patches_cost_nothing_in_the_blocks_that_they_skip():
    spec, config, params, batch = dit(cross_attention="none")
    b, d = 8, 192

    def block(n):  # what depends on the number of tokens
        return 2 * (n * (4 + 8) * d**2 + 2 * n**2 * d)

    train = dataclasses.replace(config.train, routing=0.5, routing_start=1, routing_end=2)
    routed = flops.of_step(spec, dataclasses.replace(config, train=train), params, batch)
    saved = flops.of_step(spec, config, params, batch) - routed
    assert saved == 3 * b * (block(36) - block(18))
