"""Parses the XML of ASAP, https://github.com/computationalpathologygroup/ASAP. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from pipeline.errors import SourceError
from pipeline.slides.outlines.annotation import (
    REMEDY,
    Annotation,
    make_annotation,
    require_possible,
)
from pipeline.slides.outlines.groups import fold_group

ROOT: Final = "ASAP_Annotations"
_AREA_TYPES: Final = frozenset({"Polygon", "Rectangle", "Spline"})
_LINE_TYPES: Final = frozenset({"Measurement", "PolyLine"})


def parse_asap(root: Element, item: str) -> list[Annotation]:
    """Parse the annotations below the root of an ASAP file.

    Groups nest: an annotation is of its own group, of the one that this is part of, and so on.

    Args:
        root: The root element.
        item: Name of the file, for errors.

    Raises:
        SourceError: It is malformed, or a coordinate is not finite or lies beyond any slide.
    """
    if root.find("./Annotations") is None:
        raise SourceError(item, "not ASAP's: it has no element <Annotations>", REMEDY)
    parents = {
        fold_group(group.get("Name", "")): group.get("PartOfGroup", "")
        for group in root.iterfind("./AnnotationGroups/Group")
    }
    return [
        make_annotation(
            element.get("Name", ""),
            tuple(_climb(element.get("PartOfGroup", ""), parents)),
            _read_outline(element, item),
        )
        for element in root.iterfind("./Annotations/Annotation")
    ]


def _climb(group: str, parents: Mapping[str, str]) -> Iterator[str]:
    """Yield a group and those above it; groups that are part of each other end the climb."""
    seen: set[str] = set()
    while group and (folded := fold_group(group)) not in seen:
        yield group
        seen.add(folded)
        group = parents.get(folded, "")


def _read_outline(element: Element, item: str) -> BaseGeometry:
    vertices: dict[int, tuple[float, float]] = {}
    name = element.get("Name", "")
    for vertex in element.iterfind("./Coordinates/Coordinate"):
        order, x, y = (vertex.get(key, "") for key in ("Order", "X", "Y"))
        values = f"Order={order!r} X={x!r} Y={y!r}"
        try:
            rank, corner = int(order), (float(x), float(y))
        except ValueError as error:
            problem = f"annotation {name!r} has a coordinate that is not a number: {values}"
            raise SourceError(item, problem, REMEDY) from error
        if rank in vertices:
            problem = f"annotation {name!r} has two coordinates of one order, the second {values}"
            raise SourceError(item, problem, REMEDY)
        vertices[rank] = corner
    ordered = [vertices[rank] for rank in sorted(vertices)]
    require_possible(np.array(ordered), name, item)
    return _shape(element.get("Type", ""), ordered)


def _shape(kind: str, corners: list[tuple[float, float]]) -> BaseGeometry:
    # A click without a drag leaves one or two vertices: no area.
    if kind in _AREA_TYPES and len(corners) > 2:
        return shapely.Polygon(corners)
    if kind in _LINE_TYPES and len(corners) > 1:
        return shapely.LineString(corners)
    return shapely.MultiPoint(corners)
