"""The conversion of every kind of image file that a collection may hold."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.conversion.images import ImageOptions, normalise
from fsdit.data.images.image_files import UnusableImageError
from tests.data_prep.conversion.comparison import close
from tests.data_prep.conversion.photos import encoded, photo

AS_PNG = ImageOptions(format="png")
PIXELS = np.asarray(photo(1))


def decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def pixels(data: bytes, options: ImageOptions = AS_PNG) -> np.ndarray:
    """Pixels of the stored image: exact ones, since it is a PNG by default."""
    image = normalise(data, options)
    result = decoded(image.data)
    assert result.shape[:2] == (image.height, image.width)
    return result


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_files_keep_their_pixels(kind):
    np.testing.assert_array_equal(pixels(encoded(photo(1), kind)), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000", "AVIF"])
def test_lossy_files_are_what_pillow_decodes(kind):
    data = encoded(photo(1), kind)
    np.testing.assert_array_equal(pixels(data), decoded(data))


def test_cmyk_becomes_rgb():
    data = encoded(photo(1).convert("CMYK"), quality=100, subsampling=0)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
    close(pixels(data), PIXELS, 12)


def test_greyscale_becomes_three_equal_channels_or_one():
    grey = photo(1).convert("L")
    rgb = pixels(encoded(grey.convert("LA"), "PNG"))
    np.testing.assert_array_equal(rgb, np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    one = pixels(encoded(photo(1), "PNG"), ImageOptions(channels=1, format="png"))
    np.testing.assert_array_equal(one, np.asarray(grey))


def test_16_bits_are_scaled_not_cut():
    values = np.linspace(0, 65535, 40 * 40).round().astype(np.uint16).reshape(40, 40)
    expected = np.round(values / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(values), kind)
        np.testing.assert_array_equal(
            pixels(data, ImageOptions(channels=1, format="png")), expected
        )
        np.testing.assert_array_equal(pixels(data), np.repeat(expected[..., None], 3, axis=2))


def test_palettes_become_their_colours():
    palette = photo(1).quantize(32)
    np.testing.assert_array_equal(
        pixels(encoded(palette, "PNG")), np.asarray(palette.convert("RGB"))
    )


@pytest.mark.parametrize(("background", "colour"), [("white", 255), ("#102030", (16, 32, 48))])
def test_alpha_is_laid_over_the_background(background, colour):
    image = photo(1).convert("RGBA")
    alpha = np.zeros((40, 40), np.uint8)
    alpha[:, 20:] = 255
    image.putalpha(Image.fromarray(alpha))
    result = pixels(encoded(image, "PNG"), ImageOptions(format="png", background=background))
    assert (result[:, :20] == colour).all()
    np.testing.assert_array_equal(result[:, 20:], PIXELS[:, 20:])


def test_alpha_of_a_palette_is_laid_over_the_background():
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.paste(1, (20, 0, 40, 40))
    result = pixels(encoded(palette, "PNG", transparency=0))
    assert (result[:, :20] == 255).all()
    assert (result[:, 20:] == (0, 0, 200)).all()
    result = pixels(encoded(palette, "PNG", transparency=bytes([128, 255])))
    close(result[:, :20], np.broadcast_to(np.uint8([227, 127, 127]), (40, 20, 3)), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once_and_gone(kind, orientation):
    upright = photo(1, 40, 24)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encoded(turned, kind, exif=exif, **exact.get(kind, {}))
    close(pixels(data), np.asarray(upright), 5 if kind == "JPEG" else 0)
    with Image.open(io.BytesIO(normalise(data, ImageOptions()).data)) as stored:
        assert stored.getexif().get(0x0112, 1) == 1
        assert stored.size == (40, 24)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_becomes_its_first_frame(kind):
    frames = [photo(i).quantize(64).convert("RGB") for i in (1, 2, 3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    for how in (AS_PNG, ImageOptions(format="auto")):
        result = normalise(data, how)
        with Image.open(io.BytesIO(result.data)) as image:
            assert getattr(image, "n_frames", 1) == 1
        close(decoded(result.data), np.asarray(frames[0]), 0 if how is AS_PNG else 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_original_bytes_are_kept_where_nothing_changes(kind):
    data = encoded(photo(1), kind)
    assert normalise(data, ImageOptions()).data == data
    assert normalise(data, ImageOptions(image_size=40, format=kind.lower())).data == data


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (encoded(photo(1), "PNG"), ImageOptions(format="jpeg")),
        (encoded(photo(1)), ImageOptions(format="webp")),
        (encoded(photo(1)), ImageOptions(image_size=39)),
        (encoded(photo(1)), ImageOptions(channels=1)),
        (encoded(photo(1), "BMP"), ImageOptions()),
        (encoded(photo(1).convert("CMYK")), ImageOptions()),
        (encoded(photo(1).convert("RGBA"), "PNG"), ImageOptions()),
    ],
)
def test_a_picture_that_changes_is_encoded_anew(data, options):
    image = normalise(data, options)
    assert image.data != data
    with Image.open(io.BytesIO(image.data)) as again:
        expected = "JPEG" if options.format == "auto" else options.format.upper()
        assert again.format == expected
        assert again.mode == ("L" if options.channels == 1 else "RGB")


def test_a_grey_jpeg_in_an_rgb_dataset_keeps_its_bytes():
    data = encoded(photo(1).convert("L"))
    assert normalise(data, ImageOptions()).data == data


def test_the_centre_is_cropped_or_all_is_squashed():
    wide = Image.new("RGB", (120, 40), (0, 0, 255))
    wide.paste((255, 0, 0), (40, 0, 80, 40))
    data = encoded(wide, "PNG")
    crop = pixels(data, ImageOptions(image_size=20, format="png"))
    assert crop.shape == (20, 20, 3)
    assert (crop[:, 3:17] == (255, 0, 0)).all()
    squash = pixels(data, ImageOptions(image_size=21, resize="squash", format="png"))
    assert squash.shape == (21, 21, 3)
    assert (squash[:, :4] == (0, 0, 255)).all() and (squash[:, 10] == (255, 0, 0)).all()
    assert (squash[:, 17:] == (0, 0, 255)).all()


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (120, 40, (0, 7, 21, 14)),
        (40, 120, (7, 0, 14, 21)),
        (60, 60, (0, 0, 21, 21)),
        (6, 3, (0, 5, 21, 15)),  # enlarged, as by the other ways to resize
        (900, 1, (0, 10, 21, 11)),  # never less than a pixel
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_padding_shows_the_whole_picture_in_the_middle_of_a_square(width, height, box, channels):
    data = encoded(Image.new("RGB", (width, height), (250, 20, 20)), "PNG")
    options = ImageOptions(channels, 21, resize="pad", background="#103050", format="png")
    expected = Image.new("RGB", (21, 21), (16, 48, 80))
    expected.paste((250, 20, 20), box)
    expected = expected.convert("L" if channels == 1 else "RGB")
    np.testing.assert_array_equal(pixels(data, options), np.asarray(expected))


def test_a_padded_picture_keeps_its_aspect_ratio():
    wide = photo(1, 200, 100)
    padded = pixels(encoded(wide, "PNG"), ImageOptions(image_size=50, resize="pad", format="png"))
    assert (padded[:12] == 255).all() and (padded[37:] == 255).all()
    inner = wide.resize((50, 25), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(padded[12:37], np.asarray(inner))


@pytest.mark.parametrize("side", [60, 512])
def test_shrinking_is_antialiased(side):
    """A one-pixel checkerboard has no detail that a smaller image could hold: it turns grey."""
    board = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)
    for data in (
        encoded(Image.fromarray(board), "PNG"),
        encoded(Image.fromarray(board), quality=100),
    ):
        small = pixels(data, ImageOptions(image_size=16, channels=1, format="png"))
        close(small[2:-2, 2:-2], np.full((12, 12), 128, np.uint8), 4)


def test_a_large_jpeg_shrinks_to_what_its_lossless_copy_does():
    """The JPEG decoder halves a large image itself, which leaves no visible trace."""
    large = photo(1, 1000, 700)
    exact = pixels(encoded(large, "PNG"), ImageOptions(image_size=64, format="png"))
    drafted = pixels(encoded(large, quality=100), ImageOptions(image_size=64, format="png"))
    close(drafted, exact, 6)


def test_equal_pixels_have_equal_digests_whatever_the_file():
    jpeg = encoded(photo(1))
    copy = encoded(Image.fromarray(decoded(jpeg)), "PNG")
    other = encoded(photo(2))
    digests = [normalise(data, ImageOptions(format="jpeg")).digest for data in (jpeg, copy, other)]
    assert digests[0] == digests[1] != digests[2]


def float_tiff() -> bytes:
    return encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")


def bomb() -> bytes:
    return encoded(Image.new("1", (10_000, 10_000)), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image of a known format"),
        (b"just text", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (encoded(photo(1, 300, 300))[:2000], "cannot be decoded: image file is truncated"),
        (encoded(photo(1), "PNG")[:-200], "cannot be decoded"),
        (encoded(photo(1), "WEBP")[:-100], "cannot be decoded"),
        (float_tiff(), "floating-point pixels"),
        (encoded(Image.fromarray(np.full((4, 4), -5, np.int32)), "TIFF"), "32-bit pixels"),
        (bomb(), "10000x10000 pixels, more than"),
        (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "decompression bomb"),
    ],
)
def test_an_unusable_image_is_refused_with_a_reason(data, reason):
    with pytest.raises(UnusableImageError, match=reason):
        normalise(data, ImageOptions())


def test_every_way_to_cut_a_file_short_is_a_reason_not_a_crash():
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        data = encoded(photo(1), kind)
        for end in range(0, len(data), 37):
            try:
                image = normalise(data[:end], ImageOptions(image_size=16))
            except UnusableImageError as error:
                assert str(error)
            else:  # a file without its last bytes may still have all pixels
                assert image.digest == normalise(data, ImageOptions(image_size=16)).digest
