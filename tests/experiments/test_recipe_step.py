"""The benchmark of a recipe's train step: its sides are equal models, its figures are right."""

import dataclasses
import math

import jax
import pytest
import torch

from experiments.benchmarks.compute import device_time, pytorch_dit, recipe_sides, recipe_step
from experiments.benchmarks.compute import train_step as shared
from fsdit.config import apply_overrides, load_experiment
from fsdit.errors import ConfigError
from tests.programs import ROOT

RECIPE = str(ROOT / "experiments" / "miniimagenet_b2.py")
SMALL = {
    "model.hidden_size": "32",
    "model.depth": "1",
    "model.num_heads": "2",
    "model.num_latents": "4",
    "model.dtype": "float32",
    "data.batch_size": "2",
}


def small(**changes):
    return apply_overrides(load_experiment(RECIPE), {**SMALL, **changes})


@pytest.mark.medium
@pytest.mark.parametrize("recipe", ["miniimagenet_b2", "miniimagenet_pooled"])
def test_the_model_of_pytorch_has_as_many_parameters(recipe):
    config = load_experiment(str(ROOT / "experiments" / f"{recipe}.py"))
    spec = shared.networks_of(config)
    ours = sum(math.prod(p.shape) for p in jax.tree.leaves(spec.abstract_params()))
    with torch.device("meta"):
        theirs = sum(p.numel() for p in shared.pytorch_model(spec).parameters())
    assert ours == theirs > 100e6


@pytest.fixture
def one_thread():
    """PyTorch's threads wait for each other in loops, which is slow where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.medium
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_model_of_pytorch_learns_from_tokens(bfloat16, one_thread):
    torch.manual_seed(0)
    model = pytorch_dit.DiT(32, 2, 2, 2, (8, 4, 3), 16, (6, 4))
    step = pytorch_dit.make_train_step(model, compiled=False, bfloat16=bfloat16, learning_rate=1e-2)
    latents, supports = 2.0 + torch.zeros(8, 3, 8, 4), torch.randn(8, 5, 7, 16)
    losses = [float(step(latents, supports[:, :, 0], supports[:, :, 1:])) for _ in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.medium
def test_pytorch_takes_the_batch_that_ours_takes(one_thread):
    loss = shared.pytorch_trainer(small(), 1, compiled=False)(2)
    assert math.isfinite(loss)


@pytest.mark.large
def test_a_side_and_its_parts_are_measured():
    config = small()
    side = recipe_sides.jax_side(config)
    parts = recipe_sides.parts(config)
    assert parts.keys() == {"forward", "gradient"}
    assert side.flops == parts["gradient"].flops == 3 * parts["forward"].flops > 0
    said = []
    found = recipe_step.measure({"small": side, **parts}, turns=1, say=said.append)
    assert [line.partition(":")[0] for line in said] == ["small", "forward", "gradient"]
    for name, figures in found.items():
        assert figures["median_ms"] > 0, name
        assert "mfu" not in figures  # no peak of a CPU is published
    # Parameters, average and two moments.
    state = 16 * sum(p.size for p in jax.tree.leaves(_params(config)))
    assert state < side.memory() < 3 * state + 2**28


def _params(config):
    return shared.networks_of(config).abstract_params()


def test_figures_are_those_of_a_step():
    side = recipe_sides.Side(
        call=lambda: None,
        steps=10,
        images=128,
        flops=2 * 10**12,
        memory=lambda: 3 * 10**9,
        compile_seconds=4.0,
    )
    figures = recipe_step.figures(side, [1.0, 2.0, 4.0], peak=100e12)
    assert figures == pytest.approx(
        {
            "median_ms": 200.0,
            "best_ms": 100.0,
            "images_per_second": 640.0,
            "tflops": 10.0,
            "mfu": 0.1,
            "memory_gb": 3.0,
            "compile_seconds": 4.0,
        }
    )
    unknown = dataclasses.replace(side, flops=0, memory=lambda: None)
    known = {"median_ms", "best_ms", "images_per_second", "compile_seconds"}
    assert recipe_step.figures(unknown, [1.0], None).keys() == known


def test_a_side_is_the_recipe_with_other_settings():
    config = small()
    assert recipe_step.changed(config, "") == config
    model = recipe_step.changed(config, "model.attention=cudnn,model.remat=none").model
    assert (model.attention, model.remat, model.depth) == ("cudnn", "none", 1)
    with pytest.raises(ConfigError, match=r"^--side=model.remat: write model.remat=VALUE$"):
        recipe_step.changed(config, "model.remat")
    with pytest.raises(ConfigError, match="no such field"):
        recipe_step.changed(config, "model.kernel=cudnn")


@pytest.mark.parametrize("changes", [{"model.cross_attention": "cls"}, {"model.num_latents": "0"}])
def test_a_condition_that_the_pytorch_model_lacks_is_refused(changes):
    with pytest.raises(ConfigError, match="the PyTorch model has no such condition"):
        recipe_sides.pytorch_side(small(**changes))


def test_a_recipe_that_learns_its_encoder_is_refused():
    with pytest.raises(ConfigError, match="recipes with a frozen encoder"):
        recipe_sides.jax_side(small(**{"model.encoder.name": "learned"}))


KERNELS = {
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16": "attention",
    "nvjet_sm90_tst_128x128_64x6_2x1_v_bz_TNT": "matrix products",
    "gemm_fusion_dot_104": "matrix products",
    "memcpy128": "copies",
    "input_add_reduce_fusion_2": "sums",
    "triton_red_fused__to_copy_add_mul_native_layer_norm_split_unsqueeze_view_25": "sums",
    "triton_poi_fused__to_copy_convolution_2": "elementwise",
    "loop_convert_fusion_3": "elementwise",
}


def test_kernels_are_told_apart_by_their_names():
    for name, kind in KERNELS.items():
        found = device_time.by_kind([(name, 4.0)], calls=2)
        assert found.pop(kind) == 2.0, name
        assert not any(found.values()), name


def test_the_longest_kernels_come_first():
    events = [("a", 1.0), ("b", 5.0), ("a", 3.0), ("c", 1.0)]
    assert device_time.longest(events, calls=2, count=2) == [("b", 2.5), ("a", 2.0)]
    assert device_time.of_jax(lambda: jax.numpy.ones(3)) == []  # this test sees no GPU
