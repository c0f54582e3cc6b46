"""Looks at one slide before it is ingested: what its file holds, and where its tissue is."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.io.scratch import Scratch
from pipeline.io.staging import stage
from pipeline.io.storage import describe
from pipeline.records import Slide
from pipeline.slides.colour import name_profile
from pipeline.slides.formats import require_whole
from pipeline.slides.readers.protocol import SlideReader
from pipeline.slides.readers.registry import open_slide
from pipeline.slides.settings import SlideSettings
from pipeline.slides.survey.review import draw_review
from pipeline.slides.survey.thumbnail import choose_thumbnail_level, read_thumbnail
from pipeline.slides.survey.tissue import find_tissue
from pipeline.slides.tiling import choose_tiles, make_grid, measure_tile_extent_yx

# Tissue is looked for unasked where no more pixels than these have to be decoded.
_CHEAP_PX: Final = 1 << 26
_MOST_SIDE_PX: Final = 4096
_PICTURE_SIDE_PX: Final = 1024


@dataclass(frozen=True, slots=True)
class InspectedLevel:
    """One level of a slide.

    Args:
        shape_yx: Height and width in pixels of the level.
        downsample_yx: Level-0 pixels per pixel of the level, for each axis.
        tile_yx: Height and width of its stored tiles in pixels; None where it has none, or the
            format does not say.
    """

    shape_yx: tuple[int, int]
    downsample_yx: tuple[float, float]
    tile_yx: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a slide's file holds.

    Args:
        item: Path or URL of the slide.
        size_bytes: Bytes of all its files together.
        file_count: Number of its files.
        reader: Name of the reader that opens it, e.g. `openslide`.
        vendor: Name of the format or of the scanner's maker.
        levels: Levels of the pyramid, the finest first.
        mpp_yx: Micrometres per level-0 pixel, (y, x); None where the file gives none.
        mpp_source: Place in the file that states `mpp_yx`, or the problem where there is none.
        icc_profile: Name of the ICC profile; "" for a slide without one.
        associated: Names of the pictures beside the slide, which may show a patient's name.
        tile_count: Number of tiles that an ingest with the default settings makes; None where
            that is unknown without um/px, or takes long to find.
        remark: Reason that stands in the way of an ingest, e.g. pixels too coarse for tiles, and
            what the file contradicts itself in; "" where there is none.
    """

    item: str
    size_bytes: int
    file_count: int
    reader: str
    vendor: str
    levels: tuple[InspectedLevel, ...]
    mpp_yx: tuple[float, float] | None
    mpp_source: str
    icc_profile: str
    associated: tuple[str, ...]
    tile_count: int | None
    remark: str = ""


def inspect_slide(
    slide: Slide, *, with_picture: bool = False, scratch: Scratch | None = None
) -> tuple[Inspection, bytes | None]:
    """Look at a slide: its levels, um/px, format, colours, and the tiles it would give.

    Args:
        slide: The slide as listed.
        with_picture: Whether to draw the slide with the outline of its tissue. No picture that
            lies beside the slide is read.
        scratch: Folder where a slide on object storage is staged; None for the default one.

    Returns:
        The findings, and a PNG of at most 1024 px where it was asked for.

    Raises:
        SourceError: The slide cannot be opened.
        StorageError: The slide cannot be fetched.
    """
    require_whole(slide)
    urls = (slide.url, *slide.companions)
    size_bytes = sum(describe(url).size_bytes for url in urls)
    with stage(slide.url, slide.version, slide.companions, scratch=scratch) as path:
        opened, problem = _open_anyhow(path, slide.url)
        with opened as reader:
            tissue = _Tissue(reader, slide, has_mpp=not problem)
            is_wanted = with_picture or tissue.is_cheap
            tile_count, picture, remark = tissue.measure(with_picture) if is_wanted else NOTHING
            remark = "; ".join(filter(None, (reader.mpp_remark, remark)))
            found = Inspection(
                item=slide.url,
                size_bytes=size_bytes,
                file_count=len(urls),
                reader=reader.name,
                vendor=reader.vendor,
                levels=tuple(
                    map(
                        InspectedLevel,
                        reader.level_shapes_yx,
                        reader.level_downsamples_yx,
                        reader.level_tiles_yx,
                    )
                ),
                mpp_yx=None if problem else reader.mpp_yx,
                mpp_source=problem or reader.mpp_source,
                icc_profile=name_profile(reader.icc_profile) if reader.icc_profile else "",
                associated=reader.associated,
                tile_count=tile_count,
                remark=remark,
            )
    return found, picture


# Tiles, picture and remark where nothing was measured.
NOTHING: Final[tuple[int | None, bytes | None, str]] = (None, None, "")


def _open_anyhow(path: Path, item: str) -> tuple[SlideReader, str]:
    """Open a slide even where its um/px is absent or impossible, and say that."""
    try:
        return open_slide(path, item=item), ""
    except SourceError as error:
        try:
            return open_slide(path, item=item, mpp_override_um=1.0), error.problem
        except SourceError:
            raise error from None


class _Tissue:
    """The tissue of an open slide, on a thumbnail as an ingest reads it.

    Args:
        reader: The open slide.
        slide: The slide as listed.
        has_mpp: Whether the file gives its um/px; without, there are no tiles to count.
    """

    def __init__(self, reader: SlideReader, slide: Slide, *, has_mpp: bool) -> None:
        self._reader, self._slide, self._has_mpp = reader, slide, has_mpp
        self._settings = SlideSettings()
        sides_um = np.multiply(reader.level_shapes_yx[0], reader.mpp_yx)
        side_px = ceil(float(sides_um.max()) / self._settings.mask_mpp_um)
        self._side_px = min(_MOST_SIDE_PX, side_px if has_mpp else _PICTURE_SIDE_PX)

    @property
    def is_cheap(self) -> bool:
        """Whether the level that shows the tissue is small."""
        level = choose_thumbnail_level(self._reader, self._side_px)
        height, width = self._reader.level_shapes_yx[level]
        return self._has_mpp and height * width <= _CHEAP_PX

    def measure(self, with_picture: bool) -> tuple[int | None, bytes | None, str]:
        """Find tissue; return the number of tiles, the picture where wanted, and a remark."""
        thumbnail = read_thumbnail(self._reader, self._side_px)
        mask = find_tissue(thumbnail.pixels).is_tissue | ~thumbnail.is_readable
        count, remark = self._count_tiles(mask) if self._has_mpp else (None, "")
        if not thumbnail.is_readable.all():
            share = 1 - float(thumbnail.is_readable.mean())
            remark = "; ".join(filter(None, (remark, f"{share:.1%} of it cannot be read")))
        picture = self._draw(thumbnail.pixels, mask) if with_picture else None
        return count, picture, remark

    def _count_tiles(self, mask: NDArray[np.bool_]) -> tuple[int | None, str]:
        settings, shape_yx = self._settings, self._reader.level_shapes_yx[0]
        try:
            extent_yx = measure_tile_extent_yx(
                self._reader.mpp_yx, settings.mpp_um, settings.tile_size_px
            )
        except ValueError as error:
            return None, str(error)
        grid = make_grid(mask, shape_yx, extent_yx, extent_yx)
        return len(choose_tiles(self._slide, grid, None, extent_yx, settings, False).chosen), ""

    def _draw(self, pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> bytes:
        no_tiles = np.empty((0, 2), np.int64)
        return draw_review(pixels, mask, self._reader.level_shapes_yx[0], no_tiles, (1, 1), None)
