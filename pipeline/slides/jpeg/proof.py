"""Tiled JPEG in TIFF: a quick way to the very pixels that OpenSlide gives, where that is proved.

Camelyon16's form, generic tiled TIFF and Aperio's JPEG. OpenSlide decodes a JPEG tile for every
region that touches it; `pipeline.slides.jpeg.tiles` decodes each once for all of them. A level is
read so
only where tiles spread over it came out equal to OpenSlide's. Its decoder is the stricter one: it
refuses data that OpenSlide merely warns of, and paints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import tifffile

from pipeline.errors import SourceError
from pipeline.slides.jpeg.tiles import JpegLayout, JpegTiles
from pipeline.slides.openslide_reader import OpenSlideReader

# Formats whose levels OpenSlide takes from TIFF pages as they are: no overlap, no reordering.
_VENDORS: Final = frozenset({"generic-tiff", "aperio", "philips"})
_COLORSPACES: Final = {tifffile.PHOTOMETRIC.YCBCR: "YCbCr", tifffile.PHOTOMETRIC.RGB: "RGB"}
_PROBES: Final = 4
_SPARE_PROBES: Final = 16


@contextmanager
def open_jpeg_tiles(path: Path, slide: OpenSlideReader, level: int) -> Iterator[JpegTiles | None]:
    """Open a level's JPEG tiles, and close the file again.

    Args:
        path: The slide's file.
        slide: The same, opened by OpenSlide: the judge.
        level: Which level.

    Yields:
        The tiles; None where the format is another, or pixels are not OpenSlide's.
    """
    status = path.stat()
    identity = (status.st_ino, status.st_size, status.st_mtime_ns)
    if (layout := _prove_layout(_Question(path, identity, level, slide))) is None:
        yield None
        return
    with path.open("rb", buffering=0) as file:
        yield JpegTiles(file.fileno(), layout, slide.item)


@dataclass(frozen=True, slots=True)
class _Question:
    """Whether a level is read here; the answer is the same whoever opened the slide."""

    path: Path
    identity: tuple[int, ...]
    level: int
    slide: OpenSlideReader = field(compare=False)


# A proof takes as long as a hundred tiles: once for each slide, not for each of its shards.
@lru_cache(maxsize=16)
def _prove_layout(question: _Question) -> JpegLayout | None:
    """The layout of a level whose tiles are of JPEG and come out equal to OpenSlide's."""
    slide, level = question.slide, question.level
    may_be_equal = slide.vendor in _VENDORS and slide.gives_whole_pixels(level)
    page = _find_page(question.path, slide, level) if may_be_equal else None
    if page is None:
        return None
    layout = _lay_out(page, level)
    with question.path.open("rb", buffering=0) as file:
        tiles = JpegTiles(file.fileno(), layout, slide.item)
        return layout if _is_proved(tiles, slide, level) else None


def _find_page(path: Path, slide: OpenSlideReader, level: int) -> tifffile.TiffPage | None:
    """The one TIFF page that holds a level, if it is of JPEG tiles."""
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    except (tifffile.TiffFileError, ValueError, OSError):
        return None
    tiled = [page for page in pages if page.is_tiled]
    if slide.vendor == "philips":
        # Its pages are padded to whole tiles, and OpenSlide cuts the padding off.
        return _pick(tiled[level : level + 1] if len(tiled) == slide.level_count else [])
    shape_yx = slide.level_shapes_yx[level]
    return _pick([page for page in tiled if (page.imagelength, page.imagewidth) == shape_yx])


def _lay_out(page: tifffile.TiffPage, level: int) -> JpegLayout:
    """Of a page for which `_is_jpeg_of_rgb` holds."""
    return JpegLayout(
        level=level,
        tile_shape_yx=(page.tilelength, page.tilewidth),
        columns=-(-page.imagewidth // page.tilewidth),
        offsets=page.dataoffsets,
        sizes=page.databytecounts,
        colorspace=_COLORSPACES[tifffile.PHOTOMETRIC(page.photometric)],
        tables=(page.jpegtables or b"")[2:-2],
    )


def _pick(pages: Sequence[tifffile.TiffPage]) -> tifffile.TiffPage | None:
    return pages[0] if len(pages) == 1 and _is_jpeg_of_rgb(pages[0]) else None


def _is_jpeg_of_rgb(page: tifffile.TiffPage) -> bool:
    tile_count = -(-page.imagelength // page.tilelength) * -(-page.imagewidth // page.tilewidth)
    return (
        page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in _COLORSPACES
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and (page.bitspersample, page.samplesperpixel, page.imagedepth) == (8, 3, 1)
        and page.fillorder == 1
        and len(page.dataoffsets) == len(page.databytecounts) == tile_count
    )


def _is_proved(tiles: JpegTiles, slide: OpenSlideReader, level: int) -> bool:
    """Whether tiles spread over a level come out equal to OpenSlide's: one at least, none not.

    A tile that is corrupt, or that OpenSlide refuses too, proves nothing: others stand in for it.
    Where all are corrupt, the warnings are rather a scanner's habit than damage, and OpenSlide,
    which reads on after one, has the level.
    """
    equal = 0
    for number in _choose_probes(tiles.stored):
        start_yx, shape_yx = _place(tiles, slide, level, number)
        if min(shape_yx) < 1:
            continue
        (mine,) = tiles.read_regions([start_yx], shape_yx)
        if isinstance(mine, SourceError):
            continue
        try:
            theirs = slide.read_region_yx(_to_level_0(slide, level, start_yx), level, shape_yx)
        except SourceError:
            if mine is not None:
                return False
            continue
        if mine is None or not np.array_equal(mine, theirs):
            return False
        equal += 1
        if equal == _PROBES:
            break
    return equal > 0


def _choose_probes(stored: Sequence[int]) -> Iterable[int]:
    """A few tiles spread from the first to the last, and more of them to stand in."""
    places = [np.linspace(0, len(stored) - 1, count) for count in (_PROBES, _SPARE_PROBES)]
    chosen = [stored[round(place)] for place in np.concatenate(places)] if stored else []
    return dict.fromkeys(chosen)


def _place(
    tiles: JpegTiles, slide: OpenSlideReader, level: int, number: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Start and shape of a tile, what is outside the level cut off."""
    row, column = divmod(number, tiles.columns)
    y, x = row * tiles.tile_shape_yx[0], column * tiles.tile_shape_yx[1]
    height, width = slide.level_shapes_yx[level]
    tile_height, tile_width = tiles.tile_shape_yx
    return (y, x), (min(tile_height, height - y), min(tile_width, width - x))


def _to_level_0(slide: OpenSlideReader, level: int, start_yx: tuple[int, int]) -> tuple[int, int]:
    down_y, down_x = slide.level_downsamples_yx[level]
    return round(start_yx[0] * down_y), round(start_yx[1] * down_x)
