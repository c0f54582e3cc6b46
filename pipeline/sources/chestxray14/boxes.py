"""ChestX-ray14's `BBox_List_2017`: where some findings lie, drawn by hand in 880 radiographs.

The list gives x, y, width and height in pixels of the published PNG (1024 px). The dataset keeps
them in those pixels, in the order y, x, height, width, as text in the column `boxes_yxhw`, for an
evaluation of heatmaps. The column `file_shape_yx` and the settings `crop_px` and `size_px`
convert them to pixels of the dataset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Final

from pipeline.records import ManifestEntry
from pipeline.sources.chestxray14.table import FINDINGS
from pipeline.sources.tables import read_table

# The header is `Image Index,Finding Label,Bbox [x,y,w,h],,,`.
_COLUMNS: Final = {
    "image": ("Image Index",),
    "finding": ("Finding Label",),
    "x": ("Bbox [x",),
    "y": ("y",),
    "w": ("w",),
    "h": ("h]",),
}
_REMEDY: Final = "This is not the list of boxes: give BBox_List_2017.csv as it was published"
# The list calls one finding otherwise than the table does.
_NAMES: Final[Mapping[str, str]] = {
    **{name: name for name in FINDINGS},
    "Infiltrate": "Infiltration",
}


def read_boxes(url: str) -> tuple[dict[str, str], tuple[ManifestEntry, ...]]:
    """Read the list of boxes.

    Args:
        url: URL of the CSV file, gzipped or not.

    Returns:
        Image name -> JSON: a list of [finding, y, x, height, width] in the file's pixels, upper
        left corner first; and the rows that are not boxes.

    Raises:
        SourceError: The file is not that list.
        StorageError: The file cannot be read.
    """
    boxes: dict[str, list[tuple[str | float, ...]]] = {}
    rejected = []
    table = read_table(url, _COLUMNS, needed=_COLUMNS, remedy=_REMEDY)
    for number, row in table.number_rows():
        box = _parse_box(row)
        if box is None:
            rejected.append(ManifestEntry(f"{url}, line {number}", "failed", "not a box"))
        else:
            boxes.setdefault(row["image"], []).append(box)
    texts = {name: json.dumps(found) for name, found in boxes.items()}
    return texts, tuple(rejected)


def _parse_box(row: Mapping[str, str]) -> tuple[str | float, ...] | None:
    finding = _NAMES.get(row["finding"])
    try:
        x, y, width, height = (round(float(row[name]), 3) for name in ("x", "y", "w", "h"))
    except ValueError:
        return None
    is_box = all(map(math.isfinite, (x, y, width, height))) and min(x, y) >= 0
    return (finding, y, x, height, width) if finding and is_box and min(width, height) > 0 else None
