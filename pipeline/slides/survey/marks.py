"""Reads what pathologists have marked on a slide: where its lesions are, and what is unclear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import shapely
from shapely.geometry.base import BaseGeometry

from pipeline.errors import SourceError
from pipeline.io import storage
from pipeline.records import Label, Slide
from pipeline.slides.annotations import choose_corner, parse_annotations, sort_outlines
from pipeline.slides.outlines.groups import Groups
from pipeline.slides.readers.protocol import SlideReader
from pipeline.slides.settings import SlideSettings
from pipeline.slides.tiling import PairYX

_MOSTLY: Final = 0.99  # of the area of lesions; a hand may slip over an edge


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """What is marked on a slide, (x, y) in level-0 pixels.

    Args:
        lesions: Geometry of the lesions; None where nobody outlined them and the slide is not
            labelled normal.
        unclear: Whatever else is marked; tiles that it touches are not known to be normal.
        remarks: Remarks for the manifest.
    """

    lesions: BaseGeometry | None
    unclear: BaseGeometry
    remarks: tuple[str, ...] = ()


def read_marks(slide: Slide, reader: SlideReader, settings: SlideSettings) -> Marks:
    """Read a slide's annotation.

    Args:
        slide: The slide as listed.
        reader: The open slide.
        settings: Settings of the dataset.

    Raises:
        SourceError: The annotation cannot be used.
        StorageError: It cannot be fetched.
    """
    nothing = shapely.Polygon()
    url, is_normal = slide.annotation_url, slide.label is Label.NORMAL
    if url is None:
        return Marks(nothing if is_normal else None, nothing)
    content = storage.read_bytes(url)
    corner_yx = choose_corner(content, reader.bounds_yxhw[:2], settings.annotation_origin)
    groups = Groups(settings.lesion_groups, settings.excluded_groups, settings.ignored_groups)
    found = sort_outlines(parse_annotations(content, url, corner_yx=corner_yx), groups, item=url)
    remarks = tuple(filter(None, (describe_corner(corner_yx), found.remark)))
    if not found.lesions.area:
        return Marks(found.lesions if is_normal else None, found.unclear, remarks)
    if is_normal:
        raise SourceError(
            url,
            f"outlines lesions on {slide.slide_id}, which is labelled normal",
            "Correct the label or remove the annotation",
        )
    is_guess = settings.annotation_origin == "auto"
    _require_on_slide(found.lesions, url, reader, corner_yx, is_guess=is_guess)
    return Marks(found.lesions, found.unclear, remarks)


def describe_corner(corner_yx: PairYX, what: str = "annotation") -> str:
    """Say that a file counts from another point than the slide's corner; "" where it does not.

    Args:
        corner_yx: Point that the file counts from, (y, x) in level-0 pixels.
        what: Role of the file for the slide, `annotation` or `mask`.
    """
    if corner_yx == (0, 0):
        return ""
    return (
        f"its {what} counts from the corner of the scanned part, as QuPath does: y {corner_yx[0]} "
        f"and x {corner_yx[1]} px have been added (`--annotation-origin canvas` adds nothing)"
    )


def _require_on_slide(
    lesions: BaseGeometry, item: str, reader: SlideReader, corner_yx: PairYX, *, is_guess: bool
) -> None:
    """Check that lesions lie on the slide that they are meant to be of.

    A guess that they count from the scanned part is refused where they leave that part, and would
    not if they counted from the slide's own corner.
    """
    height, width = reader.level_shapes_yx[0]
    left, top, right, bottom = lesions.bounds
    place = f"(y {top:.0f} to {bottom:.0f}, x {left:.0f} to {right:.0f})"
    if not lesions.intersects(shapely.box(0, 0, width, height)):
        raise SourceError(
            item,
            f"all lesions {place} lie outside the slide of {height} x {width} px (y, x)",
            "Check that the annotation belongs to this slide",
        )
    if corner_yx == (0, 0) or not is_guess:
        return
    y, x, tall, wide = reader.bounds_yxhw
    on_part, on_canvas = (
        shapely.intersection(lesions, shapely.box(left, top, left + wide, top + tall)).area
        for left, top in ((x, y), (2 * x, 2 * y))  # where the part lies if they have been moved
    )
    if on_part < _MOSTLY * lesions.area <= on_canvas:
        raise SourceError(
            item,
            f"its lesions {place}, counted from the corner of the scanned part (y {y}, x {x}), "
            f"leave that part of {tall} x {wide} px (y, x)",
            "Ingest with `--annotation-origin canvas` if the file counts from the slide's own "
            "corner, or `--annotation-origin bounds` if it is right so",
        )
