"""Reads the planned tiles of a slide: the right level, the wanted um/px, corrupt ones apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.ingest.plan import SourceRead, read_whole
from pipeline.io.staging import stage
from pipeline.records import Slide
from pipeline.slides.jpeg.proof import open_jpeg_tiles
from pipeline.slides.jpeg.tiles import JpegTiles
from pipeline.slides.openslide_reader import OpenSlideReader, SlideReader, digest_slide, open_slide
from pipeline.slides.quality import QUALITY_COLUMNS, measure_quality
from pipeline.slides.tiling import PairYX, choose_level, measure_tile_extent_yx
from pipeline.store.dataset import Array

Decoder: TypeAlias = Literal["jpeg", "openslide"]
DECODER_COLUMN: Final = "decoder"
_READ_TOGETHER: Final = 8  # tiles


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
        """Read tiles of one slide into new memory; otherwise as `fill`."""
        side = self.tile_size_px
        return read_whole(self, source, rows, shape=(len(rows["origin_yx"]), side, side, 3))

    def fill(
        self, source: Slide, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        """Read tiles of one slide into memory that is given.

        Args:
            source: The slide.
            rows: `origin_yx`, (n, 2) int64, level-0 pixels.
            images: uint8 (n, `tile_size_px`, `tile_size_px`, 3).

        Yields:
            The next few tiles; their quality, which of them are corrupt, and what decoded the
            slide: `jpeg` (`pipeline.slides.jpeg.proof`) or `openslide`.

        Raises:
            SourceError: The slide cannot be opened, or has changed since it was planned.
            StorageError: The slide cannot be fetched.
        """
        with (
            stage(source.url, source.version, source.companions) as path,
            open_slide(path, item=source.url, mpp_override_um=self.mpp_override_um) as slide,
        ):
            yield from self._fill(path, slide, rows["origin_yx"], images)

    def _fill(
        self,
        path: Path,
        slide: OpenSlideReader,
        origins_yx: NDArray[np.int64],
        images: NDArray[np.uint8],
    ) -> Iterator[SourceRead]:
        extent_yx = measure_tile_extent_yx(slide.mpp_yx, self.mpp_um, self.tile_size_px)
        level, shape_yx = choose_read(slide, extent_yx, self.tile_size_px)
        digest = digest_slide(path)
        with open_jpeg_tiles(path, slide, level) as tiles:
            regions = _read_regions(slide, tiles, origins_yx, level, shape_yx)
            decoder: Decoder = "jpeg" if tiles else "openslide"
            for start in range(0, len(images), _READ_TOGETHER):
                few = images[start : start + _READ_TOGETHER]
                reasons = tuple(_put(image, next(regions)) for image in few)
                columns = _measure(few, reasons)
                columns[DECODER_COLUMN] = np.full(len(few), decoder, object)
                yield SourceRead(few, reasons, columns, digest)


def _put(image: NDArray[np.uint8], region: NDArray[np.uint8] | SourceError) -> str | None:
    """Bring a region into its place; or say why it could not be read."""
    if isinstance(region, SourceError):
        return str(region)
    image[:] = resample(region, len(image))
    return None


def _measure(images: NDArray[np.uint8], reasons: Sequence[str | None]) -> dict[str, Array]:
    """Quality of what could be read, while it is in the processor's cache."""
    quality = np.full((len(images), len(QUALITY_COLUMNS)), np.nan, np.float32)
    readable = np.array([reason is None for reason in reasons])
    if readable.any():
        quality[readable] = measure_quality(images if readable.all() else images[readable])
    return dict(zip(QUALITY_COLUMNS, quality.T, strict=True))


def _read_regions(
    slide: OpenSlideReader,
    tiles: JpegTiles | None,
    origins_yx: NDArray[np.int64],
    level: int,
    shape_yx: PairYX,
) -> Iterator[NDArray[np.uint8] | SourceError]:
    """Regions, or why they cannot be read. OpenSlide reads what the JPEG tiles do not give."""
    origins = [(y, x) for y, x in origins_yx.tolist()]
    starts = [slide.find_start_yx(origin_yx, level, shape_yx) for origin_yx in origins]
    found = tiles.read_regions(starts, shape_yx) if tiles else repeat(None, len(starts))
    for origin_yx, region in zip(origins, found, strict=True):
        try:
            yield slide.read_region_yx(origin_yx, level, shape_yx) if region is None else region
        except SourceError as error:
            yield error


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
