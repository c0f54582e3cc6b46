"""Parses the XML of Aperio ImageScope: layers of regions, whose vertices are level-0 pixels. Pure.

Leica, Aperio ImageScope User's Guide, chapters on annotations: a layer (`Annotation`) holds regions
(`Region`), which are polygons (`Type` 0), rectangles (1), ellipses (2) or arrows and rulers; a
negative region (`NegativeROA`) is a hole.
"""

from __future__ import annotations

from typing import Final
from xml.etree.ElementTree import Element

import numpy as np
import shapely
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from pipeline.errors import SourceError
from pipeline.slides.outlines.annotation import Annotation, make_annotation, require_possible

ROOT: Final = "Annotations"
_REMEDY: Final = "Save the annotations again in ImageScope"
_ELLIPSE: Final = "2"
_AREAS: Final = frozenset({"0", "1", _ELLIPSE})
_ARC_SEGMENTS: Final = 64  # of a quarter of an ellipse


def parse_imagescope(root: Element, item: str) -> list[Annotation]:
    """Parse the regions below the root of an ImageScope file.

    A region is of the group that its own text, its layer's name or its layer's description names.

    Args:
        root: The root element.
        item: Name of the file, for errors.

    Raises:
        SourceError: A coordinate is not a number, not finite or lies beyond any slide.
    """
    found = []
    for layer in root.iterfind("./Annotation"):
        described = [
            attribute.get("Value", "")
            for attribute in layer.iterfind("./Attributes/Attribute")
            if attribute.get("Name") == "Description"
        ]
        above = (layer.get("Name", ""), *described)
        for region in layer.iterfind("./Regions/Region"):
            name = region.get("Text", "")
            lineage = tuple(text.strip() for text in (name, *above))
            is_hole = region.get("NegativeROA") == "1"
            outline = _read_outline(region, item)
            found.append(make_annotation(name, lineage, outline, is_hole=is_hole))
    return found


def _read_outline(region: Element, item: str) -> BaseGeometry:
    corners = []
    for vertex in region.iterfind("./Vertices/Vertex"):
        x, y = vertex.get("X", ""), vertex.get("Y", "")
        try:
            corners.append((float(x), float(y)))
        except ValueError as error:
            number = region.get("Id", "")
            problem = f"region {number!r} has a vertex that is not a number: X={x!r} Y={y!r}"
            raise SourceError(item, problem, _REMEDY) from error
    require_possible(np.array(corners), region.get("Text", ""), item)
    kind = region.get("Type", "0")
    if kind == _ELLIPSE and len(corners) > 1:
        return _draw_ellipse(corners)
    if kind in _AREAS and len(corners) > 2:
        return shapely.Polygon(corners)
    return shapely.LineString(corners) if len(corners) > 1 else shapely.MultiPoint(corners)


def _draw_ellipse(corners: list[tuple[float, float]]) -> BaseGeometry:
    """Draw the ellipse in the rectangle that the corners span."""
    left, top, right, bottom = shapely.MultiPoint(corners).bounds
    circle = shapely.Point((left + right) / 2, (top + bottom) / 2).buffer(0.5, _ARC_SEGMENTS)
    return affinity.scale(circle, right - left, bottom - top)
