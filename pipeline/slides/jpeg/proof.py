"""Finds the JPEG tiles of a TIFF slide's level, and proves that decoding them equals OpenSlide.

Camelyon16's form, generic tiled TIFF and Aperio's JPEG. OpenSlide decodes a JPEG tile for every
region that touches it; `pipeline.slides.jpeg.tiles` decodes each once for all of them. A level is
read so only where tiles spread over it came out equal to OpenSlide's. Its decoder is the stricter
one: it refuses data that OpenSlide merely warns of, and paints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import tifffile

from pipeline.errors import SourceError
from pipeline.slides.jpeg.tiles import JpegLayout, JpegTiles
from pipeline.slides.readers.protocol import SlideReader

# Formats whose levels OpenSlide takes from TIFF pages as they are: no overlap, no reordering.
_VENDORS: Final = frozenset({"generic-tiff", "aperio", "philips"})
_COLORSPACES: Final = {tifffile.PHOTOMETRIC.YCBCR: "YCbCr", tifffile.PHOTOMETRIC.RGB: "RGB"}
_PROBES: Final = 4
_SPARE_PROBES: Final = 16

# Path, inode, size, time of modification, level.
_Key: TypeAlias = tuple[Path, int, int, int, int]
# A proof takes as long as a hundred tiles: once for each slide, not for each of its shards.
_PROVED: Final[dict[_Key, JpegLayout | None]] = {}
_MOST_PROVED: Final = 16


@contextmanager
def open_jpeg_tiles(path: Path, slide: SlideReader, level: int) -> Iterator[JpegTiles | None]:
    """Open a level's JPEG tiles, and close the file again.

    Args:
        path: Local path of the slide's file.
        slide: The opened slide; its pixels are the standard.
        level: Number of the level; 0 is the finest.

    Yields:
        The tiles; None where the format is another, or pixels are not OpenSlide's.
    """
    status = path.stat()
    key = (path, status.st_ino, status.st_size, status.st_mtime_ns, level)
    if key not in _PROVED:
        for oldest in list(_PROVED)[: len(_PROVED) + 1 - _MOST_PROVED]:
            _PROVED.pop(oldest, None)
        _PROVED[key] = _prove_layout(path, slide, level)
    if (layout := _PROVED[key]) is None:
        yield None
        return
    with path.open("rb", buffering=0) as file:
        yield JpegTiles(file.fileno(), layout, slide.item)


def _prove_layout(path: Path, slide: SlideReader, level: int) -> JpegLayout | None:
    """Find the layout of a level whose tiles are JPEG and come out equal to OpenSlide's."""
    if slide.vendor not in _VENDORS or not slide.gives_whole_pixels(level):
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            page = _find_page(tiff, slide, level)
            layout = _read_layout(page, level, path.stat().st_size) if page else None
    except Exception:  # noqa: BLE001 - a parser of damaged files may raise anything
        return None
    if layout is None:
        return None
    with path.open("rb", buffering=0) as file:
        tiles = JpegTiles(file.fileno(), layout, slide.item)
        return layout if _is_proved(tiles, slide, level) else None


def _find_page(tiff: tifffile.TiffFile, slide: SlideReader, level: int) -> tifffile.TiffPage | None:
    """Find the one TIFF page that holds a level, if its tiles are JPEG."""
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
    height, width = slide.level_shapes_yx[level]
    if slide.vendor == "philips" and len(pages) == len(slide.level_shapes_yx):
        # Its pages are padded to whole tiles, and OpenSlide cuts the padding off.
        pages = [pages[level]]
        found = [page for page in pages if page.imagelength >= height and page.imagewidth >= width]
    else:
        found = [page for page in pages if (page.imagelength, page.imagewidth) == (height, width)]
    return found[0] if len(found) == 1 and _is_jpeg_of_rgb(found[0]) else None


def _read_layout(page: tifffile.TiffPage, level: int, file_bytes: int) -> JpegLayout:
    """Read the layout of a page for which `_is_jpeg_of_rgb` holds."""
    places = [
        # Bytes outside the file count as a missing tile; `index` refuses what is no whole number.
        (index(offset), index(size)) if 0 <= offset <= offset + size <= file_bytes else (0, 0)
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True)
    ]
    return JpegLayout(
        level=level,
        tile_shape_yx=(index(page.tilelength), index(page.tilewidth)),
        columns=-(-page.imagewidth // page.tilewidth),
        offsets=[offset for offset, _ in places],
        sizes=[size for _, size in places],
        colorspace=_COLORSPACES[tifffile.PHOTOMETRIC(page.photometric)],
        tables=memoryview(page.jpegtables or b"")[2:-2].tobytes(),
    )


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


def _is_proved(tiles: JpegTiles, slide: SlideReader, level: int) -> bool:
    """Check that tiles spread over a level equal OpenSlide's: at least one does, none differs.

    A tile that is corrupt, or that OpenSlide refuses too, proves nothing and is replaced by a
    spare. Where all are corrupt, the warnings are the scanner's habit rather than damage, and the
    level is left to OpenSlide, which reads on after a warning.
    """
    equal = 0
    for number in _choose_probes(tiles.stored):
        start_yx, shape_yx = _locate_tile(tiles, slide, level, number)
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
    """Choose a few tiles spread from the first to the last, then spares between them."""
    places = [np.linspace(0, len(stored) - 1, count) for count in (_PROBES, _SPARE_PROBES)]
    chosen = [stored[round(place)] for place in np.concatenate(places)] if stored else []
    return dict.fromkeys(chosen)


def _locate_tile(
    tiles: JpegTiles, slide: SlideReader, level: int, number: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return start and shape of a tile; what is outside the level is cut off."""
    row, column = divmod(number, tiles.columns)
    y, x = row * tiles.tile_shape_yx[0], column * tiles.tile_shape_yx[1]
    height, width = slide.level_shapes_yx[level]
    tile_height, tile_width = tiles.tile_shape_yx
    return (y, x), (min(tile_height, height - y), min(tile_width, width - x))


def _to_level_0(slide: SlideReader, level: int, start_yx: tuple[int, int]) -> tuple[int, int]:
    down_y, down_x = slide.level_downsamples_yx[level]
    return round(start_yx[0] * down_y), round(start_yx[1] * down_x)
