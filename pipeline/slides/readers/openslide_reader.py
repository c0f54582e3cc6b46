"""Opens and checks whole-slide files, and reads regions of them. The only importer of openslide."""

from __future__ import annotations

import json
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import ClassVar, Final, Self

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.slides.formats import find_companions
from pipeline.slides.readers.protocol import READ_REMEDY
from pipeline.slides.resolution import find_mpp

_DIGEST_BLOCK_BYTES: Final = 1 << 16
_DIGEST_BLOCKS: Final = 64


class OpenSlideReader:
    """One open slide of any vendor's format. Coordinates are (y, x); level 0 is the finest.

    Entering it as a context reads a pixel; leaving it closes the file. It belongs to one thread.

    Pixels that a format stores nothing for (alpha 0: between the scanned parts of a MIRAX slide,
    for example) are background by the format's definition and come out white. Pixels that are
    stored but corrupt raise an error instead.

    OpenSlide refuses every read after the first failed one, so the file is opened anew after an
    error and the next read starts afresh.

    Args:
        path: A local file; of a slide of several files, see `pipeline.slides.formats`, any DICOM
            file, or the `.mrxs`, `.vms` or `.vmu`.
        item: Name of the slide for errors, e.g. the URL that the file was staged from.
        mpp_override_um: um per level-0 pixel, both axes, in place of what the file says.
        mpp_fallback_um: um per level-0 pixel, both axes, where the file has none.

    Attributes:
        level_shapes_yx: Height and width of each level in its own pixels.
        level_downsamples_yx: Level-0 pixels per pixel of each level, for each axis by itself.
        mpp_yx: Micrometres per level-0 pixel.
        mpp_source: Origin of `mpp_yx`.
        vendor: OpenSlide's name of the format.

    Raises:
        SourceError: OpenSlide refuses the file, its um/px is absent or impossible or, on entering,
            none of its pixels can be read.
    """

    name: ClassVar[str] = "openslide"

    @classmethod
    def can_open(cls, path: Path) -> bool:
        """Tell whether OpenSlide knows the format of a local file."""
        try:
            return openslide.OpenSlide.detect_format(path) is not None
        except (openslide.OpenSlideError, OSError):
            return False

    def __init__(
        self,
        path: Path,
        *,
        item: str | None = None,
        mpp_override_um: float | None = None,
        mpp_fallback_um: float | None = None,
    ) -> None:
        self._path, self.item = path, item or str(path)
        self._slide = self._open()
        self.level_shapes_yx = tuple((h, w) for w, h in self._slide.level_dimensions)
        height, width = self.level_shapes_yx[0]
        self.level_downsamples_yx = tuple((height / h, width / w) for h, w in self.level_shapes_yx)
        self.mpp_yx, self.mpp_source = find_mpp(
            self._slide.properties, mpp_override_um, self.item, fallback_um=mpp_fallback_um
        )
        self.vendor = self._slide.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.level_tiles_yx = tuple(map(self._find_tile_yx, range(len(self.level_shapes_yx))))
        self.associated = tuple(sorted(self._slide.associated_images))
        # It comes with every region, this one of no pixel too.
        self.icc_profile = self._slide.read_region((0, 0), 0, (0, 0)).info.get("icc_profile")

    def __enter__(self) -> Self:
        try:
            self._require_readable()
        except SourceError:
            self._slide.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._slide.close()

    def read_region_yx(
        self, origin_yx: tuple[int, int], level: int, shape_yx: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a rectangle of one level.

        Each axis has its own downsample, whereas OpenSlide knows only their mean: the difference
        is corrected here. See `find_start_yx` and `gives_whole_pixels`.

        Args:
            origin_yx: Upper left corner in level-0 pixels.
            level: Number of the level; 0 is the finest.
            shape_yx: Height and width in pixels of that level.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            ValueError: The rectangle does not lie within the slide.
            SourceError: The file is corrupt there.
        """
        start_yx = self.find_start_yx(origin_yx, level, shape_yx)
        # OpenSlide divides its level-0 location by the mean of both axes' downsamples.
        mean_downsample = self._slide.level_downsamples[level]
        location_xy = (
            ceil(start_yx[1] * mean_downsample - 0.5),
            ceil(start_yx[0] * mean_downsample - 0.5),
        )
        try:
            region = self._slide.read_region(location_xy, level, (shape_yx[1], shape_yx[0]))
        except openslide.OpenSlideError as error:
            self._slide.close()
            self._slide = self._open()
            raise SourceError(
                self.item,
                f"cannot read {shape_yx[0]}x{shape_yx[1]} px at (y={origin_yx[0]}, "
                f"x={origin_yx[1]}) of level {level} ({error})",
                READ_REMEDY,
            ) from error
        return _composite_on_white(region)

    def gives_whole_pixels(self, level: int) -> bool:
        """Tell whether pixels of a level come out as stored.

        Where the mean downsample is no whole number, OpenSlide's level-0 location falls between
        pixels of the level, and OpenSlide interpolates.
        """
        return float(self._slide.level_downsamples[level]).is_integer()

    def find_start_yx(
        self, origin_yx: tuple[int, int], level: int, shape_yx: tuple[int, int]
    ) -> tuple[int, int]:
        """Find where a rectangle begins, in whole pixels of its level.

        Where rounding the origin moves the rectangle out of the level, it is moved back inside.

        Args:
            origin_yx: Upper left corner in level-0 pixels.
            level: Number of the level; 0 is the finest.
            shape_yx: Height and width in pixels of that level.

        Raises:
            ValueError: The rectangle does not lie within the slide.
        """
        starts = []
        for origin, size, downsample, available in zip(
            origin_yx,
            shape_yx,
            self.level_downsamples_yx[level],
            self.level_shapes_yx[level],
            strict=True,
        ):
            start = origin / downsample
            if start < 0 or size < 1 or size > available or start + size >= available + 2:
                raise ValueError(
                    f"a region of {shape_yx} px at origin_yx={origin_yx} (level-0 px) leaves level "
                    f"{level} of {self.item}, which has {self.level_shapes_yx[level]} px: "
                    "keep it inside"
                )
            starts.append(min(round(start), available - size))
        return starts[0], starts[1]

    def _find_tile_yx(self, level: int) -> tuple[int, int] | None:
        sides = [
            self._slide.properties.get(f"openslide.level[{level}].tile-{side}")
            for side in ("height", "width")
        ]
        return (int(sides[0]), int(sides[1])) if sides[0] and sides[1] else None

    def _require_readable(self) -> None:
        """Read a pixel at the centre or, failing that, at a corner of the coarsest level."""
        level = len(self.level_shapes_yx) - 1
        (height, width) = self.level_shapes_yx[0]
        bottom, right = (int(d) for d in self.level_downsamples_yx[level])
        far_y, far_x = max(0, height - bottom - 1), max(0, width - right - 1)
        places = [(height // 2, width // 2), (0, 0), (0, far_x), (far_y, 0), (far_y, far_x)]
        errors = []
        for place in places:
            try:
                self.read_region_yx(place, level, (1, 1))
            except SourceError as error:
                errors.append(error)
            else:
                return
        raise errors[0]

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SourceError(
                self.item,
                f"OpenSlide cannot open it ({error}): truncated, corrupt or not a slide",
                READ_REMEDY,
            ) from error


def digest_slide(path: Path) -> str:
    """Identify a slide's content, that of all its files, in constant memory.

    Files up to 4 MiB count whole. Of larger ones 64 blocks of 64 KiB count, evenly spaced from
    the first byte to the last, and the size: a download that broke off, another scan or another
    encoding shows; one byte flipped between the blocks does not.

    Returns:
        SHA-256 in hexadecimal.
    """
    if not (companions := find_companions(path)):
        return _digest_file(path)
    files = [(file.name, _digest_file(file)) for file in (path, *companions)]
    return sha256(json.dumps(files).encode()).hexdigest()


def _digest_file(path: Path) -> str:
    size = path.stat().st_size
    digest = sha256(size.to_bytes(8, "big"))
    last = max(0, size - _DIGEST_BLOCK_BYTES)
    is_small = size <= _DIGEST_BLOCKS * _DIGEST_BLOCK_BYTES
    offsets = (
        range(0, max(size, 1), _DIGEST_BLOCK_BYTES)
        if is_small
        else [last * block // (_DIGEST_BLOCKS - 1) for block in range(_DIGEST_BLOCKS)]
    )
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            digest.update(file.read(_DIGEST_BLOCK_BYTES))
    return digest.hexdigest()


def _composite_on_white(region: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(region)
    if (pixels[..., 3] == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    white = Image.new("RGBA", region.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, region).convert("RGB"))
