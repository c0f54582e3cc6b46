"""Synthetic tiles in files, with a table: the form in which PatchCamelyon and its like come."""

from __future__ import annotations

from io import BytesIO
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.io.storage import holds, join, write_bytes
from pipeline.synthetic.slides import paint_slide

TABLE: Final = "labels.csv"
_SLIDE_YX: Final = (1152, 1536)
_CENTRE_PX: Final = 32  # the label speaks of the centre, as PatchCamelyon's does
_GLASS: Final = 225  # mean grey value above which a tile shows next to no tissue


def write_tiles(
    url: str, *, seed: int = 0, slides: int = 12, tiles_per_slide: int = 60, size_px: int = 96
) -> None:
    """Write PNG tiles of synthetic slides and `labels.csv`, unless they are there.

    Every third slide has lesions; its tiles are 1 (tumour) where the centre lies in one. The
    slide is each tile's group, so that no split divides it.

    Args:
        url: Folder or prefix to write to; tiles go to `tiles/` in it.
        seed: Seed of all that is drawn; equal seeds give equal bytes.
        slides: Number of slides that tiles are cut from.
        tiles_per_slide: Number of tiles from each slide.
        size_px: Height and width of a tile in pixels of 0.5 um.
    """
    rows: list[str] = ["path,label,slide"]
    images: dict[str, NDArray[np.uint8]] = {}
    for slide in range(slides):
        rng = np.random.default_rng([seed, 3, slide])
        pixels, lesions = paint_slide(rng, _SLIDE_YX, 2 if slide % 3 == 2 else 0)
        is_lesion = np.zeros(_SLIDE_YX, np.uint8)
        for lesion in lesions:
            cv2.fillPoly(is_lesion, [lesion.outline.round().astype(np.int32)], 1)
            if lesion.hole is not None:
                cv2.fillPoly(is_lesion, [lesion.hole.round().astype(np.int32)], 0)
        for number, (y, x) in enumerate(_draw_places(rng, pixels, tiles_per_slide, size_px)):
            path = f"tiles/slide_{slide:02d}_{number:03d}.png"
            edge = (size_px - _CENTRE_PX) // 2
            centre = is_lesion[y + edge : y + edge + _CENTRE_PX, x + edge : x + edge + _CENTRE_PX]
            images[path] = pixels[y : y + size_px, x : x + size_px]
            rows.append(f"{path},{int(centre.any())},slide_{slide:02d}")
    table = ("\n".join(rows) + "\n").encode()
    # The table is written last: where it stands, all the rest does.
    if holds(join(url, TABLE), table):
        return
    for path, tile in images.items():
        stream = BytesIO()
        Image.fromarray(tile).save(stream, "PNG", compress_level=1)
        write_bytes(join(url, *path.split("/")), stream.getvalue())
    write_bytes(join(url, TABLE), table)


def _draw_places(
    rng: np.random.Generator, pixels: NDArray[np.uint8], count: int, size_px: int
) -> list[tuple[int, int]]:
    """Draw (y, x) of the upper left corners of tiles that show tissue."""
    places: list[tuple[int, int]] = []
    while len(places) < count:
        y, x = (int(rng.integers(0, side - size_px)) for side in pixels.shape[:2])
        if pixels[y : y + size_px, x : x + size_px].mean() < _GLASS:
            places.append((y, x))
    return places
