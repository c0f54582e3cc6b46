"""Leica SCN slides: a canvas of which only a part is scanned, https://openslide.org/formats/leica/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

_NM = 500  # nanometres per pixel
_SCN = "http://www.leica-microsystems.com/scn/2010/10/01"


def write_scn(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    corner_yx: tuple[int, int],
    canvas_yx: tuple[int, int],
    power: int = 20,
) -> Path:
    """Write a slide of one level at 0.5 um/px whose pixels lie at a corner of a larger canvas."""
    height, width = pixels.shape[:2]
    (y, x), (tall, wide) = corner_yx, canvas_yx
    size = f'sizeX="{width}" sizeY="{height}"'
    place = f'offsetX="{x * _NM}" offsetY="{y * _NM}"'
    xml = f"""<?xml version="1.0"?>
<scn xmlns="{_SCN}"><collection name="c" uuid="c" sizeX="{wide * _NM}" sizeY="{tall * _NM}">
 <image name="scan" uuid="i">
  <pixels {size}><dimension {size} r="0" ifd="0"/></pixels>
  <view sizeX="{width * _NM}" sizeY="{height * _NM}" {place}/>
  <scanSettings>
   <objectiveSettings><objective>{power}</objective></objectiveSettings>
   <illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings>
  </scanSettings>
 </image>
</collection></scn>"""
    tifffile.imwrite(
        path,
        pixels,
        bigtiff=True,
        photometric="rgb",
        tile=(64, 64),
        compression="zlib",
        description=xml,
        resolution=(1e7 / _NM, 1e7 / _NM),
        resolutionunit="CENTIMETER",
        metadata=None,
        software=False,
    )
    return path
