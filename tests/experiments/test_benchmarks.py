"""What the benchmarks compare is comparable, and their arithmetic."""

import math

import jax
import pytest
import torch

from experiments.benchmarks import pytorch_dit, train_step, turns


def test_the_model_of_pytorch_has_as_many_parameters():
    networks = train_step.networks_of(train_step.config(tokens=False, scan=True))
    ours = sum(math.prod(p.shape) for p in jax.tree.leaves(networks.abstract_params()))
    with torch.device("meta"):
        theirs = sum(p.numel() for p in train_step.pytorch_model(networks).parameters())
    assert ours == theirs
    assert ours > 30e6  # S/2


def test_the_model_of_pytorch_learns_one_batch():
    torch.manual_seed(0)
    model = pytorch_dit.DiT(32, 2, 2, 2, (8, 4, 3), 16)  # wider than high, to see axes mixed up
    step = pytorch_dit.make_train_step(model, compiled=False, learning_rate=1e-2)
    latents, pooled = 2.0 + torch.zeros(8, 3, 8, 4), torch.randn(8, 5, 16)
    losses = [float(step(latents, pooled)) for _ in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


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
