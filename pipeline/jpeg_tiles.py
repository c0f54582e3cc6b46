"""Tiled JPEG in TIFF, decoded tile by tile: a quick way to the very pixels that OpenSlide gives.

Camelyon16's form, generic tiled TIFF and Aperio's JPEG. OpenSlide decodes a JPEG tile for every
region that touches it; here each is decoded once for all of them. A level is read so only where
tiles spread over it came out equal to OpenSlide's. What cannot be decoded without a warning is
left to OpenSlide, which says what is wrong with it.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, Self, TypeAlias

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.slides import OpenSlideReader

Pixels: TypeAlias = NDArray[np.uint8]
# A tile's number, and the same place in the region and in the tile.
_Piece: TypeAlias = tuple[int, tuple[slice, slice], tuple[slice, slice]]

# Formats whose levels OpenSlide takes from TIFF pages as they are: no overlap, no reordering.
_VENDORS: Final = frozenset({"generic-tiff", "aperio", "philips"})
_COLORSPACES: Final = {tifffile.PHOTOMETRIC.YCBCR: "YCbCr", tifffile.PHOTOMETRIC.RGB: "RGB"}
_PROBES: Final = 4
# Decoded tiles kept for regions still to come; with one more, all the memory this takes.
_CACHE_BYTES: Final = 64 << 20

_START_OF_IMAGE: Final = b"\xff\xd8"
# Adobe's marker states the colour space, which bare JPEG leaves to guesses (ITU-T T.872, 6.5.3).
_ADOBE: Final = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
_TRANSFORM: Final = {"YCbCr": b"\x01", "RGB": b"\x00"}


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
        yield JpegTiles(file.fileno(), layout)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the JPEG tiles of a level lie in their file, a size of 0 for a tile that there is not.

    `head` is what a decoder sees in place of a tile's first marker.
    """

    tile_shape_yx: tuple[int, int]
    columns: int
    offsets: Sequence[int]
    sizes: Sequence[int]
    colorspace: str
    head: bytes

    @classmethod
    def of(cls, page: tifffile.TiffPage) -> Self:
        """Of a page for which `_is_jpeg_of_rgb` holds."""
        colorspace = _COLORSPACES[tifffile.PHOTOMETRIC(page.photometric)]
        tables = (page.jpegtables or b"")[2:-2]
        return cls(
            (page.tilelength, page.tilewidth), -(-page.imagewidth // page.tilewidth),
            page.dataoffsets, page.databytecounts,
            colorspace, _START_OF_IMAGE + _ADOBE + _TRANSFORM[colorspace] + tables,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Question:
    """Whether a level is read here; the answer is the same whoever opened the slide."""

    path: Path
    identity: tuple[int, ...]
    level: int
    slide: OpenSlideReader = field(compare=False)


# A proof takes as long as a hundred tiles: once for each slide, not for each of its shards.
@lru_cache(maxsize=16)
def _prove_layout(question: _Question) -> _Layout | None:
    """The layout of a level whose tiles are of JPEG and come out equal to OpenSlide's."""
    slide, level = question.slide, question.level
    may_be_equal = slide.vendor in _VENDORS and slide.gives_whole_pixels(level)
    page = _find_page(question.path, slide, level) if may_be_equal else None
    if page is None:
        return None
    layout = _Layout.of(page)
    with question.path.open("rb", buffering=0) as file:
        return layout if _is_proved(JpegTiles(file.fileno(), layout), slide, level) else None


class JpegTiles:
    """The JPEG tiles of one level; coordinates are (y, x), in its pixels.

    Memory: 64 MiB of decoded tiles, or one tile where that is more.

    Args:
        descriptor: Of the open file.
        layout: Of the level.
    """

    def __init__(self, descriptor: int, layout: _Layout) -> None:
        self._descriptor, self._layout = descriptor, layout
        self.tile_shape_yx, self.columns = layout.tile_shape_yx, layout.columns
        self._kept: OrderedDict[int, Pixels | None] = OrderedDict()
        self._spare: list[Pixels] = []
        self._room = max(1, _CACHE_BYTES // (3 * self.tile_shape_yx[0] * self.tile_shape_yx[1]))

    @property
    def stored(self) -> Sequence[int]:
        """Numbers of the tiles that have data, in reading order."""
        return [number for number, size in enumerate(self._layout.sizes) if size]

    def read_regions(
        self, starts_yx: Sequence[tuple[int, int]], shape_yx: tuple[int, int]
    ) -> Iterator[Pixels | None]:
        """Read rectangles of one shape, which must lie inside the level.

        A tile is decoded once as long as those that are needed again fit into the cache.

        Args:
            starts_yx: Upper left corners.
            shape_yx: Height and width.

        Yields:
            uint8 (height, width, 3), RGB, to be used before the next is asked for; None in its
            place where a tile is missing or corrupt.
        """
        cuts = [self._cut(start_yx, shape_yx) for start_yx in starts_yx]
        awaited = Counter(number for cut in cuts for number, _, _ in cut)
        self._expect(awaited)
        for cut in cuts:
            yield self._assemble(cut, shape_yx)
            for number, _, _ in cut:
                awaited[number] -= 1
                if not awaited[number]:
                    self._drop(number)

    def _expect(self, numbers: Iterable[int]) -> None:
        """Have the disk read tiles in the order of the file, whatever order they are used in."""
        places = sorted((self._layout.offsets[n], self._layout.sizes[n]) for n in numbers)
        for place in places if hasattr(os, "posix_fadvise") else ():
            os.posix_fadvise(self._descriptor, *place, os.POSIX_FADV_WILLNEED)

    def _cut(self, start_yx: tuple[int, int], shape_yx: tuple[int, int]) -> list[_Piece]:
        (y, x), (height, width) = start_yx, shape_yx
        tile_height, tile_width = self.tile_shape_yx
        pieces = []
        for row in range(y // tile_height, (y + height - 1) // tile_height + 1):
            into_y, from_y = _overlap(row * tile_height - y, tile_height, height)
            for column in range(x // tile_width, (x + width - 1) // tile_width + 1):
                into_x, from_x = _overlap(column * tile_width - x, tile_width, width)
                pieces.append((row * self.columns + column, (into_y, into_x), (from_y, from_x)))
        return pieces

    def _assemble(self, pieces: list[_Piece], shape_yx: tuple[int, int]) -> Pixels | None:
        region = np.empty((*shape_yx, 3), np.uint8) if len(pieces) > 1 else None
        for number, into_yx, from_yx in pieces:
            tile = self._read_tile(number)
            if tile is None:
                return None
            if region is None:
                return tile[from_yx]
            region[into_yx] = tile[from_yx]
        return region

    def _read_tile(self, number: int) -> Pixels | None:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        while len(self._kept) >= self._room:
            self._drop(next(iter(self._kept)))
        self._kept[number] = self._decode(number)
        return self._kept[number]

    def _drop(self, number: int) -> None:
        """Let a tile go, and keep its memory for the next: fresh memory costs as a decode does."""
        pixels = self._kept.pop(number, None)
        if pixels is not None:
            self._spare.append(pixels)

    def _decode(self, number: int) -> Pixels | None:
        """Decode a tile; None unless it is sound and what its page says it is."""
        layout = self._layout
        data = os.pread(self._descriptor, layout.sizes[number], layout.offsets[number])
        if len(data) != layout.sizes[number] or not data.startswith(_START_OF_IMAGE):
            return None
        stream = layout.head + data[2:]
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(stream)
            if (height, width) != self.tile_shape_yx or colorspace != layout.colorspace:
                return None
            buffer = self._spare.pop() if self._spare else np.empty((height, width, 3), np.uint8)
            pixels: Pixels = simplejpeg.decode_jpeg(stream, strict=True, buffer=buffer)
        except ValueError:
            return None
        return pixels


def _overlap(begin: int, size: int, limit: int) -> tuple[slice, slice]:
    """Where a tile that begins at `begin` of a region covers it: in the region, in the tile."""
    first, last = max(begin, 0), min(begin + size, limit)
    return slice(first, last), slice(first - begin, last - begin)


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
    """Whether tiles from the first to the last, and none of those that OpenSlide reads, are equal.

    A tile that OpenSlide refuses must be refused here too; one equal tile is needed at least.
    """
    stored = tiles.stored
    chosen = {stored[round(place)] for place in np.linspace(0, len(stored) - 1, _PROBES)}
    equal = 0
    for number in chosen if stored else ():
        start_yx, shape_yx = _place(tiles, slide, level, number)
        if min(shape_yx) < 1:
            continue
        (mine,) = tiles.read_regions([start_yx], shape_yx)
        try:
            theirs = slide.read_region_yx(_to_level_0(slide, level, start_yx), level, shape_yx)
        except SourceError:
            if mine is not None:
                return False
            continue
        if mine is None or not np.array_equal(mine, theirs):
            return False
        equal += 1
    return equal > 0


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
