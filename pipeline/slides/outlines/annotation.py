"""One outline of a file of annotations, and what the parsers of all forms share. Pure.

Geometry is shapely's, hence (x, y), in level-0 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from pipeline.errors import SourceError

REMEDY: Final = "Export the annotations from ASAP as XML, or from QuPath as GeoJSON"
# No slide is so large: at 0.1 um/px this is a metre.
_COORDINATE_LIMIT_PX: Final = 1e7
_AREA: Final = 2  # dimensions, as shapely counts them


@dataclass(frozen=True, slots=True)
class Annotation:
    """One outline.

    Args:
        name: Name that its author gave it.
        group: Kind of region that it outlines, e.g. `Tumor`; "" where none was chosen.
        geometry: A valid polygon or multi-polygon, (x, y) in level-0 pixels; empty for a shape
            without an area, such as a point or a line.
        marks: Points and lines, (x, y) in level-0 pixels; empty for a shape with an area alone.
        lineage: Names of the group and then of those that it is part of or derived from, the
            nearest first; empty where there is no group.
        is_hole: Whether it is drawn as a hole in the outlines of its group.
        maker: Kind of object, e.g. `tile`, where a program makes such in numbers without anybody
            having looked; "" for what somebody has drawn.
    """

    name: str
    group: str
    geometry: BaseGeometry
    marks: BaseGeometry
    lineage: tuple[str, ...] = ()
    is_hole: bool = False
    maker: str = ""


def make_annotation(
    name: str,
    lineage: tuple[str, ...],
    outline: BaseGeometry,
    *,
    is_hole: bool = False,
    maker: str = "",
) -> Annotation:
    """Make an annotation of an outline, made valid where it crosses itself.

    Args:
        name: Name that its author gave it.
        lineage: Names of the group and of those above it, the nearest first; empty ones are left
            out.
        outline: Shape of any kind, (x, y) in level-0 pixels.
        is_hole: Whether it is a hole in the outlines of its group.
        maker: Kind of object where a program has made it; "" for what somebody has drawn.
    """
    valid = shapely.make_valid(outline)
    area = shapely.union_all([part for part in shapely.get_parts(valid) if part.area > 0])
    marks = [part for part in _flatten(outline) if shapely.get_dimensions(part) < _AREA]
    if area.is_empty and not marks:  # a polygon of two corners, or of corners on a line
        marks = [shapely.MultiPoint(shapely.get_coordinates(outline))]
    names = tuple(filter(None, lineage))
    group = names[0] if names else ""
    return Annotation(
        name, group, area, shapely.GeometryCollection(marks), names, is_hole=is_hole, maker=maker
    )


def move_annotation(annotation: Annotation, corner_yx: tuple[int, int]) -> Annotation:
    """Count an annotation from the slide's corner in place of another point.

    Args:
        annotation: An annotation that counts from the other point.
        corner_yx: The other point, (y, x) in level-0 pixels.
    """
    y, x = corner_yx
    geometry, marks = (
        affinity.translate(part, x, y) for part in (annotation.geometry, annotation.marks)
    )
    return replace(annotation, geometry=geometry, marks=marks)


def _flatten(geometry: BaseGeometry) -> Iterator[BaseGeometry]:
    """Yield the parts of a geometry that are no collections."""
    for part in shapely.get_parts(geometry):
        if part.geom_type.startswith(("Multi", "GeometryCollection")):
            yield from _flatten(part)
        elif not part.is_empty:
            yield part


def require_possible(coordinates: NDArray[np.float64], name: str, item: str) -> None:
    """Refuse coordinates that no slide has.

    Args:
        coordinates: Coordinates of an outline in level-0 pixels, of any shape.
        name: Name of the outline, for the error.
        item: Name of the file, for the error.

    Raises:
        SourceError: One is not finite or lies beyond any slide.
    """
    is_possible = np.abs(coordinates) <= _COORDINATE_LIMIT_PX  # NaN is not
    if not is_possible.all():
        raise SourceError(
            item,
            f"annotation {name!r} has the coordinate {coordinates[~is_possible][0]:g}: no slide "
            f"reaches beyond {_COORDINATE_LIMIT_PX:g} px",
            "Give coordinates in level-0 pixels",
        )
