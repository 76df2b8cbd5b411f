"""Every kind and depth of pixels: converted to what a viewer shows, or refused with a reason."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.conversion.images import ImageOptions, normalise
from fsdit.data.images import photos
from fsdit.data.images.image_files import UnusableImageError
from tests.data_prep.conversion.comparison import close
from tests.data_prep.conversion.photos import encoded, photo
from tests.data_prep.conversion.raw_files import png, tiff

RNG = np.random.default_rng(0)
GREY16 = RNG.integers(0, 2**16, (30, 40)).astype(np.uint16)
GREY12 = RNG.integers(0, 2**12, (30, 40)).astype(np.uint16)
GREY4 = RNG.integers(0, 16, (30, 40)).astype(np.uint8)
GREY2 = RNG.integers(0, 4, (30, 40)).astype(np.uint8)
GREY1 = RNG.integers(0, 2, (30, 40)).astype(np.uint8)
RGB16 = RNG.integers(0, 2**16, (30, 40, 3)).astype(np.uint16)
RGB8 = RNG.integers(0, 2**8, (30, 40, 3)).astype(np.uint8)
BLUE = (0, 0, 255)


def pixels(data: bytes, **options) -> np.ndarray:
    made = normalise(data, ImageOptions(format="png", background="blue", **options))
    with Image.open(io.BytesIO(made.data)) as image:
        return np.asarray(image.convert("RGB"))


def share(values: np.ndarray, bits: int) -> np.ndarray:
    """`values` of so many bits, scaled to 0 to 255, and grey as RGB."""
    levels = np.round(values / (2**bits - 1) * 255).astype(np.uint8)
    return levels if values.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("data", "expected", "off"),
    [
        pytest.param(png(GREY1, 1), share(GREY1, 1), 0, id="PNG of 1 bit"),
        pytest.param(png(GREY2, 2), share(GREY2, 2), 0, id="PNG of 2 bits"),
        pytest.param(png(GREY4, 4), share(GREY4, 4), 0, id="PNG of 4 bits"),
        pytest.param(png(GREY16, 16), share(GREY16, 16), 0, id="PNG of 16 bits"),
        pytest.param(png(RGB16, 16), share(RGB16, 16), 1, id="PNG of 16 bits, RGB"),
        pytest.param(tiff(GREY12, 12), share(GREY12, 12), 0, id="TIFF of 12 bits"),
        pytest.param(tiff(GREY16, 16), share(GREY16, 16), 0, id="TIFF of 16 bits"),
        pytest.param(tiff(GREY16, 16, order=">"), share(GREY16, 16), 0, id="TIFF, big end first"),
        pytest.param(tiff(GREY16, 16, 0), share(65535 - GREY16, 16), 0, id="TIFF, white is zero"),
        pytest.param(tiff(GREY4, 4, 0), share(15 - GREY4, 4), 0, id="TIFF of 4, white is zero"),
        pytest.param(tiff(GREY1, 1, 0), share(1 - GREY1, 1), 0, id="TIFF of 1, white is zero"),
        pytest.param(tiff(RGB16, 16, 2), share(RGB16, 16), 1, id="TIFF of 16 bits, RGB"),
        pytest.param(tiff(RGB8, 8, 2, ">"), RGB8, 0, id="TIFF of 8 bits, RGB"),
    ],
)
def test_depths_are_scaled_to_eight_bits(data, expected, off):
    assert np.abs(pixels(data).astype(int) - expected).max() <= off


@pytest.mark.parametrize(
    ("data", "expected", "clear"),
    [
        pytest.param(png(GREY1, 1, 0), share(GREY1, 1), GREY1 == 0, id="1 bit"),
        pytest.param(png(GREY2, 2, 2), share(GREY2, 2), GREY2 == 2, id="2 bits"),
        pytest.param(png(GREY4, 4, 9), share(GREY4, 4), GREY4 == 9, id="4 bits"),
        pytest.param(
            png(GREY16, 16, int(GREY16[3, 4])),
            share(GREY16, 16), GREY16[3, 4] == GREY16, id="16 bits",
        ),
        pytest.param(
            png(RGB16, 16, tuple(RGB16[3, 4])),
            share(RGB16, 16), (RGB16[3, 4] == RGB16).all(-1), id="16 bits, RGB",
        ),
        pytest.param(
            png(RGB8, 8, tuple(RGB8[3, 4])), RGB8, (RGB8[3, 4] == RGB8).all(-1), id="8 bits, RGB"
        ),
    ],
)  # fmt: skip
def test_a_transparent_colour_shows_the_background(data, expected, clear):
    found = pixels(data).astype(int)
    assert clear.any() and (found[clear] == BLUE).all()
    assert np.abs(found[~clear] - expected[~clear]).max() <= 1


def lab_tiff(light: int, a: int, b: int) -> bytes:
    values = np.full((30, 40, 3), (light * 255 // 100, a % 256, b % 256), np.uint8)
    return tiff(values, 8, 8)


@pytest.mark.parametrize(
    ("lab", "expected"),
    [
        # Expected: CIE's formulas, Bradford's adaptation of D50 to sRGB's D65, sRGB's curve.
        ((100, 0, 0), (255, 255, 255)),
        ((60, 50, -30), (209, 107, 199)),
        ((40, -30, 20), (43, 107, 60)),
    ],
)
def test_cielab_becomes_srgb_and_grey(lab, expected):
    found = pixels(lab_tiff(*lab))[5, 5].astype(int)
    assert np.abs(found - expected).max() <= 4
    grey = pixels(lab_tiff(*lab), channels=1)[5, 5, 0]
    assert abs(int(grey) - found @ (0.299, 0.587, 0.114)) <= 1


@pytest.mark.parametrize("kind", ["YCbCr", "HSV", "PA", "RGBX", "RGBa", "CMYK"])
def test_other_modes_of_pillow_become_grey_or_rgb(kind):
    image = photo(1).convert("RGBA" if kind == "RGBa" else "RGB")
    image = image.quantize(64).convert("PA") if kind == "PA" else image.convert(kind)
    for channels, mode in ((1, "L"), (3, "RGB")):
        made = photos.flat(image, channels, "white")
        assert made.mode == mode
        expected = image.convert("RGBA").convert("RGB").convert(mode)
        close(np.asarray(made), np.asarray(expected), 1 if kind == "YCbCr" else 0)


def ppm(maximum: int, values: np.ndarray) -> bytes:
    kind = ">u2" if maximum > 255 else "u1"
    return f"P5 40 30 {maximum}\n".encode() + values.astype(kind).tobytes()


@pytest.mark.parametrize("maximum", [255, 1023, 4095, 65535])
def test_a_pgm_of_any_depth_is_scaled(maximum):
    values = RNG.integers(0, maximum + 1, (30, 40))
    expected = np.round(values / maximum * 255)
    assert np.abs(pixels(ppm(maximum, values))[..., 0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(np.ones((4, 4), np.uint32), 32), "32-bit pixels have no stated range"),
        (tiff(np.ones((4, 4), np.int32), 32), "32-bit pixels have no stated range"),
        (tiff(np.ones((4, 4), np.int16), 16), "pixels of signed numbers have no stated range"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point pixels"),
        (b"Pf 2 1 -1.0\n" + np.ones(2, "<f4").tobytes(), "floating-point pixels"),
    ],
)
def test_pixels_without_a_stated_range_are_refused(data, reason):
    with pytest.raises(UnusableImageError, match=reason):
        normalise(data, ImageOptions())


@pytest.mark.parametrize("chunk", [b"gAMA", b"cHRM", b"sRGB"])
def test_colour_chunks_of_a_png_change_nothing(chunk):
    body = {b"gAMA": (45455).to_bytes(4, "big"), b"cHRM": bytes(32), b"sRGB": b"\0"}[chunk]
    data, place = png(RGB8, 8), 8 + 25  # after IHDR
    added = (
        len(body).to_bytes(4, "big") + chunk + body + zlib.crc32(chunk + body).to_bytes(4, "big")
    )
    data = data[:place] + added + data[place:]
    np.testing.assert_array_equal(pixels(data), RGB8)
    assert normalise(data, ImageOptions()).data == data


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "LA", "CMYK"])
def test_bands_of_a_large_picture_meet_without_a_seam(mode, monkeypatch):
    image = photo(1).convert("RGBA" if mode in ("RGBA", "LA") else "RGB")
    image = Image.fromarray(GREY16) if mode == "I;16" else image.convert(mode)
    whole = np.asarray(photos.flat(image, 3, "red"))
    monkeypatch.setattr(photos, "_BAND_PIXELS", 7 * image.width)
    np.testing.assert_array_equal(np.asarray(photos.flat(image, 3, "red")), whole)
