"""Counted costs compared with XLA's count of programs without loops, and with hand counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fsdit.planning import costs, hlo


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile()


def layer(x, w):
    return jnp.tanh(x @ w)


def scanned(x, ws):
    return jax.lax.scan(lambda x, w: (layer(x, w), None), x, ws)[0]


def unrolled(x, ws):
    return functools.reduce(layer, ws, x)


def test_without_loops_the_count_is_xlas_own():
    program = compiled(lambda x, w: jax.nn.softmax(layer(x, w)).sum(), (16, 32), (32, 64))
    counted, own = costs.count(program), program.cost_analysis()
    assert own["flops"] > 2 * 16 * 32 * 64
    assert (counted.flops, counted.bytes) == (own["flops"], own["bytes accessed"])
    assert (counted.collectives, counted.unknown_loops) == ((), 0)


@settings(max_examples=6)  # each example compiles
@given(rows=st.integers(8, 64), width=st.sampled_from([64, 96]), depth=st.integers(2, 12))
def test_a_scan_costs_what_its_unrolled_form_does(rows, width, depth):
    shapes = (rows, width), (depth, width, width)
    loop, plain = (costs.count(compiled(f, *shapes)) for f in (scanned, unrolled))
    assert loop.flops == pytest.approx(plain.flops, rel=0.02)
    assert loop.flops >= depth * 2 * rows * width * width
    once = compiled(scanned, *shapes).cost_analysis()["flops"]
    assert once < 1.5 * loop.flops / depth  # XLA counts the body of a loop once


def gradient(function):
    return jax.grad(lambda x, ws: function(x, ws).sum(), argnums=(0, 1))


def test_the_gradient_of_a_scan_costs_what_its_unrolled_form_does():
    shapes = (128, 256), (8, 256, 256)
    loop, plain = (costs.count(compiled(gradient(f), *shapes)) for f in (scanned, unrolled))
    assert loop.flops == pytest.approx(plain.flops, rel=0.02)


@pytest.mark.parametrize("function", [scanned, gradient(scanned)], ids=["value", "gradient"])
def test_each_iteration_moves_its_slices_only(function):
    """Twice the layers move twice the bytes, so an iteration does not move the whole stack."""
    moved = [costs.count(compiled(function, (256, 256), (n, 256, 256))).bytes for n in (8, 16, 32)]
    layer_bytes = (moved[1] - moved[0]) / 8
    assert (moved[2] - moved[1]) / 16 == pytest.approx(layer_bytes, rel=0.01)
    array = 4 * 256 * 256
    assert 3 * array <= layer_bytes <= 45 * array  # x, w and the result at the least


def test_loops_in_loops_multiply():
    def nested(x, ws):
        return jax.lax.fori_loop(3, 8, lambda _, x: scanned(x, ws), x)

    shapes = (32, 64), (7, 64, 64)
    inner, outer = (costs.count(compiled(f, *shapes)) for f in (scanned, nested))
    assert outer.flops == pytest.approx(5 * inner.flops, rel=0.02)


KERNEL = """HloModule kernel

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,128] get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[8,128] custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000","transcendentals":"0"}}}
  ROOT %both = (s32[], f32[8,128]) tuple(%next, %y)
}

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[], f32[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128] parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,128]) tuple(%zero, %x)
  %end = (s32[], f32[8,128]) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %y = f32[8,128] get-tuple-element(%end), index=1
}
"""  # noqa: E501


def test_a_pallas_kernel_in_a_loop_counts_in_every_iteration():
    class Compiled(jax.stages.Compiled):
        """A program for a TPU, whose own analysis has the kernel of one iteration."""

        def __init__(self):
            """Leaves out what a device would need."""

        def as_text(self):
            return KERNEL

        def cost_analysis(self):
            return {"flops": 1000.0}

    assert costs.count(Compiled()).flops == pytest.approx(5 * 1000, rel=0.01)


def test_a_loop_of_unknown_length_is_counted_once_and_reported():
    def until_large(x, w):
        return jax.lax.while_loop(lambda x: x.max() < 10, lambda x: layer(x, w), x)

    counted = costs.count(compiled(until_large, (32, 64), (64, 64)))
    assert counted.unknown_loops == 1
    assert 2 * 32 * 64 * 64 <= counted.flops < 2 * 2 * 32 * 64 * 64


def over_devices(function, shape, times=1):
    """Return the collectives of `function` on eight devices, each with its shard of `shape`."""
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spec = PartitionSpec("x")

    def local(x):
        return jax.lax.scan(lambda x, _: (function(x), None), x, length=times)[0]

    mapped = jax.shard_map(
        local if times > 1 else function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    argument = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    return costs.count(jax.jit(mapped).lower(argument).compile()).collectives


# A shard is (8, 128) float32: 4,096 bytes.
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: jax.lax.psum(x, "x"), ("all-reduce", 1, 4096, 2 * 4096 * 7 // 8)),
        (lambda x: jax.lax.all_gather(x, "x"), ("all-gather", 1, 8 * 4096, 7 * 4096)),
        (
            lambda x: jax.lax.psum_scatter(x, "x", tiled=True),
            ("reduce-scatter", 1, 4096, 4096 * 7 // 8),
        ),
        (
            lambda x: jax.lax.all_to_all(x, "x", 0, 0),
            ("all-to-all", 1, 4096, 4096 * 7 // 8),
        ),
        (
            lambda x: jax.lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)]),
            ("collective-permute", 1, 4096, 4096),
        ),
    ],
    ids=["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"],
)
def test_a_collective_is_counted_with_its_bytes(function, expected):
    assert over_devices(function, (64, 128)) == (costs.Collective(*expected),)


def test_a_collective_in_a_loop_is_counted_each_time():
    found = over_devices(lambda x: jax.lax.psum(x * 0.5, "x"), (64, 128), times=5)
    assert found == (costs.Collective("all-reduce", 5, 5 * 4096, 5 * 2 * 4096 * 7 // 8),)


def test_a_collective_of_groups_reaches_its_group_only():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    spec = PartitionSpec(("a", "b"))
    mapped = jax.shard_map(
        lambda x: jax.lax.psum(x, "b"), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    argument = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, spec))
    program = jax.jit(mapped).lower(argument).compile()
    assert costs.count(program).collectives == (costs.Collective("all-reduce", 1, 4096, 4096),)


# A program of the TPU compiler, shortened. The fusions that start and end one all-gather both
# contain it, with one chain_id; different collectives may have the same channel_id. A
# reduce-scatter is written as an all-reduce. GROUPS stands for one notation of the groups.
TPU = """HloModule jit_f, num_partitions=8

%start (p: bf16[96,768]) -> bf16[768,768] {
  %p = bf16[96,768]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[768,768]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, replica_groups=GROUPS, dimensions={0}, frontend_attributes={chain_id="4"}
}

%done (p: bf16[96,768]) -> bf16[768,768] {
  %p = bf16[96,768]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[768,768]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=1, replica_groups=GROUPS, dimensions={0}, frontend_attributes={chain_id="4"}
}

%all-reduce-scatter.2 (input: f32[128,768]) -> f32[16,768] {
  %input = f32[128,768]{1,0:T(8,128)} parameter(0)
  %r = f32[128,768]{1,0:T(8,128)} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %s = f32[16,768]{1,0:T(8,128)} dynamic-slice(%r, %zero, %zero), dynamic_slice_sizes={16,768}
}

ENTRY %main (a: bf16[96,768], b: f32[128,768]) -> (bf16[768,768], f32[16,768]) {
  %a = bf16[96,768]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[128,768]{1,0:T(8,128)} parameter(1)
  %f1 = bf16[768,768]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%start
  %f2 = bf16[768,768]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%done
  %f3 = f32[16,768]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %t = (bf16[768,768]{1,0:T(8,128)(2,1)}, f32[16,768]{1,0:T(8,128)}) tuple(%f2, %f3)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("groups", "chips"),
    [
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", 8),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 2),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", 4),
        ("[2,4]<=[8]", 4),
        ("{}", 8),
    ],
)
def test_the_forms_of_the_tpu_compiler_are_counted_once(groups, chips):
    size = 96 * 768 * 2
    reduced = 128 * 768 * 4
    assert costs.collectives(hlo.parse(TPU.replace("GROUPS", groups))) == (
        costs.Collective("all-gather", 1, chips * size, (chips - 1) * size),
        costs.Collective("reduce-scatter", 1, reduced, reduced * 7 // 8),
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[16,196,768]{2,1,0:T(8,128)(2,1)S(1)}", 16 * 196 * 768 * 2),
        ("(f32[2]{0}, /*index=1*/s32[], pred[3]{0})", 8 + 4 + 3),
        ("f8e4m3fn[10]{0}", 10),
        ("s4[9]{0}", 5),
        ("token[]", 0),
    ],
)
def test_the_size_of_a_shape(shape, size):
    assert hlo.num_bytes(shape) == size
