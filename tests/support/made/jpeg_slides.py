"""Slides of JPEG tiles, whole and spoilt, in the forms that archives hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

MPP: dict[str, Any] = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 um
YCBCR: dict[str, Any] = {"photometric": "ycbcr", "subsampling": (2, 2)}


def paint(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth colours and grain, different in every place and on both axes."""
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(7).integers(0, 40, (height, width, 3))
    base = np.stack([90 + 80 * np.sin(y / 37), 90 + 80 * np.cos(x / 23), (y + 2 * x) % 170], -1)
    return (base + grain).astype(np.uint8)


def encode(tile: NDArray[np.uint8], **arguments: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(tile, level=80, **arguments))


def cut(picture: NDArray[np.uint8], height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Tiles row by row, padded by repeating the edge."""
    for y in range(0, picture.shape[0], height):
        for x in range(0, picture.shape[1], width):
            tile = picture[y : y + height, x : x + width]
            missing = (height - tile.shape[0], width - tile.shape[1])
            yield np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def write_tiles(
    path: Path,
    shape_yx: tuple[int, int],
    tile_yx: tuple[int, int],
    change: Callable[[list[bytes]], object] = len,
    jpeg: Mapping[str, Any] | None = None,
    **tags: Any,
) -> Path:
    """A slide of one level, made of JPEG tiles that `change` may spoil."""
    jpeg = jpeg or {"colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": "420"}
    tiles: list[bytes] = [encode(tile, **jpeg) for tile in cut(paint(*shape_yx), *tile_yx)]
    change(tiles)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter(tiles),
            shape=(*shape_yx, 3),
            dtype="uint8",
            tile=tile_yx,
            compression="jpeg",
            metadata=None,
            **{**YCBCR, **MPP, **tags},
        )
    return path


def write_pyramid(path: Path, shapes_yx: list[tuple[int, int]], **arguments: Any) -> Path:
    arguments = {"photometric": "rgb", "compression": "jpeg", **MPP, **arguments}
    with tifffile.TiffWriter(path) as tiff:
        for number, (height, width) in enumerate(shapes_yx):
            tiff.write(paint(height, width), subfiletype=min(number, 1), metadata=None, **arguments)
    return path


def write_philips(path: Path) -> Path:
    """Pages padded to whole tiles, true shapes in the description, as Camelyon16's slides have."""
    spacings = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" '
        f'PMSVR="IDoubleArray">&quot;{s}&quot; &quot;{s}&quot;</Attribute></DataObject>'
        for s in (0.00025, 0.0005)
    )
    description = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES" PMSVR="IDataObjectArray"><Array>'
        '<DataObject ObjectType="DPScannedImage">'
        '<Attribute Name="PIM_DP_IMAGE_TYPE" PMSVR="IString">WSI</Attribute>'
        '<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">'
        "&quot;0.00025&quot; &quot;0.00025&quot;</Attribute>"
        '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" PMSVR="IDataObjectArray">'
        f"<Array>{spacings}</Array></Attribute></DataObject></Array></Attribute></DataObject>"
    )
    with tifffile.TiffWriter(path) as tiff:
        for number, shape_yx in enumerate([(1024, 1536), (512, 1024)]):
            tiles: list[bytes] = [encode(tile) for tile in cut(paint(*shape_yx), 512, 512)]
            if number == 0:
                tiles[1] = b""
            tiff.write(
                iter(tiles),
                shape=(*shape_yx, 3),
                dtype="uint8",
                tile=(512, 512),
                compression="jpeg",
                subfiletype=number,
                metadata=None,
                software="Philips DP v1.0",
                description=description if number == 0 else f"level={number}",
                **YCBCR,
            )
    return path
