"""Reads a whole slide as a thumbnail, for the tissue mask and the review picture."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.slides.readers.protocol import SlideReader

_BLOCK_PX: Final = 1024
# A corrupt block is quartered so often: to 256 px, about the size of a JPEG tile.
_QUARTERINGS: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class Thumbnail:
    """A whole slide at low resolution.

    Args:
        pixels: uint8 (y, x, 3), RGB; 0 where `is_readable` is false.
        is_readable: bool (y, x); false where the file is corrupt, so that nothing is known.
    """

    pixels: NDArray[np.uint8]
    is_readable: NDArray[np.bool_]


def read_thumbnail(slide: SlideReader, max_side_px: int) -> Thumbnail:
    """Read a whole slide at low resolution: each pixel is the mean of its area.

    The slide is read in blocks, so that memory stays bounded, from the coarsest level that holds
    enough detail; a corrupt block is marked and the rest goes on.

    Args:
        slide: The open slide.
        max_side_px: Greatest length of the longer side; a smaller slide is not enlarged.

    Raises:
        SourceError: Not one block can be read.
    """
    shape_yx = _shrink(slide.level_shapes_yx[0], max_side_px)
    level = choose_thumbnail_level(slide, max_side_px)
    pixels = np.zeros((*shape_yx, 3), np.uint8)
    is_readable = np.zeros(shape_yx, np.bool_)
    errors = []
    pending = deque(_cut_blocks(shape_yx, slide.level_shapes_yx[level]))
    while pending:
        block = pending.popleft()
        try:
            pixels[block.yx] = _read_block(slide, level, shape_yx, block)
            is_readable[block.yx] = True
        except SourceError as error:
            errors.append(error)
            pending.extend(_quarter(block))
    if not is_readable.any():
        raise errors[0]
    return Thumbnail(pixels, is_readable)


def choose_thumbnail_level(slide: SlideReader, max_side_px: int) -> int:
    """Choose the coarsest level that holds enough detail for a thumbnail.

    Args:
        slide: The open slide.
        max_side_px: Greatest length of the thumbnail's longer side in pixels.
    """
    shape_yx = _shrink(slide.level_shapes_yx[0], max_side_px)
    return max(
        index
        for index, (h, w) in enumerate(slide.level_shapes_yx)
        if index == 0 or (h >= shape_yx[0] and w >= shape_yx[1])
    )


def _shrink(shape_yx: tuple[int, int], max_side_px: int) -> tuple[int, int]:
    scale = min(1.0, max_side_px / max(shape_yx))
    return max(1, round(shape_yx[0] * scale)), max(1, round(shape_yx[1] * scale))


@dataclass(frozen=True, slots=True)
class _Block:
    """A part of the thumbnail and the number of times that it may still be quartered."""

    rows: slice
    columns: slice
    quarterings: int

    @property
    def yx(self) -> tuple[slice, slice]:
        return self.rows, self.columns


def _cut_blocks(shape_yx: tuple[int, int], source_shape_yx: tuple[int, int]) -> Iterator[_Block]:
    """Cut a small image into blocks that each cover about 1024 px of its source, row by row."""
    step_y, step_x = (
        max(1, _BLOCK_PX * small // size)
        for small, size in zip(shape_yx, source_shape_yx, strict=True)
    )
    for rows in _cut(slice(0, shape_yx[0]), step_y):
        for columns in _cut(slice(0, shape_yx[1]), step_x):
            yield _Block(rows, columns, _QUARTERINGS)


def _quarter(block: _Block) -> Iterator[_Block]:
    """Quarter a block that cannot be read, to find where it is corrupt."""
    step_y, step_x = (max(1, (part.stop - part.start + 1) // 2) for part in block.yx)
    if block.quarterings:
        for rows in _cut(block.rows, step_y):
            for columns in _cut(block.columns, step_x):
                yield _Block(rows, columns, block.quarterings - 1)


def _cut(part: slice, step: int) -> list[slice]:
    return [
        slice(start, min(start + step, part.stop)) for start in range(part.start, part.stop, step)
    ]


def _read_block(
    slide: SlideReader, level: int, shape_yx: tuple[int, int], block: _Block
) -> NDArray[np.uint8]:
    """Read one block of the thumbnail, box-averaged from the level's pixels that it covers."""
    starts, sizes, edges = [], [], []
    for part, small, size in zip(block.yx, shape_yx, slide.level_shapes_yx[level], strict=True):
        begin, end = part.start * size / small, min(part.stop * size / small, size)
        start = int(begin)
        starts.append(start)
        sizes.append(min(ceil(end), size) - start)
        edges.append((begin - start, min(end - start, sizes[-1])))
    downsample_y, downsample_x = slide.level_downsamples_yx[level]
    origin_yx = (round(starts[0] * downsample_y), round(starts[1] * downsample_x))
    region = slide.read_region_yx(origin_yx, level, (sizes[0], sizes[1]))
    (top, bottom), (left, right) = edges
    size_xy = (block.columns.stop - block.columns.start, block.rows.stop - block.rows.start)
    box = (left, top, right, bottom)
    return np.asarray(Image.fromarray(region).resize(size_xy, Image.Resampling.BOX, box=box))
