"""Chooses the reader of a slide by what each says that it can open.

A package of one's own adds a reader by an entry point of the group `normscope.slide_readers`; so
every worker finds it where the package is installed.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from pipeline.errors import SourceError
from pipeline.io.stand_ins import require_content
from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.slides.readers.picture_reader import PictureReader
from pipeline.slides.readers.protocol import READ_REMEDY, SlideReader
from pipeline.slides.readers.tiff_reader import OmeTiffReader, TiffReader

GROUP: Final = "normscope.slide_readers"
# OpenSlide before the readers of plain files, which would open a scanner's TIFF too.
_BUILT_IN: Final[tuple[type[SlideReader], ...]] = (
    OmeTiffReader,
    OpenSlideReader,
    TiffReader,
    PictureReader,
)
_DICOM_AT: Final = 128
_DICOM_MAGIC: Final = b"DICM"


@cache
def list_readers() -> tuple[type[SlideReader], ...]:
    """List the readers in the order in which they are asked: installed ones, then our own."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return (*(entry.load() for entry in found), *_BUILT_IN)


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
    for reader in list_readers():
        if reader.can_open(path):
            return reader(
                path, item=item, mpp_override_um=mpp_override_um, mpp_fallback_um=mpp_fallback_um
            )
    raise _refuse(path, item or str(path))


def _refuse(path: Path, item: str) -> SourceError:
    try:
        with path.open("rb") as file:
            start = file.read(_DICOM_AT + len(_DICOM_MAGIC))
    except OSError as error:
        return SourceError(item, f"cannot be read ({error.strerror})", READ_REMEDY)
    require_content(start, item)
    if start[_DICOM_AT:] == _DICOM_MAGIC:
        remedy = "`normscope ingest images` reads radiographs"
        return SourceError(item, "a DICOM file, but not of a whole-slide image", remedy)
    names = ", ".join(dict.fromkeys(reader.name for reader in list_readers()))
    problem = f"no reader ({names}) knows its format: truncated, corrupt or not a slide"
    return SourceError(item, problem, READ_REMEDY)
