"""Converts a scanner's colours to sRGB by the ICC profile that its file holds. Pure.

Scanners record the same stain in different colours, and an ICC profile says how they differ. The
conversion is LittleCMS's, by the profile's own rendering intent.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.errors import SourceError

_REMEDY: Final = "Ingest it with `icc` set to `keep`, or leave it out"


def convert_to_srgb(
    pixels: NDArray[np.uint8], profile: bytes | None, item: str
) -> NDArray[np.uint8]:
    """Convert colours to sRGB; without a profile they stay as they are.

    Args:
        pixels: uint8 (..., y, x, 3), RGB of the scanner: a tile, a batch of tiles or a thumbnail.
        profile: ICC profile of the pixels, e.g. `SlideReader.icc_profile`; None where there is
            none.
        item: Name of the slide, for errors.

    Returns:
        uint8 of the same shape, sRGB; `pixels` itself where there is no profile.

    Raises:
        SourceError: The profile is damaged, or of other colours than RGB.
    """
    if profile is None or not pixels.size:
        return pixels
    try:
        transform = _make_transform(profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise SourceError(item, f"its ICC profile cannot be used ({error})", _REMEDY) from error
    # Of any number of dimensions one picture, as a transform takes each pixel by itself.
    flat = Image.fromarray(np.ascontiguousarray(pixels).reshape(-1, pixels.shape[-2], 3))
    return np.asarray(transform.apply(flat)).reshape(pixels.shape)


def name_profile(profile: bytes) -> str:
    """Return the name that an ICC profile gives itself; "unreadable" for a damaged one."""
    try:
        name = ImageCms.getProfileDescription(_open(profile))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "unreadable"
    return " ".join(name.split()) or "without a name"


@lru_cache(maxsize=8)
def _make_transform(profile: bytes) -> ImageCms.ImageCmsTransform:
    opened = _open(profile)
    space = opened.profile.xcolor_space.strip()
    if space != "RGB":
        raise ValueError(f"it is of {space} colours, the pixels of RGB")
    intent = ImageCms.Intent(ImageCms.getDefaultIntent(opened))
    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(opened, srgb, "RGB", "RGB", renderingIntent=intent)


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(BytesIO(profile))
