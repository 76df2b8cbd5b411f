"""Embedded ICC profiles: conversions and supports have the colours that a viewer shows."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_prep.conversion.images import ImageOptions, normalise
from fsdit.data.images.photos import Preparation, read_photo
from tests.data_prep.conversion import profiles
from tests.data_prep.conversion.comparison import close
from tests.data_prep.conversion.photos import encoded, photo

P3 = profiles.rgb_profile(profiles.DISPLAY_P3)
ADOBE = profiles.rgb_profile(profiles.ADOBE_RGB, gamma=563 / 256)
SWAPPED = profiles.rgb_profile(profiles.SWAPPED)
LINEAR = profiles.rgb_profile(profiles.SRGB, gamma=1.0)
GREY = profiles.grey_profile(1.0)
CMYK = profiles.cmyk_profile()
SRGB = profiles.rgb_profile(profiles.SRGB)
LITTLE_CMS_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
PHOTO = photo(1)
AS_PNG = ImageOptions(format="png")
LOSSLESS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}


def file_of(image: Image.Image, kind: str, profile: bytes) -> bytes:
    return encoded(image, kind, icc_profile=profile, **LOSSLESS.get(kind, {}))


def jpeg2000_of(image: Image.Image, profile: bytes) -> bytes:
    """A JPEG 2000 file with a profile in place of the colour space's number that Pillow writes."""
    data = encoded(image, "JPEG2000")
    number = b"\x00\x00\x00\x0fcolr" + b"\x01\x00\x00\x00\x00\x00"
    place, header = data.index(number), data.index(b"jp2h") - 4
    box = (11 + len(profile)).to_bytes(4, "big") + b"colr\x02\x00\x00" + profile
    length = int.from_bytes(data[header : header + 4], "big") + len(box) - 15
    head = data[:header] + length.to_bytes(4, "big") + data[header + 4 : place]
    return head + box + data[place + 15 :]


def managed(image: Image.Image, profile: bytes) -> np.ndarray:
    """The image in sRGB, converted by Pillow's own function."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    result = ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    return np.asarray(result)


def converted(data: bytes, channels: int = 3, **options) -> np.ndarray:
    made = normalise(data, ImageOptions(format="png", channels=channels, **options))
    with Image.open(io.BytesIO(made.data)) as image:
        return np.asarray(image.convert("RGB" if channels == 3 else "L"))


@pytest.mark.parametrize(
    ("profile", "mode", "kind", "kind_of_pixel"),
    [
        pytest.param(P3, "RGB", "PNG", "RGB", id="Display P3 in PNG"),
        pytest.param(P3, "RGB", "JPEG", "RGB", id="Display P3 in JPEG"),
        pytest.param(P3, "RGB", "WEBP", "RGB", id="Display P3 in WebP"),
        pytest.param(P3, "RGB", "TIFF", "RGB", id="Display P3 in TIFF"),
        pytest.param(P3, "RGB", "AVIF", "RGB", id="Display P3 in AVIF"),
        pytest.param(ADOBE, "RGB", "JPEG", "RGB", id="Adobe RGB"),
        pytest.param(SWAPPED, "P", "PNG", "RGB", id="palette"),
        # The standard forbids a profile of colours on grey pixels, but browsers apply it.
        pytest.param(LINEAR, "L", "PNG", "RGB", id="colours on grey"),
        pytest.param(GREY, "L", "PNG", "L", id="grey in PNG"),
        pytest.param(GREY, "L", "JPEG", "L", id="grey in JPEG"),
        pytest.param(CMYK, "CMYK", "TIFF", "CMYK", id="CMYK in TIFF"),
        # Pillow writes an Adobe marker, which inverts the values.
        pytest.param(CMYK, "CMYK", "JPEG", "CMYK", id="CMYK in JPEG"),
    ],
)
def test_a_picture_is_as_its_profile_says(profile, mode, kind, kind_of_pixel, tmp_path):
    data = file_of(PHOTO.convert(mode), kind, profile)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode and image.info["icc_profile"] == profile
        plain = image.convert(kind_of_pixel)
        expected = managed(plain, profile)
    np.testing.assert_array_equal(converted(data), expected)
    assert np.abs(expected.astype(int) - np.asarray(plain.convert("RGB"))).max() > 10
    path = tmp_path / "support"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_photo(path, 40, 3), expected)


@pytest.mark.parametrize(
    ("colorants", "gamma", "profile"),
    [(profiles.DISPLAY_P3, None, P3), (profiles.ADOBE_RGB, 563 / 256, ADOBE)],
    ids=["Display P3", "Adobe RGB"],
)
def test_colours_are_those_of_the_formulas(colorants, gamma, profile):
    values = np.asarray(PHOTO) / 255
    linear = profiles.srgb_to_linear(values) if gamma is None else values**gamma
    xyz = linear @ colorants.T
    expected = 255 * profiles.linear_to_srgb(xyz @ np.linalg.inv(profiles.SRGB).T)
    close(converted(file_of(PHOTO, "PNG", profile)), np.round(expected).astype(np.uint8), 2)


@pytest.mark.parametrize(("mode", "profile"), [("RGB", P3), ("L", GREY), ("RGB", P3[:99])])
def test_a_profile_in_jpeg_2000_is_applied_too(mode, profile):
    image = PHOTO.convert(mode)
    found = converted(jpeg2000_of(image, profile))
    usable = profile != P3[:99]
    expected = managed(image, profile) if usable else np.asarray(image)
    np.testing.assert_array_equal(found, expected)


def test_greyscale_is_made_of_the_shown_colours():
    shown = Image.fromarray(managed(PHOTO, P3)).convert("L")
    np.testing.assert_array_equal(
        converted(file_of(PHOTO, "PNG", P3), channels=1), np.asarray(shown)
    )
    linear = np.asarray(PHOTO.convert("L")) / 255
    expected = np.round(255 * profiles.linear_to_srgb(linear)).astype(np.uint8)
    close(converted(file_of(PHOTO.convert("L"), "PNG", GREY), channels=1), expected, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept_and_laid_over_a_background_of_srgb(mode):
    image, profile = PHOTO.convert(mode), SWAPPED if mode == "RGBA" else GREY
    alpha = np.zeros((40, 40), np.uint8)
    alpha[:, 20:] = 255
    image.putalpha(Image.fromarray(alpha))
    result = converted(file_of(image, "PNG", profile), background="#c80a28")
    assert (result[:, :20] == (200, 10, 40)).all()
    shown = managed(PHOTO.convert("L" if mode == "LA" else "RGB"), profile)
    np.testing.assert_array_equal(result[:, 20:], shown[:, 20:])


@pytest.mark.parametrize(
    ("name", "profile", "mode"),
    [
        ("sRGB", SRGB, "RGB"),
        ("sRGB of LittleCMS", LITTLE_CMS_SRGB, "RGB"),
        ("sRGB of a grey picture", SRGB, "L"),
        ("cut off", P3[:200], "RGB"),
        ("no profile at all", b"x" * 500, "RGB"),
        ("of another space", CMYK, "RGB"),
        ("of another space", GREY, "RGB"),
        ("of no device", LAB, "RGB"),
        ("damaged", P3[:4] + bytes(40) + P3[44:], "RGB"),
        ("empty", b"", "RGB"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_profile_that_changes_nothing_or_is_unusable_is_ignored(name, profile, mode, kind):
    image = PHOTO.convert(mode)
    data = file_of(image, kind, profile)
    assert normalise(data, ImageOptions()).data == data, "the original bytes were not kept"
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(converted(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("stored", ["auto", "png", "jpeg", "webp"])
def test_what_is_stored_is_srgb_and_carries_no_profile(kind, stored):
    data = file_of(PHOTO, kind, SWAPPED)
    made = normalise(data, ImageOptions(format=stored, quality=100))
    assert made.data != data
    with Image.open(io.BytesIO(made.data)) as image:
        assert "icc_profile" not in image.info
        lossless = (kind, stored) == ("PNG", "png")
        close(np.asarray(image), managed(PHOTO, SWAPPED), 0 if lossless else 30)


def test_digests_are_equal_where_the_shown_colours_are_equal():
    tagged = normalise(file_of(PHOTO, "PNG", SWAPPED), AS_PNG)
    plain = normalise(encoded(PHOTO, "PNG"), AS_PNG)
    assert tagged.digest != plain.digest
    shown = normalise(encoded(Image.fromarray(managed(PHOTO, SWAPPED)), "PNG"), AS_PNG)
    assert tagged.digest == shown.digest


def test_a_support_is_prepared_with_its_profile_after_its_transparency(tmp_path):
    """A palette's transparent entries keep the background's colour, not the profile's."""
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (20, 0, 40, 40))
    path = tmp_path / "support.png"
    palette.save(path, transparency=0, icc_profile=SWAPPED)
    result = read_photo(path, 40, 3, Preparation(background="red"))
    assert (result[:, :20] == (255, 0, 0)).all()
    shown = managed(Image.new("RGB", (1, 1), (255, 0, 0)), SWAPPED)[0, 0]
    assert shown[1] > 200 and (result[:, 20:] == shown).all()
