"""Reads the planned tiles of a slide: the right level, the wanted um/px, corrupt ones apart."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.jpeg_tiles import JpegTiles, open_jpeg_tiles
from pipeline.plan import SourceRead
from pipeline.quality import QUALITY_COLUMNS, measure_quality
from pipeline.records import Slide
from pipeline.schema import Array
from pipeline.slides import OpenSlideReader, SlideReader, digest_slide, open_slide
from pipeline.staging import stage
from pipeline.tiling import PairYX, choose_level, measure_tile_extent_yx

Decoder: TypeAlias = Literal["jpeg", "openslide"]
DECODER_COLUMN: Final = "decoder"
_MEASURED_TOGETHER: Final = 8  # tiles


class _Memory(threading.local):
    """The images of a thread's last read: fresh memory can cost as much as a tile's decode."""

    kept: NDArray[np.uint8] = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of whatever was there before, which ends the use of the one before."""
        size = math.prod(shape)
        if self.kept.size < size:
            self.kept = np.empty(size, np.uint8)
        return self.kept[:size].reshape(shape)


_memory: Final = _Memory()


@dataclass(frozen=True)
class SlideTileReader:
    """A `plan.Reader` of `records.Slide`.

    Args:
        tile_size_px: Height and width of a tile.
        mpp_um: um per tile pixel.
        mpp_override_um: um per level-0 pixel in place of what the slide says, or None.
    """

    tile_size_px: int
    mpp_um: float
    mpp_override_um: float | None = None

    def read(self, source: Slide, rows: Mapping[str, Array]) -> SourceRead:
        """Read tiles of one slide.

        Args:
            source: The slide.
            rows: `origin_yx`, (n, 2) int64, level-0 pixels.

        Returns:
            The tiles, in memory that the thread's next read uses again; their quality, which of
            them are corrupt, and what decoded the slide: `jpeg` (`pipeline.jpeg_tiles`) or
            `openslide`.

        Raises:
            SourceError: The slide cannot be opened, or has changed since it was planned.
            StorageError: The slide cannot be fetched.
        """
        with (
            stage(source.url, source.version) as path,
            open_slide(path, item=source.url, mpp_override_um=self.mpp_override_um) as slide,
        ):
            return self._read_tiles(path, slide, rows["origin_yx"])

    def _read_tiles(
        self, path: Path, slide: OpenSlideReader, origins_yx: NDArray[np.int64]
    ) -> SourceRead:
        extent_yx = measure_tile_extent_yx(slide.mpp_yx, self.mpp_um, self.tile_size_px)
        level, shape_yx = choose_read(slide, extent_yx, self.tile_size_px)
        side = self.tile_size_px
        images = _memory.take((len(origins_yx), side, side, 3))
        reasons: list[str | None] = [None] * len(origins_yx)
        quality = np.full((len(origins_yx), len(QUALITY_COLUMNS)), np.nan, np.float32)

        def fill(regions: Iterable[tuple[int, NDArray[np.uint8] | SourceError]]) -> Iterator[int]:
            for row, region in regions:
                if isinstance(region, SourceError):
                    reasons[row] = str(region)
                else:
                    images[row] = resample(region, side)
                    yield row

        with open_jpeg_tiles(path, slide, level) as tiles:
            filled = fill(_read_regions(slide, tiles, origins_yx, level, shape_yx))
            # Soon, while the tiles are in the processor's cache.
            while rows := list(islice(filled, _MEASURED_TOGETHER)):
                quality[rows] = measure_quality([images[row] for row in rows])
            decoder: Decoder = "jpeg" if tiles else "openslide"
        columns = dict(zip(QUALITY_COLUMNS, quality.T, strict=True))
        columns[DECODER_COLUMN] = np.full(len(images), decoder, object)
        return SourceRead(images, tuple(reasons), columns, digest_slide(path))


def _read_regions(
    slide: OpenSlideReader,
    tiles: JpegTiles | None,
    origins_yx: NDArray[np.int64],
    level: int,
    shape_yx: PairYX,
) -> Iterator[tuple[int, NDArray[np.uint8] | SourceError]]:
    """Regions, or why they cannot be read, each with its row; in the order that reads fastest.

    OpenSlide reads what the JPEG tiles do not give.
    """
    origins = [(y, x) for y, x in origins_yx.tolist()]
    starts = [slide.find_start_yx(origin_yx, level, shape_yx) for origin_yx in origins]
    found: Iterable[tuple[int, NDArray[np.uint8] | None]] = (
        tiles.read_regions(starts, shape_yx)
        if tiles
        else ((row, None) for row in range(len(starts)))
    )
    for row, region in found:
        if region is not None:
            yield row, region
            continue
        try:
            yield row, slide.read_region_yx(origins[row], level, shape_yx)
        except SourceError as error:
            yield row, error


def choose_read(slide: SlideReader, extent_yx: PairYX, tile_size_px: int) -> tuple[int, PairYX]:
    """Which level to read tiles from, and how many of its pixels.

    Args:
        slide: An open slide.
        extent_yx: Of a tile, level-0 pixels.
        tile_size_px: Height and width of the finished tile.

    Returns:
        The level, and (height, width) of a tile in its pixels.
    """
    wanted = (extent_yx[0] / tile_size_px, extent_yx[1] / tile_size_px)
    level = choose_level(slide.level_downsamples_yx, wanted)
    height, width = (
        max(1, round(extent / downsample))
        for extent, downsample in zip(extent_yx, slide.level_downsamples_yx[level], strict=True)
    )
    return level, (height, width)


def resample(region: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Average a region down to a square tile; one that has the size already is left as it is."""
    if region.shape[:2] == (side_px, side_px):
        return region
    factor_y, factor_x = region.shape[0] // side_px, region.shape[1] // side_px
    picture = Image.fromarray(region)
    if region.shape[:2] == (factor_y * side_px, factor_x * side_px):
        # The same mean, rounded once instead of once for each axis.
        return np.asarray(picture.reduce((factor_x, factor_y)))
    return np.asarray(picture.resize((side_px, side_px), Image.Resampling.BOX))
