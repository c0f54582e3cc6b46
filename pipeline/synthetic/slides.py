"""Small synthetic slides in Camelyon16's layout: for the demo and the tests, from a seed.

Lymphoid tissue on glass, painted by the Beer-Lambert law from a haematoxylin and an eosin layer;
metastases are regions of larger, darker, more crowded nuclei in paler stroma. The look is that of
a cartoon; what is real is everything round it: tiled JPEG pyramids that OpenSlide opens, um/px in
the TIFF resolution tags, ASAP XML, a reference table, an official split.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Final, TypeAlias
from xml.etree import ElementTree as ET

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from pipeline.io.storage import holds, join, write_bytes

Outline: TypeAlias = NDArray[np.float64]

MPP_UM: Final = 0.5
_TILE_PX: Final = 256
_LEVELS: Final = 4
_JPEG_QUALITY: Final = 85
# Optical density per unit of stain: Ruifrok and Johnston, Anal Quant Cytol Histol 2001.
_HAEMATOXYLIN: Final = np.array([0.650, 0.704, 0.286], np.float32)
_EOSIN: Final = np.array([0.072, 0.990, 0.105], np.float32)
_GLASS: Final = 244.0
# The coarse grid that shapes are decided on.
_COARSE: Final = 16


@dataclass(frozen=True, slots=True)
class _Nuclei:
    """How nuclei look: spacing and radius in level-0 px, darkness 0 to 255."""

    spacing_px: float
    radius_px: tuple[float, float]
    darkness: tuple[int, int]


_LYMPHOCYTES: Final = _Nuclei(17.0, (3.5, 5.0), (110, 160))
_METASTATIC: Final = _Nuclei(23.0, (7.0, 11.0), (140, 215))


@dataclass(frozen=True, slots=True)
class _Lesion:
    """A metastasis: its outline and, perhaps, a hole; each (n, 2), (x, y) in level-0 px."""

    outline: Outline
    hole: Outline | None


def write_slides(
    url: str,
    *,
    seed: int = 0,
    normal_count: int = 6,
    tumor_count: int = 2,
    test_count: int = 2,
    shape_yx: tuple[int, int] = (2304, 3072),
) -> None:
    """Write slides, annotations and the reference table in Camelyon16's layout.

    Files that are there already with the same content are left alone. The same arguments give
    the same bytes.

    Args:
        url: Folder or prefix to write to.
        seed: Another seed gives other slides.
        normal_count: `training/normal/normal_001.tif` and so on.
        tumor_count: `training/tumor/tumor_001.tif` and so on, each with its annotation.
        test_count: `testing/images/test_001.tif` and so on; every other one is a tumour.
        shape_yx: Height and width of each slide in level-0 pixels of 0.5 um.
    """
    for number in range(1, normal_count + 1):
        rng = np.random.default_rng([seed, 0, number])
        _write_slide(url, f"training/normal/normal_{number:03d}", rng, shape_yx, 0)
    for number in range(1, tumor_count + 1):
        rng = np.random.default_rng([seed, 1, number])
        _write_slide(url, f"training/tumor/tumor_{number:03d}", rng, shape_yx, 2)
    rows = []
    for number in range(1, test_count + 1):
        name, has_tumor = f"test_{number:03d}", number % 2 == 1
        rng = np.random.default_rng([seed, 2, number])
        _write_slide(url, f"testing/images/{name}", rng, shape_yx, 2 if has_tumor else 0)
        rows.append(f"{name},Tumor,IDC,Macro" if has_tumor else f"{name},Normal,None,None")
    if rows:
        _write(join(url, "testing/reference.csv"), "\n".join([*rows, ""]).encode())


def _write(url: str, data: bytes) -> None:
    """Leave an equal file alone: its version, and all that was made from it, stays valid."""
    if not holds(url, data):
        write_bytes(url, data)


def _write_slide(
    url: str, path: str, rng: np.random.Generator, shape_yx: tuple[int, int], lesion_count: int
) -> None:
    """Write one slide and, if it has lesions, its annotation."""
    pixels, lesions = paint_slide(rng, shape_yx, lesion_count)
    _write(join(url, f"{path}.tif"), encode_pyramid(pixels, MPP_UM))
    if lesions:
        part, _, name = path.split("/")
        _write(join(url, part, "lesion_annotations", f"{name}.xml"), _to_asap(lesions))


def paint_slide(
    rng: np.random.Generator, shape_yx: tuple[int, int], lesion_count: int
) -> tuple[NDArray[np.uint8], list[_Lesion]]:
    """Paint a slide at level 0.

    Args:
        rng: Random generator that shapes and textures are drawn from.
        shape_yx: Height and width in pixels.
        lesion_count: Metastases to plant.

    Returns:
        uint8 (y, x, 3), RGB, and the lesions.
    """
    field = _grow_tissue(rng, (shape_yx[0] // _COARSE, shape_yx[1] // _COARSE))
    lesions = _place_lesions(rng, field > 0, lesion_count)
    is_tissue = _enlarge(field, shape_yx) > 0
    is_lesion = _rasterise(lesions, shape_yx)
    haematoxylin = np.maximum(
        _sprinkle(rng, is_tissue & ~is_lesion, _LYMPHOCYTES),
        _sprinkle(rng, is_tissue & is_lesion, _METASTATIC),
    )
    eosin = _weave_stroma(rng, shape_yx)
    eosin[is_lesion] *= 0.7
    haematoxylin[~is_tissue] = 0
    eosin[~is_tissue] = 0
    grain = rng.integers(0, 12, shape_yx, dtype=np.uint8)
    return _stain(haematoxylin + grain, eosin.astype(np.uint8) + grain // 2), lesions


def _grow_tissue(rng: np.random.Generator, coarse_yx: tuple[int, int]) -> NDArray[np.float32]:
    """Islands of tissue on a coarse grid: positive inside, and half of the slide is."""
    wobble = _enlarge(rng.normal(0.0, 0.35, (6, 9)).astype(np.float32), coarse_yx)
    y, x = (np.linspace(0, 1, size, dtype=np.float32) for size in coarse_yx)
    field = wobble
    for centre_x in (0.3, 0.72):
        centre_y = rng.uniform(0.4, 0.6)
        distance = np.hypot((y[:, None] - centre_y) / 0.42, (x[None, :] - centre_x) / 0.26)
        field = np.maximum(field, wobble + 1.6 - 1.6 * distance)
    margin = np.minimum.outer(np.minimum(y, 1 - y), np.minimum(x, 1 - x)) * 2
    field = field - max(0.0, float(np.median(field)))
    return np.minimum(field, 8 * (margin - 0.06)).astype(np.float32)


def _place_lesions(
    rng: np.random.Generator, is_tissue: NDArray[np.bool_], count: int
) -> list[_Lesion]:
    """Wobbly discs well inside the tissue and apart; the first has a hole."""
    free = distance_transform_edt(np.pad(is_tissue, 1))[1:-1, 1:-1]
    lesions = []
    for number in range(count):
        y, x = np.unravel_index(int(free.argmax()), free.shape)
        # Tenths of the room at hand, so that normal tissue stays round it.
        radius = float(free[y, x]) * rng.uniform(0.55, 0.75)
        centre = ((x + 0.5) * _COARSE, (y + 0.5) * _COARSE)
        outline = _wobble_disc(rng, centre, radius * _COARSE)
        hole = _wobble_disc(rng, centre, radius * _COARSE / 3) if number == 0 else None
        lesions.append(_Lesion(outline, hole))
        rows, columns = np.ogrid[: free.shape[0], : free.shape[1]]
        free = np.minimum(free, np.maximum(np.hypot(rows - y, columns - x) - 1.5 * radius, 0))
    return lesions


def _wobble_disc(
    rng: np.random.Generator, centre_xy: tuple[float, float], radius_px: float
) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radii = np.full_like(angles, radius_px)
    for waves in (2, 3, 5):
        radii *= 1 + rng.uniform(0.02, 0.1) * np.cos(waves * angles + rng.uniform(0, 2 * np.pi))
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.round(centre_xy + circle * radii[:, None], 1)


def _rasterise(lesions: list[_Lesion], shape_yx: tuple[int, int]) -> NDArray[np.bool_]:
    picture = Image.new("1", (shape_yx[1], shape_yx[0]))
    draw = ImageDraw.Draw(picture)
    for lesion in lesions:
        draw.polygon(lesion.outline.ravel().tolist(), fill=1)
        if lesion.hole is not None:
            draw.polygon(lesion.hole.ravel().tolist(), fill=0)
    return np.array(picture)


def _sprinkle(
    rng: np.random.Generator, region: NDArray[np.bool_], nuclei: _Nuclei
) -> NDArray[np.uint8]:
    """Draw nuclei on a jittered grid, those whose centre is in the region."""
    height, width = region.shape
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    step = nuclei.spacing_px
    y, x = (
        grid.ravel() + rng.uniform(-step / 2, step / 2, grid.size)
        for grid in np.mgrid[
            step / 2 : height - step / 2 : step, step / 2 : width - step / 2 : step
        ]
    )
    inside = region[y.astype(int), x.astype(int)]
    count = int(inside.sum())
    radius = rng.uniform(*nuclei.radius_px, (count, 2))
    darkness = rng.integers(*nuclei.darkness, count)
    corners = np.stack(
        [
            x[inside] - radius[:, 0],
            y[inside] - radius[:, 1],
            x[inside] + radius[:, 0],
            y[inside] + radius[:, 1],
        ],
        axis=1,
    )
    for box, shade in zip(corners.tolist(), darkness.tolist(), strict=True):
        draw.ellipse(box, fill=shade)
    return np.array(picture)


def _weave_stroma(rng: np.random.Generator, shape_yx: tuple[int, int]) -> NDArray[np.float32]:
    """Eosin: slow variation, and fibres that run across."""
    slow = _enlarge(rng.uniform(-25, 25, (8, 11)).astype(np.float32), shape_yx)
    fibres = rng.uniform(-30, 30, (shape_yx[0] // 5, shape_yx[1] // 40)).astype(np.float32)
    woven: NDArray[np.float32] = 75 + slow + _enlarge(fibres, shape_yx)
    return woven.clip(0, 240)


def _enlarge(field: NDArray[np.float32], shape_yx: tuple[int, int]) -> NDArray[np.float32]:
    picture = Image.fromarray(field).resize((shape_yx[1], shape_yx[0]), Image.Resampling.BICUBIC)
    return np.array(picture)


def _stain(haematoxylin: NDArray[np.uint8], eosin: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Beer-Lambert, by table: both stains 0 to 255, RGB out."""
    amount = np.arange(256, dtype=np.float32) / 160
    density = amount[:, None, None] * _HAEMATOXYLIN + amount[None, :, None] * _EOSIN
    table = (_GLASS * np.exp(-density)).round().astype(np.uint8)
    return table[haematoxylin, eosin]


def encode_pyramid(pixels: NDArray[np.uint8], mpp_um: float | None) -> bytes:
    """Encode a slide as a tiled JPEG pyramid in TIFF, each level half of the last.

    Args:
        pixels: uint8 (y, x, 3), RGB, level 0.
        mpp_um: Micrometres per level-0 pixel for the resolution tags, or None for no tags.

    Returns:
        The file; OpenSlide opens it as a generic tiled TIFF.
    """
    buffer = BytesIO()
    with tifffile.TiffWriter(buffer) as tiff:
        level = Image.fromarray(pixels)
        for number in range(_LEVELS):
            per_cm = 10_000 / (mpp_um * 2**number) if mpp_um else 0
            tiff.write(
                np.asarray(level),
                photometric="rgb",
                tile=(_TILE_PX, _TILE_PX),
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                subfiletype=min(number, 1),
                resolution=(per_cm, per_cm) if mpp_um else None,
                resolutionunit="CENTIMETER" if mpp_um else None,
                metadata=None,
                software=False,
            )
            level = level.reduce(2)
    return buffer.getvalue()


def _to_asap(lesions: list[_Lesion]) -> bytes:
    """ASAP's XML, with the groups of Camelyon16: `_0` lesions, `_2` excluded from them."""
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    outlines = [("_0", lesion.outline) for lesion in lesions]
    outlines += [("_2", lesion.hole) for lesion in lesions if lesion.hole is not None]
    for number, (group, outline) in enumerate(outlines):
        annotation = ET.SubElement(
            annotations,
            "Annotation",
            Name=f"Annotation {number}",
            Type="Polygon",
            PartOfGroup=group,
            Color="#F4FA58",
        )
        coordinates = ET.SubElement(annotation, "Coordinates")
        for order, (x, y) in enumerate(outline.tolist()):
            ET.SubElement(coordinates, "Coordinate", Order=str(order), X=str(x), Y=str(y))
    groups = ET.SubElement(root, "AnnotationGroups")
    for group in ("_0", "_2"):
        ET.SubElement(groups, "Group", Name=group, PartOfGroup="None", Color="#00ff00")
    ET.indent(root, "\t")
    content: bytes = ET.tostring(root, xml_declaration=True, encoding="utf-8")
    return content
