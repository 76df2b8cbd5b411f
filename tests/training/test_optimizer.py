import jax
import numpy as np
import pytest

from fsdit.config import OptimizerConfig
from fsdit.training import optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration of Jordan et al.


def parameters(seed):
    """Kernels and biases as a model has them, stacked over two layers in `blocks`."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    return {
        "blocks": {
            "attention": {"qkv": {"kernel": normal(2, 4, 12), "bias": normal(2, 12)}},
            "mlp": {
                "up": {"kernel": normal(2, 4, 16), "bias": normal(2, 16)},
                "down": {"kernel": normal(2, 16, 4), "bias": normal(2, 4)},
            },
        },
        "conditioner": {"attention": {"out": {"kernel": normal(4, 4), "bias": normal(4)}}},
        "embed": {"kernel": normal(3, 4), "bias": normal(4)},
        "modulation": {"kernel": normal(4, 24), "bias": normal(24)},  # one for all blocks
        "final_modulation": {"kernel": normal(4, 8), "bias": normal(8)},
    }


def orthogonal(matrix):
    """Five steps of Newton and Schulz, written from the paper, in float64."""
    x = matrix.astype(np.float64)
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / np.linalg.norm(x)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def mean_of(gradients, decay):
    """Nesterov's mean of the gradients so far, with its corrections for the start at zero."""
    mean = 0.0
    for gradient in gradients:
        mean = decay * mean + (1 - decay) * np.asarray(gradient, np.float64)
    count = len(gradients)
    corrected = mean / (1 - decay ** (count + 1))
    return decay * corrected + (1 - decay) * np.asarray(gradients[-1], np.float64) / (
        1 - decay**count
    )


def on_device(tree):
    return jax.tree.map(jax.numpy.asarray, tree)


def updates(config, steps):
    tx, params = optimizer.transformation(config), on_device(parameters(0))
    gradients, state, found = (
        [on_device(parameters(1 + s)) for s in range(steps)],
        tx.init(params),
        None,
    )
    for gradient in gradients:
        found, state = jax.jit(tx.update)(gradient, state, params)
    return found, gradients


UNCLIPPED = {"clip_norm": 1e9, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("blocks/attention/qkv", 3),
        ("blocks/mlp/up", 1),
        ("blocks/mlp/down", 1),
        ("conditioner/attention/out", 1),
        ("modulation", 6),
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_matrices_of_blocks_are_updated_by_muon(path, parts, steps):
    config = OptimizerConfig(method="muon", momentum=0.9, **UNCLIPPED)
    found, gradients = updates(config, steps)

    def kernel(tree):
        for name in path.split("/"):
            tree = tree[name]
        return np.reshape(tree["kernel"], (-1, *np.shape(tree["kernel"])[-2:]))

    for layer, update in enumerate(kernel(found)):
        mean = mean_of([kernel(g)[layer] for g in gradients], 0.9)
        pieces = [0.2 * max(p.shape) ** 0.5 * orthogonal(p) for p in np.split(mean, parts, axis=1)]
        np.testing.assert_allclose(update, np.concatenate(pieces, axis=1), atol=2e-4)


def test_all_other_parameters_are_updated_as_by_adamw():
    muon, _ = updates(OptimizerConfig(method="muon", **UNCLIPPED), 3)
    adamw, _ = updates(OptimizerConfig(**UNCLIPPED), 3)
    for name in ("embed", "final_modulation"):
        np.testing.assert_array_equal(muon[name]["kernel"], adamw[name]["kernel"])
    for group in ("attention", "mlp"):
        for name, layer in muon["blocks"][group].items():
            np.testing.assert_array_equal(layer["bias"], adamw["blocks"][group][name]["bias"])


def test_weight_decay_and_clipping_hold_for_muon_too():
    plain, _ = updates(OptimizerConfig(method="muon", **UNCLIPPED), 1)
    decayed, _ = updates(OptimizerConfig(method="muon", clip_norm=1e-3, weight_decay=0.5), 1)
    up = decayed["blocks"]["mlp"]["up"]
    expected = plain["blocks"]["mlp"]["up"]["kernel"]
    expected = expected + 0.5 * parameters(0)["blocks"]["mlp"]["up"]["kernel"]
    # An orthogonal matrix does not depend on the length of the gradient.
    np.testing.assert_allclose(up["kernel"], expected, atol=1e-3)
