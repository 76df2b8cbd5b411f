"""Colours of a picture with an embedded ICC profile -> sRGB, as a viewer shows them."""

import dataclasses
import functools
import io

import numpy as np
from PIL import Image, ImageChops, ImageCms

# Colour space in the header of a profile -> Pillow's mode.
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# Profiles of sRGB differ from one another by rounding, up to this many levels of 255.
_INVISIBLE = 2


@dataclasses.dataclass(frozen=True, eq=False)
class ToSrgb:
    """Maps pixels of `mode` (RGB, L or CMYK) to RGB pixels of sRGB."""

    mode: str
    transform: ImageCms.ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns RGB, or RGBA where the image has an alpha channel, which stays as it is."""
        result = self.transform.apply(image.convert(self.mode))
        if image.mode in ("LA", "RGBA"):
            result.putalpha(image.getchannel("A"))
        return result


def to_srgb(image: Image.Image) -> ToSrgb | None:
    """Returns the conversion that a picture's profile demands; None where there is none to do.

    Pixels without a profile are taken for sRGB, and so are those whose profile cannot be used:
    a damaged one, or one of another kind of pixel. CIELAB needs no profile.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or image.mode == "LAB":
        return None
    found = _read(profile)
    if found is None or (found.mode == "CMYK") != (image.mode == "CMYK"):
        return None
    if found.mode == "L" and not _is_grey(image):
        return None
    return found


@functools.lru_cache(maxsize=8)
def _read(profile: bytes) -> ToSrgb | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space]
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, KeyError, ImageCms.PyCMSError):
        return None
    found = ToSrgb(mode, transform)
    return found if mode == "CMYK" or _is_visible(found) else None


def _is_visible(found: ToSrgb) -> bool:
    """Whether the conversion changes a colour of a lattice by more than _INVISIBLE levels."""
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 18, 3)
    if found.mode == "L":
        lattice = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    changed = np.asarray(found(Image.fromarray(lattice)))
    return bool(np.abs(changed.astype(np.int16) - lattice).max() > _INVISIBLE)


def _is_grey(image: Image.Image) -> bool:
    """Whether all pixels are grey, also where they are stored as colours."""
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
        return True
    red, green, blue = image.convert("RGB").split()
    return not (
        ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox()
    )
