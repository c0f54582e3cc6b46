"""Reads a plain JPEG or PNG as a slide of one level, decoded whole and so limited in size."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import SourceError
from pipeline.slides.readers.level_reader import LevelReader, SlideFacts

MOST_PIXELS: Final = 178_956_970  # Pillow's own limit; 512 MiB as RGB
_SIGNATURES: Final = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
_RGB_MODES: Final = frozenset({"RGB", "RGBA", "P"})


class PictureReader(LevelReader):
    """A JPEG or PNG picture. It states no um/px: its dots per inch are those of print.

    A rotation in its EXIF data is applied, so that coordinates are those that a viewer shows.
    """

    name: ClassVar[str] = "pillow"

    @classmethod
    def can_open(cls, path: Path) -> bool:
        """Tell from the first bytes, whatever the suffix."""
        return _find_kind(path) != ""

    def open(self, path: Path) -> SlideFacts:
        """Decode the whole picture.

        Raises:
            SourceError: It is too large, or not 8-bit RGB.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            try:
                opened = Image.open(path, formats=[_find_kind(path)])
            except Image.DecompressionBombError as error:
                raise SourceError(
                    self.item,
                    f"a picture of more than {MOST_PIXELS} pixels, too large to be decoded whole",
                    "Convert it to a tiled TIFF",
                ) from error
            with opened as image:
                return self._decode(image)

    def read(
        self,
        level: int,  # noqa: ARG002 - there is one
        start_yx: tuple[int, int],
        shape_yx: tuple[int, int],
    ) -> NDArray[np.uint8]:
        """Copy a rectangle."""
        (y, x), (height, width) = start_yx, shape_yx
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:
        """Free the pixels."""
        self._pixels = np.empty((0, 0, 3), np.uint8)

    def _decode(self, image: Image.Image) -> SlideFacts:
        if image.mode not in _RGB_MODES or _is_deep(image):
            bits = "16" if _is_deep(image) else "8"
            found = self.refuse(f"{image.format}, pixels of {image.mode} in {bits} bit").problem
            raise SourceError(self.item, found, "`normscope ingest images` reads radiographs")
        kind, profile = str(image.format).lower(), image.info.get("icc_profile")
        self._pixels = _to_rgb(ImageOps.exif_transpose(image))
        height, width = self._pixels.shape[:2]
        return SlideFacts(((height, width),), vendor=kind, icc_profile=profile)


def _find_kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return ""
    return next((kind for magic, kind in _SIGNATURES.items() if start.startswith(magic)), "")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert to RGB; what is transparent is white, as glass is."""
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))


def _is_deep(image: Image.Image) -> bool:
    """Tell whether samples have 16 bits, of which Pillow quietly drops the lower ones."""
    return any("16" in str(tile) for tile in getattr(image, "tile", ()))
