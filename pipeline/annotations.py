"""Pathologists' outlines: ASAP XML or GeoJSON in, lesion geometry and lesion shares out. Pure.

Geometry is shapely's, hence (x, y), in level-0 pixels; every array here is (y, x) as everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pipeline.errors import SourceError

# Camelyon16: `_0`, `_1` and `Tumor` are metastases, `_2` and `Exclusion` are holes in them
# (README of the challenge's lesion annotations).
LESION_GROUPS: Final = ("Tumor", "_0", "_1")
EXCLUDED_GROUPS: Final = ("_2", "Exclusion")

_AREA_TYPES: Final = frozenset({"Polygon", "Rectangle", "Spline"})
_REMEDY: Final = "Export the annotations from ASAP as XML, or from QuPath as GeoJSON"
# Beyond this many vertices cutting a polygon in two pays for itself.
_PIECE_VERTICES: Final = 128


@dataclass(frozen=True, slots=True)
class Annotation:
    """One outline.

    Args:
        name: As its author called it.
        group: What it outlines, e.g. `Tumor`.
        geometry: A valid polygon or multi-polygon, (x, y) in level-0 pixels.
    """

    name: str
    group: str
    geometry: BaseGeometry


def parse_annotations(content: bytes, item: str) -> list[Annotation]:
    """Parse ASAP XML or GeoJSON, told apart by the first character.

    Points and lines have no area and are left out. Outlines that cross themselves are made valid
    by the even-odd rule.

    Args:
        content: Of the file.
        item: The file's name, for errors.

    Raises:
        SourceError: It is neither, it is malformed, or it is an XML bomb.
    """
    if content.lstrip()[:1] in {b"{", b"["}:
        return _parse_geojson(content, item)
    return _parse_asap(content, item)


def outline_lesions(
    annotations: Sequence[Annotation],
    *,
    lesion_groups: Collection[str] = LESION_GROUPS,
    excluded_groups: Collection[str] = EXCLUDED_GROUPS,
    item: str,
) -> BaseGeometry:
    """The lesions of a slide as one geometry: their union, less what is excluded from them.

    Args:
        annotations: Of the slide.
        lesion_groups: Groups that outline lesions.
        excluded_groups: Groups that outline holes in lesions.
        item: The file's name, for errors.

    Returns:
        A valid geometry, (x, y) in level-0 pixels; its `area` is the lesions' area in px^2.

    Raises:
        SourceError: There are outlines, but none of a lesion: taking the slide for normal would
            be a guess.
    """
    lesions = [found.geometry for found in annotations if found.group in lesion_groups]
    if annotations and not lesions:
        groups = ", ".join(sorted({repr(found.group) for found in annotations}))
        wanted = ", ".join(repr(group) for group in lesion_groups)
        raise SourceError(
            item,
            f"no annotation in a lesion group ({wanted}), only in {groups}",
            "Name the lesions' group in the setting `lesion_groups`",
        )
    excluded = [found.geometry for found in annotations if found.group in excluded_groups]
    return shapely.difference(shapely.union_all(lesions), shapely.union_all(excluded))


def measure_lesion_fractions(
    lesions: BaseGeometry, origins_yx: NDArray[np.int64], extent_yx: tuple[int, int]
) -> NDArray[np.float64]:
    """Share of each tile's area that is lesion, from exact polygon areas.

    Args:
        lesions: Of `outline_lesions`, (x, y) in level-0 pixels.
        origins_yx: (n, 2), upper left corners in level-0 pixels.
        extent_yx: Height and width of every tile in level-0 pixels.

    Returns:
        (n,), 0 to 1.
    """
    pieces = np.array(list(_cut_into_pieces(lesions)), dtype=object)
    top, left = origins_yx[:, 0], origins_yx[:, 1]
    boxes = shapely.box(left, top, left + extent_yx[1], top + extent_yx[0])
    # Pieces overlap nowhere, so their shares of a tile add up.
    tile, piece = shapely.STRtree(pieces).query(boxes, predicate="intersects")
    areas = shapely.area(shapely.intersection(boxes[tile], pieces[piece]))
    shares = np.bincount(tile, weights=areas, minlength=len(boxes)) / (extent_yx[0] * extent_yx[1])
    return np.clip(shares, 0.0, 1.0)


def _cut_into_pieces(geometry: BaseGeometry) -> Iterator[BaseGeometry]:
    """Cut a geometry into polygons of few vertices: intersecting a tile then costs little."""
    for part in shapely.get_parts(geometry):
        if part.geom_type != "Polygon":
            # Touching outlines leave lines and points behind, nested collections now and then.
            if part.geom_type.startswith(("Multi", "Geometry")):
                yield from _cut_into_pieces(part)
            continue
        if shapely.get_num_coordinates(part) <= _PIECE_VERTICES:
            yield part
            continue
        left, top, right, bottom = part.bounds
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        halves = (
            ((left, top, middle_x, bottom), (middle_x, top, right, bottom))
            if right - left > bottom - top
            else ((left, top, right, middle_y), (left, middle_y, right, bottom))
        )
        for half in halves:
            yield from _cut_into_pieces(shapely.intersection(part, shapely.box(*half)))


def _parse_asap(content: bytes, item: str) -> list[Annotation]:
    try:
        root = fromstring(content)
    except (ParseError, ValueError) as error:
        kind = "hostile" if isinstance(error, DefusedXmlException) else "malformed"
        raise SourceError(item, f"{kind} XML ({error})", _REMEDY) from error
    if root.tag != "ASAP_Annotations":
        raise SourceError(item, f"not ASAP's: its root element is <{root.tag}>", _REMEDY)
    found = [
        _make_annotation(
            element.get("Name", ""),
            element.get("PartOfGroup", ""),
            _read_outline(element, item),
        )
        for element in root.iterfind("./Annotations/Annotation")
        if element.get("Type") in _AREA_TYPES
    ]
    return [annotation for annotation in found if annotation]


def _read_outline(element: Element, item: str) -> BaseGeometry:
    try:
        vertices = {
            int(vertex.attrib["Order"]): _read_vertex(vertex)
            for vertex in element.iterfind("./Coordinates/Coordinate")
        }
    except (KeyError, ValueError) as error:
        name = element.get("Name", "")
        problem = f"annotation {name!r} has a coordinate that is no number ({error})"
        raise SourceError(item, problem, _REMEDY) from error
    # A click without a drag leaves one or two vertices: no area.
    ordered = [vertices[order] for order in sorted(vertices)]
    return shapely.Polygon(ordered) if len(ordered) > 2 else shapely.Polygon()


def _read_vertex(vertex: Element) -> tuple[float, float]:
    x, y = float(vertex.attrib["X"]), float(vertex.attrib["Y"])
    if not (isfinite(x) and isfinite(y)):
        raise ValueError(f"X={x}, Y={y}")
    return x, y


def _parse_geojson(content: bytes, item: str) -> list[Annotation]:
    try:
        document = json.loads(content)
        features = document if isinstance(document, list) else document["features"]
        found = [
            _make_annotation(
                str(feature["properties"].get("name", "")),
                str((feature["properties"].get("classification") or {}).get("name", "")),
                shapely.from_geojson(json.dumps(feature["geometry"])),
            )
            for feature in features
        ]
    except (KeyError, TypeError, AttributeError, ValueError, shapely.GEOSException) as error:
        raise SourceError(item, f"not GeoJSON of polygons ({error!r})", _REMEDY) from error
    return [annotation for annotation in found if annotation]


def _make_annotation(name: str, group: str, outline: BaseGeometry) -> Annotation | None:
    """The valid, polygonal part of an outline; None if there is none."""
    geometry = shapely.make_valid(outline)
    areas = [part for part in shapely.get_parts(geometry) if part.area > 0]
    return Annotation(name, group, shapely.union_all(areas)) if areas else None
