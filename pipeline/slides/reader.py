"""Reads the planned tiles of a slide: the right level, the wanted um/px, normalised stains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.ingest.plan import SourceRead
from pipeline.io.scratch import Scratch
from pipeline.io.staging import stage
from pipeline.records import Array, Slide
from pipeline.slides.jpeg.proof import open_jpeg_tiles
from pipeline.slides.jpeg.tiles import JpegTiles
from pipeline.slides.quality import QUALITY_COLUMNS, measure_quality
from pipeline.slides.readers.openslide_reader import digest_slide
from pipeline.slides.readers.protocol import SlideReader
from pipeline.slides.readers.registry import open_slide
from pipeline.slides.settings import SlideSettings, StainSetting
from pipeline.slides.stain.fit import decode_stains
from pipeline.slides.stain.normalise import StainFit, normalise_stains
from pipeline.slides.tiling import PairYX, choose_level, measure_tile_extent_yx

DECODER_COLUMN: Final = "decoder"
_BATCH_TILES: Final = 8  # read and measured together, while they are in the processor's cache


@dataclass(frozen=True)
class SlideTileReader:
    """A `plan.Reader` of `records.Slide`.

    What a survey has found on a slide (um/px, stain fit) comes with the plan's columns, so that it
    is part of the key of that slide's shards and of no other's.

    Args:
        tile_size_px: Height and width of a tile in pixels.
        mpp_um: Micrometres per tile pixel.
        mpp_override_um: Micrometres per level-0 pixel that replace the slide's own, or None.
        stain: Method of stain normalisation, or `none`.
        scratch: Folder where slides on object storage are staged; None for the default
            one. It changes nothing in what is read.
    """

    tile_size_px: int
    mpp_um: float
    mpp_override_um: float | None = None
    stain: StainSetting = "none"
    scratch: Scratch | None = field(default=None, repr=False, compare=False)

    def read(
        self, source: Slide, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        """Read tiles of one slide into given memory; their quality is measured as scanned.

        Args:
            source: The slide to read.
            rows: Columns of the plan: `origin_yx`, (n, 2) int64, in level-0 pixels, and, where
                present, `mpp_source`, `mpp_yx` and `stain_fit`.
            images: uint8 (n, `tile_size_px`, `tile_size_px`, 3), to be filled.

        Yields:
            The next few tiles; their quality, which of them are corrupt, and what decoded the
            slide: `jpeg` (`pipeline.slides.jpeg.proof`) or the reader's name.

        Raises:
            SourceError: The slide cannot be opened, or has changed since it was planned.
            StorageError: The slide cannot be fetched.
        """
        fit = self._choose_fit(rows)
        with (
            stage(source.url, source.version, source.companions, scratch=self.scratch) as path,
            open_slide(path, item=source.url, mpp_override_um=self._choose_mpp(rows)) as slide,
        ):
            done = 0
            for read in self._fill(path, slide, rows["origin_yx"], images):
                batch = images[done : done + len(read.reasons)]
                if fit:
                    batch[:] = normalise_stains(batch, fit)
                done += len(batch)
                yield read

    def _choose_fit(self, rows: Mapping[str, Array]) -> StainFit | None:
        text = str(rows["stain_fit"][0]) if "stain_fit" in rows else ""
        if not text or self.stain == "none":
            return None
        return StainFit(self.stain, decode_stains(text))

    def _choose_mpp(self, rows: Mapping[str, Array]) -> float | None:
        """The slide's own um/px where neither its file nor the settings give it."""
        if "mpp_source" in rows and rows["mpp_source"][0] in {"user table", "fallback"}:
            (mpp_um,) = set(rows["mpp_yx"].flat)  # one value for both axes of one slide
            return float(mpp_um)
        return self.mpp_override_um

    def _fill(
        self,
        path: Path,
        slide: SlideReader,
        origins_yx: NDArray[np.int64],
        images: NDArray[np.uint8],
    ) -> Iterator[SourceRead]:
        extent_yx = measure_tile_extent_yx(slide.mpp_yx, self.mpp_um, self.tile_size_px)
        level, shape_yx = choose_read(slide, extent_yx, self.tile_size_px)
        digest = digest_slide(path)
        with open_jpeg_tiles(path, slide, level) as tiles:
            regions = _read_regions(slide, tiles, origins_yx, level, shape_yx)
            decoder = "jpeg" if tiles else slide.name
            for start in range(0, len(images), _BATCH_TILES):
                batch = images[start : start + _BATCH_TILES]
                reasons = tuple(_write_tile(image, next(regions)) for image in batch)
                columns = _measure(batch, reasons)
                columns[DECODER_COLUMN] = np.full(len(batch), decoder, object)
                yield SourceRead(reasons, columns, digest)


def make_tile_reader(settings: SlideSettings, scratch: Scratch | None = None) -> SlideTileReader:
    """Make the reader of the tiles that `plan.plan_slides` plans."""
    return SlideTileReader(
        settings.tile_size_px,
        settings.mpp_um,
        settings.mpp_override_um,
        settings.stain,
        scratch,
    )


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
