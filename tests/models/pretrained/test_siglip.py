import jax
import numpy as np
import pytest
import transformers

from fsdit.models.pretrained import encoder as encoders
from tests.models.pretrained import originals

pytestmark = pytest.mark.medium

BOUND = {"float32": 1e-4, "bfloat16": 2e-2}

VARIANTS = {
    "vision only": (originals.siglip_vision, {}),
    "vision and text": (originals.siglip_full, {}),
    "exact gelu": (originals.siglip_vision, {"hidden_act": "gelu"}),
    "a size that patches do not fill": (
        originals.siglip_full,
        {"image_size": 38, "patch_size": 12},
    ),
    "uneven head width": (originals.siglip_full, {"hidden_size": 72, "num_attention_heads": 1}),
}


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_and_pooled_equal_the_original(tmp_path, variant, dtype):
    make, fields = VARIANTS[variant]
    model = make(**fields)
    processor = originals.siglip_processor(fields.get("image_size", 28))
    directory = originals.save(model, processor, tmp_path)
    images = originals.random_images(3, 40, 40, 3)
    assert max(originals.errors(model, processor, directory, dtype, images)) < BOUND[dtype]


@pytest.mark.large
def test_true_size_equals_the_original(tmp_path):
    """SigLIP 2 B/16-224: 196 tokens of width 768, the pooled vector, 12 layers."""
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig())
    processor = originals.siglip_processor(224, resample=2)
    originals.save(model, processor, tmp_path)
    images = originals.random_images(2, 256, 256, 3)
    for dtype, bound in BOUND.items():
        assert max(originals.errors(model, processor, tmp_path, dtype, images)) < bound, dtype
    encoder, _ = encoders.load_encoder(str(tmp_path))
    assert (encoder.dim, encoder.grid) == (768, (14, 14))


def test_greyscale_images_are_repeated(tmp_path):
    model, processor = originals.siglip_vision(), originals.siglip_processor()
    encoder, params = encoders.load_encoder(str(originals.save(model, processor, tmp_path)))
    grey = originals.random_images(1, 2, 28, 28, 1)
    encode = jax.jit(encoder)
    expected = encode(params, np.repeat(grey, 3, axis=-1))
    for value, wanted in zip(encode(params, grey), expected, strict=True):
        np.testing.assert_array_equal(value, wanted)
