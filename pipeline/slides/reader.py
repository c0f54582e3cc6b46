"""Reads the planned tiles of a slide: the right level, the wanted um/px, normalised stains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.ingest.sources import SourceRead
from pipeline.records import Array
from pipeline.slides.colour import convert_to_srgb
from pipeline.slides.jpeg.proof import open_jpeg_tiles
from pipeline.slides.jpeg.tiles import JpegTiles
from pipeline.slides.quality import QUALITY_COLUMNS, measure_quality
from pipeline.slides.readers.protocol import SlideReader
from pipeline.slides.settings import SlideSettings
from pipeline.slides.stain.normalise import StainFit, normalise_stains
from pipeline.slides.tiling import PairYX, choose_level, measure_tile_extent_yx

_BATCH_TILES: Final = 8  # read and measured together, while they are in the processor's cache


@dataclass(frozen=True)
class TileReader:
    """Reads tiles of one open slide; JPEG tiles that it decodes stay in memory for the next ones.

    Args:
        slide: The open slide.
        tiles: Decoder of its JPEG tiles, or None where OpenSlide decodes.
        level: Level that tiles are read from.
        shape_yx: Height and width of a tile in pixels of the level.
        fit: The slide's stains, or None where stains are left as they are.
        icc: ICC profile by which colours are converted to sRGB, or None to leave them.
    """

    slide: SlideReader
    tiles: JpegTiles | None
    level: int
    shape_yx: PairYX
    fit: StainFit | None = None
    icc: bytes | None = None

    @property
    def decoder(self) -> str:
        """What decodes the slide: `jpeg` (`pipeline.slides.jpeg.proof`), or the reader's name."""
        return "jpeg" if self.tiles else self.slide.name

    def read(
        self, origins_yx: NDArray[np.int64], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        """Read tiles into given memory; their quality is measured before stains are changed.

        Args:
            origins_yx: (n, 2), upper left corners in level-0 pixels.
            images: uint8 (n, side, side, 3), to be filled.

        Yields:
            The next few tiles: their quality, and which of them are corrupt.
        """
        regions = _read_regions(self.slide, self.tiles, origins_yx, self.level, self.shape_yx)
        for start in range(0, len(images), _BATCH_TILES):
            batch = images[start : start + _BATCH_TILES]
            reasons = tuple(_write_tile(image, next(regions)) for image in batch)
            if self.icc:
                batch[:] = convert_to_srgb(batch, self.icc, self.slide.item)
            columns = _measure(batch, reasons)
            if self.fit:
                batch[:] = normalise_stains(batch, self.fit)
            yield SourceRead(reasons, columns)


@contextmanager
def open_tiles(
    path: Path, slide: SlideReader, settings: SlideSettings, fit: StainFit | None = None
) -> Iterator[TileReader]:
    """Open the tiles of a slide.

    Args:
        path: Local path of the slide's file.
        slide: The open slide.
        settings: Size and um/px of the tiles.
        fit: The slide's stains, or None to leave stains as they are.

    Raises:
        ValueError: The slide is coarser than the tiles.
    """
    extent_yx = measure_tile_extent_yx(slide.mpp_yx, settings.mpp_um, settings.tile_size_px)
    level, shape_yx = choose_read(slide, extent_yx, settings.tile_size_px)
    with open_jpeg_tiles(path, slide, level) as tiles:
        icc = slide.icc_profile if settings.icc == "srgb" else None
        yield TileReader(slide, tiles, level, shape_yx, fit, icc)


def name_icc_state(profile: bytes | None, settings: SlideSettings) -> str:
    """Name what became of a slide's colours: `kept`, `srgb`, or `no profile` to convert by."""
    if settings.icc == "keep":
        return "kept"
    return "srgb" if profile else "no profile"


def _write_tile(image: NDArray[np.uint8], region: NDArray[np.uint8] | SourceError) -> str | None:
    """Resample a region into its tile; return the reason where it could not be read."""
    if isinstance(region, SourceError):
        return str(region)
    image[:] = resample(region, len(image))
    return None


def _measure(images: NDArray[np.uint8], reasons: Sequence[str | None]) -> dict[str, Array]:
    """Measure the quality of the tiles that could be read; NaN for the others."""
    quality = np.full((len(images), len(QUALITY_COLUMNS)), np.nan, np.float32)
    readable = np.array([reason is None for reason in reasons])
    if readable.any():
        quality[readable] = measure_quality(images if readable.all() else images[readable])
    return dict(zip(QUALITY_COLUMNS, quality.T, strict=True))


def _read_regions(
    slide: SlideReader,
    tiles: JpegTiles | None,
    origins_yx: NDArray[np.int64],
    level: int,
    shape_yx: PairYX,
) -> Iterator[NDArray[np.uint8] | SourceError]:
    """Yield regions or their errors. OpenSlide reads what the JPEG tiles do not give."""
    origins = [(y, x) for y, x in origins_yx.tolist()]
    starts = [slide.find_start_yx(origin_yx, level, shape_yx) for origin_yx in origins]
    found = tiles.read_regions(starts, shape_yx) if tiles else repeat(None, len(starts))
    for origin_yx, region in zip(origins, found, strict=True):
        try:
            yield slide.read_region_yx(origin_yx, level, shape_yx) if region is None else region
        except SourceError as error:
            yield error


def choose_read(slide: SlideReader, extent_yx: PairYX, tile_size_px: int) -> tuple[int, PairYX]:
    """Choose the level to read tiles from, and the shape of a tile in its pixels.

    Args:
        slide: The open slide.
        extent_yx: Height and width of a tile in level-0 pixels.
        tile_size_px: Height and width of the finished tile in pixels.

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
