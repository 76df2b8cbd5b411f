import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fsdit.errors import DataError
from fsdit.models.pretrained.preprocessing import read_preprocessing, resize
from tests.models.pretrained import originals

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIDES = st.integers(1, 70)


@pytest.mark.medium
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(sorted(FILTERS)), st.integers(0, 99))
def test_resizing_equals_pillow_bit_for_bit(height, width, new_height, new_width, name, seed):
    image = originals.random_images(height, width, 3, seed=seed)
    # Black and white make bicubic weights overshoot, which has to be clipped.
    image[: height // 2] = (image[: height // 2] > 127) * 255
    expected = Image.fromarray(image).resize((new_width, new_height), FILTERS[name])
    found = resize(jnp.asarray(image[None]), new_height, new_width, name)[0]
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", FILTERS)
def test_resizing_is_exact_at_any_matmul_precision(name, precision):
    image = originals.random_images(300, 256, 3)
    expected = np.asarray(Image.fromarray(image).resize((224, 224), FILTERS[name]))
    with jax.default_matmul_precision(precision):
        found = jax.jit(lambda x: resize(x, 224, 224, name))(image[None])[0]
    np.testing.assert_array_equal(found, expected)


PROCESSORS = {
    "SigLIP": originals.siglip_processor(28),
    "SigLIP 2": originals.siglip_processor(28, resample=2),
    "SigLIP of other means": originals.siglip_processor(28, image_mean=[0.1, 0.2, 0.3]),
    "DINOv2": originals.bit_processor(48, 42),
    "DINOv2, odd margin": originals.bit_processor(47, 42),
}


@pytest.mark.parametrize("shape", [(28, 28), (48, 48), (40, 71), (90, 33), (20, 20)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_prepared_images_equal_those_of_the_processor(tmp_path, name, shape):
    processor = PROCESSORS[name]
    processor.save_pretrained(tmp_path)
    preprocessing = read_preprocessing(tmp_path)
    images = originals.random_images(2, *shape, 3)
    expected = originals.prepared(processor, images).numpy().transpose(0, 2, 3, 1)
    found = jax.jit(preprocessing)(images)
    assert found.shape == (2, *preprocessing.output_size, 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def settings_file(folder, **changes):
    originals.siglip_processor(28).save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "gone"}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
        ({"resample": 1}, "resample"),
        ({"size": "gone"}, "size"),
        ({"size": {"height": 28}}, "size"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"do_resize": False}, "do_resize"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_pad": True}, "do_pad"),
    ],
)
def test_unsupported_preprocessing_is_named(tmp_path, changes, named):
    settings_file(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"preprocessor_config\.json: {named}") as error:
        read_preprocessing(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"preprocessor_config\.json is missing"):
        read_preprocessing(tmp_path)


@pytest.mark.parametrize(
    "processor",
    [originals.bit_processor(48, 42, do_center_crop=False), originals.bit_processor(40, 42)],
)
def test_images_of_varying_size_and_padded_crops_are_refused(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="needs a crop_size that fits"):
        read_preprocessing(tmp_path)
