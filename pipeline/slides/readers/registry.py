"""Chooses the reader of a slide by what each says that it can open."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.slides.readers.protocol import SlideReader

READERS: Final[tuple[type[SlideReader], ...]] = (OpenSlideReader,)


def open_slide(
    path: Path,
    *,
    item: str | None = None,
    mpp_override_um: float | None = None,
    mpp_fallback_um: float | None = None,
) -> SlideReader:
    """Open a slide with the first reader that can.

    Args:
        path: A local file; of a slide of several files, see `pipeline.slides.formats`, any DICOM
            file, or the `.mrxs`, `.vms` or `.vmu`.
        item: Name of the slide for errors, e.g. the URL that the file was staged from.
        mpp_override_um: um per level-0 pixel, both axes, in place of what the file says.
        mpp_fallback_um: um per level-0 pixel, both axes, where the file has none.

    Raises:
        SourceError: The file cannot be opened, or its um/px is absent or impossible.
    """
    for reader in READERS[:-1]:
        if reader.can_open(path):
            break
    else:
        reader = READERS[-1]
    return reader(path, item=item, mpp_override_um=mpp_override_um, mpp_fallback_um=mpp_fallback_um)
