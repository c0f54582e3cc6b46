"""Reads TIFF slides that OpenSlide does not read, or not rightly.

An OME-TIFF keeps its pyramid in SubIFDs, https://docs.openmicroscopy.org/ome-model/latest/, of
which OpenSlide sees the finest level alone. A plain TIFF in strips is none of its formats. Files
are 8-bit RGB of either byte order, classic or BigTIFF.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.slides.readers.level_reader import LevelReader, SlideFacts
from pipeline.slides.readers.ome import OmeImage, parse_ome
from pipeline.slides.readers.tiff_level import (
    SegmentCache,
    TiffLevel,
    describe_refusal,
    find_levels,
)
from pipeline.slides.resolution import MppSource, StatedMpp, convert_resolution

_MAGIC: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, either byte order
_UNITS: Final = {2: "inch", 3: "centimeter"}
_MOST_PAGES: Final = 64  # of one pyramid; a chain that runs in a circle ends here


def is_tiff(path: Path) -> bool:
    """Tell from a local file's first bytes whether it is a TIFF."""
    try:
        with path.open("rb") as file:
            return file.read(4) in _MAGIC
    except OSError:
        return False


class TiffReader(LevelReader):
    """A plain TIFF: its first page, and pages that are marked as smaller versions of it."""

    name: ClassVar[str] = "tifffile"

    @classmethod
    def can_open(cls, path: Path) -> bool:
        """Tell whether it is any TIFF; formats of scanners are asked for before."""
        return is_tiff(path)

    def open(self, path: Path) -> SlideFacts:
        """Open a TIFF.

        Raises:
            SourceError: It is not 8-bit RGB.
        """
        self._tiff = tifffile.TiffFile(path, _multifile=False)
        self._file = path.open("rb", buffering=0)
        try:
            return self._describe()
        except BaseException:
            self.close()
            raise

    def read(
        self, level: int, start_yx: tuple[int, int], shape_yx: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a rectangle of a level from its tiles or strips."""
        return self._levels[level].read(start_yx, shape_yx)

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()
        self._file.close()

    def _describe(self) -> SlideFacts:
        first, *others = self._list_pages()
        below = [*_list_sub_pages(first), *(page for page in others if page.is_reduced)]
        return self._make_facts(first, below, "tiff", read_tags(first))

    def _list_pages(self) -> list[tifffile.TiffPage]:
        pages = islice(self._tiff.pages, _MOST_PAGES)
        return [page for page in pages if isinstance(page, tifffile.TiffPage)]

    def _make_facts(
        self,
        first: tifffile.TiffPage,
        below: list[tifffile.TiffPage],
        vendor: str,
        mpp: StatedMpp,
        associated: tuple[str, ...] = (),
    ) -> SlideFacts:
        if found := describe_refusal(first):
            raise self.refuse(found)
        cache = SegmentCache()
        pages = find_levels(first, iter(below))
        self._levels = [
            TiffLevel(page, self._file.fileno(), number, cache) for number, page in enumerate(pages)
        ]
        return SlideFacts(
            tuple(level.shape_yx for level in self._levels),
            vendor=vendor,
            mpp=mpp,
            level_tiles_yx=tuple(level.tile_yx for level in self._levels),
            icc_profile=first.iccprofile,
            associated=associated,
        )


class OmeTiffReader(TiffReader):
    """The largest image of an OME-TIFF with its pyramid in SubIFDs; um/px from its OME-XML."""

    @classmethod
    def can_open(cls, path: Path) -> bool:
        """Tell whether it is a TIFF whose description is OME-XML."""
        if not is_tiff(path):
            return False
        try:
            with tifffile.TiffFile(path, _multifile=False) as tiff:
                return bool(tiff.is_ome)
        except Exception:  # noqa: BLE001 - a parser of damaged files may raise anything
            return False

    def _describe(self) -> SlideFacts:
        images, uuid = parse_ome(self._tiff.ome_metadata or "")
        if not images:
            raise ValueError("its OME-XML describes no image")
        slide = max(images, key=lambda image: image.shape_yx[0] * image.shape_yx[1])
        if slide.file_name and uuid and slide.file_uuid != uuid:
            raise SourceError(
                self.item,
                f"its pixels are in another file ({slide.file_name})",
                "Name that file, or convert all to one",
            )
        pages = self._list_pages()
        if not 0 <= slide.ifd < len(pages):
            raise ValueError(f"page {slide.ifd} of {len(pages)} pages")
        first = pages[slide.ifd]
        if slide.planes > 1 or describe_refusal(first):
            raise self.refuse(_describe_image(slide, first))
        mpp = StatedMpp(slide.mpp_yx, "OME metadata") if slide.mpp_yx else read_tags(first)
        mpp = replace(mpp, power=slide.power)
        others = (image for image in images if image is not slide)
        associated = (image.kind or "image without a known name" for image in others)
        return self._make_facts(
            first, _list_sub_pages(first), "ome-tiff", mpp, tuple(sorted(associated))
        )


def read_tags(page: tifffile.TiffPage) -> StatedMpp:
    """Read the micrometres per pixel that a page's resolution tags state."""
    source: MppSource = "TIFF resolution tags"
    per_unit = []
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        numerator, denominator = tag.value if tag and len(tag.value) == 2 else (0, 1)
        per_unit.append(numerator / denominator if denominator else 0.0)
    unit = page.tags.get("ResolutionUnit")
    name = _UNITS.get(int(unit.value) if unit else 0, "")
    return StatedMpp(convert_resolution((per_unit[0], per_unit[1]), name), source)


def _list_sub_pages(page: tifffile.TiffPage) -> list[tifffile.TiffPage]:
    """List the pages that a page's SubIFDs hold."""
    found: list[tifffile.TiffPage] = []
    for number in range(min(len(page.subifds or ()), _MOST_PAGES)):
        below = page.pages[number] if page.pages else None
        if isinstance(below, tifffile.TiffPage):
            found.append(below)
    return found


def _describe_image(image: OmeImage, page: tifffile.TiffPage) -> str:
    names = ", ".join(filter(None, image.channels))
    count = max(len(image.channels), int(page.samplesperpixel))
    channels = "1 channel" if count == 1 else f"{count} channels"
    planes = f", {image.planes} planes" if image.planes > 1 else ""
    return f"{channels}{f' ({names})' if names else ''} of {image.pixel_type}{planes}"
