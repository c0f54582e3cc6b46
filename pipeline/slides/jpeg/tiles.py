"""Decodes the JPEG tiles of a TIFF level, each once for all regions that touch it.

`pipeline.slides.jpeg.proof` decides which levels are read so.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.slides.readers.protocol import READ_REMEDY

Pixels: TypeAlias = NDArray[np.uint8]
# None: missing, or of another form than its page says. An error: corrupt.
_Read: TypeAlias = Pixels | SourceError | None
# A tile's number, and the same place in the region and in the tile.
_Piece: TypeAlias = tuple[int, tuple[slice, slice], tuple[slice, slice]]

# Decoded tiles kept for regions still to come; with one more, all the memory this takes.
_CACHE_BYTES: Final = 64 << 20

_START_OF_IMAGE: Final = b"\xff\xd8"
# Adobe's marker states the colour space, which bare JPEG leaves to guesses (ITU-T T.872, 6.5.3).
_ADOBE: Final = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
_TRANSFORM: Final = {"YCbCr": b"\x01", "RGB": b"\x00"}


@dataclass(frozen=True, slots=True)
class JpegLayout:
    """Where the JPEG tiles of a level lie in their file.

    Args:
        level: Number of the level, for errors.
        tile_shape_yx: Height and width of a tile in pixels.
        columns: Number of tiles in a row.
        offsets: First byte of each tile in the file, in reading order.
        sizes: Bytes of each tile; 0 for a missing one.
        colorspace: Stored colour space, `YCbCr` or `RGB`.
        tables: JPEG tables that all tiles share, without the markers of start and end.
    """

    level: int
    tile_shape_yx: tuple[int, int]
    columns: int
    offsets: Sequence[int]
    sizes: Sequence[int]
    colorspace: str
    tables: bytes


class JpegTiles:
    """The JPEG tiles of one level; coordinates are (y, x), in its pixels.

    Memory: 64 MiB of decoded tiles, or one tile where that is more.

    Args:
        descriptor: File descriptor of the open slide.
        layout: Layout of the level that is read.
        item: Name of the slide, for errors.
    """

    def __init__(self, descriptor: int, layout: JpegLayout, item: str) -> None:
        self._descriptor, self._layout, self._item = descriptor, layout, item
        # Replaces the first marker of a tile.
        self._head = make_jpeg_head(layout.colorspace, layout.tables)
        self.tile_shape_yx, self.columns = layout.tile_shape_yx, layout.columns
        self._kept: OrderedDict[int, _Read] = OrderedDict()
        self._spare: list[Pixels] = []
        self._capacity = max(1, _CACHE_BYTES // (3 * self.tile_shape_yx[0] * self.tile_shape_yx[1]))

    @property
    def stored(self) -> Sequence[int]:
        """List the numbers of the tiles that have data, in reading order."""
        return [number for number, size in enumerate(self._layout.sizes) if size]

    def read_regions(
        self, starts_yx: Sequence[tuple[int, int]], shape_yx: tuple[int, int]
    ) -> Iterator[Pixels | SourceError | None]:
        """Read rectangles of one shape, which must lie inside the level.

        A tile is decoded once as long as those that are needed again fit into the cache.

        Args:
            starts_yx: Upper left corners in pixels of the level.
            shape_yx: Height and width of every rectangle.

        Yields:
            uint8 (height, width, 3), RGB, to be used before the next is asked for. In its place
            the error that names a corrupt tile, or None where a tile is missing or of another
            form than its page says: the region is then left to OpenSlide.
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
        """Ask the disk for tiles in the order of the file, whatever order they are used in."""
        places = sorted((self._layout.offsets[n], self._layout.sizes[n]) for n in numbers)
        for offset, size in places if hasattr(os, "posix_fadvise") else ():
            if size:  # 0 would mean the rest of the file
                os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)

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

    def _assemble(self, pieces: list[_Piece], shape_yx: tuple[int, int]) -> _Read:
        region = np.empty((*shape_yx, 3), np.uint8) if len(pieces) > 1 else None
        is_whole = True
        for number, into_yx, from_yx in pieces:
            tile = self._read_tile(number)
            if isinstance(tile, SourceError):
                return tile
            if tile is None:
                is_whole = False  # yet one of the others may be corrupt
            elif region is None:
                return tile[from_yx]
            else:
                region[into_yx] = tile[from_yx]
        return region if is_whole else None

    def _read_tile(self, number: int) -> _Read:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        while len(self._kept) >= self._capacity:
            self._drop(next(iter(self._kept)))
        self._kept[number] = self._decode(number)
        return self._kept[number]

    def _drop(self, number: int) -> None:
        """Drop a tile and keep its memory for the next: fresh memory costs as much as a decode."""
        pixels = self._kept.pop(number, None)
        if isinstance(pixels, np.ndarray):
            self._spare.append(pixels)

    def _decode(self, number: int) -> _Read:
        """Decode a tile if it is what its page says it is; a warning counts as an error."""
        layout = self._layout
        data = os.pread(self._descriptor, layout.sizes[number], layout.offsets[number])
        if len(data) != layout.sizes[number] or not data.startswith(_START_OF_IMAGE):
            return None
        stream = self._head + data[2:]
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(stream)
            if (height, width) != self.tile_shape_yx or colorspace != layout.colorspace:
                return None
            buffer = self._spare.pop() if self._spare else np.empty((height, width, 3), np.uint8)
            pixels: Pixels = simplejpeg.decode_jpeg(stream, strict=True, buffer=buffer)
        except ValueError as error:
            row, column = divmod(number, self.columns)
            return SourceError(
                self._item,
                f"the JPEG tile in row {row}, column {column} of level {layout.level} is corrupt "
                f"({error})",
                READ_REMEDY,
            )
        return pixels


def make_jpeg_head(colorspace: str, tables: bytes) -> bytes:
    """Make what replaces the first two bytes of a TIFF's JPEG tile, so that it stands alone.

    Args:
        colorspace: Stored colour space, `YCbCr` or `RGB`.
        tables: JPEG tables that all tiles share, without the markers of start and end.
    """
    return _START_OF_IMAGE + _ADOBE + _TRANSFORM[colorspace] + tables


def _overlap(begin: int, size: int, limit: int) -> tuple[slice, slice]:
    """Return the part of a region that a tile at `begin` covers: in the region, in the tile."""
    first, last = max(begin, 0), min(begin + size, limit)
    return slice(first, last), slice(first - begin, last - begin)
