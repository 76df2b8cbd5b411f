import jax
import ml_dtypes
import numpy as np
import pytest

from fsdit.errors import DataError
from fsdit.models.pretrained.stored import weights
from fsdit.models.pretrained.stored.checkpoint import open_checkpoint
from tests.models.pretrained.stored.small_checkpoint import IN, OUT, L, changed, tensors, write

MAPPING = {
    **weights.linear("blocks/0/qk", "layer.{}.q", "layer.{}.k", layers=L),
    **weights.norm("norm", "norm"),
}


def template(dtype="float32") -> dict:
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    return {
        "blocks": {0: {"qk": {"kernel": array(L, IN, 2 * OUT), "bias": array(L, 2 * OUT)}}},
        "norm": {"scale": array(IN), "bias": array(IN)},
    }


def load(folder, **options):
    checkpoint = open_checkpoint(str(folder))
    return weights.load_params(checkpoint, template(**options), MAPPING, ignored=("text.",))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_parameters_are_the_tensors_joined_and_stacked(tmp_path, dtype, stem, shards):
    named = tensors(dtype)
    params = load(write(tmp_path, named, stem, shards))
    qk = params["blocks"][0]["qk"]
    for i in range(L):
        for part, columns in (("q", slice(OUT)), ("k", slice(OUT, None))):
            weight = named[f"layer.{i}.{part}.weight"].astype(np.float32)
            np.testing.assert_array_equal(qk["kernel"][i][:, columns], weight.T)
            bias = named[f"layer.{i}.{part}.bias"].astype(np.float32)
            np.testing.assert_array_equal(qk["bias"][i, columns], bias)
    np.testing.assert_array_equal(params["norm"]["scale"], named["norm.weight"].astype("f4"))
    np.testing.assert_array_equal(params["norm"]["bias"], named["norm.bias"].astype("f4"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_parameters_have_the_templates_type(tmp_path):
    params = load(write(tmp_path, tensors()), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (changed(**{"layer.1.k.bias": None}), r"'layer\.1\.k\.bias' is missing"),
        (changed(extra=np.ones(3, "f4")), r"'extra' is left over"),
        (changed(**{"layer.2.q.weight": np.ones(3, "f4")}), r"'layer\.2\.q\.weight' is left over"),
        (changed(**{"norm.bias": np.ones(4, "f4")}), r"'norm\.bias' of shape \(4,\)"),
        (changed(**{"norm.bias": np.ones((), "f4")}), r"'norm\.bias' of shape \(\)"),
        (
            changed(**{"layer.0.q.weight": np.ones((OUT + 1, IN), "f4")}),
            r"'layer\.0\.q\.weight' of shape \(5, 3\)",
        ),
        (changed(**{"norm.bias": np.ones(3, "i8")}), r"'norm\.bias' holds I64, not float32"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, named, message):
    with pytest.raises(DataError, match=message) as error:
        load(write(tmp_path, named))
    assert "\n" not in str(error.value)


def test_a_mapping_that_leaves_a_parameter_out_is_a_defect(tmp_path):
    checkpoint = open_checkpoint(str(write(tmp_path, tensors())))
    with pytest.raises(ValueError, match="norm/bias"):
        part = {path: source for path, source in MAPPING.items() if path != "norm/bias"}
        weights.load_params(checkpoint, template(), part, ignored=("text.", "norm.bias"))
