"""Reads pathologists' outlines: a file of annotations in, lesions and their shares out. Pure.

Geometry is shapely's, hence (x, y), in level-0 pixels; every array here is (y, x) as everywhere.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias
from xml.etree.ElementTree import ParseError

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pipeline.errors import SourceError
from pipeline.io.stand_ins import require_content
from pipeline.slides.outlines import asap, imagescope
from pipeline.slides.outlines.annotation import REMEDY, Annotation, move_annotation
from pipeline.slides.outlines.geojson import parse_geojson
from pipeline.slides.outlines.groups import (
    EXCLUDED_GROUPS,
    LESION_GROUPS,
    Groups,
    name_groups,
)

AnnotationOrigin: TypeAlias = Literal["auto", "canvas", "bounds"]
# Beyond this many vertices cutting a polygon in two pays for itself.
_PIECE_VERTICES: Final = 128


def parse_annotations(
    content: bytes, item: str, *, corner_yx: tuple[int, int] = (0, 0)
) -> list[Annotation]:
    """Parse GeoJSON, or XML of ASAP or ImageScope; the first character and the root element tell.

    Outlines that cross themselves are made valid by the even-odd rule. All forms of GeoJSON
    (RFC 7946) are read, and the bare list of features that QuPath exports; its `name` and the
    `name` or `names` of its `classification` are an outline's name and group.

    Args:
        content: Bytes of the annotation file.
        item: Name of the file, for errors.
        corner_yx: Point that the file counts from, (y, x) in level-0 pixels; see `choose_corner`.

    Raises:
        SourceError: It is none of these, it is malformed, it is an XML bomb, or a coordinate is
            not finite or lies beyond any slide.
    """
    require_content(content, item)
    content = content.removeprefix(BOM_UTF8)
    found = parse_geojson(content, item) if is_geojson(content) else _parse_xml(content, item)
    if corner_yx == (0, 0):
        return found
    return [move_annotation(each, corner_yx) for each in found]


def is_geojson(content: bytes) -> bool:
    """Tell by its first character whether a file of annotations is GeoJSON."""
    return content.removeprefix(BOM_UTF8).lstrip()[:1] in {b"{", b"["}


def choose_corner(
    content: bytes, bounds_yx: tuple[int, int], origin: AnnotationOrigin = "auto"
) -> tuple[int, int]:
    """Choose the point of the slide that a file of annotations counts from.

    QuPath shows the scanned part of a slide alone where OpenSlide states its bounds, and its
    GeoJSON counts from the corner of that part. All other programs count from that of the canvas.

    Args:
        content: Bytes of the annotation file.
        bounds_yx: Corner of the scanned part, (y, x) in level-0 pixels; (0, 0) where the whole
            slide is scanned.
        origin: `canvas` or `bounds` for every file; `auto` for the bounds in GeoJSON alone.

    Returns:
        (y, x) in level-0 pixels.
    """
    is_cropped = is_geojson(content) if origin == "auto" else origin == "bounds"
    return bounds_yx if is_cropped else (0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """What a file of annotations says of a slide, (x, y) in level-0 pixels.

    Args:
        lesions: Lesions, less what is excluded from them; its `area` is theirs in px^2, 0 where
            the file has no annotation.
        unclear: Whatever else somebody has marked: outlines of groups of which nobody has said
            what they mean, and points and lines of lesions. What it touches is not known to be
            normal.
        remark: Remark for the manifest on what is unclear; "" where nothing is.
    """

    lesions: BaseGeometry
    unclear: BaseGeometry
    remark: str


def outline_lesions(
    annotations: Sequence[Annotation],
    *,
    lesion_groups: Collection[str] = LESION_GROUPS,
    excluded_groups: Collection[str] = EXCLUDED_GROUPS,
    item: str,
) -> BaseGeometry:
    """Unite the lesions of a slide into one geometry; see `sort_outlines`, whose part this is."""
    return sort_outlines(annotations, Groups(lesion_groups, excluded_groups), item=item).lesions


def sort_outlines(annotations: Sequence[Annotation], groups: Groups, *, item: str) -> Outlines:
    """Tell the lesions of a slide from what is excluded from them and from what is unclear.

    Args:
        annotations: All outlines on the slide.
        groups: Groups whose meaning is known.
        item: Name of the file, for errors.

    Raises:
        SourceError: There are annotations, but none of a lesion, or none of a lesion has an area:
            calling the slide normal would be a guess.
    """
    by_role: dict[str, list[Annotation]] = {"lesion": [], "excluded": [], "other": []}
    for each in annotations:
        if (role := groups.find_role(each)) != "ignored":
            by_role[role].append(each)
    lesions, excluded, others = by_role.values()
    if not lesions and (others or excluded):
        raise _refuse_groups([*others, *excluded], groups, item)
    if lesions and not any(lesion.geometry.area for lesion in lesions):
        raise SourceError(
            item,
            f"none of its {len(lesions)} annotation(s) of lesions has an area: points and lines "
            "outline nothing",
            "Outline the lesions by polygons, or remove the file",
        )
    drawn = [each for each in others if not each.maker]
    marked = [each for each in lesions if not each.marks.is_empty]
    unclear = [part for each in drawn for part in (each.geometry, each.marks)]
    return Outlines(
        shapely.difference(
            shapely.union_all([lesion.geometry for lesion in lesions]),
            shapely.union_all([each.geometry for each in excluded]),
        ),
        shapely.GeometryCollection([*unclear, *(each.marks for each in marked)]),
        _describe_unclear(drawn, marked, len(others) - len(drawn)),
    )


def _refuse_groups(others: Sequence[Annotation], groups: Groups, item: str) -> SourceError:
    named = sorted({repr(found.group) for found in others if found.group})
    if not all(found.group for found in others):
        named.append("outlines without a group (`''`)")
    wanted = ", ".join(repr(group) for group in groups.lesion)
    return SourceError(
        item,
        f"no annotation in a lesion group ({wanted}), only in {', '.join(named)}",
        "Name the lesions' group in `lesion_groups` of `ingest slides`, or remove the file",
    )


def _describe_unclear(
    drawn: Sequence[Annotation], marked: Sequence[Annotation], made_count: int
) -> str:
    """Say what the labels of tiles do not follow from; "" where they follow from all there is."""
    said = []
    if drawn:
        said.append(
            f"annotations that are neither lesion nor excluded ({name_groups(drawn)}): tiles that "
            "they touch and no lesion does have no label; say what the groups mean by "
            "`--lesion-groups`, `--excluded-groups` or `--ignored-groups`"
        )
    if marked:
        said.append(
            f"points or lines in place of outlines ({name_groups(marked)}): tiles that they touch "
            "and no outline does have no label"
        )
    if made_count:
        said.append(f"{made_count} objects that programs make, without a class, say nothing")
    return "; ".join(said)


def find_touched(
    geometry: BaseGeometry, origins_yx: NDArray[np.int64], extent_yx: tuple[int, int]
) -> NDArray[np.bool_]:
    """Find the tiles that a geometry of any kind touches; one that shares an edge alone does not.

    Args:
        geometry: Areas, points and lines, (x, y) in level-0 pixels; areas may overlap.
        origins_yx: (n, 2), upper left corners of the tiles in level-0 pixels.
        extent_yx: Height and width of every tile in level-0 pixels.

    Returns:
        (n,).
    """
    if geometry.is_empty:
        return np.zeros(len(origins_yx), np.bool_)
    parts = shapely.get_parts(geometry)
    has_area = shapely.get_dimensions(parts) == 2
    areas = shapely.GeometryCollection(parts[has_area].tolist())
    touched: NDArray[np.bool_] = measure_lesion_fractions(areas, origins_yx, extent_yx) > 0
    boxes = _make_boxes(origins_yx, extent_yx)
    marks = shapely.STRtree(boxes).query(parts[~has_area], predicate="intersects")
    touched[marks[1]] = True
    return touched


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
    boxes = _make_boxes(origins_yx, extent_yx)
    # Pieces do not overlap, so their shares of a tile add up.
    tile, piece = shapely.STRtree(pieces).query(boxes, predicate="intersects")
    areas = shapely.area(shapely.intersection(boxes[tile], pieces[piece]))
    shares = np.bincount(tile, weights=areas, minlength=len(boxes)) / (extent_yx[0] * extent_yx[1])
    return np.clip(shares, 0.0, 1.0)


def _make_boxes(origins_yx: NDArray[np.int64], extent_yx: tuple[int, int]) -> NDArray[np.object_]:
    top, left = origins_yx[:, 0], origins_yx[:, 1]
    return shapely.box(left, top, left + extent_yx[1], top + extent_yx[0])


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


def _parse_xml(content: bytes, item: str) -> list[Annotation]:
    try:
        root = fromstring(content)
    except (ParseError, ValueError, LookupError) as error:  # the last by an unknown encoding
        kind = "hostile" if isinstance(error, DefusedXmlException) else "malformed"
        raise SourceError(item, f"{kind} XML ({error})", REMEDY) from error
    if root.tag == asap.ROOT:
        return asap.parse_asap(root, item)
    if root.tag == imagescope.ROOT:
        return imagescope.parse_imagescope(root, item)
    problem = f"not ASAP's or ImageScope's: its root element is <{root.tag}>"
    raise SourceError(item, problem, REMEDY)
