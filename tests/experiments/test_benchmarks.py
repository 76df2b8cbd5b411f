"""The benchmarks compare equal models, and their arithmetic is right."""

import contextlib
import json
import math
import sys

import jax
import numpy as np
import pytest
import torch

from experiments.benchmarks import all as all_benchmarks
from experiments.benchmarks import commits, turns
from experiments.benchmarks.compute import attention, products, pytorch_dit, train_step
from experiments.benchmarks.input import feeding
from experiments.benchmarks.programs import run_program
from fsdit.errors import FsditError
from tests.programs import run_module

pytestmark = pytest.mark.medium


def test_the_model_of_pytorch_has_as_many_parameters():
    spec = train_step.networks_of(train_step.config(tokens=False, scan=True))
    ours = sum(math.prod(p.shape) for p in jax.tree.leaves(spec.abstract_params()))
    with torch.device("meta"):
        theirs = sum(p.numel() for p in train_step.pytorch_model(spec).parameters())
    assert ours == theirs
    assert ours > 30e6  # S/2


def test_the_model_of_pytorch_learns_one_batch():
    torch.manual_seed(0)
    model = pytorch_dit.DiT(32, 2, 2, 2, (8, 4, 3), 16)  # wider than high, to see axes mixed up
    step = pytorch_dit.make_train_step(model, compiled=False, learning_rate=1e-2)
    latents, pooled = 2.0 + torch.zeros(8, 3, 8, 4), torch.randn(8, 5, 16)
    losses = [float(step(latents, pooled)) for _ in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_program_that_fails_is_named_after_its_own_words(capfd):
    with pytest.raises(FsditError, match=r"python -m json\.tool ended with status [12];"):
        run_program("json.tool", "missing.json")
    assert "missing.json" in capfd.readouterr().err
    run_program("json.tool", "--help")
    assert not capfd.readouterr().out


def test_sides_take_turns_and_the_first_call_is_not_counted():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    seconds, results = turns.take_turns(sides, 2)
    assert calls == list("ababab")
    assert results == {"a": 5, "b": 6}
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_rates_and_the_ratio_to_pytorch():
    def side(*seconds):
        return turns.rates(list(seconds), 12)

    assert side(2, 3, 6) == {"best": 6, "median": 4, "turns": [6, 4, 2]}
    found = {"pooled, scanned": side(4, 3, 6), "pooled, unrolled": side(2, 12, 12)}
    assert train_step.ratios(found) == {}
    found["pooled, PyTorch"] = side(4, 4, 2)
    assert train_step.ratios(found) == pytest.approx({"best": 1.0, "median": 1.0})


def test_input_speeds_are_multiples_of_the_train_steps_speed():
    def side(*seconds):
        return turns.rates(list(seconds), 12)

    found = {"precomputed": side(1, 2, 4), "online": side(3, 3, 3), "train step": side(4, 6, 12)}
    times = feeding.times_the_step(found)
    assert times.keys() == {"precomputed", "online"}
    assert times["precomputed"] == pytest.approx({"best": 4.0, "median": 3.0})
    assert times["online"] == pytest.approx({"best": 4 / 3, "median": 2.0})


def test_the_table_has_each_figure_and_names_what_failed():
    load = {"load": 0.5, "cores": 2}
    speed = {"best": 3.0, "median": 2.5, "turns": [3.0, 2.0]}
    start = {"to_first_step_seconds": 20.0, "compile_seconds": 12.0, "restore_seconds": 0.0}
    warm = {"to_first_step_seconds": 9.0, "compile_seconds": 2.0, "restore_seconds": 1.5}
    text = all_benchmarks.table(
        {
            "train_step": {
                "images_per_second": {"pooled, scanned": speed},
                "ratio": {"best": 0.9},
                "machine": load,
            },
            "checkpoint": {"stall_seconds": 0.25, "step_seconds": 1.0, "ratio": 0.25},
            "starts": {"cold": start, "from the cache": warm},
            "sampler": {"error": "ValueError: no room"},
        }
    )
    assert text.splitlines() == [
        "| measured | figure |",
        "| --- | --- |",
        "| pooled, scanned | 3.00 images/s, median 2.50 |",
        "| JAX / PyTorch, best | 0.90 |",
        "| load beside train_step | 0.5, 2 cores |",
        "| stall of a save | 0.25 s, 0.25 of a step |",
        "| start to first step, cold | 20.0 s, of that compiling 12.0 s |",
        "| start to first step, from the cache | 9.0 s, of that compiling 2.0 s |",
        "| restoring a checkpoint | 1.50 s |",
        "| sampler | failed: ValueError: no room |",
    ]


@pytest.mark.large
def test_one_command_measures_and_a_failure_does_not_stop_it(tmp_path, glyphs):
    results = {}
    for dataset in (glyphs, tmp_path / "none"):
        output = tmp_path / dataset.name / "figures"
        result = run_module(
            "experiments.benchmarks.all",
            *(f"--dataset_dir={dataset}", f"--output_dir={output}"),
            *("--benchmark=starts", "--benchmark=sampler"),
            timeout=1200,
        )
        results[result.returncode] = json.loads((output / "results.json").read_text())
        assert (output / "table.md").read_text() in result.stdout
    passed, failed = results[0], results[1]
    warm, cold = passed["starts"]["from the cache"], passed["starts"]["cold"]
    assert warm["cache_hits"] > cold["cache_hits"] == 0
    assert warm["compile_seconds"] < cold["compile_seconds"]
    assert "error" in failed["starts"]
    assert failed["sampler"]["batches"]["1"]["images_per_second"] > 0


def test_kernels_of_attention_agree_and_the_one_that_this_machine_lacks_is_named():
    keys = (("self", 6), ("cross", 10))
    found = attention.measure(attention.Settings(turns=1, calls=1, batch=2, queries=6, keys=keys))
    assert "cudnn" in found["missing"] and "cpu" in found["missing"]
    for sides in found["forms"].values():
        assert sides.keys() == {"plain", "xla"}
        for side in sides.values():
            assert side["milliseconds"] > 0
            assert all(0 < error < 0.02 for error in side["errors"].values())


def test_products_of_a_block_count_as_xla_counts_and_agree_with_pytorch():
    random = np.random.default_rng(0)
    for product in products.products_of_block(2, 6, 8, 2, 32):
        arrays = [random.standard_normal(s, np.float32) for s in (product.left, product.right)]
        compiled = jax.jit(product).lower(*arrays).compile()
        assert compiled.cost_analysis()["flops"] == pytest.approx(1e9 * product.gigaflops)
        theirs = product(*(torch.from_numpy(array) for array in arrays))
        np.testing.assert_allclose(compiled(*arrays), theirs, rtol=1e-4, atol=1e-5)


def test_processes_work_in_turns_and_one_that_ends_is_reported(tmp_path):
    script = "import os, sys\nfor n, _ in enumerate(sys.stdin): print(n * int(os.environ['BY']))"
    command = [sys.executable, "-uc", script]
    with contextlib.ExitStack() as stack:
        workers = {
            by: stack.enter_context(contextlib.closing(turns.Worker(command, tmp_path, {"BY": by})))
            for by in ("2", "3")
        }
        found = turns.rates_in_turns(workers, 3)
    assert found == {"2": [2, 4, 6], "3": [3, 6, 9]}
    assert turns.rate_ratio(found, "3", "2") == 1.5
    ended = turns.Worker([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, {})
    with contextlib.closing(ended), pytest.raises(RuntimeError, match="ended with status 3"):
        ended.rate()


@pytest.mark.large
def test_a_commit_is_timed_beside_this_checkout():
    with commits.checkout("HEAD") as before:
        found = commits.compare(before, commits.ROOT, "sampling", turns=1, count=4)
    assert found.keys() == {"before", "after"}
    assert all(len(rates) == 1 and rates[0] > 0 for rates in found.values())
