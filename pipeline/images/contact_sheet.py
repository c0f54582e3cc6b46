"""The contact sheet of a dataset: a few images of each split and label, to be looked at. Pure.

Images that may have text burned into them come first, and are framed wherever they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.dicom.header import BurnedInText
from pipeline.records import SPLITS, Label

COLUMNS: Final = 12
_THUMBNAIL_PX: Final = 96
_MARGIN_PX: Final = 4
_CAPTION_PX: Final = 16
_INK: Final = (40, 40, 40)
_MARK: Final = (210, 0, 0)
_FLAGGED: Final[Mapping[BurnedInText, str]] = {
    "stated": "text burned in, as the files say",
    "possible": "text may be burned in",
}


@dataclass(frozen=True)
class Strip:
    """One line of the sheet.

    Args:
        caption: Text above the line of images.
        rows: Rows of the dataset that are shown, ascending.
        is_marked: Whether each row is framed, in the order of `rows`.
    """

    caption: str
    rows: tuple[int, ...]
    is_marked: tuple[bool, ...]


def choose_strips(
    splits: NDArray[Any],
    labels: NDArray[np.int8],
    readable: NDArray[np.bool_],
    burned_in_text: NDArray[Any] | None = None,
) -> list[Strip]:
    """Choose images of every split and label, evenly spread over the dataset's order.

    Args:
        splits: str (image,): the split of each image.
        labels: int8 (image,): the `Label` of each image.
        readable: bool (image,): the others are counted and not shown.
        burned_in_text: str (image,): `stated`, `possible` or `denied`, where it is known.

    Returns:
        Those that may have text burned in before all others.
    """
    flags = np.full(len(splits), "denied", object) if burned_in_text is None else burned_in_text
    groups = {title: flags == flag for flag, title in _FLAGGED.items()}
    is_flagged = np.isin(flags.astype(str), list(_FLAGGED))
    groups |= {
        f"{split}, {label.name.lower()}": (splits == split) & (labels == label)
        for split in SPLITS
        for label in Label
    }
    return [
        _choose_strip(title, is_member, readable, is_flagged)
        for title, is_member in groups.items()
        if is_member.any()
    ]


def _choose_strip(
    title: str,
    is_member: NDArray[np.bool_],
    readable: NDArray[np.bool_],
    is_flagged: NDArray[np.bool_],
) -> Strip:
    rows = np.flatnonzero(is_member & readable)
    shown = rows[np.linspace(0, len(rows) - 1, min(len(rows), COLUMNS)).astype(int)]
    lost = int(is_member.sum()) - len(rows)
    caption = f"{title}: {len(shown)} of {len(rows)}" + (f", {lost} unreadable" if lost else "")
    return Strip(caption, tuple(shown.tolist()), tuple(is_flagged[shown].tolist()))


def draw_contact_sheet(strips: Sequence[tuple[Strip, Sequence[NDArray[np.uint8]]]]) -> bytes:
    """Draw strips of images below each other.

    Args:
        strips: Each with the images of its rows, uint8 (H, W, 1 or 3).

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
    for line, (strip, images) in enumerate(strips):
        top = line * (cell + _CAPTION_PX) + _MARGIN_PX
        draw.text((_MARGIN_PX, top), strip.caption, fill=_INK)
        for place, (pixels, is_marked) in enumerate(zip(images, strip.is_marked, strict=True)):
            grey = pixels[..., 0] if pixels.shape[2] == 1 else pixels
            thumbnail = Image.fromarray(grey).resize((_THUMBNAIL_PX, _THUMBNAIL_PX))
            left, upper = _MARGIN_PX + place * cell, top + _CAPTION_PX
            if is_marked:
                frame = (left - 2, upper - 2, left + _THUMBNAIL_PX + 1, upper + _THUMBNAIL_PX + 1)
                draw.rectangle(frame, fill=_MARK)
            sheet.paste(thumbnail, (left, upper))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
