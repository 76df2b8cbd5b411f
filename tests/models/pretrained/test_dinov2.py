import numpy as np
import pytest
import torch
import transformers

from fsdit.models.pretrained import resampling
from fsdit.models.pretrained.encoder import load_encoder
from tests.models.pretrained import originals

pytestmark = pytest.mark.medium

BOUND = {"float32": 1e-4, "bfloat16": 2e-2}

MODELS = {"plain": originals.dinov2, "registers": originals.dinov2_with_registers}
VARIANTS = {
    "fewer patches than in training": ({}, 42),
    "as many patches": ({}, 70),
    "more patches": ({}, 98),
    "swiglu": ({"use_swiglu_ffn": True}, 42),
    "tanh gelu": ({"hidden_act": "gelu_pytorch_tanh"}, 42),
}


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", MODELS)
def test_tokens_and_class_token_equal_the_original(tmp_path, kind, variant, dtype):
    fields, crop = VARIANTS[variant]
    model = MODELS[kind](**fields)
    processor = originals.bit_processor(crop + 6, crop)
    directory = originals.save(model, processor, tmp_path)
    images = originals.random_images(3, 64, 64, 3)
    assert max(originals.errors(model, processor, directory, dtype, images)) < BOUND[dtype]


@pytest.mark.parametrize("registers", [1, 3])
def test_any_number_of_registers(tmp_path, registers):
    model = originals.dinov2_with_registers(num_register_tokens=registers)
    processor = originals.bit_processor()
    directory = originals.save(model, processor, tmp_path)
    images = originals.random_images(2, 64, 64, 3)
    assert max(originals.errors(model, processor, directory, "float32", images)) < 1e-4


def test_oblong_crops(tmp_path):
    """There are as many patches as in training, but in another shape: positions are resampled."""
    model = originals.dinov2(image_size=28)
    processor = transformers.BitImageProcessorPil(
        size={"shortest_edge": 60}, crop_size={"height": 14, "width": 56}
    )
    directory = originals.save(model, processor, tmp_path)
    assert load_encoder(str(directory))[0].grid == (1, 4)
    images = originals.random_images(2, 64, 80, 3)
    assert max(originals.errors(model, processor, directory, "float32", images)) < 1e-4


def test_checkpoint_with_a_classifier(tmp_path):
    config = transformers.Dinov2Config(**originals.DINOV2)
    model = transformers.Dinov2ForImageClassification(config)
    processor = originals.bit_processor()
    directory = originals.save(model, processor, tmp_path)
    images = originals.random_images(2, 64, 64, 3)
    assert max(originals.errors(model.dinov2, processor, directory, "float32", images)) < 1e-4


@pytest.mark.parametrize("sizes", [(37, 16), (16, 37), (5, 3), (7, 7)])
@pytest.mark.parametrize("antialias", [False, True])
def test_resampling_equals_pytorch(sizes, antialias):
    size, new_size = sizes
    row = np.random.default_rng(0).normal(size=(size,))
    image = torch.from_numpy(row)[None, None, None].expand(1, 1, size, size).contiguous()
    expected = torch.nn.functional.interpolate(
        image, size=(size, new_size), mode="bicubic", align_corners=False, antialias=antialias
    )[0, 0, 0]
    if antialias:
        matrix = resampling.antialiased(size, new_size, "bicubic")
    else:
        matrix = resampling.pointwise_bicubic(size, new_size)
    np.testing.assert_allclose(matrix @ row, expected, atol=1e-12)
