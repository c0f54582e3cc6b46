"""Where the scanned part of a slide begins, as the table of parts holds it. Pure.

MIRAX and Leica slides are canvases of which only a part is scanned; OpenSlide states its bounds,
https://openslide.org/api/python/#standard-properties. QuPath shows that part alone, and its
coordinates count from its corner; everything else, our datasets included, counts from the canvas.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.records import Scalar


def state_bounds(bounds_yx: tuple[int, int]) -> dict[str, Scalar]:
    """State the corner of the scanned part as facts of a part; none where it is the slide's own.

    Args:
        bounds_yx: Corner of the scanned part, (y, x) in level-0 pixels.
    """
    y, x = bounds_yx
    return {"bounds_y_px": y, "bounds_x_px": x} if (y, x) != (0, 0) else {}


def find_bounds_yx(facts: Mapping[str, Scalar]) -> tuple[int, int]:
    """Find the corner of the scanned part among the facts of a slide's part.

    Args:
        facts: Facts of the part.

    Returns:
        (y, x) in level-0 pixels; (0, 0) where the whole slide was scanned.
    """
    return int(facts.get("bounds_y_px", 0)), int(facts.get("bounds_x_px", 0))
