"""The contact sheet of a dataset: a few images of each split and label, to be looked at. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.records import SPLITS, Label

COLUMNS: Final = 12
_THUMBNAIL_PX: Final = 96
_MARGIN_PX: Final = 4
_CAPTION_PX: Final = 16
_INK: Final = (40, 40, 40)


@dataclass(frozen=True)
class Strip:
    """One line of the sheet.

    Args:
        caption: Above it.
        rows: Of the dataset, ascending.
    """

    caption: str
    rows: tuple[int, ...]


def choose_strips(
    splits: NDArray[Any], labels: NDArray[np.int8], readable: NDArray[np.bool_]
) -> list[Strip]:
    """Choose images of every split and label, evenly spread over the dataset's order.

    Args:
        splits: str (image,).
        labels: int8 (image,).
        readable: bool (image,): the others are counted and not shown.
    """
    strips = []
    for split in SPLITS:
        for label in Label:
            is_member = (splits == split) & (labels == label)
            rows = np.flatnonzero(is_member & readable)
            lost = int(is_member.sum()) - len(rows)
            if not is_member.any():
                continue
            at = np.linspace(0, len(rows) - 1, min(len(rows), COLUMNS)).astype(int)
            caption = f"{split}, {label.name.lower()}: {len(at)} of {len(rows)}"
            caption += f", {lost} unreadable" if lost else ""
            strips.append(Strip(caption, tuple(int(row) for row in rows[at])))
    return strips


def draw_contact_sheet(strips: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]]) -> bytes:
    """Draw strips of images below each other.

    Args:
        strips: For each its caption and its images, uint8 (H, W, 1 or 3).

    Returns:
        A PNG; equal images give equal bytes.
    """
    cell = _THUMBNAIL_PX + _MARGIN_PX
    size = (
        COLUMNS * cell + _MARGIN_PX,
        max(len(strips), 1) * (cell + _CAPTION_PX) + _MARGIN_PX,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for line, (caption, images) in enumerate(strips):
        top = line * (cell + _CAPTION_PX) + _MARGIN_PX
        draw.text((_MARGIN_PX, top), caption, fill=_INK)
        for place, pixels in enumerate(images):
            grey = pixels[..., 0] if pixels.shape[2] == 1 else pixels
            thumbnail = Image.fromarray(grey).resize((_THUMBNAIL_PX, _THUMBNAIL_PX))
            sheet.paste(thumbnail, (_MARGIN_PX + place * cell, top + _CAPTION_PX))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
