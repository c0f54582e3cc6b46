"""ChestX-ray14's `BBox_List_2017`: where some findings lie, drawn by hand in 880 radiographs.

The list gives x, y, width and height in pixels of the published PNG (1024 px). We keep them in
those pixels, in our order, as text in one column: `file_shape_yx` beside it and the settings
`crop_px` and `size_px` bring them to the pixels of the dataset.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from typing import Final

from pipeline.errors import SourceError
from pipeline.records import ManifestEntry
from pipeline.sources.chestxray14.table import FINDINGS
from pipeline.sources.tables import read_rows

# The list calls one finding otherwise than the table does.
_NAMES: Final[Mapping[str, str]] = {
    **{name: name for name in FINDINGS},
    "Infiltrate": "Infiltration",
}


def read_boxes(url: str) -> tuple[dict[str, str], tuple[ManifestEntry, ...]]:
    """Read the list of boxes.

    Args:
        url: Of the CSV file, which may be gzipped.

    Returns:
        Image name -> JSON: a list of [finding, y, x, height, width] in the file's pixels, upper
        left corner first; and the rows that could not be used, with the reason.

    Raises:
        SourceError: It is another table.
        StorageError: It cannot be read.
    """
    boxes: dict[str, list[tuple[str | float, ...]]] = {}
    rejected = []
    try:
        rows = list(read_rows(url))
    except csv.Error as error:
        raise SourceError(url, f"not a CSV table ({error})", "Give BBox_List_2017.csv") from error
    if not rows or [cell.strip() for cell in rows[0][:2]] != ["Image Index", "Finding Label"]:
        raise SourceError(
            url, "not the list of boxes: its columns differ", "Give BBox_List_2017.csv"
        )
    for number, cells in enumerate(rows[1:], 2):
        box = _parse_box(cells[1:6]) if len(cells) >= 6 else None
        if box is None:
            rejected.append(ManifestEntry(f"{url}, line {number}", "failed", "not a box"))
        else:
            boxes.setdefault(cells[0].strip(), []).append(box)
    texts = {name: json.dumps(found) for name, found in boxes.items()}
    return texts, tuple(rejected)


def _parse_box(cells: list[str]) -> tuple[str | float, ...] | None:
    finding = _NAMES.get(cells[0].strip())
    try:
        x, y, width, height = (round(float(cell), 3) for cell in cells[1:])
    except ValueError:
        return None
    is_box = all(map(math.isfinite, (x, y, width, height))) and min(x, y) >= 0
    return (finding, y, x, height, width) if finding and is_box and min(width, height) > 0 else None
