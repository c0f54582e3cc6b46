"""Opens and checks whole-slide files, and reads regions of them. The only importer of openslide."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import ClassVar

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.slides.readers.level_reader import LevelReader, SlideFacts
from pipeline.slides.readers.protocol import READ_REMEDY
from pipeline.slides.resolution import read_stated_mpp


class OpenSlideReader(LevelReader):
    """One open slide of a format that OpenSlide knows.

    Pixels that a format stores nothing for (alpha 0: between the scanned parts of a MIRAX slide,
    for example) are background by the format's definition and come out white. Pixels that are
    stored but corrupt raise an error instead.

    OpenSlide refuses every read after the first failed one, so the file is opened anew after an
    error and the next read starts afresh.
    """

    name: ClassVar[str] = "openslide"

    @classmethod
    def can_open(cls, path: Path) -> bool:
        """Tell whether OpenSlide knows the format of a local file."""
        try:
            return openslide.OpenSlide.detect_format(path) is not None
        except (openslide.OpenSlideError, OSError):
            return False

    def open(self, path: Path) -> SlideFacts:
        """Open a slide; of one of several files any DICOM file, or the `.mrxs`, `.vms` or `.vmu`.

        Raises:
            SourceError: OpenSlide refuses it.
        """
        self._path, self._slide = path, self._open_anew(path)
        properties = self._slide.properties
        return SlideFacts(
            tuple((h, w) for w, h in self._slide.level_dimensions),
            vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
            mpp=read_stated_mpp(properties),
            level_tiles_yx=tuple(
                _find_tile_yx(properties, level) for level in range(self._slide.level_count)
            ),
            # It comes with every region, this one of no pixel too.
            icc_profile=self._slide.read_region((0, 0), 0, (0, 0)).info.get("icc_profile"),
            associated=tuple(sorted(self._slide.associated_images)),
            bounds_yxhw=_find_bounds(properties),
        )

    def read(
        self, level: int, start_yx: tuple[int, int], shape_yx: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a rectangle of a level.

        Each axis has its own downsample, whereas OpenSlide knows only their mean: the difference
        is corrected here. See `gives_whole_pixels`.
        """
        # OpenSlide divides its level-0 location by the mean of both axes' downsamples.
        mean_downsample = self._slide.level_downsamples[level]
        location_xy = (
            ceil(start_yx[1] * mean_downsample - 0.5),
            ceil(start_yx[0] * mean_downsample - 0.5),
        )
        try:
            region = self._slide.read_region(location_xy, level, (shape_yx[1], shape_yx[0]))
        except openslide.OpenSlideError:
            self._slide.close()
            self._slide = self._open_anew(self._path)
            raise
        return _composite_on_white(region)

    def gives_whole_pixels(self, level: int) -> bool:
        """Tell whether pixels of a level come out as stored.

        Where the mean downsample is no whole number, OpenSlide's level-0 location falls between
        pixels of the level, and OpenSlide interpolates.
        """
        return float(self._slide.level_downsamples[level]).is_integer()

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def _open_anew(self, path: Path) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SourceError(
                self.item,
                f"OpenSlide cannot open it ({error}): truncated, corrupt or not a slide",
                READ_REMEDY,
            ) from error


def _find_bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    sides = [properties.get(f"openslide.bounds-{side}") for side in ("y", "x", "height", "width")]
    if not all(sides):
        return None
    y, x, height, width = (int(side or 0) for side in sides)
    return y, x, height, width


def _find_tile_yx(properties: Mapping[str, str], level: int) -> tuple[int, int] | None:
    sides = [
        properties.get(f"openslide.level[{level}].tile-{side}") for side in ("height", "width")
    ]
    return (int(sides[0]), int(sides[1])) if sides[0] and sides[1] else None


def _composite_on_white(region: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(region)
    if (pixels[..., 3] == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    white = Image.new("RGBA", region.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, region).convert("RGB"))
