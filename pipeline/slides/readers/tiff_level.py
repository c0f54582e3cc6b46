"""Reads regions of one TIFF page by its stored tiles or strips, in bounded memory."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from struct import unpack_from
from typing import Any, Final

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG

from pipeline.slides.jpeg.tiles import make_jpeg_head

# Decoded tiles and strips of all levels that are kept for the next regions.
CACHE_BYTES: Final = 128 << 20
# A strip or tile of more is refused: it has to be decoded whole.
MOST_SEGMENT_BYTES: Final = 512 << 20
_JPEG2000: Final = frozenset({COMPRESSION.JPEG2000, COMPRESSION.APERIO_JP2000_RGB})
_JPEG2000_SIZE: Final = b"\xff\x4f\xff\x51"  # start of codestream, image and tile size
_CODECS: Final = _JPEG2000 | frozenset(
    {COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.DEFLATE, COMPRESSION.ADOBE_DEFLATE}
    | {COMPRESSION.PACKBITS, COMPRESSION.JPEG, COMPRESSION.ZSTD, COMPRESSION.LZMA}
    | {COMPRESSION.WEBP}
)
_COLORSPACES: Final = {PHOTOMETRIC.YCBCR: "YCbCr", PHOTOMETRIC.RGB: "RGB"}
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2


class SegmentCache:
    """Keeps the last decoded tiles and strips of a slide, up to a number of bytes."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._kept: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()

    def find(self, key: tuple[int, int]) -> NDArray[np.uint8] | None:
        """Return the pixels of a level and number, or None where they are not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: tuple[int, int], pixels: NDArray[np.uint8]) -> None:
        """Keep pixels, in place of the oldest where there are too many."""
        self._kept[key] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


def describe_refusal(page: tifffile.TiffPage) -> str:
    """Say what a page holds if that is not 8-bit RGB in a known form; "" where it is."""
    photometric, compression = (
        _name(PHOTOMETRIC, page.photometric),
        _name(COMPRESSION, page.compression),
    )
    bits, samples = page.bitspersample, page.samplesperpixel
    if (bits, page.sampleformat) != (8, 1) or samples not in {3, 4} or page.imagedepth != 1:
        kind = "palette colours" if page.photometric == PHOTOMETRIC.PALETTE else photometric
        channels = "1 channel" if samples == 1 else f"{samples} channels"
        return f"{channels} of {bits} bit, {kind}"
    is_rgb = page.photometric == PHOTOMETRIC.RGB
    if not is_rgb and not (page.photometric == PHOTOMETRIC.YCBCR and samples == 3):
        return f"colours stored as {photometric}"
    if page.compression not in _CODECS:
        return f"compression {compression}"
    if not is_rgb and page.compression not in {COMPRESSION.JPEG, COMPRESSION.WEBP}:
        return f"colours stored as {photometric} with compression {compression}"
    if page.compression == COMPRESSION.JPEG and samples != 3:
        return f"{samples} channels in JPEG"
    return ""


class TiffLevel:
    """The pixels of one page for which `describe_refusal` has nothing to say.

    Args:
        page: TIFF page whose tiles or strips are read.
        descriptor: File descriptor of the open file.
        number: Number of the level; it tells its tiles from others' in the cache.
        cache: Cache that all levels of the file share.

    Raises:
        ValueError: Its tiles or strips are not as many as its size needs, or too large.
    """

    def __init__(
        self, page: tifffile.TiffPage, descriptor: int, number: int, cache: SegmentCache
    ) -> None:
        self._page, self._descriptor, self._number, self._cache = page, descriptor, number, cache
        self.shape_yx = (int(page.imagelength), int(page.imagewidth))
        self.tile_yx = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else None
        rows = min(int(page.rowsperstrip), self.shape_yx[0]) if not page.is_tiled else 0
        self._segment_yx = self.tile_yx or (max(1, rows), self.shape_yx[1])
        self._columns = -(-self.shape_yx[1] // self._segment_yx[1])
        self._segments = -(-self.shape_yx[0] // self._segment_yx[0]) * self._columns
        self._planes = 3 if page.planarconfig == PLANARCONFIG.SEPARATE else 1
        self._is_raw = page.compression == COMPRESSION.NONE and not page.is_tiled
        self._require_sound()

    def read(self, start_yx: tuple[int, int], shape_yx: tuple[int, int]) -> NDArray[np.uint8]:
        """Read a rectangle inside the level; see `LevelReader.read`."""
        if self._is_raw and self._page.fillorder == 1:
            return self._read_rows(start_yx, shape_yx)
        region = np.empty((*shape_yx, 3), np.uint8)
        (top, left), (height, width) = start_yx, shape_yx
        tall, wide = self._segment_yx
        for row in range(top // tall, (top + height - 1) // tall + 1):
            into_y, from_y = _overlap(row * tall - top, tall, height)
            for column in range(left // wide, (left + width - 1) // wide + 1):
                into_x, from_x = _overlap(column * wide - left, wide, width)
                pixels = self._find_segment(row * self._columns + column)
                region[into_y, into_x] = pixels[from_y, from_x]
        return region

    def _require_sound(self) -> None:
        page, (tall, wide) = self._page, self._segment_yx
        planes = int(page.samplesperpixel) if self._planes == 3 else 1
        wanted = self._segments * planes
        if not len(page.dataoffsets) == len(page.databytecounts) == wanted:
            raise ValueError(
                f"level of {self.shape_yx[0]} x {self.shape_yx[1]} px (y, x) with "
                f"{len(page.dataoffsets)} tiles or strips in place of {wanted}"
            )
        end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)))
        if end > (size := os.fstat(self._descriptor).st_size):
            raise ValueError(f"its pixels end at byte {end}, the file at byte {size}")
        size_bytes = tall * wide * int(page.samplesperpixel)
        if size_bytes > MOST_SEGMENT_BYTES and not self._is_raw:
            raise ValueError(
                f"compressed in pieces of {tall} x {wide} px, {size_bytes >> 20} MiB each where "
                f"{MOST_SEGMENT_BYTES >> 20} are read: convert it to tiles"
            )

    def _read_rows(self, start_yx: tuple[int, int], shape_yx: tuple[int, int]) -> NDArray[np.uint8]:
        """Read rows of uncompressed strips, and nothing beside the rectangle."""
        samples = 1 if self._planes == 3 else int(self._page.samplesperpixel)
        region = np.empty((*shape_yx, max(3, samples)), np.uint8)
        for index in range(shape_yx[0]):
            strip, row = divmod(start_yx[0] + index, self._segment_yx[0])
            skip = (row * self.shape_yx[1] + start_yx[1]) * samples
            for plane in range(self._planes):
                number = plane * self._segments + strip
                pixels = self._pread(number, skip, shape_yx[1] * samples)
                line = np.frombuffer(pixels, np.uint8).reshape(-1, samples)
                region[index, :, plane : plane + samples] = line
        return _flatten_alpha(region, self._page)

    def _pread(self, number: int, skip: int, size: int) -> bytes:
        offset, most = self._page.dataoffsets[number], self._page.databytecounts[number]
        data = os.pread(self._descriptor, size, offset + skip) if skip + size <= most else b""
        if len(data) != size:
            raise ValueError(f"strip or tile {number} is cut off")
        return data

    def _find_segment(self, number: int) -> NDArray[np.uint8]:
        key = (self._number, number)
        pixels = self._cache.find(key)
        if pixels is None:
            planes = [self._decode(number + plane * self._segments) for plane in self._plane_range]
            pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)
            pixels = _flatten_alpha(pixels, self._page)
            self._cache.keep(key, pixels)
        return pixels

    @property
    def _plane_range(self) -> range:
        """Numbers of the planes that are stored apart: red, green and blue, or all in one."""
        return range(self._planes)

    def _decode(self, number: int) -> NDArray[np.uint8]:
        size = int(self._page.databytecounts[number])
        if size == 0:  # a sparse tile: nothing was scanned there
            samples = 1 if self._planes == 3 else int(self._page.samplesperpixel)
            return np.full((*self._segment_yx, samples), 255, np.uint8)
        data = self._pread(number, 0, size)
        if self._page.compression == COMPRESSION.JPEG and self._planes == 1:
            return self._decode_jpeg(data)
        self._require_declared_size(data)
        decoded, _, shape = self._page.decode(data, number, jpegtables=self._page.jpegtables)
        pixels: NDArray[np.uint8] = np.asarray(decoded)[0]
        height, width = shape[1:3]
        if pixels.dtype != np.uint8 or pixels.shape[0] < height or pixels.shape[1] < width:
            raise ValueError(f"strip or tile {number} holds {pixels.shape} {pixels.dtype}")
        return pixels

    def _require_declared_size(self, data: bytes) -> None:
        """Refuse a JPEG 2000 of another size before it takes memory; ITU-T T.800, A.5.1."""
        at = data.find(_JPEG2000_SIZE, 0, 4096)
        if self._page.compression in _JPEG2000 and at >= 0:
            width, height = unpack_from(">II", data, at + 8)
            if height > self._segment_yx[0] or width > self._segment_yx[1]:
                raise ValueError(f"a JPEG 2000 of {height} x {width} px for {self._segment_yx}")

    def _decode_jpeg(self, data: bytes) -> NDArray[np.uint8]:
        """Decode strictly: libjpeg paints what is cut off or damaged, and merely warns."""
        tables = memoryview(self._page.jpegtables or b"")[2:-2].tobytes()
        stream = (
            make_jpeg_head(_COLORSPACES[PHOTOMETRIC(self._page.photometric)], tables) + data[2:]
        )
        height, width, *_ = simplejpeg.decode_jpeg_header(stream)
        if height > self._segment_yx[0] or width > self._segment_yx[1]:
            raise ValueError(f"a JPEG of {height} x {width} px in place of {self._segment_yx}")
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(stream, strict=True)
        return pixels


def find_levels(page: tifffile.TiffPage, others: Iterator[tifffile.TiffPage]) -> list[Any]:
    """List the pages of a pyramid: the finest, and those that follow and shrink."""
    levels = [page]
    for other in others:
        height, width = int(other.imagelength), int(other.imagewidth)
        above = levels[-1]
        is_smaller = height <= above.imagelength and width <= above.imagewidth
        is_other = (height, width) != (above.imagelength, above.imagewidth)
        if min(height, width) > 0 and is_smaller and is_other and not describe_refusal(other):
            levels.append(other)
    return levels


def _flatten_alpha(pixels: NDArray[np.uint8], page: tifffile.TiffPage) -> NDArray[np.uint8]:
    """Lay pixels with a fourth channel on white where that is alpha; elsewhere leave it out."""
    if pixels.shape[-1] == 3:
        return pixels
    colours, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    kind = int(page.extrasamples[0]) if page.extrasamples else 0
    if kind == _ASSOCIATED_ALPHA:
        laid: NDArray[np.uint8] = np.minimum(colours + 255 - alpha, 255).astype(np.uint8)
        return laid
    if kind == _UNASSOCIATED_ALPHA:
        mixed: NDArray[np.uint8] = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(
            np.uint8
        )
        return mixed
    return np.ascontiguousarray(pixels[..., :3])


def _name(kinds: Any, value: int) -> str:
    try:
        return str(kinds(value).name)
    except ValueError:
        return f"number {value}"


def _overlap(begin: int, size: int, limit: int) -> tuple[slice, slice]:
    """Return the part of a region that a tile at `begin` covers: in the region, in the tile."""
    first, last = max(begin, 0), min(begin + size, limit)
    return slice(first, last), slice(first - begin, last - begin)
