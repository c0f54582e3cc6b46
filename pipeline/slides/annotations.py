"""Reads pathologists' outlines: ASAP XML or GeoJSON in, lesions and their shares out. Pure.

Geometry is shapely's, hence (x, y), in level-0 pixels; every array here is (y, x) as everywhere.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray
from pydantic_core import from_json
from shapely.geometry.base import BaseGeometry

from pipeline.errors import SourceError

# Camelyon16: `_0`, `_1` and `Tumor` are metastases, `_2` and `Exclusion` are holes in them
# (README of the challenge's lesion annotations).
LESION_GROUPS: Final = ("Tumor", "_0", "_1")
EXCLUDED_GROUPS: Final = ("_2", "Exclusion")

_AREA_TYPES: Final = frozenset({"Polygon", "Rectangle", "Spline"})
_REMEDY: Final = "Export the annotations from ASAP as XML, or from QuPath as GeoJSON"
# No slide is so large: at 0.1 um/px this is a metre.
_COORDINATE_LIMIT_PX: Final = 1e7
# Beyond this many vertices cutting a polygon in two pays for itself.
_PIECE_VERTICES: Final = 128


@dataclass(frozen=True, slots=True)
class Annotation:
    """One outline.

    Args:
        name: Name that its author gave it.
        group: Kind of region that it outlines, e.g. `Tumor`.
        geometry: A valid polygon or multi-polygon, (x, y) in level-0 pixels; empty for a shape
            without an area, such as a point or a line.
    """

    name: str
    group: str
    geometry: BaseGeometry


def parse_annotations(content: bytes, item: str) -> list[Annotation]:
    """Parse ASAP XML or GeoJSON; the first character tells which.

    Outlines that cross themselves are made valid by the even-odd rule. All forms of GeoJSON
    (RFC 7946) are read, and the bare list of features that QuPath exports; its `name` and the
    `name` of its `classification` are an outline's name and group.

    Args:
        content: Bytes of the annotation file.
        item: Name of the file, for errors.

    Raises:
        SourceError: It is neither, it is malformed, it is an XML bomb, or a coordinate is not
            finite or lies beyond any slide.
    """
    content = content.removeprefix(BOM_UTF8)
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
    """Unite the lesions of a slide into one geometry, less what is excluded from them.

    Args:
        annotations: All outlines on the slide.
        lesion_groups: Groups that outline lesions.
        excluded_groups: Groups that outline holes in lesions.
        item: Name of the file, for errors.

    Returns:
        A valid geometry, (x, y) in level-0 pixels; its `area` is the lesions' area in px^2, 0 where
        the file has no annotation.

    Raises:
        SourceError: There are annotations, but none of a lesion, or none of a lesion has an area:
            calling the slide normal would be a guess.
    """
    lesions = [found.geometry for found in annotations if found.group in lesion_groups]
    if annotations and not lesions:
        groups = ", ".join(sorted({repr(found.group) for found in annotations}))
        wanted = ", ".join(repr(group) for group in lesion_groups)
        raise SourceError(
            item,
            f"no annotation in a lesion group ({wanted}), only in {groups}",
            "Name the lesions' group in `lesion_groups` of `ingest slides`, or remove the file",
        )
    if lesions and not any(lesion.area for lesion in lesions):
        raise SourceError(
            item,
            f"none of its {len(lesions)} annotation(s) of lesions has an area: points and lines "
            "outline nothing",
            "Outline the lesions by polygons, or remove the file",
        )
    excluded = [found.geometry for found in annotations if found.group in excluded_groups]
    return shapely.difference(shapely.union_all(lesions), shapely.union_all(excluded))


def measure_lesion_fractions(
    lesions: BaseGeometry, origins_yx: NDArray[np.int64], extent_yx: tuple[int, int]
) -> NDArray[np.float64]:
    """Measure the share of each tile's area that is lesion, from exact polygon areas.

    Args:
        lesions: Geometry from `outline_lesions`, (x, y) in level-0 pixels.
        origins_yx: (n, 2), upper left corners of the tiles in level-0 pixels.
        extent_yx: Height and width of every tile in level-0 pixels.

    Returns:
        (n,), 0 to 1.
    """
    pieces = np.array(list(_cut_into_pieces(lesions)), dtype=object)
    top, left = origins_yx[:, 0], origins_yx[:, 1]
    boxes = shapely.box(left, top, left + extent_yx[1], top + extent_yx[0])
    # Pieces do not overlap, so their shares of a tile add up.
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
    except (ParseError, ValueError, LookupError) as error:  # the last by an unknown encoding
        kind = "hostile" if isinstance(error, DefusedXmlException) else "malformed"
        raise SourceError(item, f"{kind} XML ({error})", _REMEDY) from error
    if root.tag != "ASAP_Annotations":
        raise SourceError(item, f"not ASAP's: its root element is <{root.tag}>", _REMEDY)
    if root.find("./Annotations") is None:
        raise SourceError(item, "not ASAP's: it has no element <Annotations>", _REMEDY)
    return [
        _make_annotation(
            element.get("Name", ""),
            element.get("PartOfGroup", ""),
            _read_outline(element, item),
        )
        for element in root.iterfind("./Annotations/Annotation")
    ]


def _read_outline(element: Element, item: str) -> BaseGeometry:
    if element.get("Type") not in _AREA_TYPES:
        return shapely.Polygon()
    vertices: dict[int, tuple[float, float]] = {}
    name = element.get("Name", "")
    for vertex in element.iterfind("./Coordinates/Coordinate"):
        order, x, y = (vertex.get(key, "") for key in ("Order", "X", "Y"))
        values = f"Order={order!r} X={x!r} Y={y!r}"
        try:
            rank, corner = int(order), (float(x), float(y))
        except ValueError as error:
            problem = f"annotation {name!r} has a coordinate that is not a number: {values}"
            raise SourceError(item, problem, _REMEDY) from error
        if rank in vertices:
            problem = f"annotation {name!r} has two coordinates of one order, the second {values}"
            raise SourceError(item, problem, _REMEDY)
        vertices[rank] = corner
    # A click without a drag leaves one or two vertices: no area.
    ordered = [vertices[rank] for rank in sorted(vertices)]
    _require_possible(np.array(ordered), name, item)
    return shapely.Polygon(ordered) if len(ordered) > 2 else shapely.Polygon()


def _parse_geojson(content: bytes, item: str) -> list[Annotation]:
    try:
        document = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise SourceError(item, f"malformed JSON ({error})", _REMEDY) from error
    features = _list_features(document)
    if not isinstance(features, list):
        raise SourceError(item, "not GeoJSON: its `features` are not a list", _REMEDY)
    found = []
    for number, feature in enumerate(features, 1):
        try:
            name, group, outline = _read_feature(feature)
        except (TypeError, ValueError, shapely.GEOSException) as error:
            raise SourceError(item, f"not GeoJSON: feature {number}: {error}", _REMEDY) from error
        named = name or f"feature {number}"
        _require_possible(shapely.get_coordinates(outline), named, item)
        found.append(_make_annotation(name, group, outline))
    return found


def _list_features(document: Any) -> Any:
    if isinstance(document, list):
        return document
    if "features" in document:
        return document["features"]
    return [document if document.get("type") == "Feature" else {"geometry": document}]


def _read_feature(feature: Any) -> tuple[str, str, BaseGeometry]:
    """Return name, group and outline; a feature may have no geometry and no classification."""
    feature = _read_object({"feature": feature}, "feature")
    properties = _read_object(feature, "properties")
    classification = _read_object(properties, "classification")
    if "geometry" not in feature:
        raise ValueError("it has no geometry")
    geometry = _read_object(feature, "geometry")
    outline = shapely.from_geojson(json.dumps(geometry, allow_nan=False)) if geometry else None
    name, group = properties.get("name"), classification.get("name")
    return str(name or ""), str(group or ""), outline or shapely.Polygon()


def _read_object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a member that must be an object; empty where it is null or absent."""
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"its {name} is not an object but {str(value)[:40]!r}")
    return value


def _require_possible(coordinates: NDArray[np.float64], name: str, item: str) -> None:
    is_possible = np.abs(coordinates) <= _COORDINATE_LIMIT_PX  # NaN is not
    if not is_possible.all():
        raise SourceError(
            item,
            f"annotation {name!r} has the coordinate {coordinates[~is_possible][0]:g}: no slide "
            f"reaches beyond {_COORDINATE_LIMIT_PX:g} px",
            "Give coordinates in level-0 pixels",
        )


def _make_annotation(name: str, group: str, outline: BaseGeometry) -> Annotation:
    """Keep the valid, polygonal part of an outline."""
    geometry = shapely.make_valid(outline)
    areas = [part for part in shapely.get_parts(geometry) if part.area > 0]
    return Annotation(name, group, shapely.union_all(areas))
