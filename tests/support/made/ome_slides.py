"""Small OME-TIFF slides: pyramids in SubIFDs, each axis with its own downsample, and a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

STEPS_YX = ((1, 1), (2, 4), (4, 8))
TILE_YX = (64, 96)


def write_ome(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    compression: str | None = "zlib",
    planar: bool = False,
    byteorder: Literal["<", ">"] = "<",
    bigtiff: bool = False,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write a slide of 0.5 x 0.25 um/px (y, x); each level takes every n-th pixel."""
    axes = "SYX" if planar else "YXS"
    stated = {
        "PhysicalSizeX": 250.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.5,
        "PhysicalSizeYUnit": "µm",
        **(metadata or {}),
    }
    with tifffile.TiffWriter(path, ome=True, bigtiff=bigtiff, byteorder=byteorder) as tiff:
        for number, (step_y, step_x) in enumerate(STEPS_YX):
            level = pixels[::step_y, ::step_x]
            tiff.write(
                np.ascontiguousarray(np.moveaxis(level, -1, 0) if planar else level),
                subifds=0 if number else len(STEPS_YX) - 1,
                subfiletype=min(number, 1),
                tile=TILE_YX,
                photometric="rgb",
                planarconfig="separate" if planar else "contig",
                compression=compression,
                metadata=None if number else {"axes": axes, **stated},
            )
        label = np.zeros((30, 40, 3), np.uint8)
        name = {"axes": "YXS", "Name": "Label image of A. Person"}
        tiff.write(label, photometric="rgb", metadata=name)
    return path
